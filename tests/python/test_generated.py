# SPDX-License-Identifier: Apache-2.0
"""1,000 random calls (10,000 with ATTENTILE_FULL=1), forward and backward, through NumPy and torch.

Each is held against the float64 oracle; torch must give NumPy's bits, and NaN put where nothing
may look must change none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import torch
from generated import Call, cached_calls, dense_calls, packed_calls, to_torch
from hypothesis import given, settings
from oracle import CEILING, UNIT, Result, assert_close, cases, float64, same_bits

import attentile

_FLOATS = ("bias", "sink", "alibi_slopes")


def _reference(call: Call, requires_grad: bool) -> tuple[Result, dict[str, torch.Tensor]]:
    """The oracle's result and its inputs, which hold a graph."""
    leaves = {name: float64(x, requires_grad) for name, x in zip("qkv", call.tokens, strict=True)}
    keywords = dict(call.keywords)
    for name in _FLOATS:
        if name in keywords:
            leaves[name] = keywords[name] = float64(keywords[name], requires_grad)
    if "bias" in leaves:  # its gradient before the sum over what broadcasts
        leaves["scores"] = keywords["bias"] = leaves["bias"].expand(call.scores)
    return oracle.attention(leaves["q"], leaves["k"], leaves["v"], **keywords), leaves


def _gradients_in(call: Call, out: Any, lse: Any) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(out.size)
    return (rng.standard_normal(out.shape).astype(out.dtype),
            rng.standard_normal(lse.shape).astype(lse.dtype))


def _check_forward(call: Call, want: Result) -> tuple[np.ndarray, np.ndarray]:
    out, lse = attentile.attention(*call.tokens, return_lse=True, **call.keywords)
    tolerance = CEILING[call.dtype]
    assert out.dtype == call.tokens[0].dtype
    assert_close("out", out, want.out, tolerance)
    assert_close("lse", lse, want.lse, CEILING["float64" if call.dtype == "float64" else "float32"])
    return out, lse


def _check_backward(call: Call, want: Result, leaves: dict[str, torch.Tensor],
                    results: tuple[np.ndarray, np.ndarray]) -> attentile.Gradients:
    dout, dlse = _gradients_in(call, *results)
    visible = torch.isfinite(want.lse.detach())
    total = (want.out * float64(dout)).sum()
    total = total + (torch.where(visible, want.lse, 0.0) * float64(dlse)).sum()
    names = [n for n in ("q", "k", "v", "sink", "bias", "scores") if n in leaves]
    reference = dict(zip(names, torch.autograd.grad(
        total, [leaves[n] for n in names], allow_unused=True, materialize_grads=True),
        strict=True))
    got = attentile.attention_backward(dout, *call.tokens, *results, dlse=dlse, **call.keywords)
    rounding = 0.0
    if "scores" in reference:
        sums = reference.pop("scores").abs().sum_to_size(leaves["bias"].shape)
        rounding = 4 * UNIT[call.dtype] * float(sums.max()) if sums.numel() else 0.0
    for name, wanted in reference.items():
        assert_close(f"d{name}", getattr(got, f"d{name}"), wanted, 4 * CEILING[call.dtype],
                     rounding if name == "bias" else 0.0)
    return got


def _check_torch(call: Call, results: tuple[np.ndarray, np.ndarray],
                 gradients: attentile.Gradients) -> None:
    """Autograd gives the bits of attention_backward."""
    keywords = {name: to_torch(x) for name, x in call.keywords.items()}
    tokens = [to_torch(x).requires_grad_() for x in call.tokens]
    leaves = [*tokens, *(keywords[n].requires_grad_() for n in ("bias", "sink") if n in keywords)]
    out, lse = attentile.torch.attention(*tokens, return_lse=True, **keywords)
    same_bits("torch out", out, results[0])
    same_bits("torch lse", lse, results[1])
    dout, dlse = (to_torch(x) for x in _gradients_in(call, *results))
    got = torch.autograd.grad((out, lse), leaves, (dout, dlse))
    for x, y in zip(got, (g for g in gradients if g is not None), strict=True):
        same_bits("torch gradient", x, y)


def _hidden_keys(call: Call, visible: list[torch.Tensor]) -> list[tuple[int, int, int]]:
    """(batch, head of k, key) of every key that no row sees; dense calls."""
    heads_kv = call.tokens[1].shape[1 if call.keywords.get("layout") == "bhsd" else 2]
    found = []
    for b, seen in enumerate(visible):
        group = seen.shape[0] // heads_kv
        by_group = seen.reshape(heads_kv, group * seen.shape[1], seen.shape[2]).any(1)
        found += [(b, h, j) for h, j in (~by_group).nonzero().tolist()]
    return found


def _poisoned(call: Call, visible: list[torch.Tensor]) -> Call | None:
    """The call with NaN and infinity in every hidden key and value, and beyond seqused_k."""
    q, k, v = (x.copy() for x in call.tokens)
    by_key = [x.swapaxes(1, 2) if call.keywords.get("layout") == "bhsd" else x for x in (k, v)]
    hidden = _hidden_keys(call, visible)
    used = call.keywords.get("seqused_k")
    if not hidden and (used is None or (used == by_key[0].shape[1]).all()):
        return None
    for b, h, j in hidden:
        by_key[0][b, j, h], by_key[1][b, j, h] = np.nan, (np.nan, np.inf)[j % 2]
    for b, n in enumerate([] if used is None else used):
        by_key[0][b, n:], by_key[1][b, n:] = np.nan, np.nan
    keywords = dict(call.keywords)
    bias = keywords.get("bias")
    if bias is not None and bias.ndim == 4 and used is None and all(
            bias.shape[i] == n for i, n in enumerate((len(visible), *visible[0].shape))):
        bias = bias.copy()
        bias[~torch.stack(visible).numpy()] = np.nan
        keywords["bias"] = bias
    return Call(call.dtype, (q, k, v), keywords, call.scores)


def _check_poison(call: Call, visible: list[torch.Tensor],
                  results: tuple[np.ndarray, np.ndarray], clean: attentile.Gradients) -> None:
    poisoned = _poisoned(call, visible)
    if poisoned is None:
        return
    again = attentile.attention(*poisoned.tokens, return_lse=True, **poisoned.keywords)
    for x, y in zip(again, results, strict=True):
        same_bits("hidden NaN, forward", x, y)
    dout, dlse = _gradients_in(call, *results)
    gradients = attentile.attention_backward(dout, *poisoned.tokens, *results, dlse=dlse,
                                             **poisoned.keywords)
    for x, y in zip(gradients, clean, strict=True):
        if y is not None:
            same_bits("hidden NaN, backward", x, y)


def _check_seen_nan(call: Call, visible: list[torch.Tensor],
                    results: tuple[np.ndarray, np.ndarray]) -> None:
    """NaN in one key: rows that see it are NaN, every other row keeps its bits."""
    q, k, v = (x.copy() for x in call.tokens)
    swapped = call.keywords.get("layout") == "bhsd"
    keys, out = (x.swapaxes(1, 2) if swapped else x for x in (k, results[0]))
    if not visible or visible[0].shape[-1] == 0:
        return
    j = visible[0].shape[-1] // 2
    keys[0, j, 0] = np.nan
    spoiled = attentile.attention(q, k, v, **call.keywords)
    spoiled = spoiled.swapaxes(1, 2) if swapped else spoiled
    group = out.shape[2] // keys.shape[2]
    sees = torch.zeros(out.shape[:3], dtype=torch.bool)
    sees[0, :, :group] = visible[0][:group, :, j].T
    mask = sees.numpy()
    assert np.isnan(spoiled[mask].astype(np.float64)).all()
    same_bits("rows that do not see NaN", spoiled[~mask], out[~mask])


@settings(max_examples=cases(600))
@given(dense_calls())
def test_dense(call: Call) -> None:
    want, leaves = _reference(call, True)
    results = _check_forward(call, want)
    gradients = _check_backward(call, want, leaves, results)
    _check_torch(call, results, gradients)
    _check_poison(call, want.visible, results, gradients)
    _check_seen_nan(call, want.visible, results)


@settings(max_examples=cases(250))
@given(packed_calls())
def test_packed(call: Call) -> None:
    want, leaves = _reference(call, True)
    results = _check_forward(call, want)
    gradients = _check_backward(call, want, leaves, results)
    _check_torch(call, results, gradients)


@settings(max_examples=cases(150))
@given(cached_calls())
def test_cached(call: Call) -> None:
    want, _ = _reference(call, False)
    results = _check_forward(call, want)
    tensors = {name: to_torch(x) for name, x in call.keywords.items()}
    out = attentile.torch.attention(*(to_torch(x) for x in call.tokens), **tensors)
    same_bits("torch out", out, results[0])

# SPDX-License-Identifier: Apache-2.0
"""Attention in float64, written from its definition, one sequence at a time.

Nothing here calls attentile. Results are tensors of torch with a graph, so autograd gives the
gradients. Dropout replays Philox4x32-10 from the positions alone.
"""

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple

import numpy as np
import torch

# Largest error relative to the largest reference value, of results; of gradients four times that.
CEILING = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
# Half a unit in the last place of 1.
UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
ULP_OF_FLOAT32 = 2.0**-23
_INF = math.inf


def cases(count: int) -> int:
    """How many cases a generated test runs; ten times as many with ATTENTILE_FULL=1."""
    return 10 * count if os.environ.get("ATTENTILE_FULL") == "1" else count


class Result(NamedTuple):
    """out and lse shaped as the call's, and visible[b]: bool [num_heads_q, seqlen_q, seqlen_k]."""

    out: torch.Tensor
    lse: torch.Tensor
    visible: list[torch.Tensor]


def float64(array: Any, requires_grad: bool = False) -> torch.Tensor:
    """A float64 copy of an array of any kind."""
    if isinstance(array, torch.Tensor):
        copy = array.detach().to(torch.float64).clone()
    else:
        copy = torch.from_numpy(np.array(array).astype(np.float64))
    return copy.requires_grad_(requires_grad)


def philox(counter: list[np.ndarray], key: tuple[int, int]) -> list[np.ndarray]:
    """Philox4x32-10 (Salmon et al. 2011) of arrays of counters held in uint64."""
    low = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = (np.asarray(c, np.uint64) & low for c in counter)
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = ((p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0), p1 & low,
                          (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1), p0 & low)
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


# The scalars that enter the counter; what a call leaves out is 0.
DROPOUT = ("dropout_seed", "dropout_offset", "query_base", "key_base", "head_base", "batch_base",
           "dropout_num_heads_q")


def keep_decisions(p: float, b: int, shape: tuple[int, int, int], **at: int) -> torch.Tensor:
    """The keep decisions of sequence b, bool [num_heads_q, seqlen_q, seqlen_k]."""
    heads, rows, keys = shape
    seed, offset = at.get("dropout_seed", 0), at.get("dropout_offset", 0)
    h = np.arange(heads)[:, None, None] + at.get("head_base", 0)
    i = np.arange(rows)[None, :, None] + at.get("query_base", 0)
    j = np.arange(keys)[None, None, :] + at.get("key_base", 0)
    all_heads = at.get("dropout_num_heads_q", 0) or heads
    c0, c1, c2 = np.broadcast_arrays(4 * (j // 32) + j % 8 // 2, i,
                                     (b + at.get("batch_base", 0)) * all_heads + h)
    key = (seed & 0xFFFFFFFF, (seed >> 32) ^ (offset >> 32))
    words = np.stack(philox([c0, c1, c2, np.full(c0.shape, offset & 0xFFFFFFFF)], key))
    lane = np.broadcast_to(2 * (j % 32 // 8) + j % 2, c0.shape)
    word = np.take_along_axis(words, (lane // 2)[None], 0)[0]
    value = (word >> (16 * (lane % 2)).astype(np.uint64)) & np.uint64(0xFFFF)
    return torch.from_numpy(value >= math.floor(65536 * p + 0.5))


def _band(rows: int, keys: int, scalars: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """(signed distance j - i - offset, what causal and window leave visible), [rows, keys]."""
    offset = scalars.get("position_offset")
    if offset is None:
        offset = 0 if scalars.get("alignment") == "top_left" else keys - rows
    distance = torch.arange(keys)[None, :] - torch.arange(rows)[:, None] - offset
    left, right = scalars.get("window_left", -1), scalars.get("window_right", -1)
    visible = torch.ones(rows, keys, dtype=torch.bool)
    if scalars.get("causal"):
        right = 0
    if left >= 0:
        visible &= distance >= -left
    if right >= 0:
        visible &= distance <= right
    return distance, visible


def _of_sequence(x: Any, b: int, rows: int, keys: int) -> Any:
    """bias or mask [., ., i, j] of sequence b: [heads or 1, rows or 1, keys or 1]."""
    while x.dim() < 4:
        x = x.unsqueeze(0)
    x = x[b if x.shape[0] > 1 else 0]
    return x[:, : rows if x.shape[1] > 1 else 1, : keys if x.shape[2] > 1 else 1]


def _tiles(block_mask: torch.Tensor, rows: int, keys: int,
           scalars: dict[str, Any]) -> torch.Tensor:
    i = torch.arange(rows) // scalars["block_size_q"]
    j = torch.arange(keys) // scalars["block_size_k"]
    return block_mask.bool()[:, i][:, :, j]


def _sequence(b: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, terms: dict[str, Any],
              scalars: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(out, lse, visible) of q [heads_q, rows, d] over k, v [heads_kv, keys, d]."""
    heads, rows, dim = q.shape
    keys = k.shape[1]
    if heads:
        k, v = (x.repeat_interleave(heads // x.shape[0], 0) for x in (k, v))
    scale = scalars.get("softmax_scale")
    logits = (dim ** -0.5 if scale is None else scale) * (q @ k.transpose(1, 2))
    cap = scalars.get("softcap", 0.0)
    if cap:
        logits = cap * torch.tanh(logits / cap)
    distance, band = _band(rows, keys, scalars)
    visible = band.expand(heads, rows, keys)
    if terms.get("bias") is not None:
        logits = logits + _of_sequence(terms["bias"], b, rows, keys)
    if terms.get("alibi_slopes") is not None:
        slopes = terms["alibi_slopes"]
        slopes = slopes[b] if slopes.dim() == 2 else slopes
        logits = logits - slopes[:, None, None] * distance.abs()
    if terms.get("mask") is not None:
        visible = visible & _of_sequence(terms["mask"], b, rows, keys).bool()
    if terms.get("block_mask") is not None:
        visible = visible & _tiles(terms["block_mask"], rows, keys, scalars)
    counted = visible & (logits.detach() != -_INF)
    sink = terms.get("sink")
    dead = ~counted.any(-1)
    alone = dead if sink is None else torch.zeros_like(dead)  # rows whose sum is empty
    logits = logits.masked_fill(~counted, -_INF).masked_fill(alone[..., None], 0.0)
    if sink is not None:
        column = sink[:, None, None].expand(heads, rows, 1)
        logits = torch.cat([logits, column], -1)
    if logits.shape[-1] == 0:
        lse = q.new_full((heads, rows), -_INF)
    else:
        lse = torch.logsumexp(logits, -1)
    weights = torch.exp(logits[..., :keys] - lse[..., None]).masked_fill(~counted, 0.0)
    p = scalars.get("dropout_p", 0.0)
    if p:
        at = {name: scalars.get(name, 0) for name in DROPOUT}
        keep = keep_decisions(p, b, (heads, rows, keys), **at)
        weights = weights * keep * (1 / (1 - p) if p < 1 else 0.0)
    return weights @ v, lse.masked_fill(alone, -_INF), visible


def _keys_of(b: int, k: torch.Tensor, index: dict[str, Any]) -> torch.Tensor:
    """Rows of k (or v) that sequence b uses, [heads, rows, d]; k is [., rows, heads, d]."""
    def entry(name: str, otherwise: int) -> int:
        return otherwise if index.get(name) is None else int(index[name][b])

    table = index.get("block_table")
    if table is not None:
        rows = torch.cat([k[int(page) % k.shape[0]] for page in table[b]])
    elif index.get("cu_seqlens_k") is not None:
        ends = index["cu_seqlens_k"]
        rows = k[int(ends[b]):int(ends[b + 1])]
    else:
        rows = k[entry("cache_batch_idx", b)]
    rows = rows[entry("leftpad_k", 0):entry("seqused_k", rows.shape[0])]
    return rows.transpose(0, 1)


_INDEX = ("cu_seqlens_q", "cu_seqlens_k", "seqused_k", "block_table", "cache_batch_idx",
          "leftpad_k")
_TERMS = ("bias", "mask", "sink", "alibi_slopes", "block_mask")


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **keywords: Any) -> Result:
    """What `attentile.attention` of the same keywords returns; terms and q, k, v in float64."""
    index = {name: keywords.pop(name, None) for name in _INDEX}
    terms = {name: keywords.pop(name, None) for name in _TERMS}
    for name in ("mask", "block_mask"):
        if terms[name] is not None and not isinstance(terms[name], torch.Tensor):
            terms[name] = torch.from_numpy(np.array(terms[name]))
    swapped = keywords.get("layout") == "bhsd" and index["cu_seqlens_q"] is None
    if swapped:
        q = q.transpose(1, 2)
    if keywords.get("layout") == "bhsd" and k.dim() == 4:
        k, v = k.transpose(1, 2), v.transpose(1, 2)
    ends = index["cu_seqlens_q"]
    batch = q.shape[0] if ends is None else len(ends) - 1
    outs, lses, visible = [], [], []
    for b in range(batch):
        rows = q[b] if ends is None else q[int(ends[b]):int(ends[b + 1])]
        out, lse, seen = _sequence(b, rows.transpose(0, 1), _keys_of(b, k, index),
                                   _keys_of(b, v, index), terms, keywords)
        outs.append(out.transpose(0, 1))
        lses.append(lse)
        visible.append(seen)
    shape = (*q.shape[:-1], v.shape[-1])
    if not batch:
        lse_shape = (q.shape[0], q.shape[2], q.shape[1]) if ends is None else q.shape[1::-1]
        return Result(q.new_zeros(shape).transpose(1, 2) if swapped else q.new_zeros(shape),
                      q.new_zeros(lse_shape), [])
    if ends is not None:
        return Result(torch.cat(outs), torch.cat(lses, 1), visible)
    out = torch.stack(outs)
    return Result(out.transpose(1, 2) if swapped else out, torch.stack(lses), visible)


def assert_close(name: str, got: Any, want: torch.Tensor, tolerance: float,
                 rounding: float = 0.0) -> None:
    """got is want but for tolerance times the largest finite value of want; NaN never passes.

    rounding is an error that the sums behind want may have by their terms' size alone.
    """
    g, w = float64(got), want.detach()
    assert g.shape == w.shape, f"{name}: shape {tuple(g.shape)}, expected {tuple(w.shape)}"
    if not w.numel():
        return
    infinite = torch.isinf(w)
    assert torch.equal(g[infinite], w[infinite]), f"{name}: infinite values differ"
    g, w = g[~infinite], w[~infinite]
    if not w.numel():
        return
    largest = max(float(w.abs().max()), FLOOR)
    error = float((g - w).abs().max())
    ulp = ULP_OF_FLOAT32 if "float32" in str(got.dtype) else 0.0  # dsink of float64 tokens, say
    allowed = max(tolerance * largest, ulp * largest, rounding)
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


# Reference values that are all tiny are no measure of rounding: inputs are of N(0, 1).
FLOOR = 0.25


def same_bits(name: str, a: Any, b: Any) -> None:
    """a and b hold the same bits."""
    x, y = (np.ascontiguousarray(as_numpy(z)) for z in (a, b))
    assert x.dtype == y.dtype and x.shape == y.shape, f"{name}: {x.dtype} {x.shape}, " \
                                                      f"{y.dtype} {y.shape}"
    differ = int((x.reshape(-1).view(np.uint8) != y.reshape(-1).view(np.uint8)).sum())
    assert differ == 0, f"{name}: {differ} bytes of {x.nbytes} differ"


def as_numpy(array: Any) -> Any:
    """An array of any kind as NumPy's; bfloat16 as its uint16 bits."""
    if isinstance(array, torch.Tensor):
        array = array.detach()
        return (array.view(torch.uint16) if array.dtype == torch.bfloat16 else array).numpy()
    array = np.asarray(array)
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array

# SPDX-License-Identifier: Apache-2.0
"""attentile.torch.attention: gradients, autocast, dropout, forms of tensors."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from features import DTYPES, FEATURES, normal, tokens, with_leaves
from oracle import CEILING, assert_close, float64, keep_decisions, same_bits
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import attentile
from attentile.torch import attention, attention_backward

Tensor = torch.Tensor
features = pytest.mark.parametrize("feature", FEATURES)


@features
def test_gradcheck(feature: str) -> None:
    """Numerical derivatives of out and lse, for q, k, v and bias."""
    keywords = dict(FEATURES[feature])
    bias = keywords.pop("bias", None)
    given = [*tokens(), *([] if bias is None else [bias.clone().requires_grad_()])]

    def call(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor) -> Any:
        extra = {"bias": rest[0]} if rest else {}
        out, lse = attention(q, k, v, return_lse=True, **keywords, **extra)
        return out, torch.nan_to_num(lse, neginf=0.0)

    assert torch.autograd.gradcheck(call, given)


@features
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_every_input(dtype: torch.dtype, feature: str) -> None:
    """out, lse and the gradients of q, k, v, bias and sink against the oracle."""
    keywords, leaves = with_leaves(feature, dtype)
    given = tokens(dtype=dtype)
    out, lse = attention(*given, return_lse=True, **keywords)
    assert out.dtype == dtype and out.requires_grad and lse.requires_grad
    dout = normal(*out.shape).to(out.dtype)
    dlse = normal(*lse.shape, seed=7).to(lse.dtype).masked_fill(torch.isinf(lse), 0)
    got = torch.autograd.grad((out, lse), [*given, *leaves], (dout, dlse))

    wide = [float64(x, True) for x in (*given, *leaves)]
    names = [n for n in ("bias", "sink") if n in keywords]
    terms = dict(zip(names, wide[3:], strict=True))
    if "alibi_slopes" in keywords:
        terms["alibi_slopes"] = keywords["alibi_slopes"].double()
    want = oracle.attention(*wide[:3], **{**keywords, **terms})
    name = str(dtype).removeprefix("torch.")
    assert_close("out", out, want.out, CEILING[name])
    finite = torch.where(torch.isinf(want.lse), 0.0, want.lse)
    total = (want.out * dout.double()).sum() + (finite * dlse.double()).sum()
    for x, y in zip(got, torch.autograd.grad(total, wide), strict=True):
        assert_close("gradient", x, y, 4 * CEILING[name])


@pytest.mark.parametrize("feature", ["plain", "causal top-left", "scale", "bias", "bias of keys",
                                     "bool mask"])
def test_against_torch_math(feature: str) -> None:
    """Where torch's math can say the same, so does the oracle; this keeps the oracle honest."""
    keywords = dict(FEATURES[feature])
    given = tokens()
    swapped = [x.transpose(1, 2) for x in given]
    mask = keywords.get("bias", keywords.get("mask"))
    with sdpa_kernel(SDPBackend.MATH):
        want = F.scaled_dot_product_attention(
            *swapped, attn_mask=mask, is_causal=bool(keywords.get("causal")), enable_gqa=True,
            scale=keywords.get("softmax_scale")).transpose(1, 2)
    dout = normal(*want.shape)
    reference = torch.autograd.grad(want, given, dout)
    for out in (attention(*given, **keywords), oracle.attention(*given, **keywords).out):
        assert_close("out", out, want, 1e-12)
        for x, y in zip(torch.autograd.grad(out, given, dout), reference, strict=True):
            assert_close("gradient", x, y, 4e-12)


def test_only_what_is_wanted() -> None:
    for wanted in range(3):
        given = tokens(grad=False)
        given[wanted].requires_grad_()
        out = attention(*given, causal=True)
        full = tokens()
        want = torch.autograd.grad(attention(*full, causal=True).sum(), full)[wanted]
        out.sum().backward()
        same_bits("gradient", given[wanted].grad, want)
    assert not attention(*tokens(grad=False)).requires_grad
    bias = normal(5, 6).requires_grad_()
    attention(*tokens(grad=False), bias=bias).sum().backward()
    assert bias.grad is not None and bias.grad.shape == (5, 6)
    sink = normal(4, dtype=torch.float32).requires_grad_()
    attention(*tokens(grad=False), sink=sink).sum().backward()
    assert sink.grad is not None and (sink.grad != 0).all()


def test_gradient_through_lse_alone() -> None:
    given = tokens()
    lse = attention(*given, return_lse=True)[1]
    dq, dk, dv = torch.autograd.grad(lse.sum(), given)
    assert (dv == 0).all() and (dq != 0).any() and (dk != 0).any()
    wide = [float64(x, True) for x in given]
    want = torch.autograd.grad(oracle.attention(*wide).lse.sum(), wide[:2])
    assert_close("dq", dq, want[0], 1e-12)
    assert_close("dk", dk, want[1], 1e-12)


def test_backward_twice() -> None:
    given = tokens()
    out = attention(*given)
    first = torch.autograd.grad(out.sum(), given, retain_graph=True)
    for x, y in zip(first, torch.autograd.grad(out.sum(), given), strict=True):
        same_bits("gradient", x, y)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out.sum(), given)


def test_second_derivatives_raise() -> None:
    q, k, v = tokens()
    dq = torch.autograd.grad(attention(q, k, v).sum(), q, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="second derivative"):
        torch.autograd.grad(dq.sum(), q)


def test_a_saved_tensor_changed_in_place_is_noticed() -> None:
    q, k, v = tokens()
    moved = k * 1
    out = attention(q, moved, v)
    moved += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_checkpoint() -> None:
    given = tokens()
    plain = torch.autograd.grad(attention(*given, causal=True).sum(), given)
    for reentrant in (False, True):
        out = checkpoint(lambda *x: attention(*x, causal=True), *given, use_reentrant=reentrant)
        for x in given:
            x.grad = None
        out.sum().backward()
        for x, y in zip(given, plain, strict=True):
            same_bits("gradient", x.grad, y)


def test_checkpoint_replays_dropout() -> None:
    given = tokens(rows=40, keys=40)
    torch.manual_seed(1)
    out = checkpoint(lambda *x: attention(*x, dropout_p=0.5), *given, use_reentrant=False)
    got = torch.autograd.grad(out.sum(), given)
    torch.manual_seed(1)
    want = torch.autograd.grad(attention(*given, dropout_p=0.5).sum(), given)
    for x, y in zip(got, want, strict=True):
        same_bits("gradient", x, y)


# --- forms of tensors ----------------------------------------------------------------------------

def test_layouts_strides_and_expansion() -> None:
    given = tokens(heads=4, heads_kv=1, dtype=torch.float32)
    dout = normal(2, 5, 4, 8, dtype=torch.float32)
    out = attention(*given, causal=True)
    want = torch.autograd.grad(out, given, dout)
    swapped = [x.transpose(1, 2) for x in given]
    again = attention(*swapped, causal=True, layout="bhsd")
    same_bits("out", again.transpose(1, 2), out)
    for x, y in zip(torch.autograd.grad(again, given, dout.transpose(1, 2)), want, strict=True):
        same_bits("gradient", x, y)
    wide = [F.pad(x, (3, 5))[..., 3:-5] for x in given]
    again = attention(*wide, causal=True)
    same_bits("out", again, out)
    for x, y in zip(torch.autograd.grad(again, given, dout), want, strict=True):
        same_bits("gradient", x, y)
    many = [given[0], *(x.expand(2, 6, 4, 8) for x in given[1:])]
    again = attention(*many, causal=True)
    assert_close("out", again, out.double(), 1e-6)
    for x, y in zip(torch.autograd.grad(again, given, dout), want, strict=True):
        assert_close("gradient", x, y.double(), 1e-5)


def test_expanded_gradient_in() -> None:
    given = tokens()
    out = attention(*given)
    want = torch.autograd.grad(out, given, torch.ones_like(out).contiguous(), retain_graph=True)
    for x, y in zip(torch.autograd.grad(out, given, torch.ones(()).double().expand(out.shape)),
                    want, strict=True):
        same_bits("gradient", x, y)


def test_negated_views() -> None:
    """The imaginary part of a conjugate is a view that torch negates on reading."""
    z = torch.randn(2, 5, 4, 8, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    negated = z.conj().imag
    assert negated.is_neg()
    plain = negated.clone().resolve_neg()
    want = attention(plain, plain, plain)
    same_bits("q, k, v", attention(negated, negated, negated), want)
    same_bits("v", attention(plain, plain, negated), want)
    leaf = plain.clone().requires_grad_()
    dv = torch.autograd.grad(attention(plain, plain, leaf), leaf, negated)[0]
    same_bits("dout", dv, torch.autograd.grad(attention(plain, plain, leaf), leaf, plain)[0])


def test_parameters_hooks_and_modules() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = torch.nn.Linear(32, 96)
            self.sink = torch.nn.Parameter(torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.project(x).unflatten(-1, (3, 4, 8)).unbind(-3)
            return attention(q, k, v, causal=True, sink=self.sink).flatten(-2)

    torch.manual_seed(0)
    block = Block()
    x = torch.randn(2, 6, 32)
    seen: list[Tensor] = []
    block.sink.register_hook(seen.append)
    block(x).sum().backward()
    assert len(seen) == 1 and block.sink.grad is not None
    assert (block.project.weight.grad != 0).any()
    twin = copy.deepcopy(block)
    same_bits("a copy", twin(x), block(x))


def test_results_are_fresh() -> None:
    """Neither results nor gradients share memory with inputs."""
    given = tokens()
    out, lse = attention(*given, return_lse=True)
    gradients = torch.autograd.grad((out, lse), given, (torch.ones_like(out), torch.ones_like(lse)))
    addresses = {x.data_ptr() for x in (*given, out, lse, *gradients)}
    assert len(addresses) == 8


@pytest.mark.parametrize("form", ["contiguous", "bhsd in memory"])
def test_order_of_memory_follows_q(form: str) -> None:
    q, k, v = (x.detach() for x in tokens())
    if form == "bhsd in memory":
        q = q.transpose(1, 2).contiguous().transpose(1, 2)
    assert attention(q, k, v).stride() == q.stride()


# --- modes ---------------------------------------------------------------------------------------

def test_inference_mode_and_no_grad() -> None:
    given = tokens()
    want = attention(*given, causal=True).detach()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            out = attention(*given, causal=True)
        assert not out.requires_grad
        same_bits("out", out, want)
    with torch.inference_mode():
        frozen = [x.clone() for x in given]
        assert frozen[0].is_inference()
        same_bits("out", attention(*frozen, causal=True), want)
    same_bits("out", attention(*frozen, causal=True), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    given = tokens(dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        out = attention(*given, causal=True)
        operator = torch.ops.attentile.forward(*given, causal=True)[0]
    assert out.dtype == operator.dtype == dtype
    want = attention(*(x.to(dtype) for x in given), causal=True)
    same_bits("out", out, want)
    same_bits("operator", operator, want)
    got = torch.autograd.grad(out.float().sum(), given)
    for x, y in zip(got, torch.autograd.grad(want.float().sum(), given), strict=True):
        assert x.dtype == torch.float32
        same_bits("gradient", x, y)
    with torch.autocast("cpu", enabled=False):
        assert attention(*given).dtype == torch.float32


def test_autocast_keeps_a_float32_bias() -> None:
    given = tokens(dtype=torch.float32)
    bias = normal(5, 6, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attention(*given, bias=bias)
    out.float().sum().backward()
    assert bias.grad is not None and bias.grad.dtype == torch.float32


def test_anomaly_mode() -> None:
    given = tokens()
    with torch.autograd.detect_anomaly(check_nan=True):
        attention(*given).sum().backward()


# --- dropout -------------------------------------------------------------------------------------

def test_dropout_follows_the_generator() -> None:
    given = tokens(rows=40, keys=40, grad=False)
    torch.manual_seed(7)
    first, second = (attention(*given, dropout_p=0.3) for _ in range(2))
    torch.manual_seed(7)
    assert torch.equal(attention(*given, dropout_p=0.3), first)
    assert not torch.equal(first, second)
    state = torch.get_rng_state()
    attention(*given)
    attention(*given, dropout_p=0.0)
    attention(*given, dropout_p=0.3, dropout_seed=1)
    assert torch.equal(torch.get_rng_state(), state), "the generator was used without need"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_and_backward_drop_alike(dtype: torch.dtype) -> None:
    """v = identity shows the weights that were kept; so does dv."""
    n = 48
    q, k, _ = tokens(rows=n, keys=n, heads=2, heads_kv=2, batch=1, dtype=dtype)
    eye = torch.eye(n, dtype=dtype)[None, :, None].expand(1, n, 2, n)
    v = eye.clone().requires_grad_()
    out, lse, keep = attention(q, k, v, dropout_p=0.4, return_lse=True, return_keep=True)
    dv = torch.autograd.grad(out, v, eye)[0]
    assert keep.dtype == torch.uint8 and keep.shape == (1, 2, n, n)
    assert 0.5 < keep.float().mean() < 0.7
    assert torch.equal(out[0].transpose(0, 1) != 0, keep[0].bool())
    assert torch.equal(dv[0].permute(1, 2, 0) != 0, keep[0].bool())


def test_keep_is_philox() -> None:
    keep = attention(*tokens(rows=33, keys=65), dropout_p=0.25, dropout_seed=11, dropout_offset=5,
                     return_keep=True)[1]
    for b in range(2):
        want = keep_decisions(0.25, b, (4, 33, 65), dropout_seed=11, dropout_offset=5)
        assert torch.equal(keep[b].bool(), want)


def test_dropout_of_everything() -> None:
    given = tokens()
    out = attention(*given, dropout_p=1.0)
    assert (out == 0).all()
    assert all((g == 0).all() for g in torch.autograd.grad(out.sum(), given))


# --- the rest ------------------------------------------------------------------------------------

@features
def test_backward_function(feature: str) -> None:
    """attention_backward gives the bits of autograd."""
    keywords, leaves = with_leaves(feature)
    given = tokens()
    out, lse = attention(*given, return_lse=True, **keywords)
    dout = normal(*out.shape)
    want = torch.autograd.grad(out, [*given, *leaves], dout)
    got = attention_backward(dout, *given, out.detach(), lse.detach(), **keywords)
    assert isinstance(got, attentile.Gradients)
    for x, y in zip((g for g in got if g is not None), want, strict=True):
        same_bits("gradient", x, y)


def test_numpy_and_torch_give_the_same_bits() -> None:
    given = [x.detach() for x in tokens(dtype=torch.float32)]
    same_bits("out", attentile.attention(*(np.asarray(x) for x in given), causal=True),
              attention(*given, causal=True))


def test_threads_follow_torch() -> None:
    given = [x.detach() for x in tokens(rows=100, keys=100, dtype=torch.float32)]
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            results.append(attention(*given, causal=True))
            results.append(attention(*given, causal=True, num_threads=count))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        same_bits("out", other, results[0])

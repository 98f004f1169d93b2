# SPDX-License-Identifier: Apache-2.0
"""The edges that torch documents or has, inside attentile.torch.sdpa()."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import CEILING, assert_close, same_bits
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

from attentile.torch import last_dispatch, sdpa

Tensor = torch.Tensor
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)


def tokens(rows: int = 6, keys: int = 6, *, dtype: torch.dtype = torch.float32, heads: int = 2,
           grad: bool = False, dim_v: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(2, heads, n, d, generator=generator, dtype=torch.float64).to(dtype)
            .requires_grad_(grad) for n, d in ((rows, 8), (keys, 8), (keys, dim_v))]


def attend(*given: Tensor, **keywords: Any) -> Tensor:
    """On attentile, or the test fails."""
    with sdpa():
        out = F.scaled_dot_product_attention(*given, **keywords)
    dispatch = last_dispatch()
    assert dispatch is not None and dispatch.who == "attentile", dispatch
    return out


def by_math(*given: Tensor, **keywords: Any) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(*(x.double() for x in given), **keywords)


def ceiling(dtype: torch.dtype) -> float:
    return CEILING[str(dtype).removeprefix("torch.")]


# --- rows that see nothing -----------------------------------------------------------------------

@DTYPES
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_fully_masked_rows_are_zero(kind: str, dtype: torch.dtype) -> None:
    given = tokens(dtype=dtype, grad=True)
    mask = torch.ones(6, 6, dtype=torch.bool)
    mask[2], mask[5] = False, False
    if kind == "float":
        given_mask = torch.zeros(6, 6, dtype=dtype).masked_fill(~mask, -torch.inf)
        given_mask.requires_grad_()
    else:
        given_mask = mask
    out = attend(*given, attn_mask=given_mask)
    assert (out[:, :, [2, 5]] == 0).all() and (out[:, :, [0, 1, 3, 4]] != 0).any()
    leaves = [*given, *([given_mask] if kind == "float" else [])]
    gradients = torch.autograd.grad(out.float().square().sum(), leaves)
    assert all(torch.isfinite(g).all() for g in gradients)
    assert (gradients[0][:, :, [2, 5]] == 0).all()


def test_everything_masked() -> None:
    given = tokens(grad=True)
    out = attend(*given, attn_mask=torch.zeros(6, 6, dtype=torch.bool))
    assert (out == 0).all()
    assert all((g == 0).all() for g in torch.autograd.grad(out.sum(), given))


def test_left_padding_through_two_layers() -> None:
    """Rows of padding see nothing; they must not spoil the rows that do in the next layer."""
    x = tokens(grad=True)[0]
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    real = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    mask = causal & real[:, None, None]
    second = attend(*[attend(x, x, x, attn_mask=mask)] * 3, attn_mask=mask)
    assert torch.isfinite(second).all()
    alone = x[:1, :, 2:].detach()
    for _ in range(2):
        alone = attend(alone, alone, alone, is_causal=True)
    assert_close("the padded sequence", second[:1, :, 2:], alone.double(), 1e-5)
    assert torch.isfinite(torch.autograd.grad(second.sum(), x)[0]).all()


@DTYPES
def test_the_least_finite_mask_is_a_mean(dtype: torch.dtype) -> None:
    """finfo.min is no -inf: a row of it weighs all keys alike."""
    given = tokens(dtype=dtype)
    mask = torch.full((6, 6), torch.finfo(dtype).min, dtype=dtype)
    out = attend(*given, attn_mask=mask)
    want = given[2].double().mean(2, keepdim=True).expand(2, 2, 6, 8)
    if dtype == torch.float16:  # -65504 is still within reach of the logits
        want = by_math(*given, attn_mask=mask.double())
    assert_close("mean", out, want, ceiling(dtype))


# --- NaN and infinity where nobody looks ---------------------------------------------------------

@DTYPES
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_masked_keys_may_hold_anything(poison: float, dtype: torch.dtype) -> None:
    given = tokens(33, 40, dtype=dtype)
    mask = torch.rand(2, 1, 1, 40, generator=torch.Generator().manual_seed(1)) > 0.4
    hidden = ~mask[:, 0, 0]
    spoiled = [x.clone() for x in given]
    for i in (1, 2):
        spoiled[i].transpose(1, 2)[hidden] = poison
    results = []
    for tensors in (given, spoiled):
        leaves = [x.clone().requires_grad_() for x in tensors]
        out = attend(*leaves, attn_mask=mask)
        results.append((out, *torch.autograd.grad(out, leaves, torch.ones_like(out))))
    for x, y in zip(*results, strict=True):
        same_bits("hidden", y, x)


@DTYPES
def test_future_keys_may_hold_anything(dtype: torch.dtype) -> None:
    q, k, v = tokens(40, 40, dtype=dtype)
    want = attend(q, k, v, is_causal=True)[:, :, :20]
    k[:, :, 20:], v[:, :, 20:] = math.nan, math.nan
    out = attend(q, k, v, is_causal=True)
    same_bits("rows before", out[:, :, :20], want)
    assert torch.isnan(out[:, :, 20:]).all()


def test_nan_that_is_seen_stays_in_its_rows() -> None:
    q, k, v = tokens()
    clean = attend(q, k, v)
    q[0, 1, 3, 0] = math.nan
    out = attend(q, k, v)
    assert torch.isnan(out[0, 1, 3]).all()
    others = torch.ones(2, 2, 6, dtype=torch.bool)
    others[0, 1, 3] = False
    same_bits("other rows", out[others], clean[others])


# --- zero length ---------------------------------------------------------------------------------

@pytest.mark.parametrize("shapes", [
    ((2, 2, 0, 8), (2, 2, 6, 8)), ((2, 2, 6, 8), (2, 2, 0, 8)), ((2, 2, 0, 8), (2, 2, 0, 8)),
    ((0, 2, 6, 8), (0, 2, 6, 8)), ((2, 0, 6, 8), (2, 0, 6, 8)), ((0, 6, 8), (0, 6, 8)),
    ((0, 8), (6, 8)), ((3, 0, 2, 6, 8), (3, 0, 2, 6, 8))])
@pytest.mark.parametrize("causal", [False, True])
def test_zero_length(causal: bool, shapes: tuple[tuple[int, ...], ...]) -> None:
    q = torch.randn(shapes[0], requires_grad=True)
    k, v = (torch.randn(shapes[1], requires_grad=True) for _ in range(2))
    with sdpa():
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    want = by_math(q, k, v, is_causal=causal)
    assert out.shape == want.shape and (out == 0).all()
    gradients = torch.autograd.grad(out.sum(), (q, k, v))
    assert all(g.shape == x.shape and (g == 0).all()
               for g, x in zip(gradients, (q, k, v), strict=True))


# --- causal --------------------------------------------------------------------------------------

@pytest.mark.parametrize(("rows", "keys"), [(2, 4), (4, 2), (5, 5), (1, 7), (7, 1)])
def test_causal_is_top_left(rows: int, keys: int) -> None:
    given = tokens(rows, keys, dtype=torch.float64)
    want = by_math(*given, is_causal=True)
    assert_close("out", attend(*given, is_causal=True), want, 1e-12)
    mask = torch.ones(rows, keys, dtype=torch.bool).tril()
    assert_close("as a mask", attend(*given, attn_mask=mask), want, 1e-12)


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_causal_and_a_mask_are_both_kept(kind: str) -> None:
    """torch's flash kernel takes both as well; its math refuses."""
    given = tokens(dtype=torch.float64)
    mask = torch.rand(6, 6, generator=torch.Generator().manual_seed(3)) > 0.3
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    bias = torch.randn(6, 6, dtype=torch.float64)
    own = mask if kind == "bool" else bias
    want = by_math(*given, attn_mask=(mask & causal) if kind == "bool" else
                   bias.masked_fill(~causal, -torch.inf))
    assert_close("both", attend(*given, attn_mask=own, is_causal=True), want, 1e-12)


@pytest.mark.parametrize(("rows", "keys"), [(4, 4), (2, 5)])
@pytest.mark.filterwarnings("ignore:.*NaN")
def test_causal_bias_classes(rows: int, keys: int) -> None:
    given = tokens(rows, keys, dtype=torch.float64)
    for make, diagonal in ((causal_upper_left, 0), (causal_lower_right, keys - rows)):
        mask = torch.ones(rows, keys, dtype=torch.bool).tril(diagonal)
        with sdpa():
            out = F.scaled_dot_product_attention(*given, attn_mask=make(rows, keys))
        assert_close("out", out, by_math(*given, attn_mask=mask), 1e-12)


# --- shapes --------------------------------------------------------------------------------------

@pytest.mark.parametrize("shape", [(6, 6), (1, 6), (6, 1), (1, 1), (6,), (2, 6, 6), (1, 6, 6),
                                   (2, 1, 6, 6), (1, 2, 1, 6), (2, 2, 6, 6), (2, 1, 1, 6)])
@pytest.mark.parametrize("kind", ["bool", "float32", "own"])
def test_masks_broadcast(kind: str, shape: tuple[int, ...]) -> None:
    given = tokens(dtype=torch.bfloat16)
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    mask = scores > -0.7 if kind == "bool" else scores.to(
        torch.float32 if kind == "float32" else torch.bfloat16)
    reference = mask if kind == "bool" else mask.double()
    want = by_math(*given, attn_mask=reference.expand(torch.broadcast_shapes(shape, (6, 6))))
    assert_close("out", attend(*given, attn_mask=mask), want, ceiling(torch.bfloat16))


def test_value_of_another_width() -> None:
    for dim_v in (1, 3, 40, 512):
        given = tokens(dtype=torch.float64, dim_v=dim_v, grad=True)
        out = attend(*given)
        assert out.shape == (2, 2, 6, dim_v)
        want = by_math(*given)
        assert_close("out", out, want, 1e-12)
        for x, y in zip(torch.autograd.grad(out.sum(), given),
                        torch.autograd.grad(want.sum(), given), strict=True):
            assert_close("gradient", x, y, 1e-11)


@pytest.mark.parametrize("heads_kv", [1, 2, 4])
def test_grouped_heads(heads_kv: int) -> None:
    q = tokens(heads=4, dtype=torch.float64, grad=True)[0]
    k, v = tokens(heads=heads_kv, dtype=torch.float64, grad=True)[1:]
    out, want = attend(q, k, v, enable_gqa=True), by_math(q, k, v, enable_gqa=True)
    assert_close("out", out, want, 1e-12)
    for x, y in zip(torch.autograd.grad(out.sum(), (q, k, v)),
                    torch.autograd.grad(want.sum(), (q, k, v)), strict=True):
        assert_close("gradient", x, y, 1e-11)


@pytest.mark.parametrize("form", ["transposed", "sliced", "expanded", "step"])
def test_strides(form: str) -> None:
    base = torch.randn(2, 6, 2, 16, dtype=torch.float64)
    q = {"transposed": base.transpose(1, 2)[..., :8], "sliced": base[..., 3:11].transpose(1, 2),
         "expanded": base[:1, :, :1, :8].expand(2, 6, 2, 8).transpose(1, 2),
         "step": base[..., ::2].transpose(1, 2)}[form]
    leaf = q.detach().contiguous().requires_grad_()
    q.requires_grad_() if q.is_leaf else None
    out = attend(q, q, q, is_causal=True)
    want = attend(leaf, leaf, leaf, is_causal=True)
    same_bits("out", out.contiguous(), want)


def test_scales() -> None:
    given = tokens(dtype=torch.float64)
    for scale in (None, 1.0, 0.0, -0.5, 1e-3):
        assert_close("out", attend(*given, scale=scale), by_math(*given, scale=scale), 1e-12)


def test_dropout_of_everything_and_of_nothing() -> None:
    given = tokens(grad=True)
    out = attend(*given, dropout_p=1.0)
    assert (out == 0).all()
    assert all((g == 0).all() for g in torch.autograd.grad(out.sum(), given))
    same_bits("p = 0", attend(*given, dropout_p=0.0), attend(*given))


def test_ranks_that_differ() -> None:
    """torch's math broadcasts them; who computes is told, the result is the same."""
    q, k, v = tokens(dtype=torch.float64)
    with sdpa():
        out = F.scaled_dot_product_attention(q, k[0], v[0])
    assert_close("out", out, by_math(q, k[0], v[0]), 1e-12)


def test_other_threads_counts_do_not_change_bits() -> None:
    given = tokens(130, 130)
    before = torch.get_num_threads()
    want = attend(*given, is_causal=True)
    try:
        for count in (2, 5):
            torch.set_num_threads(count)
            same_bits("out", attend(*given, is_causal=True), want)
    finally:
        torch.set_num_threads(before)


def test_last_dispatch_is_of_this_scope_and_of_calls_that_returned() -> None:
    q, k, v = tokens()
    with sdpa():
        F.scaled_dot_product_attention(q, k, v)
        with pytest.raises(ValueError, match="dropout_p"):
            F.scaled_dot_product_attention(q, k, v, dropout_p=1.5)
        assert last_dispatch() is None
        F.scaled_dot_product_attention(q, k, v)
    with sdpa():
        assert last_dispatch() is None


def nested(layout: torch.layout, *, grad: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randn(n, 2, 8, generator=generator) for n in (3, 5)]
    if layout is torch.strided:
        strided: Tensor = torch.nested.nested_tensor(
            [row.transpose(0, 1).contiguous() for row in rows], requires_grad=grad)
        return strided
    jagged: Tensor = torch.nested.nested_tensor(rows, layout=layout, requires_grad=grad)
    return jagged.transpose(1, 2)


@pytest.mark.parametrize("grad", [False, True], ids=["", "grad"])
@pytest.mark.parametrize(("make", "why"), [
    (lambda grad: nested(torch.strided, grad=grad), "query is a nested tensor"),
    (lambda grad: nested(torch.jagged, grad=grad), "layout torch.jagged is among"),
    (lambda grad: torch.zeros(2, 2, 5, 8, device="meta", requires_grad=grad),
     "device of query is meta"),
], ids=["strided nested", "jagged", "meta"])
def test_last_dispatch_tells_of_calls_that_are_torchs_alone(
        make: Any, why: str, *, grad: bool) -> None:
    x = make(grad)
    q, k, v = tokens()
    with sdpa():
        F.scaled_dot_product_attention(q, k, v)
        out = F.scaled_dot_product_attention(x, x, x)
        inside = last_dispatch()
        assert inside is not None and inside.who == "torch" and why in inside.why, inside
        F.scaled_dot_product_attention(q, k, v)
        with pytest.raises((RuntimeError, ValueError)):
            F.scaled_dot_product_attention(x, x, x, attn_mask=torch.ones(3, 7, 9, 11, 2))
        assert last_dispatch() is None or last_dispatch() != inside
    again = F.scaled_dot_product_attention(x, x, x)
    outside = last_dispatch()
    assert outside is not None and outside.who == "torch" and "outside" in outside.why
    assert out.shape == again.shape if not out.is_nested else out.size(0) == again.size(0)


def test_nested_tensors_are_computed_as_before_without_gradients() -> None:
    for layout in (torch.strided, torch.jagged):
        x = nested(layout)
        with sdpa(), torch.no_grad():
            out = F.scaled_dot_product_attention(x, x, x)
            assert last_dispatch() is not None and last_dispatch().who == "torch"
        for row, given in zip(out.unbind(), x.unbind(), strict=True):
            want = F.scaled_dot_product_attention(given, given, given)
            torch.testing.assert_close(row, want)


def test_a_compiled_call_on_a_jagged_tensor_is_torchs() -> None:
    x = nested(torch.jagged)
    want = [F.scaled_dot_product_attention(row, row, row) for row in x.unbind()]
    with sdpa():
        out = torch.compile(lambda y: F.scaled_dot_product_attention(y, y, y), backend="eager")(x)
    for row, expected in zip(out.unbind(), want, strict=True):
        torch.testing.assert_close(row, expected)

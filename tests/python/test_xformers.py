# SPDX-License-Identifier: Apache-2.0
"""attentile.compat.xformers against torch math in float64, forward and backward."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

import attentile.compat.xformers.ops as xops  # noqa: E402
from attentile import UnsupportedError  # noqa: E402
from attentile.compat.xformers.ops import fmha  # noqa: E402
from attentile.compat.xformers.ops.fmha import attn_bias as ab  # noqa: E402


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)


# --- references -----------------------------------------------------------------------------------

def rule(queries, keys, *, causal=False, bottom_right=True, left=None, right=None):
    """bool [queries, keys], pair by pair."""
    shift = keys - queries if bottom_right else 0
    mask = torch.zeros(queries, keys, dtype=torch.bool)
    for i in range(queries):
        for j in range(keys):
            seen = not causal or j <= i + shift
            seen = seen and (left is None or j >= i + shift - left)
            mask[i, j] = seen and (right is None or j <= i + shift + right)
    return mask


def blocks(total_q, total_k, spans, **band):
    """bool [total_q, total_k]; spans: (first query, end, first key, end) of each sequence."""
    mask = torch.zeros(total_q, total_k, dtype=torch.bool)
    for a, b, c, d in spans:
        mask[a:b, c:d] = rule(b - a, d - c, **band)
    return mask


def math_attention(q, k, v, visible=None, bias=None, scale=None):
    """(out, lse) of [batch, tokens, heads, head size], in float64."""
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias.double()
    if visible is not None:
        scores = scores.masked_fill(~visible, -math.inf)
    lse = scores.logsumexp(-1)
    weights = (scores - torch.where(lse == -math.inf, 0, lse)[..., None]).exp()
    return (weights @ v).transpose(1, 2), lse


def leaves(*tensors):
    return [x.detach().clone().requires_grad_() for x in tensors]


def close(actual, wanted, tolerance=2e-5):
    torch.testing.assert_close(actual.double(), wanted.double(), rtol=tolerance, atol=tolerance)


def check_gradients(run, wanted, tensors, tolerance=5e-5):
    """run and wanted, functions of the tensors, agree in their results and gradients."""
    ours, theirs = leaves(*tensors), leaves(*(x.double() for x in tensors))
    out, expected = run(*ours), wanted(*theirs)
    close(out, expected, tolerance)
    weights = torch.randn(out.shape, dtype=out.dtype)
    found = torch.autograd.grad(out, ours, weights)
    for got, want in zip(found, torch.autograd.grad(expected, theirs, weights.double()),
                         strict=True):
        close(got, want, tolerance)


def qkv(mq, mk, *, batch=1, heads=3, size=8, size_v=6, dtype=torch.float32):
    return (torch.randn(batch, mq, heads, size, dtype=dtype),
            torch.randn(batch, mk, heads, size, dtype=dtype),
            torch.randn(batch, mk, heads, size_v, dtype=dtype))


# --- masks ----------------------------------------------------------------------------------------

DENSE = [
    ("causal", ab.LowerTriangularMask, {"causal": True, "bottom_right": False}),
    ("causal_br", ab.LowerTriangularFromBottomRightMask, {"causal": True}),
    ("causal_br_local", lambda: ab.LowerTriangularFromBottomRightMask().make_local_attention(3),
     {"causal": True, "left": 2}),
    ("local", lambda: ab.LocalAttentionFromBottomRightMask(window_left=1, window_right=2),
     {"left": 1, "right": 2}),
    ("local_zero", lambda: ab.LocalAttentionFromBottomRightMask(0, 0), {"left": 0, "right": 0}),
]


@pytest.mark.parametrize("sizes", [(5, 5), (4, 9), (9, 4), (1, 6)])
@pytest.mark.parametrize("make, band", [d[1:] for d in DENSE], ids=[d[0] for d in DENSE])
def test_dense_masks(make, band, sizes):
    visible, bias = rule(*sizes, **band), make()
    assert torch.equal(bias.materialize((2, 3, *sizes)).exp() > 0, visible.expand(2, 3, *sizes))
    check_gradients(lambda q, k, v: xops.memory_efficient_attention(q, k, v, bias),
                    lambda q, k, v: math_attention(q, k, v, visible)[0], qkv(*sizes, batch=2))


PaddedLocal = ab.BlockDiagonalLocalAttentionPaddedKeysMask
PaddedCausalLocal = ab.BlockDiagonalCausalLocalAttentionPaddedKeysMask
PaddedCausal = ab.BlockDiagonalCausalWithOffsetPaddedKeysMask
SPANS = [(0, 3, 0, 5), (3, 4, 5, 9), (4, 8, 9, 14)]
PADDED = [(0, 3, 0, 5), (3, 4, 6, 10), (4, 8, 12, 17)]
GAPPY = [(0, 3, 2, 7), (3, 4, 7, 7), (4, 8, 9, 14)]
LENGTHS = [3, 1, 4], [5, 4, 5]
ROOM = [3, 1, 4], 6, [5, 4, 5]
GAPS = [3, 1, 4], [2, 7, 9, 16], [5, 0, 5]
Block, Padded = ab.BlockDiagonalMask, ab.BlockDiagonalPaddedKeysMask
Gappy, GappyCausal = ab.BlockDiagonalGappyKeysMask, ab.BlockDiagonalCausalWithOffsetGappyKeysMask
DIVIDED = [
    ("plain", lambda: Block.from_seqlens(*LENGTHS), SPANS, 14, {}),
    ("causal", lambda: Block.from_seqlens(*LENGTHS).make_causal(), SPANS, 14,
     {"causal": True, "bottom_right": False}),
    ("causal_br", lambda: Block.from_seqlens(*LENGTHS).make_causal_from_bottomright(), SPANS, 14,
     {"causal": True}),
    ("local", lambda: Block.from_seqlens(*LENGTHS).make_local_attention(2), SPANS, 14,
     {"causal": True, "bottom_right": False, "left": 1}),
    ("local_br", lambda: Block.from_seqlens(*LENGTHS).make_local_attention_from_bottomright(2),
     SPANS, 14, {"causal": True, "left": 1}),
    ("padded", lambda: Padded.from_seqlens(*ROOM), PADDED, 18, {}),
    ("padded_causal", lambda: PaddedCausal.from_seqlens(
        q_seqlen=[3, 1, 4], kv_padding=6, kv_seqlen=[5, 4, 5], causal_diagonal=[9, 9, 9]), PADDED,
     18, {"causal": True}),
    ("padded_local", lambda: Padded.from_seqlens(*ROOM).make_local_attention(2, 1), PADDED, 18,
     {"left": 2, "right": 1}),
    ("padded_local2", lambda: PaddedLocal.from_seqlens_local(*ROOM, 2, 1), PADDED, 18,
     {"left": 2, "right": 1}),
    ("padded_causal_local", lambda: PaddedCausalLocal.from_seqlens_local(*ROOM, 2), PADDED, 18,
     {"causal": True, "left": 1}),
    ("gappy", lambda: Gappy.from_seqlens(*GAPS), GAPPY, 16, {}),
    ("gappy_causal", lambda: GappyCausal.from_seqlens(*GAPS), GAPPY, 16, {"causal": True}),
]


@pytest.mark.parametrize("make, spans, keys, band", [d[1:] for d in DIVIDED],
                         ids=[d[0] for d in DIVIDED])
def test_divided_masks(make, spans, keys, band):
    visible, bias = blocks(8, keys, spans, **band), make()
    assert torch.equal(bias.materialize((1, 8, keys)).exp() > 0, visible[None])
    q, k, v = qkv(8, keys)
    check_gradients(lambda *t: xops.memory_efficient_attention(*t, bias),
                    lambda *t: math_attention(*t, visible)[0], (q, k, v))
    out, lse = xops.memory_efficient_attention_forward_requires_grad(q, k, v, bias)
    expected, expected_lse = math_attention(q, k, v, visible)
    close(out, expected)
    assert lse.shape == (1, 3, 8)
    close(lse, expected_lse)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6), st.integers(0, 2)), min_size=1,
                max_size=4), st.sampled_from(["padded", "gappy"]), st.booleans())
def test_generated_divisions(sequences, kind, causal):
    """(queries, keys, gap before the keys) of each sequence; queries may outnumber keys."""
    queries, keys, gaps = (list(x) for x in zip(*sequences, strict=True))
    ends = list(itertools.accumulate(queries, initial=0))
    if kind == "padded":
        starts, total = [7 * i for i in range(len(keys))], 7 * len(keys)
        made = (PaddedCausal if causal else Padded).from_seqlens(
            queries, 7, keys)
    else:
        after = list(itertools.accumulate(map(sum, zip(gaps, keys, strict=True))))
        starts, total = [b - n for b, n in zip(after, keys, strict=True)], after[-1] + 1
        made = (GappyCausal if causal else Gappy).from_seqlens(queries, [*starts, total], keys)
    spans = [(a, b, c, c + n) for a, b, c, n in zip(ends, ends[1:], starts, keys, strict=False)]
    visible = blocks(ends[-1], total, spans, causal=causal)
    check_gradients(lambda *t: xops.memory_efficient_attention(*t, made),
                    lambda *t: math_attention(*t, visible)[0],
                    qkv(ends[-1], total, heads=2, size=4, size_v=3))


SHARED = [(0, 3, 6, 11), (3, 8, 0, 8)]


@pytest.mark.parametrize("causal", [False, True])
def test_gappy_keys_that_are_shared_or_out_of_order(causal):
    bias = (GappyCausal if causal else Gappy).from_seqlens([3, 5], [6, 0, 12], [5, 8])
    visible = blocks(8, 12, SHARED, causal=causal)
    assert torch.equal(bias.materialize((8, 12)).exp() > 0, visible)
    q, k, v = qkv(8, 12)
    close(xops.memory_efficient_attention(q, k, v, bias), math_attention(q, k, v, visible)[0])
    with pytest.raises(UnsupportedError, match="attn_bias: was a .*Gappy.*gradient"):
        xops.memory_efficient_attention(q.requires_grad_(), k, v, bias)
    assert not xops.memory_efficient_attention_forward(q, k, v, bias).requires_grad


TABLES = [[4, 1, 0], [2, 5, 5]]


def paged_mask(spans, band):
    """spans: (first query, end, first key, end) among the sequence's own pages of 4."""
    visible = torch.zeros(8, 24, dtype=torch.bool)
    for pages, (a, b, c, d) in zip(TABLES, spans, strict=True):
        own = rule(b - a, d - c, **band)
        for j in range(c, d):
            visible[a:b, pages[j // 4] * 4 + j % 4] = own[:, j - c]
    return visible


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("gappy", [False, True])
def test_pages(gappy, causal, dtype):
    tables = torch.tensor(TABLES, dtype=dtype)
    band = {"causal": causal}
    if gappy:
        kind, plain = ((ab.PagedBlockDiagonalCausalWithOffsetGappyKeysMask, GappyCausal) if causal
                       else (ab.PagedBlockDiagonalGappyKeysMask, Gappy))
        biases = [kind.from_seqlens([5, 3], [1, 3], [9, 4], tables, 4),
                  plain.from_seqlens([5, 3], [1, 15, 24], [9, 4]).make_paged(tables, 4, 12, kind)]
        visible = paged_mask([(0, 5, 1, 10), (5, 8, 3, 7)], band)
    else:
        kind, plain = ((ab.PagedBlockDiagonalCausalWithOffsetPaddedKeysMask, PaddedCausal) if causal
                       else (ab.PagedBlockDiagonalPaddedKeysMask, Padded))
        biases = [kind.from_seqlens([5, 3], [10, 7], tables, 4),
                  plain.from_seqlens([5, 3], 12, [10, 7]).make_paged(tables, 4, kind)]
        visible = paged_mask([(0, 5, 0, 10), (5, 8, 0, 7)], band)
    q, k, v = qkv(8, 24)
    wanted = math_attention(q, k, v, visible)[0]
    for bias in biases:
        assert type(bias) is kind
        assert torch.equal(bias.materialize((8, 24)).exp() > 0, visible)
        close(xops.memory_efficient_attention(q, k, v, bias), wanted)
    with pytest.raises(UnsupportedError, match="attn_bias"):
        xops.memory_efficient_attention(q, k.requires_grad_(), v, biases[0])


def test_padding_is_never_read():
    bias = PaddedCausal.from_seqlens([3, 2], 6, [5, 2])
    q, k, v = qkv(5, 12)
    wanted = xops.memory_efficient_attention(q, k, v, bias)
    for a, b in ((5, 6), (8, 12)):
        k[:, a:b], v[:, a:b] = math.nan, math.inf
    ours = leaves(q, k, v)
    out = xops.memory_efficient_attention(*ours, bias)
    assert torch.equal(out, wanted)
    out.sum().backward()
    assert all(x.grad.isfinite().all() for x in ours)
    assert not ours[1].grad[:, 8:].any()


def test_tensor_lists():
    parts = [torch.randn(2, 3, 1, 8), torch.randn(1, 6, 1, 8)]
    bias, x = Block.from_tensor_list(parts)
    assert x.shape == (1, 12, 1, 8)
    assert bias.q_seqinfo.seqstart.tolist() == bias.k_seqinfo.seqstart_py == [0, 3, 6, 12]
    assert (bias.q_seqinfo.max_seqlen, bias.q_seqinfo.min_seqlen) == (6, 3)
    out = bias.make_causal().split(xops.memory_efficient_attention(x, x, x, bias.make_causal()))
    for part, got in zip(parts, out, strict=True):
        close(got, math_attention(part, part, part, rule(*[part.shape[1]] * 2, causal=True))[0])
    mask, q, k, v = Block.from_tensor_lists_qkv(
        parts, [x.repeat(1, 2, 1, 1) for x in parts], [x.repeat(1, 2, 1, 1) for x in parts])
    assert (q.shape[1], k.shape[1], v.shape[1]) == (12, 24, 24)
    assert [tuple(x.shape) for x in mask.split_kv(k)] == [(2, 6, 1, 8), (1, 12, 1, 8)]
    assert all(map(torch.equal, mask.split_queries(q), parts))
    with pytest.raises(ValueError, match="split"):
        mask.split(q)
    assert Block.from_tensor_lists_qkv(parts, parts)[3] is None


# --- shapes, types, tensors added -----------------------------------------------------------------

def test_one_head_in_three_dimensions():
    q, k, v = (x[:, :, 0] for x in qkv(5, 7, batch=2))
    bias = torch.randn(2, 5, 7)
    check_gradients(
        lambda q, k, v, b: xops.memory_efficient_attention(q, k, v, b, scale=0.3),
        lambda q, k, v, b: math_attention(*(x[:, :, None] for x in (q, k, v)), bias=b[:, None],
                                          scale=0.3)[0][:, :, 0], (q, k, v, bias))
    out, lse = xops.memory_efficient_attention_forward_requires_grad(q, k, v, bias[:1])
    assert out.shape == (2, 5, 6) and lse.shape == (2, 1, 5)
    close(out, math_attention(*(x[:, :, None] for x in (q, k, v)), bias=bias[:1, None])[0][:, :, 0])


def grouped(heads, batch=2):
    """q [2, 5, groups, heads, 8]; k, v of one head for each group."""
    return (torch.randn(batch, 5, 2, heads, 8), torch.randn(batch, 7, 2, 1, 8),
            torch.randn(batch, 7, 2, 1, 6))


def expanded(k, heads=4):
    return k.expand(*k.shape[:3], heads, k.shape[-1])


@pytest.mark.parametrize("copy", [False, True])
def test_groups(copy):
    """Heads that expand made equal, read once, and the same heads as copies."""
    def run(q, k, v, b):
        k, v = (expanded(x).clone() if copy else expanded(x) for x in (k, v))
        return xops.memory_efficient_attention(q, k, v, xops.LowerTriangularMask().add_bias(b))

    def wanted(q, k, v, b):
        k, v = (expanded(x).flatten(2, 3) for x in (k, v))
        visible = rule(5, 7, causal=True, bottom_right=False)
        return math_attention(q.flatten(2, 3), k, v, visible,
                              b.flatten(1, 2))[0].unflatten(2, (2, 4))

    check_gradients(run, wanted, (*grouped(4), torch.randn(2, 2, 4, 5, 7)))


def test_groups_are_not_copied(monkeypatch):
    from attentile import _core

    seen, forward = [], _core.forward
    monkeypatch.setattr(_core, "forward", lambda t, *rest: (seen.append(t), forward(t, *rest)))
    q, k, v = grouped(4)
    xops.memory_efficient_attention(q, expanded(k), expanded(v))
    assert seen[0][1].shape == (2, 7, 2, 8) and seen[0][1].data_ptr() == k.data_ptr()
    xops.memory_efficient_attention(q[:, :, 0], expanded(k)[:, :, 0], expanded(v)[:, :, 0])
    assert seen[1][1].shape == (2, 7, 1, 8) and seen[1][1].data_ptr() == k.data_ptr()


def test_groups_packed():
    q, k, v = grouped(4, batch=1)
    bias = Block.from_seqlens([2, 3], [3, 4]).make_causal_from_bottomright()
    visible = blocks(5, 7, [(0, 2, 0, 3), (2, 5, 3, 7)], causal=True)
    out, lse = xops.memory_efficient_attention_forward_requires_grad(
        q, expanded(k), expanded(v), bias)
    wanted, wanted_lse = math_attention(
        *(x.flatten(2, 3) for x in (q, expanded(k), expanded(v))), visible)
    close(out.flatten(2, 3), wanted)
    assert lse.shape == (1, 2, 4, 5)
    close(lse.flatten(1, 2), wanted_lse)


def test_a_leaf_with_expanded_heads_gets_each_gradient():
    q, k, v = grouped(4)
    k, v = (expanded(x).requires_grad_() for x in (k, v))
    xops.memory_efficient_attention(q, k, v).square().sum().backward()
    k2, v2 = leaves(k, v)
    math_attention(*(x.flatten(2, 3) for x in (q, k2, v2)))[0].square().sum().backward()
    close(k.grad, k2.grad)
    close(v.grad, v2.grad)


def test_tensor_added():
    bias = torch.randn(2, 3, 5, 7)
    bias[0, 1, 2] = -math.inf
    q, k, v = qkv(5, 7, batch=2)
    q.requires_grad_()
    out = xops.memory_efficient_attention(q, k, v, bias)
    close(out, math_attention(q, k, v, bias=bias)[0])
    assert not out[0, 2, 1].any()
    check_gradients(lambda *t: xops.memory_efficient_attention(*t[:3], attn_bias=t[3]),
                    lambda *t: math_attention(*t[:3], bias=t[3])[0],
                    (q, k, v, torch.randn(2, 3, 5, 7)))
    mask = ab.LowerTriangularMask().add_bias(bias)
    wanted = bias.masked_fill(~rule(5, 7, causal=True, bottom_right=False), -math.inf)
    assert torch.equal(mask.materialize((2, 3, 5, 7)), wanted)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float16, 4e-3),
                                              (torch.bfloat16, 3e-2)])
def test_types(dtype, tolerance):
    q, k, v = qkv(5, 7, batch=2, dtype=dtype)
    wanted, wanted_lse = math_attention(q, k, v)
    out = xops.memory_efficient_attention(q, k, v)
    assert out.dtype == dtype
    close(out, wanted, tolerance)
    bias = torch.randn(2, 3, 5, 7, dtype=dtype)
    close(xops.memory_efficient_attention(q, k, v, bias), math_attention(q, k, v, bias=bias)[0],
          tolerance)
    exact = min(tolerance, 1e-5)
    wide = xops.memory_efficient_attention(q, k, v, bias, output_dtype=torch.float32)
    assert wide.dtype == torch.float32
    close(wide, math_attention(q, k, v, bias=bias)[0], 1e-5)
    out, lse = xops.memory_efficient_attention_partial(q, k, v)
    held = torch.float64 if dtype == torch.float64 else torch.float32
    assert out.dtype == lse.dtype == held
    close(out, wanted, exact)
    close(lse, wanted_lse, exact)
    assert xops.memory_efficient_attention(q, k, v, output_dtype=torch.float16).dtype \
        == torch.float16


def test_strides_do_not_matter():
    packed = torch.randn(2, 5, 3, 3, 8)
    q, k, v = xops.unbind(packed, 2)
    close(xops.memory_efficient_attention(q, k, v), math_attention(q, k, v)[0])


# --- backward, parts, dropout ---------------------------------------------------------------------

@pytest.mark.parametrize("make", [
    lambda: (None, 1), lambda: (ab.LowerTriangularMask(), 2),
    lambda: (torch.randn(2, 3, 8, 12), 2),
    lambda: (PaddedCausal.from_seqlens([3, 5], 6, [4, 6]), 1),
    lambda: (Gappy.from_seqlens([3, 5], [1, 6, 12], [4, 5]), 1)])
def test_backward_by_hand(make):
    bias, batch = make()
    tensors = leaves(*qkv(8, 12, batch=batch))
    wanted = xops.memory_efficient_attention(*tensors, bias, scale=0.4)
    grad = torch.randn_like(wanted)
    out, lse = xops.memory_efficient_attention_forward_requires_grad(*tensors, bias, scale=0.4)
    assert torch.equal(out, wanted) and not out.requires_grad
    found = xops.memory_efficient_attention_backward(grad, out, lse, *tensors, bias, scale=0.4)
    for got, want in zip(found, torch.autograd.grad(wanted, tensors, grad), strict=True):
        assert torch.equal(got, want)


def test_backward_of_groups_and_of_one_head():
    q, k, v = grouped(4)
    k, v = expanded(k), expanded(v)
    out, lse = xops.memory_efficient_attention_forward_requires_grad(q, k, v)
    grad = torch.randn_like(out)
    found = xops.memory_efficient_attention_backward(grad, out, lse, q, k, v)
    q2, k2, v2 = leaves(*(x.double() for x in (q, k, v)))
    wanted = math_attention(*(x.flatten(2, 3) for x in (q2, k2, v2)))[0]
    expected = torch.autograd.grad(wanted, (q2, k2, v2), grad.flatten(2, 3).double())
    for got, want in zip(found, expected, strict=True):
        close(got, want)
    three = [x[:, :, 0, 0] for x in (grad, out, q, k, v)]
    got = xops.memory_efficient_attention_backward(*three[:2], lse[:, 0, :1], *three[2:])
    for ours, whole in zip(got, found, strict=True):
        close(ours, whole[:, :, 0, 0])


def test_backward_of_a_wider_output():
    q, k, v = qkv(5, 7, dtype=torch.float16)
    out, lse = xops.memory_efficient_attention_forward_requires_grad(q, k, v,
                                                                     output_dtype=torch.float32)
    grads = xops.memory_efficient_attention_backward(torch.ones_like(out), out, lse, q, k, v)
    tensors = leaves(*(x.double() for x in (q, k, v)))
    math_attention(*tensors)[0].sum().backward()
    for got, want in zip(grads, tensors, strict=True):
        assert got.dtype == torch.float16
        close(got, want.grad, 2e-3)


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("stacked", [False, True])
def test_parts_merge_to_the_whole(groups, stacked):
    if groups:
        q, k, v = grouped(4)
        k, v = expanded(k), expanded(v)
    else:
        q, k, v = qkv(5, 7, batch=2)
    cuts = [(0, 2), (2, 3), (3, 7)]
    outs, lses = zip(*(fmha.memory_efficient_attention_partial(q, k[:, a:b], v[:, a:b])
                       for a, b in cuts), strict=True)
    nothing = (torch.zeros_like(outs[0]), torch.full_like(lses[0], -math.inf))
    outs, lses = (*outs, nothing[0]), (*lses, nothing[1])
    if stacked:
        outs, lses = torch.stack(outs), torch.stack(lses)
    out, lse = fmha.merge_attentions(outs, lses)
    wanted, wanted_lse = fmha.memory_efficient_attention_partial(q, k, v)
    close(out, wanted)
    close(lse, wanted_lse)
    out, lse = xops.merge_attentions(outs, lses, write_lse=False, output_dtype=torch.bfloat16)
    assert lse is None and out.dtype == torch.bfloat16
    close(out, wanted, 1e-2)


def test_dropout_follows_the_generator_and_keeps_the_mean():
    q, k, v = qkv(64, 64, batch=2)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        tensors = leaves(q, k, v)
        out = xops.memory_efficient_attention(*tensors, p=0.25)
        runs.append((out, torch.autograd.grad(out.square().sum(), tensors)))
    assert torch.equal(runs[0][0], runs[1][0]) and not torch.equal(runs[0][0], runs[2][0])
    assert all(map(torch.equal, runs[0][1], runs[1][1]))
    many = [x[:1].expand(200, -1, -1, -1) for x in (q, k, v)]
    mean = xops.memory_efficient_attention(*many, p=0.25).mean(0)
    close(mean, math_attention(q[:1], k[:1], v[:1])[0][0], 0.08)
    assert not xops.memory_efficient_attention(q, k, v, p=1.0).any()


def test_no_array_of_queries_by_keys():
    """Half a million tokens in packed sequences: one row of a mask alone would be 500 kB."""
    bias = Block.from_seqlens([64] * 8192).make_local_attention(8)
    x = torch.randn(1, 64 * 8192, 1, 4)
    out = xops.memory_efficient_attention(x, x, x, bias)
    last = x[:, -64:]
    visible = rule(64, 64, causal=True, left=7)
    close(out[:, -64:], math_attention(last, last, last, visible)[0])


def test_empty():
    q, k, v = qkv(0, 7)
    assert xops.memory_efficient_attention(q, k, v).shape == (1, 0, 3, 6)
    q, k, v = qkv(5, 7)
    assert not xops.memory_efficient_attention(q, k[:, :0], v[:, :0]).any()
    bias = Block.from_seqlens([0, 5, 0], [3, 4, 0])
    visible = blocks(5, 7, [(0, 5, 3, 7)])
    close(xops.memory_efficient_attention(q, k, v, bias), math_attention(q, k, v, visible)[0])
    assert [x.shape[1] for x in bias.split_queries(q)] == [0, 5, 0]
    none = Block.from_seqlens([])
    assert xops.memory_efficient_attention(q[:, :0], k[:, :0], v[:, :0], none).shape == (1, 0, 3, 6)

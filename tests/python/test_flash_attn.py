# SPDX-License-Identifier: Apache-2.0
"""attentile.compat.flash_attn: results and gradients against float64, signatures, errors."""

from __future__ import annotations

import importlib
import inspect
import itertools

import pytest

torch = pytest.importorskip("torch")

from flash_attn_reference import (  # noqa: E402
    CEILING,
    DTYPES,
    assert_close,
    batched,
    one_thread,  # noqa: F401
)

from attentile.compat import flash_attn as fa  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
BATCH = 2
TAIL = "dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, " \
       "alibi_slopes=None, deterministic=False, return_attn_probs=False"
SIGNATURES = {
    "flash_attn_func": f"(q, k, v, {TAIL})",
    "flash_attn_kvpacked_func": f"(q, kv, {TAIL})",
    "flash_attn_qkvpacked_func": f"(qkv, {TAIL})",
    "flash_attn_varlen_func": "(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, "
                              f"{TAIL}, block_table=None)",
    "flash_attn_varlen_kvpacked_func": "(q, kv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, "
                                       f"max_seqlen_k, {TAIL})",
    "flash_attn_varlen_qkvpacked_func": f"(qkv, cu_seqlens, max_seqlen, {TAIL})",
    "flash_attn_with_kvcache":
        "(q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, "
        "cache_seqlens=None, cache_batch_idx=None, cache_leftpad=None, block_table=None, "
        "softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, "
        "rotary_interleaved=True, alibi_slopes=None, num_splits=0, return_softmax_lse=False)",
    "bert_padding.unpad_input": "(hidden_states, attention_mask, unused_mask=None)",
    "bert_padding.unpad_input_for_concatenated_sequences":
        "(hidden_states, attention_mask_in_length)",
    "bert_padding.pad_input": "(hidden_states, indices, batch, seqlen)",
    "layers.rotary.apply_rotary_emb":
        "(x, cos, sin, interleaved=False, inplace=False, seqlen_offsets=0, cu_seqlens=None, "
        "max_seqlen=None)",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    module, _, function = name.rpartition(".")
    module = module or "flash_attn_interface"
    found = getattr(importlib.import_module(f"attentile.compat.flash_attn.{module}"), function)
    signature = inspect.signature(found)
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    assert str(inspect.Signature(plain)) == SIGNATURES[name]
    if module == "flash_attn_interface":
        assert getattr(fa, function) is found


def slopes_of(kind, heads):
    if kind == "none":
        return None
    one = 2.0 ** -torch.arange(1, heads + 1, dtype=torch.float32)
    return one if kind == "1-D" else torch.stack([one * (b + 1) for b in range(BATCH)])


def tensors(dtype, seqlen_q, seqlen_k, heads, heads_kv, *, head_dim=20, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def one(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    return (one(BATCH, seqlen_q, heads, head_dim), one(BATCH, seqlen_k, heads_kv, head_dim),
            one(BATCH, seqlen_k, heads_kv, head_dim))


# form, (seqlen_q, seqlen_k), (heads, heads_kv), causal, window, softcap, alibi
FORMS = {"func": [((17, 29), (4, 2)), ((33, 9), (3, 1)), ((1, 70), (2, 2))],
         "kvpacked": [((23, 40), (4, 1)), ((40, 23), (4, 4))],
         "qkvpacked": [((37, 37), (3, 3))]}
GRID = [(form, *shape, causal, window, softcap, alibi)
        for form, shapes in FORMS.items() for shape in shapes
        for causal, window, (softcap, alibi) in itertools.product(
            (False, True), ((-1, -1), (5, 0), (7, 3), (-1, 2)),
            ((0.0, "none"), (3.0, "1-D"), (0.0, "2-D")))]


def packed_inputs(form, q, k, v):
    """Leaves of the form's call, and q, k, v as views of them."""
    if form == "func":
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        return leaves, leaves
    if form == "kvpacked":
        q, kv = q.clone().requires_grad_(), torch.stack((k, v), -3).requires_grad_()
        return [q, kv], [q, *kv.unbind(-3)]
    qkv = torch.stack((q, k, v), -3).requires_grad_()
    return [qkv], list(qkv.unbind(-3))


FUNCTIONS = {"func": (fa.flash_attn_func, fa.flash_attn_varlen_func),
             "kvpacked": (fa.flash_attn_kvpacked_func, fa.flash_attn_varlen_kvpacked_func),
             "qkvpacked": (fa.flash_attn_qkvpacked_func, fa.flash_attn_varlen_qkvpacked_func)}


def check_gradients(leaves, out, reference, dtype):
    """Gradients of both calls from one random dout; reference built on the same leaves."""
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(dtype)
    got = torch.autograd.grad(out, leaves, dout)
    want = torch.autograd.grad(reference, leaves, dout.double())
    for index, (g, w) in enumerate(zip(got, want, strict=True)):
        assert g.dtype == dtype
        assert_close(g, w, times=4.0, name=f"gradient {index}")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("form", FORMS)
def test_dense_forward_and_backward(form, dtype):
    dtype = DTYPES[dtype]
    for index, case in enumerate(c for c in GRID if c[0] == form):
        _, (seqlen_q, seqlen_k), heads, causal, window, softcap, alibi = case
        q, k, v = tensors(dtype, seqlen_q, seqlen_k, *heads, seed=index)
        slopes = slopes_of(alibi, heads[0])
        leaves, (q, k, v) = packed_inputs(form, q, k, v)
        options = dict(causal=causal, window_size=window, softcap=softcap)
        out, lse, weights = FUNCTIONS[form][0](*leaves, alibi_slopes=slopes, deterministic=True,
                                               return_attn_probs=True, **options)
        assert out.dtype == dtype and lse.dtype == torch.float32
        assert weights.shape == (0,) and weights.dtype == dtype
        want, want_lse, _ = map(torch.stack, batched(q, k, v, slopes=slopes, **options))
        assert_close(out, want, name=f"out of {case}")
        assert_close(lse, want_lse, name=f"lse of {case}")
        check_gradients(leaves, out, want, dtype)
        alone = FUNCTIONS[form][0](*leaves, alibi_slopes=slopes, **options)
        assert torch.equal(alone, out)


LENGTHS = {"func": ([0, 7, 19], [5, 31, 8]), "kvpacked": ([4, 16, 1], [4, 0, 33]),
           "qkvpacked": ([9, 0, 26], None)}


def packed(lengths, heads, dtype, seed, head_dim=20):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(lengths), heads, head_dim, generator=generator).to(dtype)


def cumulative(lengths):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("form", FORMS)
def test_varlen_forward_and_backward(form, dtype):
    dtype = DTYPES[dtype]
    lengths_q, lengths_k = LENGTHS[form]
    lengths_k = lengths_k or lengths_q
    heads, heads_kv = (3, 3) if form == "qkvpacked" else (4, 2)
    cu_q, cu_k = cumulative(lengths_q), cumulative(lengths_k)
    longest = torch.tensor(max(lengths_q)), torch.tensor(max(lengths_k))  # 0-D, as callers do
    positional = (cu_q, longest[0]) if form == "qkvpacked" else (cu_q, cu_k, *longest)
    options_grid = itertools.product((False, True), ((-1, -1), (6, 0), (3, 4)),
                                     ((0.0, None), (2.0, "1-D"), (0.0, "2-D")))
    for index, (causal, window, (softcap, alibi)) in enumerate(options_grid):
        q = packed(lengths_q, heads, dtype, 3 * index)
        k, v = (packed(lengths_k, heads_kv, dtype, 3 * index + n) for n in (1, 2))
        leaves, (q, k, v) = packed_inputs(form, q, k, v)
        slopes = None
        if alibi:
            slopes = torch.rand(*([3] if alibi == "2-D" else []), heads,
                                generator=torch.Generator().manual_seed(index))
        options = dict(causal=causal, window_size=window, softcap=softcap)
        out, lse, weights = FUNCTIONS[form][1](*leaves, *positional, alibi_slopes=slopes,
                                               return_attn_probs=True, **options)
        assert lse.shape == (heads, sum(lengths_q)) and weights.shape == (0,)
        split = (t.split(n) for t, n in ((q, lengths_q), (k, lengths_k), (v, lengths_k)))
        want, want_lse, _ = batched(*split, slopes=slopes, **options)
        want = torch.cat(want)
        assert_close(out, want, name=f"out of {causal, window, softcap, alibi}")
        assert_close(lse, torch.cat(want_lse, 1), name="lse")
        check_gradients(leaves, out, want, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("options", [{}, {"causal": True, "alibi": True},
                                     {"window_size": (9, 4), "softcap": 2.0}], ids=str)
def test_dropout_pattern_is_the_one_used(dtype, options):
    dtype, dropout_p = DTYPES[dtype], 0.25
    options = dict(options)
    slopes = slopes_of("2-D", 4) if options.pop("alibi", False) else None
    q, k, v = (t.requires_grad_() for t in tensors(dtype, 60, 70, 4, 2))
    torch.manual_seed(5)
    out, lse, weights = fa.flash_attn_func(q, k, v, dropout_p, alibi_slopes=slopes,
                                           return_attn_probs=True, **options)
    assert weights.shape == (BATCH, 4, 60, 70) and weights.dtype == dtype
    keep = weights >= 0
    want, want_lse, probabilities = map(torch.stack, batched(
        q, k, v, keep=keep, dropout_p=dropout_p, slopes=slopes, **options))
    assert_close(out, want)
    assert_close(lse, want_lse, name="lse")
    check_gradients([q, k, v], out, want, dtype)
    magnitude = weights.double().abs()
    seen = probabilities > 0
    assert torch.equal(magnitude > 0, seen) or dtype == torch.float16
    normalised = magnitude / magnitude.sum(-1, keepdim=True).clamp_min(1e-30)
    assert (normalised - probabilities).abs().max() < 2 * CEILING[dtype]
    dropped = (~keep)[seen].double().mean().item()
    assert abs(dropped - dropout_p) < 0.02
    torch.manual_seed(5)
    assert torch.equal(fa.flash_attn_func(q, k, v, dropout_p, alibi_slopes=slopes, **options), out)
    assert not torch.equal(fa.flash_attn_func(q, k, v, dropout_p, alibi_slopes=slopes, **options),
                           out)


@pytest.mark.parametrize("form", FORMS)
def test_varlen_dropout_pattern_is_the_one_used(form):
    dropout_p, heads = 0.3, 3
    lengths_q, lengths_k = LENGTHS[form]
    lengths_k = lengths_k or lengths_q
    q = packed(lengths_q, heads, torch.float32, 0)
    k, v = (packed(lengths_k, heads, torch.float32, n) for n in (1, 2))
    leaves, (q, k, v) = packed_inputs(form, q, k, v)
    most_q, most_k = max(lengths_q) + 3, max(lengths_k) + 3 * (form != "qkvpacked") or 1
    bounds = cumulative(lengths_q), cumulative(lengths_k)
    if form == "qkvpacked":
        most_k = most_q
        positional = (bounds[0], most_q)
    else:
        positional = (*bounds, most_q, most_k)
    slopes = torch.rand(3, heads, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(3)
    out, lse, weights = FUNCTIONS[form][1](*leaves, *positional, dropout_p, causal=True,
                                           alibi_slopes=slopes, return_attn_probs=True)
    assert weights.shape == (3, heads, most_q, most_k)
    keep = [weights[b, :, :m, :n] >= 0 for b, (m, n) in enumerate(
        zip(lengths_q, lengths_k, strict=True))]
    split = (t.split(n) for t, n in ((q, lengths_q), (k, lengths_k), (v, lengths_k)))
    want, want_lse, probabilities = batched(*split, keep=keep, dropout_p=dropout_p, causal=True,
                                            slopes=slopes)
    assert any((~part).any() for part in keep)
    assert_close(out, torch.cat(want))
    assert_close(lse, torch.cat(want_lse, 1), name="lse")
    check_gradients(leaves, out, torch.cat(want), torch.float32)
    padded = torch.zeros(weights.shape, dtype=torch.bool)
    for b, part in enumerate(probabilities):
        padded[b, :, :part.shape[1], :part.shape[2]] = part > 0
        own = weights[b, :, :part.shape[1], :part.shape[2]].double().abs()
        own = own / own.sum(-1, keepdim=True).clamp_min(1e-30)
        assert torch.allclose(own, part, rtol=0, atol=1e-5)
    assert torch.equal(weights != 0, padded)


def test_what_callers_pass_works():
    q, k, v = tensors(torch.float32, 17, 29, 4, 2)
    expected = fa.flash_attn_func(q, k, v, window_size=(5, 2))
    for window in (torch.tensor([5, 2]), [5, 2], torch.tensor([5, 2], dtype=torch.int32).numpy()):
        assert torch.equal(fa.flash_attn_func(q, k, v, window_size=window), expected)
    bounds = cumulative([17] * BATCH), cumulative([29] * BATCH)
    rows = (t.flatten(0, 1) for t in (q, k, v))
    got = fa.flash_attn_varlen_func(*rows, bounds[0].long(), bounds[1], torch.tensor(17), 29,
                                    window_size=torch.tensor([5, 2]))
    assert torch.equal(got, expected.flatten(0, 1))
    strided = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
    assert torch.equal(fa.flash_attn_func(*strided, window_size=(5, 2)), expected)
    wide = [t.double() for t in (q, k, v)]
    assert_close(fa.flash_attn_func(*wide, softmax_scale=0.3),
                 torch.stack(batched(*wide, softmax_scale=0.3)[0]))


def test_rows_after_the_last_sequence_are_padding():
    q = packed([9], 2, torch.float32, 0)
    k = torch.full((20, 2, 20), torch.nan)
    k[:12] = packed([12], 2, torch.float32, 1)
    out, lse, _ = fa.flash_attn_varlen_func(q, k, k, cumulative([3, 4]), cumulative([5, 7]), 4, 7,
                                            return_attn_probs=True)
    short = fa.flash_attn_varlen_func(q[:7], k[:12], k[:12], cumulative([3, 4]),
                                      cumulative([5, 7]), 4, 7)
    assert torch.equal(out[:7], short) and not out[7:].any()
    assert bool(lse[:, 7:].isneginf().all()) and bool(lse[:, :7].isfinite().all())


def test_rows_that_see_nothing_and_lse_gradient():
    q, k, v = tensors(torch.float32, 9, 4, 2, 2)
    k.requires_grad_()
    out, lse, _ = fa.flash_attn_func(q, k, v, causal=True, return_attn_probs=True)
    assert not out[:, :5].any() and bool(lse[:, :, :5].isneginf().all())
    (got,) = torch.autograd.grad(lse[:, :, 5:].sum(), k)
    (want,) = torch.autograd.grad(torch.stack(batched(q, k, v, causal=True)[1])[:, :, 5:].sum(), k)
    assert_close(got, want, times=4.0, name="dk through lse")


@pytest.mark.parametrize("page_size", [1, 5, 16])
def test_varlen_reads_pages_in_place(page_size):
    lengths_q, lengths_k = [4, 1, 6], [11, 0, 30]
    q = packed(lengths_q, 4, torch.float32, 0)
    k, v = (packed(lengths_k, 2, torch.float32, n) for n in (1, 2))
    width = -(-max(lengths_k) // page_size)
    table = torch.randperm(3 * width + 4, generator=torch.Generator().manual_seed(1))
    table = table[:3 * width].view(3, width).int()
    pages = [torch.full((3 * width + 4, page_size, 2, 20), torch.nan) for _ in range(2)]
    for source, target in ((k, pages[0]), (v, pages[1])):
        for b, part in enumerate(source.split(lengths_k)):
            for j, row in enumerate(part):
                target[table[b, j // page_size], j % page_size] = row
        for b, length in enumerate(lengths_k):
            table[b, -(-length // page_size):] = 10**6  # pages beyond the length are never read
    bounds = cumulative(lengths_q), cumulative(lengths_k)
    got = fa.flash_attn_varlen_func(q, *pages, *bounds, 6, 30, causal=True, block_table=table)
    assert_close(got, fa.flash_attn_varlen_func(q, k, v, *bounds, 6, 30, causal=True).double())
    table[2, 0] = pages[0].shape[0]
    with pytest.raises(RuntimeError, match=r"block_table\[2\]\[0\]"):
        fa.flash_attn_varlen_func(q, *pages, *bounds, 6, 30, block_table=table)


REFUSED = {
    "q: shape": lambda q, k, v: fa.flash_attn_func(q[0], k, v),
    "k: was a list": lambda q, k, v: fa.flash_attn_func(q, k.tolist(), v),
    "q: was on device meta": lambda q, k, v: fa.flash_attn_func(q.to("meta"), k, v),
    "kv: shape": lambda q, k, v: fa.flash_attn_kvpacked_func(q, k),
    "qkv: shape": lambda q, k, v: fa.flash_attn_qkvpacked_func(torch.stack((k, v), 2)),
    "v: dtype": lambda q, k, v: fa.flash_attn_func(q, k, v.half()),
    "k: batch": lambda q, k, v: fa.flash_attn_func(q, k[:1], v[:1]),
    "num_heads": lambda q, k, v: fa.flash_attn_func(q[:, :, :3], k, v),
    "window_size": lambda q, k, v: fa.flash_attn_func(q, k, v, window_size=(1, 2, 3)),
    "window_size: was": lambda q, k, v: fa.flash_attn_func(q, k, v, window_size=(-2, 0)),
    r"window_size\[0\]": lambda q, k, v: fa.flash_attn_func(q, k, v, window_size=(None, 0)),
    "alibi_slopes": lambda q, k, v: fa.flash_attn_func(q, k, v, alibi_slopes=torch.ones(3)),
    "dropout_p": lambda q, k, v: fa.flash_attn_func(q, k, v, 1.5),
    "softcap": lambda q, k, v: fa.flash_attn_func(q, k, v, softcap=-1.0),
    "cu_seqlens_k": lambda q, k, v: fa.flash_attn_varlen_func(
        q[0], k[0], v[0], cumulative([5]), cumulative([9]) + 1, 5, 9),
    "cu_seqlens_k: was": lambda q, k, v: fa.flash_attn_varlen_func(
        q[0], k, v, cumulative([5, 0]), torch.tensor([0, 9, 4], dtype=torch.int32), 5, 9,
        block_table=torch.zeros(2, 1, dtype=torch.int32)),
    "cu_seqlens_q: dtype": lambda q, k, v: fa.flash_attn_varlen_func(
        q[0], k[0], v[0], cumulative([5]).float(), cumulative([9]), 5, 9),
    "max_seqlen_q: was 4": lambda q, k, v: fa.flash_attn_varlen_func(
        q[0], k[0], v[0], cumulative([5]), cumulative([9]), 4, 9),
    "max_seqlen_k": lambda q, k, v: fa.flash_attn_varlen_func(
        q[0], k[0], v[0], cumulative([5]), cumulative([9]), 5, 9.0),
    "cu_seqlens: was empty": lambda q, k, v: fa.flash_attn_varlen_qkvpacked_func(
        torch.stack((k[0], k[0], v[0]), 1), torch.zeros(0, dtype=torch.int32), 1),
    "block_table: shape": lambda q, k, v: fa.flash_attn_varlen_func(
        q[0], k, v, cumulative([5]), cumulative([9]), 5, 9,
        block_table=torch.zeros(2, 1, dtype=torch.int32)),
    "return_attn_probs": lambda q, k, v: fa.flash_attn_varlen_func(
        q[0], k, v, cumulative([5]), cumulative([9]), 5, 9, 0.5, return_attn_probs=True,
        block_table=torch.zeros(1, 1, dtype=torch.int32)),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_misuse_is_named(sentence):
    q, k, v = tensors(torch.float32, 5, 9, 4, 2)
    with pytest.raises((ValueError, TypeError), match=sentence):
        REFUSED[sentence](q, k, v)


def test_empty_problems():
    q, k, v = tensors(torch.float32, 5, 9, 4, 2)
    assert fa.flash_attn_func(q[:0], k[:0], v[:0]).shape == (0, 5, 4, 20)
    out, lse, weights = fa.flash_attn_func(q, k[:, :0], v[:, :0], 0.5, return_attn_probs=True)
    assert not out.any() and bool(lse.isneginf().all()) and weights.shape == (BATCH, 4, 5, 0)
    none = torch.zeros(1, dtype=torch.int32)
    assert fa.flash_attn_varlen_func(q[0, :0], k[0, :0], v[0, :0], none, none, 0, 0).shape[0] == 0


def test_in_a_compiled_graph():
    q, k, v = tensors(torch.float32, 5, 9, 4, 2)
    bounds = cumulative([5] * BATCH), cumulative([9] * BATCH)

    def dense(q, k, v):
        return fa.flash_attn_func(q, k, v, causal=True, window_size=(4, 0))

    def ragged(q, k, v):
        rows = (t.flatten(0, 1) for t in (q, k, v))
        return fa.flash_attn_varlen_func(*rows, *bounds, 5, 9, causal=True)

    lengths = torch.tensor([3, 6], dtype=torch.int32)

    def cached(q, k, v):
        caches = k.clone(), v.clone()
        out = fa.flash_attn_with_kvcache(q, *caches, q[:, :2, :2], q[:, 2:4, 2:],
                                         cache_seqlens=lengths, causal=True)
        return torch.cat((out.flatten(), *(cache.flatten() for cache in caches)))

    for function in (dense, ragged, cached):
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(q, k, v), function(q, k, v))


def test_passes_one_by_one_make_a_ring():
    """Two pieces of the keys, merged, and their backward passes: as ring attention calls them."""
    from attentile import merge
    from attentile.compat.flash_attn import flash_attn_interface as steps

    q, k, v = tensors(torch.float32, 12, 20, 4, 2)
    dout = torch.randn(q.shape, generator=torch.Generator().manual_seed(2))
    tail = (0.5, False, -1, -1, 0.0, None)
    pieces = [(k[:, :11], v[:, :11]), (k[:, 11:], v[:, 11:])]
    parts = [steps._flash_attn_forward(q, *piece, 0.0, *tail, False) for piece in pieces]
    out, lse = merge([part[:2] for part in parts])
    dq, dk, dv = (torch.zeros_like(t) for t in (q, k, v))
    for at, piece in zip((slice(0, 11), slice(11, 20)), pieces, strict=True):
        share = torch.empty_like(q)
        delta = steps._flash_attn_backward(dout, q, *piece, out, lse, share, dk[:, at], dv[:, at],
                                           0.0, *tail, False)
        dq += share
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    want = torch.stack(batched(*leaves, softmax_scale=0.5)[0])
    assert_close(out, want)
    wanted = torch.autograd.grad(want, leaves, dout.double())
    for name, got, gradient in zip("qkv", (dq, dk, dv), wanted, strict=True):
        assert_close(got, gradient, times=4.0, name=f"d{name}")
    assert_close(delta, (dout.double() * want).sum(-1).transpose(1, 2), name="softmax_d")


@pytest.mark.parametrize("ragged", [False, True])
def test_passes_one_by_one_replay_dropout(ragged):
    from attentile.compat.flash_attn import flash_attn_interface as steps

    q, k, v = tensors(torch.float32, 12, 20, 4, 2)
    tail = (0.5, True, 6, 0, 0.0, None)
    bounds = (cumulative([12] * BATCH), cumulative([20] * BATCH), 12, 20) if ragged else ()
    if ragged:
        q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    forward, backward, whole = (
        (steps._flash_attn_varlen_forward, steps._flash_attn_varlen_backward,
         fa.flash_attn_varlen_func) if ragged else
        (steps._flash_attn_forward, steps._flash_attn_backward, fa.flash_attn_func))
    torch.manual_seed(8)
    out, lse, weights, state = forward(q, k, v, *bounds, 0.3, *tail, True)
    assert state.dtype == torch.int64 and state.shape == (2,)
    gradients = [torch.empty_like(t) for t in (q, k, v)]
    dout = torch.ones_like(out)
    backward(dout, q, k, v, out, lse, *gradients, *bounds, 0.3, *tail, False, rng_state=state)
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    torch.manual_seed(8)
    same = whole(*leaves, *bounds, 0.3, 0.5, True, (6, 0), return_attn_probs=True)
    assert all(map(torch.equal, (out, lse, weights), same))
    assert all(map(torch.equal, gradients, torch.autograd.grad(same[0], leaves, dout)))
    with pytest.raises(ValueError, match="rng_state"):
        backward(dout, q, k, v, out, lse, *gradients, *bounds, 0.3, *tail, False)


def test_varlen_pass_over_used_keys():
    from attentile.compat.flash_attn import flash_attn_interface as steps

    q, k = packed([3, 4], 4, torch.float32, 0), packed([9, 12], 2, torch.float32, 1)
    used = torch.tensor([5, 11], dtype=torch.int32)
    out, lse, _, state = steps._flash_attn_varlen_forward(
        q, k, k, cumulative([3, 4]), cumulative([9, 12]), 4, 12, 0.0, 0.5, True, seqused_k=used)
    shown = [k[:5], k[9:20]]
    want, want_lse, _ = batched(q.split([3, 4]), shown, shown, softmax_scale=0.5, causal=True)
    assert_close(out, torch.cat(want))
    assert_close(lse, torch.cat(want_lse, 1), name="lse")
    assert not state.any()

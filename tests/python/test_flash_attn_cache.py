# SPDX-License-Identifier: Apache-2.0
"""attentile.compat.flash_attn: the cache, bert_padding, rotary, and install()."""

from __future__ import annotations

import importlib
import os
import pathlib
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from flash_attn_reference import (  # noqa: E402
    DTYPES,
    assert_close,
    batched,
    one_thread,  # noqa: F401
    rotate,
)
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import attentile.compat  # noqa: E402
from attentile.compat import flash_attn as fa  # noqa: E402
from attentile.compat.flash_attn import (  # noqa: E402
    bert_padding,
    flash_attn_func,
    flash_attn_with_kvcache,
)
from attentile.compat.flash_attn.layers.rotary import (  # noqa: E402
    apply_rotary_emb,
    apply_rotary_emb_func,
)

pytestmark = pytest.mark.usefixtures("one_thread")
HEADS, HEADS_KV, HEAD_DIM = 4, 2, 24


class Problem:
    """A cache of random contents and a call on it, drawn from a generator."""

    def __init__(self, seed, dtype, *, batch=3, capacity=40, seqlen_q=3, seqlen_new=None,
                 page_size=None, rows=False, leftpad=False):
        self.random = torch.Generator().manual_seed(seed)
        self.dtype, self.batch, self.page_size = dtype, batch, page_size
        new = seqlen_new or 0
        self.capacity = capacity if page_size is None else -(-capacity // page_size) * page_size
        self.lengths = self.integers(1, capacity - max(new, seqlen_q) + 1, batch)
        self.leftpad = self.lengths // 2 if leftpad else None
        self.q = self.normal(batch, seqlen_q, HEADS, HEAD_DIM)
        self.k = self.normal(batch, new, HEADS_KV, HEAD_DIM) if new else None
        self.v = self.normal(batch, new, HEADS_KV, HEAD_DIM) if new else None
        self.rows = self.table = None
        shape = (batch, capacity, HEADS_KV, HEAD_DIM)
        if page_size is not None:
            width = self.capacity // page_size
            order = torch.randperm(batch * width + 3, generator=self.random)[:batch * width]
            self.table = order.view(batch, width).int()
            shape = (batch * width + 3, page_size, HEADS_KV, HEAD_DIM)
        elif rows:
            self.rows = torch.randperm(batch + 2, generator=self.random)[:batch].int()
            shape = (batch + 2, *shape[1:])
        self.k_cache, self.v_cache = self.normal(*shape), self.normal(*shape)

    def integers(self, low, high, *shape):
        return torch.randint(low, high, shape, generator=self.random).int()

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.random).to(self.dtype)

    def place(self, b, j):
        """Where token j of sequence b lies."""
        if self.table is not None:
            return int(self.table[b, j // self.page_size]), j % self.page_size
        return (b if self.rows is None else int(self.rows[b])), j

    def tokens(self, cache, b, length):
        """The tokens of sequence b, one by one from where they lie."""
        first = 0 if self.leftpad is None else int(self.leftpad[b])
        return torch.stack([cache[self.place(b, j)] for j in range(first, length)]) \
            if length > first else cache.new_zeros(0, HEADS_KV, HEAD_DIM)

    def call(self, **options):
        return flash_attn_with_kvcache(
            self.q, self.k_cache, self.v_cache, self.k, self.v, cache_seqlens=self.lengths,
            cache_batch_idx=self.rows, cache_leftpad=self.leftpad, block_table=self.table,
            return_softmax_lse=True, **options)

    def check(self, *, rotary=None, interleaved=True, slopes=None, **options):
        """Calls and compares out, lse and every element of both caches with the reference."""
        keys, values = self.k_cache.clone(), self.v_cache.clone()
        q, k = self.q, self.k
        local = options.get("causal") or tuple(options.get("window_size", (-1, -1))) != (-1, -1)
        if rotary is not None:
            at = self.lengths.long()[:, None]
            steps = torch.arange(q.shape[1]) if local else torch.zeros(q.shape[1]).long()
            q = rotate(q, *rotary, at + steps, interleaved)
            k = rotate(k, *rotary, at + torch.arange(k.shape[1]), interleaved).to(self.dtype)
        after = self.lengths.tolist()
        if k is not None:
            for b in range(self.batch):
                for i in range(k.shape[1]):
                    keys[self.place(b, after[b] + i)] = k[b, i]
                    values[self.place(b, after[b] + i)] = self.v[b, i]
                after[b] += k.shape[1]
        cos, sin = rotary or (None, None)
        out, lse = self.call(rotary_cos=cos, rotary_sin=sin, rotary_interleaved=interleaved,
                             alibi_slopes=slopes, **options)
        parts = ([self.tokens(cache, b, after[b]) for b in range(self.batch)]
                 for cache in (keys, values))
        want, want_lse, _ = batched(q, *parts, slopes=slopes, **options)
        assert out.dtype == self.dtype
        # The call rounds a rotated q to its dtype; the reference does not.
        rounded = rotary is not None and self.dtype != torch.float32
        assert_close(out, torch.stack(want), times=3.0 if rounded else 1.0)
        assert_close(lse, torch.stack(want_lse), times=300.0 if rounded else 1.0, name="lse")
        assert torch.equal(self.v_cache, values)
        if rotary is None:
            assert torch.equal(self.k_cache, keys)
        assert_close(self.k_cache, keys, name="k_cache")
        return out, lse


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("place", [{}, {"rows": True}, {"leftpad": True}, {"page_size": 7},
                                   {"page_size": 16, "leftpad": True},
                                   {"rows": True, "leftpad": True}], ids=str)
def test_families(place, dtype):
    seed = 0
    for seqlen_q, seqlen_new in ((1, None), (1, 1), (4, 4), (6, 2), (2, 9)):
        for options in ({}, {"causal": True}, {"causal": True, "window_size": (8, 0)},
                        {"window_size": (4, 6), "softcap": 2.0}):
            seed += 1
            problem = Problem(seed, DTYPES[dtype], seqlen_q=seqlen_q, seqlen_new=seqlen_new,
                              **place)
            slopes = torch.rand(3, HEADS, generator=problem.random) if seed % 3 == 0 else None
            problem.check(slopes=slopes, **options)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("place", [{}, {"rows": True}, {"leftpad": True}, {"page_size": 5}],
                         ids=str)
def test_rotary_in_the_call(place, interleaved):
    seed = 100
    for dtype in (torch.float32, torch.float16):
        for rotary_dim in (8, HEAD_DIM):
            for options in ({}, {"causal": True}, {"window_size": (6, 1)}):
                seed += 1
                problem = Problem(seed, dtype, seqlen_q=3, seqlen_new=3, **place)
                angle = torch.rand(problem.capacity, rotary_dim // 2, generator=problem.random) * 6
                rotary = angle.cos().to(dtype), angle.sin().to(dtype)
                problem.check(rotary=rotary, interleaved=interleaved, **options)


@given(seed=st.integers(0, 10**6), seqlen_q=st.integers(1, 6), new=st.integers(0, 6),
       capacity=st.integers(7, 60), page_size=st.sampled_from([None, 1, 3, 8]),
       rows=st.booleans(), leftpad=st.booleans(), causal=st.booleans(),
       window=st.sampled_from([(-1, -1), (0, 0), (5, -1), (3, 2)]))
def test_generated(*, seed, seqlen_q, new, capacity, page_size, rows, leftpad, causal, window):
    problem = Problem(seed, torch.float32, capacity=capacity, seqlen_q=seqlen_q,
                      seqlen_new=new or None, page_size=page_size,
                      rows=rows and page_size is None, leftpad=leftpad)
    problem.check(causal=causal, window_size=window)


def test_lengths_as_int_none_and_zero():
    problem = Problem(1, torch.float32, page_size=4)
    args = problem.q, problem.k_cache, problem.v_cache
    table = {"block_table": problem.table}
    same = torch.full((3,), 9, dtype=torch.int32)
    expected = flash_attn_with_kvcache(*args, cache_seqlens=same, **table)
    for lengths in (9, same.long()):
        assert torch.equal(flash_attn_with_kvcache(*args, cache_seqlens=lengths, **table), expected)
    for splits in (1, 7):
        assert torch.equal(flash_attn_with_kvcache(*args, cache_seqlens=9, num_splits=splits,
                                                   **table), expected)
    full = flash_attn_with_kvcache(*args, **table)
    assert torch.equal(full, flash_attn_with_kvcache(*args, cache_seqlens=40, **table))
    out, lse = flash_attn_with_kvcache(*args, cache_seqlens=0, return_softmax_lse=True, **table)
    assert not out.any() and bool(lse.isneginf().all())
    dense = Problem(2, torch.float32)
    assert torch.equal(flash_attn_with_kvcache(dense.q, dense.k_cache, dense.v_cache),
                       flash_attn_func(dense.q, dense.k_cache, dense.v_cache))


def test_decoding_step_by_step_is_causal_attention():
    q, k, v = (torch.randn(2, 11, heads, 16, generator=torch.Generator().manual_seed(heads))
               for heads in (4, 2, 1))
    v = v.expand(2, 11, 2, 16)
    caches = torch.zeros(2, 32, 2, 16), torch.zeros(2, 32, 2, 16)
    steps = [flash_attn_with_kvcache(q[:, i:i + 1], *caches, k[:, i:i + 1], v[:, i:i + 1],
                                     cache_seqlens=i, causal=True) for i in range(11)]
    assert_close(torch.cat(steps, 1), flash_attn_func(q, k, v, causal=True).double())
    assert torch.equal(caches[0][:, :11], k) and not caches[0][:, 11:].any()


def test_gradients_do_not_flow_and_the_cache_may_be_a_view():
    problem = Problem(3, torch.float32, seqlen_new=2)
    both = torch.stack((problem.k_cache, problem.v_cache), 2)
    problem.k_cache, problem.v_cache = both.unbind(2)
    problem.q.requires_grad_()
    out, _ = problem.check(causal=True)
    assert not out.requires_grad
    with torch.autocast("cpu", torch.bfloat16):  # which would copy the cache
        assert torch.equal(problem.call(causal=True)[0], out)


def refused():
    base = Problem(4, torch.float32, seqlen_new=2)
    paged = Problem(4, torch.float32, seqlen_new=2, page_size=8)
    plain = {"q": base.q, "k_cache": base.k_cache, "v_cache": base.v_cache, "k": base.k,
             "v": base.v, "cache_seqlens": base.lengths}
    pages = {**plain, "k_cache": paged.k_cache, "v_cache": paged.v_cache,
             "block_table": paged.table}
    wrong_page, negative_page = paged.table.clone(), paged.table.clone()
    wrong_page[1, 0], negative_page[2, 0] = paged.k_cache.shape[0], -1
    cos = torch.ones(64, 4)
    long = torch.tensor([1, 39, 1], dtype=torch.int32)
    indices = torch.tensor([0, 1, 2], dtype=torch.int32)
    return [
        (RuntimeError, r"block_table\[1\]\[0\]", {**pages, "block_table": wrong_page}),
        (RuntimeError, r"block_table\[2\]\[0\]: was -1", {**pages, "block_table": negative_page}),
        (RuntimeError, "block_table: has 5 pages", {**pages, "cache_seqlens": long}),
        (RuntimeError, "block_table: has 5 pages", {**pages, "cache_seqlens": 39}),
        (ValueError, r"cache_seqlens\[1\]: was 39, expected 0 to 38",
         {**plain, "cache_seqlens": long}),
        (ValueError, r"cache_seqlens\[0\]: was -1", {**plain, "cache_seqlens": indices - 1}),
        (ValueError, "cache_seqlens: was -3", {**plain, "cache_seqlens": -3}),
        (ValueError, "cache_seqlens: shape", {**plain, "cache_seqlens": long[:2]}),
        (ValueError, "cache_seqlens: had elements beyond 32 bits",
         {**plain, "cache_seqlens": long.long() + 2**32}),
        (TypeError, "cache_seqlens: dtype", {**plain, "cache_seqlens": long.float()}),
        (ValueError, "cache_seqlens: was None", {**plain, "cache_seqlens": None}),
        (ValueError, "v: was None", {**plain, "v": None}),
        (ValueError, "k: was None", {**plain, "k": None}),
        (ValueError, "k: was None", {**plain, "k": None, "v": None, "rotary_cos": cos}),
        (ValueError, "rotary_sin: was None", {**plain, "rotary_cos": cos}),
        (ValueError, "rotary_dim", {**plain, "rotary_cos": cos.repeat(1, 9),
                                    "rotary_sin": cos.repeat(1, 9)}),
        (ValueError, "cos, sin: have 9 rows", {**plain, "cache_seqlens": 20, "rotary_cos": cos[:9],
                                             "rotary_sin": cos[:9]}),
        (ValueError, "k: shape", {**plain, "k": base.k[:, :, :1]}),
        (ValueError, "k: had 41", {**plain, "k": base.k.new_zeros(3, 41, HEADS_KV, HEAD_DIM),
                                   "v": base.k.new_zeros(3, 41, HEADS_KV, HEAD_DIM)}),
        (ValueError, "v: shape", {**plain, "v": base.v[:, :1]}),
        (ValueError, "k: dtype", {**plain, "k": base.k.half()}),
        (ValueError, "k_cache: dtype", {**plain, "k_cache": base.k_cache.half()}),
        (ValueError, "k_cache: batch was 3", {**plain, "q": base.q[:2]}),
        (ValueError, "k_cache: shape", {**plain, "q": base.q[..., :8]}),
        (ValueError, "v_cache: shape", {**plain, "v_cache": base.v_cache[:, :5]}),
        (ValueError, r"cache_batch_idx\[2\]", {**plain, "cache_batch_idx": indices + 1}),
        (ValueError, "cache_batch_idx", {**pages, "cache_batch_idx": indices}),
        (ValueError, r"cache_leftpad\[0\]", {**plain, "cache_leftpad": indices - 1}),
        (ValueError, r"cache_leftpad\[2\]: was 41", {**plain, "cache_leftpad": indices * 20 + 1}),
    ]


@pytest.mark.parametrize("index", range(len(refused())))
def test_misuse_is_named_and_writes_nothing(index):
    error, sentence, arguments = refused()[index]
    if "cache_leftpad" in arguments:
        arguments["cache_seqlens"] = 30
    caches = arguments["k_cache"], arguments["v_cache"]
    before = [cache.clone() for cache in caches]
    with pytest.raises(error, match=sentence):
        flash_attn_with_kvcache(**arguments)
    assert all(map(torch.equal, before, caches))


MEMORY = """
import torch
from attentile.compat.flash_attn import flash_attn_with_kvcache

def kibibytes(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key))

def extra(call):
    with open("/proc/self/clear_refs", "w") as references:
        references.write("5")  # forget the peak
    start = kibibytes("VmRSS")
    call()
    return kibibytes("VmHWM") - start

tokens, page = 65536, 64
for dtype in (torch.float32, torch.bfloat16):
    pages = [torch.full((tokens // page, page, 2, 64), 0.5, dtype=dtype) for _ in range(2)]
    dense = [p.view(1, tokens, 2, 64) for p in pages]
    table = torch.arange(tokens // page, dtype=torch.int32).flip(0)[None]
    q, k = torch.ones(1, 1, 8, 64, dtype=dtype), torch.ones(1, 1, 2, 64, dtype=dtype)
    cos = torch.ones(tokens, 16, dtype=dtype)
    for caches, where in ((dense, {}), (pages, {"block_table": table})):
        def call(length):
            flash_attn_with_kvcache(q, *caches, k, k, cos, cos, cache_seqlens=length, causal=True,
                                    **where)
        call(8)
        print("call", extra(lambda: call(tokens - 1)))
    print("copy", extra(lambda: dense[0].clone()))
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/clear_refs").exists(),
                    reason="the peak of memory is read from Linux's /proc")
def test_a_long_cache_is_not_copied():
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True,
                         timeout=120, check=False, env=_environment())
    assert run.returncode == 0, run.stderr
    found = [line.split() for line in run.stdout.splitlines()]
    calls = [int(kib) for what, kib in found if what == "call"]
    copies = [int(kib) for what, kib in found if what == "copy"]
    assert len(calls) == 4 and max(calls) * 1024 < 1_000_000, found
    assert min(copies) > 8 * 1024, found  # the measurement would see a copy


def _environment():
    root = str(pathlib.Path(attentile.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": root}


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_rotary(dtype, interleaved):
    dtype = DTYPES[dtype]
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 7, 3, 20, generator=random).to(dtype).requires_grad_()
    angle = torch.rand(16, 6, generator=random) * 6
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    for offsets in (0, 4, torch.tensor([9, 2], dtype=torch.int32)):
        at = torch.as_tensor(offsets).reshape(-1, 1).expand(2, 1).long() + torch.arange(7)
        got = apply_rotary_emb(x, cos, sin, interleaved, seqlen_offsets=offsets)
        want = rotate(x, cos, sin, at, interleaved)
        assert got.dtype == dtype
        assert_close(got, want)
        dout = torch.randn(x.shape, generator=random).to(dtype)
        (dx,) = torch.autograd.grad(got, x, dout)
        (want_dx,) = torch.autograd.grad(want, x, dout.double())
        assert_close(dx, want_dx, name="dx")
        rows = x.detach()[:, :, :2].clone()
        same = apply_rotary_emb_func(rows, cos, sin, interleaved, True, offsets)
        assert same is rows and torch.equal(rows, got.detach()[:, :, :2])
    bounds = torch.tensor([0, 5, 5, 14], dtype=torch.int32)
    for offsets in (1, torch.tensor([3, 0, 6], dtype=torch.int32)):
        first = torch.as_tensor(offsets).expand(3).tolist()
        at = torch.cat([torch.arange(5) + first[0], torch.arange(9) + first[2]])
        rows = x.detach().flatten(0, 1)
        got = apply_rotary_emb(rows, cos, sin, interleaved, seqlen_offsets=offsets,
                               cu_seqlens=bounds, max_seqlen=9)
        assert_close(got, rotate(rows, cos, sin, at, interleaved))


def test_rotary_in_place_has_a_gradient():
    x, cos = torch.randn(1, 5, 2, 8), torch.rand(5, 4)
    leaf = x.clone().requires_grad_()
    apply_rotary_emb(leaf * 1.0, cos, cos, inplace=True).sum().backward()
    other = x.clone().requires_grad_()
    apply_rotary_emb(other, cos, cos).sum().backward()
    assert torch.equal(leaf.grad, other.grad)


@pytest.mark.parametrize("sentence,change", [
    ("x: shape", {"x": torch.ones(5, 2, 8)}),
    ("cos: rotary_dim was 16", {"cos": torch.ones(6, 8), "sin": torch.ones(6, 8)}),
    ("sin: shape", {"sin": torch.ones(5, 4)}),
    ("cos, sin: have 6 rows, expected one for each of positions 2 to 6", {"seqlen_offsets": 2}),
    ("expected one for each of positions -1", {"seqlen_offsets": torch.tensor([-1])}),
    ("seqlen_offsets: was 'a'", {"seqlen_offsets": "a"}),
    ("cu_seqlens: was", {"x": torch.ones(5, 2, 8), "cu_seqlens": torch.tensor([0, 4])}),
])
def test_rotary_misuse_is_named(sentence, change):
    arguments = {"x": torch.ones(1, 5, 2, 8), "cos": torch.ones(6, 4), "sin": torch.ones(6, 4)}
    with pytest.raises((ValueError, TypeError), match=sentence):
        apply_rotary_emb(**{**arguments, **change})


@given(seed=st.integers(0, 10**6), batch=st.integers(1, 4), seqlen=st.integers(1, 9),
       kind=st.sampled_from([torch.bool, torch.int64, torch.int32]), unused=st.booleans())
def test_padding_round_trip(seed, batch, seqlen, kind, unused):
    random = torch.Generator().manual_seed(seed)
    states = torch.randn(batch, seqlen, 2, 3, generator=random, dtype=torch.float64)
    states.requires_grad_()
    mask = torch.rand(batch, seqlen, generator=random) < 0.6
    extra = (torch.rand(batch, seqlen, generator=random) < 0.5) & ~mask if unused else None
    taken = mask | extra if unused else mask
    got = bert_padding.unpad_input(states, mask.to(kind), None if extra is None else extra.to(kind))
    tokens, indices, cu_seqlens, longest, used = got
    flat = [b * seqlen + s for b in range(batch) for s in range(seqlen) if taken[b, s]]
    assert indices.tolist() == flat and indices.dtype == torch.int64
    assert torch.equal(tokens, states.reshape(-1, 2, 3)[flat])
    assert cu_seqlens.tolist() == [int(taken[:b].sum()) for b in range(batch + 1)]
    assert cu_seqlens.dtype == used.dtype == torch.int32
    assert type(longest) is int and longest == int(taken.sum(1).max())
    assert used.tolist() == mask.sum(1).tolist()
    padded = bert_padding.pad_input(tokens, indices, batch, seqlen)
    assert torch.equal(padded, states * taken[..., None, None])
    (gradient,) = torch.autograd.grad(padded.square().sum(), states)
    assert torch.equal(gradient, 2 * states * taken[..., None, None])


def test_padding_of_concatenated_sequences():
    lengths = torch.tensor([[2, 3, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [6, 0, 0, 0, 0, 0]])
    states = torch.randn(3, 6, 4)
    tokens, indices, cu_seqlens, longest = \
        bert_padding.unpad_input_for_concatenated_sequences(states, lengths)
    assert cu_seqlens.tolist() == [0, 2, 5, 11] and longest == 6
    assert cu_seqlens.dtype == torch.int32
    assert torch.equal(tokens, torch.cat([states[0, :5], states[2]]))
    assert torch.equal(bert_padding.pad_input(tokens, indices, 3, 6)[0, :5], states[0, :5])
    with pytest.raises(ValueError, match="attention_mask_in_length"):
        bert_padding.unpad_input_for_concatenated_sequences(states, lengths + 1)


def test_indexing_and_its_gradients():
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    indices = torch.tensor([4, 0, 2])
    assert torch.autograd.gradcheck(lambda t: bert_padding.index_first_axis(t, indices), x)
    assert torch.autograd.gradcheck(
        lambda t: bert_padding.index_put_first_axis(t, torch.tensor([6, 1, 3, 0, 5]), 8), x)
    assert torch.autograd.gradcheck(
        lambda t: bert_padding.index_first_axis_residual(t, indices), x)
    with pytest.raises(ValueError, match="input"):
        bert_padding.index_first_axis(x[0], indices)
    with pytest.raises(ValueError, match="indices"):
        bert_padding.index_put_first_axis(x, indices, 8)
    with pytest.raises(ValueError, match="attention_mask"):
        bert_padding.unpad_input(x[None], torch.ones(2, 5))


@pytest.fixture
def installed():
    attentile.compat.install()
    yield
    attentile.compat.uninstall()


def test_install_and_uninstall(installed):
    attentile.compat.install()  # twice is once
    import flash_attn
    from flash_attn import flash_attn_func
    from flash_attn.bert_padding import index_first_axis, pad_input, unpad_input
    from flash_attn.flash_attn_interface import flash_attn_with_kvcache
    from flash_attn.layers.rotary import apply_rotary_emb

    assert flash_attn is fa and flash_attn_func is fa.flash_attn_func
    assert flash_attn_with_kvcache is fa.flash_attn_with_kvcache
    assert all(map(callable, (index_first_axis, pad_input, unpad_input, apply_rotary_emb)))
    assert tuple(int(part) for part in flash_attn.__version__.split(".")) >= (2, 8)
    assert importlib.util.find_spec("flash_attn") is not None
    attentile.compat.uninstall()
    assert not [name for name in sys.modules if name.partition(".")[0] == "flash_attn"]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("flash_attn")
    attentile.compat.uninstall()


def test_install_leaves_a_real_package_alone(tmp_path, monkeypatch):
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").write_text("real = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match="flash_attn"):
        attentile.compat.install()
    assert importlib.import_module("flash_attn").real
    try:
        with pytest.raises(RuntimeError, match=str(tmp_path)):
            attentile.compat.install()
        attentile.compat.uninstall()
        assert sys.modules["flash_attn"].real
    finally:
        del sys.modules["flash_attn"]

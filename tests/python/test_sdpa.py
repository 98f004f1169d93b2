# SPDX-License-Identifier: Apache-2.0
"""F.scaled_dot_product_attention inside attentile.torch.sdpa(): what runs, where, for whom."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import CEILING, assert_close, cases, same_bits
from torch.nn.attention import SDPBackend, sdpa_kernel

import attentile
from attentile.torch import last_dispatch, sdpa

Tensor = torch.Tensor
attend = F.scaled_dot_product_attention


def ran() -> str:
    dispatch = last_dispatch()
    return "nobody" if dispatch is None else dispatch.who


def tokens(*shape: int, dtype: torch.dtype = torch.float32, count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            for _ in range(count)]


# --- generated calls -----------------------------------------------------------------------------

@dataclass
class Call:
    """What a call is given; tensors are made from the seed."""

    dtype: str
    shapes: tuple[tuple[int, ...], ...]
    mask: tuple[str, tuple[int, ...]] | None
    keywords: dict[str, Any]
    seed: int


@st.composite
def calls(draw: Any) -> Call:
    """Any call that the documentation of scaled_dot_product_attention allows."""
    rank = draw(st.sampled_from([4, 4, 4, 4, 3, 5, 2]))
    lead = [draw(st.integers(1, 3)) for _ in range(max(rank - 3, 0))]
    rows, keys = (draw(st.sampled_from([5, 1, 2, 7, 16, 33, 0])) for _ in range(2))

    def some(n: int) -> int:  # torch's math does not broadcast what is empty
        return draw(st.sampled_from([n, n, n, 1])) if rows and keys else n

    dim, dim_v = (draw(st.sampled_from([8, 1, 16, 24, 64])) for _ in range(2))
    gqa = rank > 3 and draw(st.integers(0, 3)) == 0
    heads_kv = draw(st.integers(1, 3))
    heads = heads_kv * (draw(st.integers(1, 3)) if gqa else 1)
    shapes = []
    for n, h, d in ((rows, heads, dim), (keys, heads_kv, dim), (keys, heads_kv, dim_v)):
        own = [some(x) for x in lead] + ([h if gqa else some(h)] if rank > 2 else [])
        shapes.append((*own, n, d))
    mask = None
    if draw(st.booleans()):
        last = -3 if gqa else -2  # torch's math takes masks of what q and k broadcast to
        batch = np.broadcast_shapes(*(s[:last] for s in shapes[:2]))
        full = (*batch, *([heads] if gqa else []), rows, keys)
        kept = tuple(draw(st.sampled_from([x, 1])) for x in full)
        mask = (draw(st.sampled_from(["bool", "float32", "own"])),
                kept[draw(st.integers(0, len(full) - 2)):])
    keywords: dict[str, Any] = {"enable_gqa": True} if gqa else {}
    if draw(st.booleans()):
        keywords["is_causal"] = True
    if draw(st.integers(0, 2)) == 0:
        keywords["scale"] = draw(st.sampled_from([0.3, 0.0, -1.0]))
    if draw(st.integers(0, 4)) == 0:
        keywords["dropout_p"] = draw(st.sampled_from([0.1, 0.5]))
    dtype = draw(st.sampled_from(["float32", "float64", "float16", "bfloat16"]))
    seed = draw(st.integers(0, 2**32))
    if np.random.default_rng((seed, 1)).random() < 0.02:
        dtype = "complex64"
    return Call(dtype, tuple(shapes), mask, keywords, seed)


def made(call: Call) -> tuple[list[Tensor], Tensor | None]:
    generator = torch.Generator().manual_seed(call.seed)
    dtype = getattr(torch, call.dtype)
    real = torch.float64 if dtype != torch.complex64 else dtype
    given = [torch.randn(s, generator=generator, dtype=real).to(dtype).requires_grad_()
             for s in call.shapes]
    if call.mask is None:
        return given, None
    kind, shape = call.mask
    scores = torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == "bool":
        return given, scores > -0.5
    return given, scores.to(torch.float32 if kind == "float32" else dtype).requires_grad_()


def by_math(given: list[Tensor], mask: Tensor | None, keywords: dict[str, Any]) -> Tensor:
    """torch's math in float64; causal and mask together as one mask."""
    keywords = dict(keywords)
    if mask is not None and keywords.pop("is_causal", False):
        causal = torch.ones(given[0].shape[-2], given[1].shape[-2], dtype=torch.bool).tril()
        mask = mask & causal if mask.dtype == torch.bool else mask.masked_fill(
            ~causal, -torch.inf)
    with sdpa_kernel(SDPBackend.MATH):
        return attend(*given, attn_mask=mask, **keywords)


def check_against_math(call: Call, given: list[Tensor], mask: Tensor | None, out: Tensor) -> None:
    wide = [x.detach().double().requires_grad_() for x in given]
    wide_mask = mask
    if mask is not None and mask.is_floating_point():
        wide_mask = mask.detach().double().requires_grad_()
        wide.append(wide_mask)
        given = [*given, mask]
    want = by_math(wide[:3], wide_mask, call.keywords)
    ceiling = CEILING[call.dtype]
    assert out.dtype == given[0].dtype
    assert_close("out", out, want, ceiling)
    dout = torch.randn(want.shape, dtype=torch.float64).to(out.dtype)
    got = torch.autograd.grad(out, given, dout)
    reference = torch.autograd.grad(want, wide, dout.double(), allow_unused=True,
                                    materialize_grads=True)  # no keys: math drops the mask
    summed = 1 if len(wide) < 4 else max(want.shape[-2], 1) * wide[1].shape[-2]
    for i, (x, y) in enumerate(zip(got, reference, strict=True)):
        # a mask's gradient sums terms that cancel
        assert_close("gradient", x, y, 4 * ceiling * (1 if i < 3 else 1 + summed**0.5))


def check_dropout(call: Call, given: list[Tensor], mask: Tensor | None) -> None:
    """Dropout cannot equal torch's bits: it repeats with the seed, and p of the weights go."""
    torch.manual_seed(call.seed)
    with sdpa():
        first = attend(*given, attn_mask=mask, **call.keywords)
    torch.manual_seed(call.seed)
    with sdpa():
        again = attend(*given, attn_mask=mask, **call.keywords)
    same_bits("the same seed", first, again)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(again.sum(), given))


def test_generated_calls() -> None:
    """At least 95 % of legal calls run on attentile; all agree with torch's math."""
    taken: list[str] = []

    @settings(max_examples=cases(300))
    @given(calls())
    def check(call: Call) -> None:
        given, mask = made(call)
        if call.dtype == "complex64":
            with sdpa(), contextlib.suppress(Exception):  # torch raises for most
                attend(*given, attn_mask=mask, **call.keywords)
            taken.append(ran())
            assert taken[-1] == "torch"
            return
        with sdpa():
            out = attend(*given, attn_mask=mask, **call.keywords)
        taken.append(ran())
        assert taken[-1] == "attentile", last_dispatch()
        if call.keywords.get("dropout_p"):
            check_dropout(call, given, mask)
        else:
            check_against_math(call, given, mask, out)

    check()
    share = taken.count("attentile") / len(taken)
    print(f"{share:.1%} of {len(taken)} calls ran on attentile")
    assert len(taken) >= cases(300) and share >= 0.95


def test_mask_and_dropout_of_a_plain_call() -> None:
    """Three torch.randn(1, 8, 1024, 64), a boolean mask, dropout_p=0.1."""
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 8, 1024, 64), torch.randn(1, 8, 1024, 64), torch.randn(1, 8, 1024, 64)
    mask = torch.rand(1024, 1024) > 0.3
    with sdpa():
        out = attend(q, k, v, attn_mask=mask, dropout_p=0.1)
        assert ran() == "attentile"
        total = sum(attend(q, k, v, attn_mask=mask, dropout_p=0.1) for _ in range(8))
    plain = attend(q, k, v, attn_mask=mask)
    assert out.shape == plain.shape and torch.isfinite(out).all()
    spread = (out - plain).std()
    assert 0.05 * plain.std() < spread < plain.std()
    assert (total / 8 - plain).std() < 0.5 * spread  # 1 / sqrt(8) of it


# --- who runs ------------------------------------------------------------------------------------

def test_last_dispatch() -> None:
    q, k, v = tokens(1, 2, 5, 8)
    with sdpa():
        attend(q, k, v)
        ours = last_dispatch()
    attend(q, k, v)
    outside = last_dispatch()
    assert ours is not None and outside is not None
    assert ours.who == "attentile" and ours.why and outside.who == "torch"
    assert "outside" in outside.why


@pytest.mark.parametrize(("name", "why"), [
    ("complex", "complex64"), ("meta", "meta"), ("nested", ""), ("jagged", ""),
    ("head_dim 600", "600")])
def test_what_falls_through(name: str, why: str) -> None:
    """torch computes these, or raises as ever."""
    q = tokens(2, 4, 5, 8)[0]
    nested = [torch.randn(n, 4, 8).transpose(0, 1) for n in (3, 5)]
    given = {"complex": lambda: q.to(torch.complex64), "meta": lambda: q.to("meta"),
             "nested": lambda: torch.nested.nested_tensor(nested),
             "jagged": lambda: torch.nested.nested_tensor(
                 [x.transpose(0, 1).contiguous() for x in nested],
                 layout=torch.jagged).transpose(1, 2),
             "head_dim 600": lambda: torch.randn(1, 2, 3, 600)}[name]()

    def outcome() -> Any:
        try:
            return attend(given, given, given)
        except Exception as error:
            return str(error)

    want = outcome()
    with sdpa():
        got = outcome()
        if name in ("complex", "head_dim 600"):
            dispatch = last_dispatch()
            assert dispatch is not None and dispatch.who == "torch" and why in dispatch.why
    assert type(got) is type(want)
    if name == "head_dim 600":
        same_bits("out", got, want)
    elif name == "meta":
        assert got.is_meta and got.shape == want.shape
    elif isinstance(want, Tensor):
        for x, y in zip(got.unbind(), want.unbind(), strict=True):
            same_bits("out", x, y)
    else:
        assert got == want


def test_outside_the_scope_is_stock_torch() -> None:
    """After use, torch's own kernels run outside: the same bits as in a process without us."""
    q, k, v = (x.requires_grad_() for x in tokens(2, 4, 33, 16))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        flash = attend(q, k, v, is_causal=True)
    with sdpa():
        attend(q, k, v)
    out = attend(q, k, v, is_causal=True)
    assert ran() == "torch" and "Flash" in str(out.grad_fn)
    same_bits("out", out, flash)


def test_scope() -> None:
    q, k, v = tokens(1, 2, 5, 8)
    seen = []
    with sdpa():
        with sdpa():
            attend(q, k, v)
            seen.append(ran())
        attend(q, k, v)
        seen.append(ran())
    attend(q, k, v)
    seen.append(ran())
    assert seen == ["attentile", "attentile", "torch"]
    with pytest.raises(ZeroDivisionError), sdpa():
        raise ZeroDivisionError
    attend(q, k, v)
    assert ran() == "torch"
    with pytest.raises(ValueError, match="dropout_p"), sdpa():
        attend(q, k, v, dropout_p=-1.0)
    attend(q, k, v)
    assert ran() == "torch"


def test_decorator() -> None:
    q, k, v = tokens(1, 2, 5, 8)

    @sdpa()
    def call() -> str:
        attend(q, k, v)
        return ran()

    assert call() == call() == "attentile"


def test_threads() -> None:
    """Each thread has its own scope and its own last_dispatch."""
    given = tokens(2, 2, 17, 8)
    with sdpa():
        ours = attend(*given)
    stock = attend(*given)
    wrong: list[str] = []
    gate = threading.Barrier(6)

    def work(inside: bool) -> None:
        gate.wait()
        for _ in range(150):
            if inside:
                with sdpa():
                    out = attend(*given)
            else:
                out = attend(*given)
            if ran() != ("attentile" if inside else "torch"):
                wrong.append(ran())
            if not torch.equal(out, ours if inside else stock):
                wrong.append("bits")

    threads = [threading.Thread(target=work, args=(i % 2 == 0,)) for i in range(6)]
    with sdpa():  # not inherited by the new threads
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_contexts_of_tasks() -> None:
    given = tokens(1, 2, 5, 8)

    async def task(inside: bool) -> list[str]:
        seen = []
        for _ in range(5):
            if inside:
                with sdpa():
                    await asyncio.sleep(0)
                    attend(*given)
                    seen.append(ran())
            else:
                await asyncio.sleep(0)
                attend(*given)
                seen.append(ran())
        return seen

    async def all_tasks() -> Any:
        return await asyncio.gather(*(task(i % 2 == 0) for i in range(4)))

    seen = asyncio.run(all_tasks())
    assert seen == [["attentile"] * 5, ["torch"] * 5] * 2


def test_a_copied_context_takes_the_scope_along() -> None:
    def call() -> str:
        attend(*tokens(1, 2, 5, 8))
        return ran()

    with sdpa(), ThreadPoolExecutor(1) as pool:
        assert pool.submit(call).result() == "torch"
        assert pool.submit(contextvars.copy_context().run, call).result() == "attentile"


# --- modes and modules ---------------------------------------------------------------------------

def test_autocast() -> None:
    q, k, v = (x.requires_grad_() for x in tokens(2, 4, 9, 8))
    mask = torch.randn(9, 9)
    with sdpa(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = attend(q, k, v, attn_mask=mask)
        assert ran() == "attentile"
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert q.grad is not None and q.grad.dtype == torch.float32
    wide = [x.detach().bfloat16().double() for x in (q, k, v)]
    with sdpa_kernel(SDPBackend.MATH):
        assert_close("out", out, attend(*wide, attn_mask=mask.double()), CEILING["bfloat16"])


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_modes_without_gradients(mode: Any) -> None:
    with mode():
        q, k, v = tokens(2, 4, 9, 8)
        with sdpa():
            out = attend(q, k, v, is_causal=True)
            assert ran() == "attentile"
    assert not out.requires_grad
    assert_close("out", out, by_math([x.double() for x in (q, k, v)], None, {"is_causal": True}),
                 1e-5)


def test_gradient_of_a_mask() -> None:
    q, k, v = (x.requires_grad_() for x in tokens(2, 4, 9, 8, dtype=torch.float64))
    for shape in ((9, 9), (4, 9, 9), (2, 1, 1, 9), (1, 4, 1, 9), (1, 1)):
        mask = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        with sdpa():
            out = attend(q, k, v, attn_mask=mask)
            assert ran() == "attentile"
        got = torch.autograd.grad(out, mask, torch.ones_like(out))[0]
        want = torch.autograd.grad(by_math([q, k, v], mask, {}), mask, torch.ones_like(out))[0]
        assert_close("mask's gradient", got, want, 1e-11)


def test_transforms() -> None:
    x = torch.randn(3, 2, 4, 7, 8, dtype=torch.float64)

    def call(q: Tensor) -> Tensor:
        return attend(q, q, q, is_causal=True)

    def total(q: Tensor) -> Tensor:
        return call(q).square().sum()

    with sdpa():
        mapped = torch.vmap(call)(x)
        assert ran() == "attentile"
        gradient = torch.vmap(torch.func.grad(total))(x)
        assert ran() == "attentile"
        twice = torch.vmap(torch.vmap(call))(x[:, :, None])
        assert ran() == "attentile"
    assert_close("vmap", mapped, by_math([x, x, x], None, {"is_causal": True}), 1e-12)
    assert_close("vmap of vmap", twice[:, :, 0], mapped, 1e-12)
    leaf = x.clone().requires_grad_()
    want = torch.autograd.grad(by_math([leaf] * 3, None, {"is_causal": True}).square().sum(), leaf)
    assert_close("vmap of grad", gradient, want[0], 1e-11)
    with sdpa(), pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(call, (x,), (x,))


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_multihead_attention_in_training(dropout: float) -> None:
    torch.manual_seed(0)
    module = torch.nn.MultiheadAttention(16, 4, dropout=dropout, batch_first=True,
                                         dtype=torch.float64)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with sdpa():
        out = module(x, x, x, key_padding_mask=padding, need_weights=False)[0]
        assert ran() == "attentile"
    if not dropout:
        want = module(x, x, x, key_padding_mask=padding, need_weights=False)[0]
        assert_close("out", out, want, 1e-12)
    out.sum().backward()
    assert module.in_proj_weight.grad is not None


def test_the_eval_path_of_multihead_attention_is_not_sdpa() -> None:
    """Documented: its fast path calls no scaled_dot_product_attention."""
    module = torch.nn.MultiheadAttention(16, 4, batch_first=True).eval()
    x = torch.randn(2, 5, 16)
    with sdpa(), torch.no_grad():
        attend(*tokens(1, 2, 5, 8))
        before = last_dispatch()
        module(x, x, x, need_weights=False)
        assert last_dispatch() is before


def test_transformer_encoder_trains() -> None:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True,
                                             dtype=torch.float64)
    model = torch.nn.TransformerEncoder(layer, 2)
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64)
    want = model(x, mask=mask, is_causal=True)
    reference = torch.autograd.grad(want.square().sum(), list(model.parameters()))
    with sdpa():
        out = model(x, mask=mask, is_causal=True)
        assert ran() == "attentile"
    assert_close("out", out, want, 1e-11)
    got = torch.autograd.grad(out.square().sum(), list(model.parameters()))
    for a, b in zip(got, reference, strict=True):
        assert_close("gradient", a, b, 1e-10)


# --- torch's own registry ------------------------------------------------------------------------

def test_register_flash_attention_impl() -> None:
    from torch.nn import attention as registry

    given = tokens(1, 2, 5, 8)
    assert "attentile" in registry.list_flash_attention_impls()
    assert registry.current_flash_attention_impl() != "attentile", "it must not activate itself"
    seen = []
    registry.activate_flash_attention_impl("attentile")
    try:
        attend(*given)
        seen.append(ran())
        with ThreadPoolExecutor(1) as pool:  # for the whole process
            pool.submit(attend, *given).result()
            seen.append(pool.submit(ran).result())
        assert registry.current_flash_attention_impl() == "attentile"
    finally:
        registry.restore_flash_attention_impl()
    attend(*given)
    seen.append(ran())
    assert seen == ["attentile", "attentile", "torch"]


def test_last_dispatch_before_any_call() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(last_dispatch).result() is None
    assert attentile.torch.last_dispatch is last_dispatch

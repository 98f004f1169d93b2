# SPDX-License-Identifier: Apache-2.0
"""torch.nn.attention.varlen.varlen_attn on the CPU, while attentile is active."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import CEILING, assert_close, same_bits
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import AuxRequest, varlen_attn, varlen_attn_out

from attentile.torch import attention, sdpa

Tensor = torch.Tensor
ROWS, KEYS = [5, 0, 9, 3], [7, 4, 9, 0]


def ends(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def packed(*, heads_kv: int = 4, dtype: torch.dtype = torch.float64, keys: list[int] = KEYS,
           grad: bool = True) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = ((sum(ROWS), 4, 16), (sum(keys), heads_kv, 16), (sum(keys), heads_kv, 16))
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)
            .requires_grad_(grad) for s in shapes]


def band(rows: int, keys: int, window: tuple[int, int]) -> Tensor:
    """What a window leaves visible, aligned at the bottom right."""
    distance = torch.arange(keys)[None] - torch.arange(rows)[:, None] - (keys - rows)
    visible = torch.ones(rows, keys, dtype=torch.bool)
    if window[0] >= 0:
        visible &= distance >= -window[0]
    if window[1] >= 0:
        visible &= distance <= window[1]
    return visible


def one_by_one(given: list[Tensor], keys: list[int], window: tuple[int, int],
               scale: float | None) -> Tensor:
    """torch's math, sequence by sequence, in float64."""
    outs = []
    parts = (x.double().split(n) for x, n in zip(given, (ROWS, keys, keys), strict=True))
    for q, k, v in zip(*parts, strict=True):
        with sdpa_kernel(SDPBackend.MATH):
            outs.append(F.scaled_dot_product_attention(
                *(x.transpose(0, 1)[None] for x in (q, k, v)), scale=scale, enable_gqa=True,
                attn_mask=band(q.shape[0], k.shape[0], window))[0].transpose(0, 1))
    return torch.cat(outs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16],
                         ids=str)
@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (3, 0), (2, 1), (0, 0), (-1, 2)])
@pytest.mark.parametrize("heads_kv", [4, 2])
def test_against_each_sequence(heads_kv: int, window: tuple[int, int], dtype: torch.dtype) -> None:
    given = packed(heads_kv=heads_kv, dtype=dtype)
    with sdpa():
        out = varlen_attn(*given, ends(ROWS), ends(KEYS), max(ROWS), max(KEYS),
                          window_size=window, enable_gqa=heads_kv != 4, scale=0.3)
        dout = torch.ones_like(out)
        got = torch.autograd.grad(out, given, dout)
    want = one_by_one(given, KEYS, window, 0.3)
    ceiling = CEILING[str(dtype).removeprefix("torch.")]
    assert out.dtype == dtype
    assert_close("out", out, want, ceiling)
    for x, y in zip(got, torch.autograd.grad(want, given, dout.double()), strict=True):
        assert x.dtype == dtype
        assert_close("gradient", x, y.double(), 4 * ceiling)


def test_backward_after_the_scope() -> None:
    given = packed(keys=ROWS)
    with sdpa():
        out = varlen_attn(*given, ends(ROWS), ends(ROWS), 9, 9, window_size=(-1, 0))
    want = one_by_one(given, ROWS, (-1, 0), None)
    for x, y in zip(torch.autograd.grad(out.sum(), given),
                    torch.autograd.grad(want.sum(), given), strict=True):
        assert_close("gradient", x, y, 1e-11)


def test_lse() -> None:
    given = packed(grad=False, dtype=torch.float32)
    with sdpa():
        out, lse = varlen_attn(*given, ends(ROWS), ends(KEYS), 9, 9,
                               return_aux=AuxRequest(lse=True))
    want, want_lse = attention(*given, cu_seqlens_q=ends(ROWS), cu_seqlens_k=ends(KEYS),
                               return_lse=True)
    same_bits("out", out, want)
    assert lse.dtype == torch.float32
    same_bits("lse", lse if lse.shape == want_lse.shape else lse.T, want_lse)


def test_used_keys() -> None:
    given = packed(grad=False)
    used = torch.tensor([6, 0, 9, 0], dtype=torch.int32)
    with sdpa():
        out = varlen_attn(*given, ends(ROWS), ends(KEYS), 9, 9, seqused_k=used)
    keys = [list(x.split(KEYS)) for x in given[1:]]
    cut = [torch.cat([x[:n] for x, n in zip(part, used.tolist(), strict=True)]) for part in keys]
    want = one_by_one([given[0], *cut], used.tolist(), (-1, -1), None)
    assert_close("out", out, want, 1e-12)


@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (4, 0)])
def test_pages(window: tuple[int, int]) -> None:
    """Pages are read where they lie; what lies in unused ones has no say."""
    generator = torch.Generator().manual_seed(1)
    pages = torch.randn(9, 4, 2, 16, generator=generator, dtype=torch.float64)
    table = torch.tensor([[3, 1, 0], [7, 0, 0], [5, 2, 8], [0, 0, 0]], dtype=torch.int32)
    used = torch.tensor([7, 4, 10, 0], dtype=torch.int32)
    pages[[0, 4, 6]] = torch.nan
    query = packed(grad=False)[0]
    with sdpa():
        out = varlen_attn(query, pages, pages, ends(ROWS), None, 9, 12, enable_gqa=True,
                          seqused_k=used, block_table=table, window_size=window)
    gathered = torch.cat([torch.cat([pages[p] for p in row])[:n]
                          for row, n in zip(table.tolist(), used.tolist(), strict=True)])
    want = one_by_one([query, gathered, gathered], used.tolist(), window, None)
    assert_close("out", out, want, 1e-12)


def test_splits_change_nothing() -> None:
    given = packed(grad=False)
    with sdpa():
        outs = [varlen_attn(*given, ends(ROWS), ends(KEYS), 9, 9, num_splits=n)
                for n in (None, 1, 4)]
    same_bits("out", outs[1], outs[0])
    same_bits("out", outs[2], outs[0])


def test_a_given_out() -> None:
    given = packed(grad=False)
    out = torch.full_like(given[0], 7.0)
    with sdpa():
        want, want_lse = varlen_attn(*given, ends(ROWS), ends(KEYS), 9, 9,
                                     return_aux=AuxRequest(lse=True))
        result = varlen_attn_out(out, *given, ends(ROWS), ends(KEYS), 9, 9,
                                 return_aux=AuxRequest(lse=True))
    same_bits("out", out, want)
    same_bits("lse", result[1], want_lse)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic: bool) -> None:
    torch._dynamo.reset()
    given = packed(keys=ROWS, dtype=torch.float32)

    def call(q: Tensor, k: Tensor, v: Tensor, cu: Tensor) -> Tensor:
        out: Tensor = varlen_attn(q, k, v, cu, cu, 9, 9, window_size=(-1, 0))
        return out

    with sdpa():
        want = call(*given, ends(ROWS))
        got = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=dynamic)(
            *given, ends(ROWS))
        same_bits("out", got, want)
        for x, y in zip(torch.autograd.grad(got.sum(), given),
                        torch.autograd.grad(want.sum(), given), strict=True):
            same_bits("gradient", x, y)


def test_outside_it_fails_as_ever() -> None:
    given = packed(grad=False, keys=ROWS)
    arguments = (*given, ends(ROWS), ends(ROWS), 9, 9)
    with sdpa():
        varlen_attn(*arguments)
    with pytest.raises(NotImplementedError, match="aten::_flash_attention_forward.*CPU"):
        varlen_attn(*arguments)


@pytest.mark.parametrize(("keywords", "kind", "words"), [
    ({"block_table": torch.zeros(4, 1, dtype=torch.int32)}, ValueError, "cu_seqlens_k: is given"),
    ({"seqused_k": torch.tensor([9, 9, 9, 9], dtype=torch.int32)}, ValueError, "seqused_k"),
    ({"window_size": (-2, 0)}, ValueError, "window_left: is -2"),
    ({"scale": float("nan")}, ValueError, "softmax_scale: is nan")])
def test_bad_calls(keywords: dict[str, Any], kind: type[Exception], words: str) -> None:
    given = packed(grad=False)
    if "block_table" in keywords:
        given[1:] = [torch.zeros(1, 4, 4, 16, dtype=torch.float64)] * 2
    with sdpa(), pytest.raises(kind, match=words):
        varlen_attn(*given, ends(ROWS), ends(KEYS), 9, 9, **keywords)

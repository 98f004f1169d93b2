# SPDX-License-Identifier: Apache-2.0
"""attentile.compat.xformers: compiled calls, and what is refused, and how it says so."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

import attentile.compat.xformers.ops as xops  # noqa: E402
from attentile import UnsupportedError  # noqa: E402
from attentile.compat.xformers.ops import fmha  # noqa: E402
from attentile.compat.xformers.ops.fmha import attn_bias as ab  # noqa: E402

Q, K, V = (torch.randn(2, *s) for s in ((5, 3, 8), (7, 3, 8), (7, 3, 6)))
ONE = [x[:1] for x in (Q, K, V)]
BlockLocal = ab.BlockDiagonalCausalLocalAttentionMask
PaddedCausal = ab.BlockDiagonalCausalWithOffsetPaddedKeysMask
TABLE = torch.zeros(2, 3, dtype=torch.int32)
run = xops.memory_efficient_attention
BAD = [
    (ValueError, "query: was of shape", lambda: run(Q[0, 0], K, V)),
    (ValueError, "key: was of shape", lambda: run(Q, K[:, :, 0], V)),
    (ValueError, "key: was of shape .* not broadcast", lambda: run(Q, K[:, :, :1], V[:, :, :1])),
    (ValueError, "key: was of shape", lambda: run(Q, K[..., :4], V)),
    (ValueError, "value: was of shape", lambda: run(Q, K, V[:, :6])),
    (TypeError, "key: was of torch.float16", lambda: run(Q, K.half(), V)),
    (TypeError, "query: was of torch.int32", lambda: run(Q.int(), K, V)),
    (TypeError, "value: was a ndarray", lambda: run(Q, K, V.numpy())),
    (ValueError, "query: was on meta", lambda: run(Q.to("meta"), K, V)),
    (ValueError, "p: was 1.5", lambda: run(Q, K, V, p=1.5)),
    (ValueError, "p: was 'x'", lambda: run(Q, K, V, p="x")),
    (ValueError, "scale: was nan", lambda: run(Q, K, V, scale=math.nan)),
    (UnsupportedError, "op: was", lambda: run(Q, K, V, op="flash")),
    (ValueError, "output_dtype: was torch.int32", lambda: run(Q, K, V, output_dtype=torch.int32)),
    (TypeError, "attn_bias: was a str", lambda: run(Q, K, V, "causal")),
    (TypeError, "attn_bias: was of torch.bool",
     lambda: run(Q, K, V, torch.ones(2, 3, 5, 7, dtype=torch.bool))),
    (ValueError, r"attn_bias: was of shape \(5, 7\)", lambda: run(Q, K, V, torch.zeros(5, 7))),
    (ValueError, "attn_bias", lambda: run(Q, K, V, torch.zeros(2, 3, 7, 5))),
    (TypeError, "attn_bias: held a int",
     lambda: run(Q, K, V, ab.LowerTriangularMask().add_bias(3))),
    (ValueError, "query: was of batch 2",
     lambda: run(Q, K, V, ab.BlockDiagonalMask.from_seqlens([5], [7]))),
    (ValueError, "query: had 5 tokens, expected 4",
     lambda: run(*ONE, ab.BlockDiagonalMask.from_seqlens([4], [7]))),
    (ValueError, "key: had 7 tokens, expected 12",
     lambda: run(*ONE, PaddedCausal.from_seqlens([3, 2], 6, [5, 2]))),
    (ValueError, "key: had 7 tokens, expected a multiple of page_size", lambda: run(
        *ONE, ab.PagedBlockDiagonalPaddedKeysMask.from_seqlens([3, 2], [5, 2], TABLE, 4))),
    (ValueError, "block_table", lambda: run(Q[:1], K[:1, :4], V[:1, :4],
     ab.PagedBlockDiagonalPaddedKeysMask.from_seqlens([3, 2], [5, 2], TABLE + 9, 4))),
    (ValueError, "block_tables: was of shape", lambda:
     ab.PagedBlockDiagonalPaddedKeysMask.from_seqlens([3, 2], [5, 2], TABLE[:1], 4)),
    (TypeError, "block_tables: was of torch.float32", lambda:
     ab.PagedBlockDiagonalPaddedKeysMask.from_seqlens([3, 2], [5, 2], TABLE.float(), 4)),
    (ValueError, "kv_seqlen: sequences end", lambda:
     ab.PagedBlockDiagonalGappyKeysMask.from_seqlens([3, 2], [9, 0], [5, 2], TABLE, 4)),
    (ValueError, "kv_seqlen: was .* at most kv_padding",
     lambda: PaddedCausal.from_seqlens([3, 2], 4, [5, 2])),
    (ValueError, "k_seqinfo: was of 1", lambda: ab.BlockDiagonalMask.from_seqlens([3, 2], [5])),
    (ValueError, "seqlens: was", lambda: ab.BlockDiagonalMask.from_seqlens([3, -2])),
    (TypeError, "seqlens: was a Tensor",
     lambda: ab.BlockDiagonalMask.from_seqlens(torch.tensor([3, 2]))),
    (TypeError, "seqlens: was 7", lambda: ab.BlockDiagonalMask.from_seqlens(7)),
    (ValueError, "device: was cuda", lambda: ab.BlockDiagonalMask.from_seqlens([3], device="cuda")),
    (ValueError, "device: was cuda", lambda: ab.LowerTriangularMask().to("cuda")),
    (ValueError, "kv_seqstarts: was 2 long",
     lambda: ab.BlockDiagonalGappyKeysMask.from_seqlens([3, 2], [0, 4], [3, 2])),
    (ValueError, "kv_seqlen: had sequences that end",
     lambda: ab.BlockDiagonalGappyKeysMask.from_seqlens([3, 2], [0, 4, 5], [3, 2])),
    (ValueError, "notional_padding", lambda: ab.BlockDiagonalGappyKeysMask.from_seqlens(
        [3, 2], [0, 4, 9], [3, 2]).make_paged(TABLE, 4, 12, ab.PagedBlockDiagonalGappyKeysMask)),
    (ValueError, "kv_seqlen: block 1 had 2 keys for 3 queries",
     lambda: ab.BlockDiagonalMask.from_seqlens([3, 3], [5, 2]).make_causal_from_bottomright()),
    (ValueError, "window_size: was .0", lambda: ab.BlockDiagonalMask.from_seqlens(
        [3]).make_local_attention(0)),
    (ValueError, "window_size: was 1, expected more than 3", lambda: BlockLocal(
        *[fmha._seqinfo._SeqLenInfo.from_seqlens(n) for n in ([6], [3])], _window_size=1)),
    (ValueError, "window_left", lambda: ab.LocalAttentionFromBottomRightMask(-1, 2)),
    (ValueError, "shape: was", lambda: ab.LowerTriangularMask().materialize((3,))),
    (UnsupportedError, "p: was 0.1",
     lambda: fmha.memory_efficient_attention_partial(Q, K, V, p=0.1)),
    (ValueError, "lse: was of shape", lambda: xops.memory_efficient_attention_backward(
        Q[..., :6], Q[..., :6], torch.zeros(2, 5, 3), Q, K, V)),
    (ValueError, "grad: was of shape", lambda: xops.memory_efficient_attention_backward(
        Q, Q[..., :6], torch.zeros(2, 3, 5), Q, K, V)),
    (TypeError, "lse: was a NoneType", lambda: xops.memory_efficient_attention_backward(
        Q[..., :6], Q[..., :6], None, Q, K, V)),
    (ValueError, "lse_split: was 1 parts beside 2",
     lambda: xops.merge_attentions([Q, Q], [torch.zeros(2, 3, 5)])),
    (ValueError, "lse_split: was 0 parts", lambda: xops.merge_attentions([], [])),
    (ValueError, "lse_split: part 1", lambda: xops.merge_attentions(
        [Q, Q], [torch.zeros(2, 3, 5), torch.zeros(2, 5, 3)])),
    (ValueError, "attn_split: had parts of shape",
     lambda: xops.merge_attentions([Q[0]], [torch.zeros(3, 5)])),
    (UnsupportedError, "attn_split: requires a gradient", lambda: xops.merge_attentions(
        [Q.clone().requires_grad_()], [torch.zeros(2, 3, 5)])),
    (TypeError, "lse_split: held a int", lambda: xops.merge_attentions([Q], [3])),
]


@pytest.mark.parametrize("error, match, call", BAD, ids=range(len(BAD)))
def test_refusals(error, match, call):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize("make", [
    ab.LowerTriangularMask, lambda: ab.BlockDiagonalMask.from_seqlens([3, 5]).make_causal()])
def test_compiled(make):
    bias, found = make(), []

    def attend(q, k, v):
        return run(q, k, v, bias)

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for call in (compiled, attend):
        torch.manual_seed(0)
        tensors = [torch.randn(1, 8, 3, 8, requires_grad=True) for _ in range(3)]
        found.append(torch.autograd.grad(call(*tensors).sum(), tensors))
    assert all(map(torch.equal, *found))

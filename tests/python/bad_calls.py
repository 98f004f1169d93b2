# SPDX-License-Identifier: Apache-2.0
"""Named bad calls: (name, call, exception type, words that its sentence must contain)."""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import attentile
from attentile import UnsupportedError, _core
from attentile.nn import FlashAttention, FlashMHA

Bad = tuple[str, Callable[[], Any], type[Exception], str]

FOREIGN_ISA: Any = "avx2" if platform.machine() in ("aarch64", "arm64") else "neon"
NAN, INF = float("nan"), float("inf")


def f32(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


Q, K, V = f32(2, 5, 4, 8), f32(2, 6, 2, 8), f32(2, 6, 2, 8)
OUT, LSE = f32(2, 5, 4, 8), f32(2, 4, 5)
PACKED_Q, PACKED_K = f32(7, 4, 8), f32(9, 2, 8)
ENDS_Q, ENDS_K = i32(0, 3, 7), i32(0, 4, 9)
PAGES = f32(6, 4, 2, 8)
TQ, TK, TV = (torch.from_numpy(x) for x in (Q, K, V))


def attend(*, q: Any = Q, k: Any = K, v: Any = V, **keywords: Any) -> Callable[[], Any]:
    return lambda: attentile.attention(q, k, v, **keywords)


def packed(*, q: Any = PACKED_Q, k: Any = PACKED_K, ends_q: Any = ENDS_Q, ends_k: Any = ENDS_K,
           **keywords: Any) -> Callable[[], Any]:
    return lambda: attentile.attention(q, k, k, cu_seqlens_q=ends_q, cu_seqlens_k=ends_k,
                                       **keywords)


def paged(table: Any = ((0, 1), (2, 3)), used: Any = (8, 5), **keywords: Any) -> Callable[[], Any]:
    lengths = {} if used is None else {"seqused_k": i32(*used)}
    return lambda: attentile.attention(Q, PAGES, PAGES, block_table=np.array(table, np.int32),
                                       **lengths, **keywords)


def backward(*, dout: Any = OUT, q: Any = Q, out: Any = OUT, lse: Any = LSE,
             **keywords: Any) -> Callable[[], Any]:
    return lambda: attentile.attention_backward(dout, q, K, V, out, lse, **keywords)


def merge(*parts: Any, **keywords: Any) -> Callable[[], Any]:
    return lambda: attentile.merge(list(parts), **keywords)


def plan(q: Any = Q, k: Any = K, v: Any = V, **keywords: Any) -> Callable[[], Any]:
    return lambda: attentile.plan(q, k, v, **keywords)


def on_torch(*, q: Any = TQ, k: Any = TK, v: Any = TV, **keywords: Any) -> Callable[[], Any]:
    return lambda: attentile.torch.attention(q, k, v, **keywords)


def inside_sdpa(*tensors: Any, **keywords: Any) -> Callable[[], Any]:
    def call() -> Any:
        with attentile.torch.sdpa():
            return F.scaled_dot_product_attention(*tensors, **keywords)

    return call


SHAPES: list[Bad] = [
    ("q_of_rank_2", attend(q=f32(5, 8)), ValueError, "q: rank is 2"),
    ("q_of_rank_5", attend(q=f32(1, 2, 5, 4, 8)), ValueError, "q: rank is 5"),
    ("q_of_rank_0", attend(q=np.float32(1)[...]), ValueError, "q: rank is 0"),
    ("k_of_rank_3", attend(k=K[0]), ValueError, "k: rank is 3, but it must be 4"),
    ("packed_q_without_lengths", attend(q=PACKED_Q), ValueError, "q: rank is 3"),
    ("batch_of_k", attend(k=f32(3, 6, 2, 8)), ValueError, "k: batch is 3, but q has batch 2"),
    ("batch_of_v", attend(v=f32(1, 6, 2, 8)), ValueError, "v: batch is 1"),
    ("seqlen_of_v", attend(v=f32(2, 7, 2, 8)), ValueError, "v: seqlen_k is 7"),
    ("heads_of_v", attend(v=f32(2, 6, 1, 8)), ValueError, "v: num_heads_kv is 1"),
    ("head_dim_of_k", attend(k=f32(2, 6, 2, 9)), ValueError, "k: head_dim is 9"),
    ("heads_no_multiple", attend(k=f32(2, 6, 3, 8), v=f32(2, 6, 3, 8)), ValueError,
     "q: num_heads_q is 4, but it must be a multiple of num_heads_kv, which is 3"),
    ("no_kv_heads", attend(k=f32(2, 6, 0, 8), v=f32(2, 6, 0, 8)), ValueError,
     "k: num_heads_kv is 0"),
    ("head_dim_0", attend(q=f32(2, 5, 4, 0), k=f32(2, 6, 2, 0)), ValueError, "q: head_dim is 0"),
    ("head_dim_513", attend(q=f32(1, 1, 1, 513), k=f32(1, 1, 1, 513), v=f32(1, 1, 1, 513)),
     ValueError, "q: head_dim is 513, but it must be in [1, 512]"),
    ("head_dim_v_513", attend(v=f32(2, 6, 2, 513)), ValueError, "v: head_dim_v is 513"),
    ("bias_that_does_not_broadcast", attend(bias=f32(5, 7)), ValueError,
     "bias: shape is [5, 7], but it must broadcast to"),
    ("bias_of_rank_5", attend(bias=f32(1, 1, 1, 5, 6)), ValueError, "bias: rank is 5"),
    ("mask_that_does_not_broadcast", attend(mask=np.ones((3, 1, 5, 6), bool)), ValueError,
     "mask: shape is [3, 1, 5, 6]"),
    ("sink_of_two_heads", attend(sink=f32(2)), ValueError, "sink: num_heads_q is 2"),
    ("sink_of_rank_2", attend(sink=f32(1, 4)), ValueError, "sink: rank is 2"),
    ("slopes_of_three_heads", attend(alibi_slopes=f32(3)), ValueError,
     "alibi_slopes: num_heads_q is 3"),
    ("slopes_of_a_larger_batch", attend(alibi_slopes=f32(3, 4)), ValueError,
     "alibi_slopes: batch is 3"),
    ("slopes_of_rank_3", attend(alibi_slopes=f32(1, 2, 4)), ValueError, "alibi_slopes: rank is 3"),
    ("scores_beyond_2_58", attend(
        q=np.broadcast_to(f32(1, 1, 1, 1), (1, 2**30, 1, 1)),
        k=np.broadcast_to(f32(1, 1, 1, 1), (1, 2**31, 1, 1)),
        v=np.broadcast_to(f32(1, 1, 1, 1), (1, 2**31, 1, 1))), ValueError, "2^58"),
]

DTYPES: list[Bad] = [
    ("q_of_int64", attend(q=np.ones((2, 5, 4, 8), np.int64)), TypeError, "q: was of dtype int64"),
    ("q_of_int32", attend(q=np.ones((2, 5, 4, 8), np.int32)), ValueError, "q: dtype is int32"),
    ("q_of_complex", attend(q=Q.astype(np.complex64)), TypeError, "q: was of dtype complex64"),
    ("q_of_objects", attend(q=Q.astype(object)), TypeError, "q: was"),
    ("q_of_words", attend(q=np.full((2, 5, 4, 8), "a")), TypeError, "q: was"),
    ("q_of_longdouble", attend(q=Q.astype(np.longdouble)), TypeError, "q: was"),
    ("k_of_another_dtype", attend(k=K.astype(np.float16)), ValueError,
     "k: dtype is float16, but q has dtype float32"),
    ("v_of_another_dtype", attend(v=V.astype(np.float64)), ValueError, "v: dtype is float64"),
    ("bias_of_another_dtype", attend(bias=np.zeros((5, 6))), ValueError, "bias: dtype is float64"),
    ("bool_bias", attend(bias=np.ones((5, 6), bool)), ValueError, "bias: dtype is bool"),
    ("float_mask", attend(mask=f32(5, 6)), ValueError,
     "mask: dtype is float32, but it must be bool or uint8"),
    ("sink_of_float64", attend(sink=np.zeros(4)), ValueError,
     "sink: dtype is float64, but it must be float32"),
    ("slopes_of_float16", attend(alibi_slopes=np.ones(4, np.float16)), ValueError,
     "alibi_slopes: dtype is float16"),
    ("lengths_of_int64", packed(ends_q=np.array([0, 3, 7])), TypeError,
     "cu_seqlens_q: was of dtype int64"),
    ("lengths_of_float", packed(ends_k=f32(3)), ValueError, "cu_seqlens_k: dtype is float32"),
    ("q_is_a_list", attend(q=Q.tolist()), TypeError, "q: was a list"),
    ("q_is_none", attend(q=None), TypeError, "q: was a NoneType"),
    ("v_is_none", attend(v=None), TypeError, "v: was a NoneType"),
    ("k_is_none", attend(k=None), ValueError, "k: is missing"),
    ("k_is_a_string", attend(k="keys"), TypeError, "k: was a str"),
    ("k_is_a_number", attend(k=3), TypeError, "k: was a int"),
    ("bias_is_a_number", attend(bias=1.0), TypeError, "bias: was a float"),
    ("mask_is_a_list", attend(mask=[True]), TypeError, "mask: was a list"),
    ("bias_without_memory", attend(bias=("float32", (5, 6))), ValueError,
     "bias: data is null"),
]

SCALARS: list[Bad] = [
    ("scale_nan", attend(softmax_scale=NAN), ValueError,
     "softmax_scale: is nan, but it must be finite"),
    ("scale_infinite", attend(softmax_scale=INF), ValueError, "softmax_scale: is inf"),
    ("scale_a_string", attend(softmax_scale="big"), TypeError,
     "softmax_scale: was 'big', expected a number"),
    ("scale_a_list", attend(softmax_scale=[1.0]), TypeError, "softmax_scale: was [1.0]"),
    ("scale_complex", attend(softmax_scale=1j), TypeError, "softmax_scale: was 1j"),
    ("softcap_nan", attend(softcap=NAN), ValueError, "softcap: is nan"),
    ("softcap_negative", attend(softcap=-1.0), ValueError,
     "softcap: is -1, but it must be at least 0"),
    ("softcap_none", attend(softcap=None), TypeError, "softcap: was None"),
    ("dropout_nan", attend(dropout_p=NAN), ValueError, "dropout_p: is nan"),
    ("dropout_negative", attend(dropout_p=-0.1), ValueError, "dropout_p: is -0.1"),
    ("dropout_above_1", attend(dropout_p=1.5), ValueError,
     "dropout_p: is 1.5, but it must be in [0, 1]"),
    ("seed_negative", attend(dropout_p=0.5, dropout_seed=-1), TypeError,
     "dropout_seed: was -1, expected an integer in [0, 2^64)"),
    ("seed_beyond_64_bits", attend(dropout_p=0.5, dropout_seed=2**64), TypeError,
     "dropout_seed: was 18446744073709551616"),
    ("seed_a_float", attend(dropout_p=0.5, dropout_seed=1.5), TypeError, "dropout_seed: was 1.5"),
    ("window_below_minus_1", attend(window_left=-2), ValueError,
     "window_left: is -2, but it must be at least -1"),
    ("window_right_below_minus_1", attend(window_right=-9), ValueError, "window_right: is -9"),
    ("window_a_float", attend(window_left=1.5), TypeError, "window_left: was 1.5"),
    ("window_none", attend(window_right=None), TypeError, "window_right: was None"),
    ("window_beyond_64_bits", attend(window_left=2**70), TypeError, "window_left: was"),
    ("position_a_float", attend(position_offset=0.5), TypeError, "position_offset: was 0.5"),
    ("causal_a_word", attend(causal="yes"), TypeError, "causal: was 'yes', expected True or False"),
    ("causal_an_array", attend(causal=np.ones(3)), TypeError, "causal: was"),
    ("atomic_dq_a_word", attend(atomic_dq="no"), TypeError,
     "atomic_dq: was 'no', expected True or False"),
    ("alignment_unknown", attend(alignment="middle"), ValueError,
     "alignment: was 'middle', expected one of bottom_right, top_left"),
    ("alignment_a_number", attend(alignment=1), TypeError, "alignment: was 1, expected a string"),
    ("algorithm_unknown", attend(algorithm="flash9"), ValueError, "algorithm: was 'flash9'"),
    ("isa_unknown", attend(isa="mmx"), ValueError, "isa: was 'mmx', expected one of auto"),
    ("isa_of_another_machine", attend(isa=FOREIGN_ISA), UnsupportedError, "isa: "),
    ("layout_unknown", attend(layout="hbsd"), ValueError, "layout: was 'hbsd'"),
    ("query_base_negative", attend(query_base=-1), ValueError, "query_base: is -1"),
    ("head_base_without_heads", attend(head_base=2), ValueError, "dropout_num_heads_q: is 0"),
    ("heads_below_base", attend(head_base=2, dropout_num_heads_q=5), ValueError,
     "dropout_num_heads_q: is 5, but it must be at least 6"),
    ("fast_memory_negative", attend(fast_memory_bytes=-1), ValueError, "fast_memory_bytes: is -1"),
    ("unknown_keyword", attend(casual=True), TypeError, "casual"),
    ("unknown_tensor", attend(attn_mask=np.ones((5, 6), bool)), TypeError, "attn_mask"),
    ("threads_negative", attend(num_threads=-1), ValueError, "num_threads: is -1"),
    ("threads_5000", attend(num_threads=5000), ValueError, "num_threads: is 5000"),
    ("threads_a_word", attend(num_threads="all"), TypeError,
     "num_threads: was 'all', expected an integer"),
    ("threads_a_fraction", attend(num_threads=1.5), TypeError, "num_threads: was 1.5, expected"),
    ("threads_beyond_int", attend(num_threads=1 << 40), TypeError, "num_threads: was 1099"),
    ("progress_a_number", attend(progress=3), TypeError, "progress"),
]

INDICES: list[Bad] = [
    ("cu_seqlens_falls", packed(ends_q=i32(0, 5, 4), q=PACKED_Q[:4]), ValueError,
     "cu_seqlens_q[2]: is 4, but it must be at least 5, the one before"),
    ("cu_seqlens_starts_at_1", packed(ends_q=i32(1, 3, 7)), ValueError,
     "cu_seqlens_q[0]: is 1, but it must be 0"),
    ("cu_seqlens_ends_early", packed(ends_k=i32(0, 4, 8)), ValueError,
     "cu_seqlens_k[2]: is 8, but k has total_k 9"),
    ("cu_seqlens_negative", packed(ends_k=i32(0, -4, 9)), ValueError, "cu_seqlens_k[1]: is -4"),
    ("cu_seqlens_too_few", packed(ends_k=i32(0, 9)), ValueError, "cu_seqlens_k: batch + 1 is 2"),
    ("cu_seqlens_empty", packed(ends_q=i32()), ValueError, "cu_seqlens_q: size is 0"),
    ("cu_seqlens_of_rank_2", packed(ends_q=i32(0, 3, 7)[None]), ValueError,
     "cu_seqlens_q: rank is 2"),
    ("keys_packed_alone", lambda: attentile.attention(Q, PACKED_K, PACKED_K, cu_seqlens_k=ENDS_K),
     ValueError, "cu_seqlens_q: is missing"),
    ("keep_of_packed", packed(return_keep=True, dropout_p=0.5), ValueError, "keep: "),
    ("seqused_too_long", attend(seqused_k=i32(3, 7)), ValueError,
     "seqused_k[1]: is 7, but it must be in [0, 6]"),
    ("seqused_negative", attend(seqused_k=i32(-1, 6)), ValueError, "seqused_k[0]: is -1"),
    ("seqused_of_three", attend(seqused_k=i32(1, 2, 3)), ValueError, "seqused_k: batch is 3"),
    ("leftpad_beyond_used", attend(seqused_k=i32(3, 3), leftpad_k=i32(0, 4)), ValueError,
     "leftpad_k[1]: is 4, but it must be in [0, 3]"),
    ("page_out_of_range", paged(((0, 1), (2, 6))), ValueError,
     "block_table[1][1]: is 6, but it must be in [0, 6), as k has num_pages 6"),
    ("page_negative", paged(((-1, 1), (2, 3))), ValueError, "block_table[0][0]: is -1"),
    ("pages_too_few", paged(used=(9, 5)), ValueError,
     "seqused_k[0]: is 9, but it must be in [0, 8]"),
    ("pages_without_lengths", paged(used=None), ValueError,
     "seqused_k: is missing, but block_table needs it"),
    ("pages_of_rank_1", paged((0, 1)), ValueError, "block_table: rank is 1"),
    ("pages_and_packed_keys", paged(cu_seqlens_q=ENDS_Q, cu_seqlens_k=ENDS_K), ValueError,
     "cu_seqlens_k: is given with block_table"),
    ("pages_and_cache_rows", paged(cache_batch_idx=i32(0, 1)), ValueError,
     "cache_batch_idx: is given with block_table"),
    ("cache_row_out_of_range", attend(cache_batch_idx=i32(0, 2)), ValueError,
     "cache_batch_idx[1]: is 2, but it must be in [0, 2)"),
    ("block_mask_without_sizes", attend(block_mask=np.ones((1, 1, 1), bool)), ValueError,
     "block_size_q: is 0, but block_mask needs at least 1"),
    ("block_mask_too_small", attend(block_mask=np.ones((1, 1, 1), bool), block_size_q=4,
                                    block_size_k=8), ValueError, "block_mask: tiles_q is 1"),
    ("block_mask_of_two_heads", attend(block_mask=np.ones((2, 2, 1), bool), block_size_q=4,
                                       block_size_k=8), ValueError, "block_mask: shape is"),
]

OTHERS: list[Bad] = [
    ("dout_of_another_shape", backward(dout=f32(2, 5, 4, 9)), ValueError, "dout: head_dim_v is 9"),
    ("dout_of_another_dtype", backward(dout=OUT.astype(np.float16)), ValueError,
     "dout: dtype is float16"),
    ("dout_missing", backward(dout=None), ValueError, "dout: is missing"),
    ("out_missing", backward(out=None), ValueError, "out: is missing"),
    ("lse_missing", backward(lse=None), ValueError, "lse: is missing"),
    ("lse_transposed", backward(lse=f32(2, 5, 4)), ValueError, "lse: num_heads_q is 5"),
    ("lse_of_float64", backward(lse=LSE.astype(np.float64)), ValueError, "lse: dtype is float64"),
    ("dlse_of_another_shape", backward(dlse=f32(2, 4, 6)), ValueError, "dlse: seqlen_q is 6"),
    ("backward_q_of_int64", backward(q=np.ones((2, 5, 4, 8), np.int64)), TypeError, "q: was"),
    ("backward_scale_nan", backward(softmax_scale=NAN), ValueError, "softmax_scale: is nan"),
    ("backward_of_pages", backward(block_table=i32(0, 1)[:, None], seqused_k=i32(1, 1)),
     UnsupportedError, "block_table: is given, but only the forward pass supports it"),
    ("backward_of_cache_rows", backward(cache_batch_idx=i32(0, 1)), UnsupportedError,
     "cache_batch_idx: is given, but only the forward pass supports it"),
    ("backward_of_leftpad", backward(leftpad_k=i32(0, 1)), UnsupportedError, "leftpad_k: is given"),
    ("merge_of_nothing", merge(), ValueError, "parts: was empty"),
    ("merge_of_numbers", merge(1, 2), TypeError, "parts"),
    ("merge_of_one_array", merge((OUT,)), TypeError, "parts"),
    ("merge_of_three", merge((OUT, LSE, LSE)), TypeError, "parts"),
    ("merge_shapes", merge((OUT, LSE), (f32(2, 5, 4, 9), LSE)), ValueError, "parts[1].out: shape"),
    ("merge_dtypes", merge((OUT, LSE), (OUT.astype(np.float16), LSE)), ValueError,
     "parts[1].out: dtype is float16"),
    ("merge_lse_shape", merge((OUT, f32(2, 5, 4))), ValueError, "lse: num_heads_q is 5"),
    ("merge_layout", merge((OUT, LSE), layout="sbhd"), ValueError, "layout: was 'sbhd'"),
    ("merge_lists", merge(([1.0], [2.0])), TypeError, "out: was a list"),
    ("plan_dtype", plan((1, 2, 3, 4), (1, 2, 3, 4), None, dtype="float8"), TypeError,
     "q: was of dtype float8"),
    ("plan_rank", plan((1, 2, 3), (1, 2, 3), None), ValueError, "q: rank is 3"),
    ("plan_rank_5", plan((1, 2, 3, 4, 5), (1, 2, 3, 4, 5), None), TypeError, "q: was of rank 5"),
    ("plan_negative_size", plan((1, -2, 3, 4), (1, 2, 3, 4), None), ValueError, "q: shape is"),
    ("plan_size_a_word", plan((1, "2", 3, 4), (1, 2, 3, 4), None), TypeError, "q: "),
    ("plan_heads", plan((1, 2, 3, 4), (1, 2, 2, 4), None), ValueError, "q: num_heads_q is 3"),
    ("plan_keyword", plan(causality=True), TypeError, "causality"),
    ("plan_algorithm", plan(algorithm="best"), ValueError, "algorithm: was 'best'"),
    ("scores_beyond_memory", attend(
        q=np.broadcast_to(f32(1, 1, 1, 1), (1, 2**24, 1, 1)), algorithm="standard",
        k=np.broadcast_to(f32(1, 1, 1, 1), (1, 2**24, 1, 1)),
        v=np.broadcast_to(f32(1, 1, 1, 1), (1, 2**24, 1, 1))), MemoryError,
     "bytes could not be allocated"),
    ("plan_of_a_number", plan(3), TypeError, "q: was a int"),
]

TENSORS: list[Bad] = [
    ("meta_q", on_torch(q=TQ.to("meta")), TypeError, "q: was on device meta, expected the CPU"),
    ("meta_v", on_torch(v=TV.to("meta")), TypeError, "v: was on device meta"),
    ("meta_bias", on_torch(bias=torch.zeros(5, 6, device="meta")), TypeError, "bias: was on dev"),
    ("complex_tensor", on_torch(q=TQ.to(torch.complex64)), TypeError, "q: was of dtype"),
    ("integer_tensor", on_torch(q=TQ.long()), TypeError, "q: was of dtype torch.int64"),
    ("sparse_tensor", on_torch(q=TQ.to_sparse()), TypeError, "q: was"),
    ("nested_tensor", on_torch(q=torch.nested.nested_tensor([TQ[0], TQ[1]])),
     TypeError, "q: was"),
    ("torch_and_numpy", on_torch(k=K), TypeError, "k: was a"),
    ("torch_and_none", on_torch(v=None), TypeError, "v: was a NoneType"),
    ("list_to_torch", on_torch(q=[1.0]), TypeError, "q: was a list"),
    ("batch_of_k_tensor", on_torch(k=TK[:1]), ValueError, "k: batch is 1, but q has batch 2"),
    ("dtype_of_v_tensor", on_torch(v=TV.half()), ValueError, "v: dtype is float16"),
    ("long_lengths", on_torch(seqused_k=torch.tensor([1, 2])), TypeError, "seqused_k: was of"),
    ("tensor_for_a_scalar", on_torch(softmax_scale=torch.ones(2)), TypeError, "softmax_scale: was"),
    ("slopes_want_a_gradient", on_torch(alibi_slopes=torch.ones(4, requires_grad=True)), ValueError,
     "alibi_slopes: requires a gradient"),
    ("unknown_torch_keyword", on_torch(is_causal=True), TypeError, "is_causal"),
    ("torch_threads", on_torch(num_threads=-3), ValueError, "num_threads: is -3"),
    ("keyword_in_vmap", lambda: torch.vmap(lambda x: attentile.torch.attention(
        x, x, x, foo=3))(TQ[None]), TypeError, "foo"),
    ("scale_in_vmap", lambda: torch.vmap(lambda x: attentile.torch.attention(
        x, x, x, softmax_scale="x"))(TQ[None]), TypeError, "softmax_scale: was 'x'"),
    ("threads_in_vmap", lambda: torch.vmap(lambda x: attentile.torch.attention(
        x, x, x, num_threads=2))(TQ[None]), ValueError, "num_threads: given in a traced"),
    ("merge_none", lambda: attentile.merge(None), TypeError, "parts: was None"),
    ("merge_gradient", lambda: attentile.merge([(TQ.clone().requires_grad_(), TQ[..., 0])]),
     ValueError, "parts: one requires a gradient"),
    ("module_dropout", lambda: FlashAttention(attention_dropout="a"), TypeError,
     "attention_dropout: was 'a', expected a number"),
    ("module_dim", lambda: FlashMHA("12", 3), TypeError, "embed_dim: was '12'"),
    ("module_list", lambda: FlashMHA(12, 3)([1.0]), TypeError, "x: was a list"),
    ("operator_layout", lambda: torch.ops.attentile.forward(TQ, TK, TV, layout="sbhd"), ValueError,
     "layout: was 'sbhd'"),
    ("sdpa_dtypes", inside_sdpa(TQ, TQ.half(), TQ), RuntimeError, "dtype"),
    ("sdpa_mask_shape", inside_sdpa(TQ, TQ, TQ, attn_mask=torch.ones(3, 9, dtype=torch.bool)),
     RuntimeError, "must match"),
    ("sdpa_mask_dtype", inside_sdpa(TQ, TQ, TQ, attn_mask=torch.ones(4, 4, dtype=torch.long)),
     RuntimeError, "attn_mask dtype"),
    ("sdpa_head_dims", inside_sdpa(TQ, TQ[..., :7], TQ), RuntimeError, "Expected size"),
    ("sdpa_heads", inside_sdpa(TQ.transpose(1, 2), TK.transpose(1, 2), TV.transpose(1, 2)),
     RuntimeError, "must match"),
    ("sdpa_dropout", inside_sdpa(TQ, TQ, TQ, dropout_p=1.5), ValueError, "dropout_p: is 1.5"),
    ("sdpa_scale_nan", inside_sdpa(TQ, TQ, TQ, scale=NAN), ValueError, "softmax_scale: is nan"),
]


def _low(entry: str = "forward", *, options: Any = None, progress: Any = None,
         threads: int = 1, gradients: Any = None, **given: Any) -> Callable[[], Any]:
    """A call of the binding with outputs that the caller holds."""
    def call() -> Any:
        own = {"q": Q, "k": K, "v": V, "out": None, "lse": None, "keep": None, **given}
        chosen = _core.Options() if options is None else options
        if entry == "backward":
            return _core.backward(tuple(own.values()), gradients, chosen, threads, progress)
        return _core.forward(tuple(own.values()), chosen, threads, progress)

    return call


# Memory that must not change.
HELD = [np.full((2, 5, 4, 8), 7.0, np.float32) for _ in range(5)]
HELD_LSE = np.full((2, 4, 5), 7.0, np.float32)
HELD_KEEP = np.full((2, 4, 5, 6), 7, np.uint8)
HELD_DK = np.full((2, 2, 6, 2, 8), 7.0, np.float32)
FROZEN = HELD[4].view()
FROZEN.flags.writeable = False
ROW = np.full((8,), 7.0, np.float32)


def every_row_one() -> np.ndarray:
    return np.lib.stride_tricks.as_strided(ROW, Q.shape, (0, 0, 0, 4), writeable=True)


def _gradients(**given: Any) -> tuple[Any, ...]:
    own = {"dout": OUT, "dq": HELD[0], "dk": HELD_DK[0], "dv": HELD_DK[1], "dlse": None,
           "dbias": None, "dsink": None, **given}
    return tuple(own.values())


_again = functools.partial(_low, "backward", out=OUT, lse=LSE)
BINDING: list[Bad] = [
    ("out_is_an_input", lambda: _low(q=HELD[0], out=HELD[0])(), ValueError,
     "out: data is 0 bytes past that of q, but an output must not share memory with an input"),
    ("out_reaches_into_an_input", lambda: _low(q=HELD[0][:, ::-1], out=HELD[0])(), ValueError,
     "out: data is"),
    ("out_of_one_row", lambda: _low(out=every_row_one())(), ValueError,
     "out: strides are [0, 0, 0, 1]"),
    ("out_read_only", _low(out=FROZEN), TypeError,
     "out: was a ndarray of dtype float32, expected an array in"),
    ("out_missing_forward", _low(lse=HELD_LSE), ValueError, "out: is missing"),
    ("out_shape", _low(out=HELD[0][:, :4]), ValueError, "out: seqlen_q is 4"),
    ("out_dtype", _low(out=np.full(Q.shape, 7.0)), ValueError, "out: dtype is float64"),
    ("lse_shape", _low(out=HELD[0], lse=HELD_LSE[:, :3]), ValueError, "lse: num_heads_q is 3"),
    ("keep_dtype", _low(out=HELD[0], keep=HELD_KEEP.view(bool)), ValueError, "keep: dtype is bool"),
    ("keep_shape", _low(out=HELD[0], keep=HELD_KEEP[..., :5]), ValueError, "keep: seqlen_k is 5"),
    ("dq_is_dout", _again(gradients=_gradients(dout=HELD[0])), ValueError, "dq: data is 0 bytes"),
    ("dk_is_dv", _again(gradients=_gradients(dv=HELD_DK[0])), ValueError, "share memory with anot"),
    ("dk_shape", _again(gradients=_gradients(dk=HELD_DK[0][:, :5])), ValueError, "dk: seqlen_k is"),
    ("dbias_without_bias", _again(gradients=_gradients(dbias=HELD[1])), ValueError,
     "dbias: is given, but bias is missing"),
    ("dsink_without_sink", _again(gradients=_gradients(dsink=HELD[1][0, 0, :, 0])), ValueError,
     "dsink: is given, but sink is missing"),
    ("dq_missing", _again(gradients=_gradients(dq=None)), ValueError, "dq: is missing"),
    ("dv_read_only", _again(gradients=_gradients(dv=FROZEN)), TypeError, "dv: was a ndarray"),
    ("binding_too_few", lambda: _core.forward((Q, K), _core.Options(), 1, None), TypeError,
     "tensors: q, k, v, out and lse must be given"),
    ("binding_options", _low(out=HELD[0], options=3), TypeError, "options"),
    ("options_positional", lambda: _core.Options(True), TypeError, "arguments"),
    ("misaligned_q", _low(q=np.frombuffer(bytearray(Q.nbytes + 1), np.uint8)[1:].view(
        np.float32).reshape(Q.shape), out=HELD[0]), ValueError, "q: data is 1 bytes past"),
]

BAD: list[Bad] = [*SHAPES, *DTYPES, *SCALARS, *INDICES, *OTHERS, *TENSORS, *BINDING]

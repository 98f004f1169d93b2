// SPDX-License-Identifier: Apache-2.0
// q, k and v, and what is written of their shape: presence, dtype, rank, sizes.
#include <cstdint>
#include <utility>

#include "validate/bad_call.h"

namespace attentile::test {
namespace {

constexpr int32_t kInvalid = ATTENTILE_INVALID_ARGUMENT;

std::vector<BadCall> bad_inputs() {
  const Base d = Base::kDense;
  const Base p = Base::kPacked;
  return {
      {"q_missing", d, [](SampleCall& c) { c.inputs.q = nullptr; }, kInvalid,
       "q: is missing, but it must be given"},
      {"k_missing", d, [](SampleCall& c) { c.inputs.k = nullptr; }, kInvalid,
       "k: is missing, but it must be given"},
      {"v_missing", Base::kDenseBackward, [](SampleCall& c) { c.inputs.v = nullptr; }, kInvalid,
       "v: is missing, but it must be given"},
      {"q_dtype_int", d, [](SampleCall& c) { c.q.dtype = ATTENTILE_INT32; }, kInvalid,
       "q: dtype is int32, but it must be float32, float16, bfloat16 or float64"},
      {"q_dtype_bool", d, [](SampleCall& c) { c.q.dtype = ATTENTILE_BOOL; }, kInvalid,
       "q: dtype is bool, but it must be float32, float16, bfloat16 or float64"},
      {"k_dtype_differs", d, [](SampleCall& c) { c.k.dtype = ATTENTILE_FLOAT16; }, kInvalid,
       "k: dtype is float16, but q has dtype float32"},
      {"v_dtype_differs", d, [](SampleCall& c) { c.v.dtype = ATTENTILE_BFLOAT16; }, kInvalid,
       "v: dtype is bfloat16, but q has dtype float32"},
      {"q_rank_3", d, [](SampleCall& c) { c.q.rank = 3; }, kInvalid,
       "q: rank is 3, but it must be 4: [batch, seqlen_q, num_heads_q, head_dim]"},
      {"q_rank_4_packed", p,
       [](SampleCall& c) {
         c.q.rank = 4;
         c.q.shape[3] = 1;
       },
       kInvalid, "q: rank is 4, but it must be 3: [total_q, num_heads_q, head_dim]"},
      {"q_rank_0", d, [](SampleCall& c) { c.q.rank = 0; }, kInvalid,
       "q: rank is 0, but it must be 4: [batch, seqlen_q, num_heads_q, head_dim]"},
      {"k_rank_2", d, [](SampleCall& c) { c.k.rank = 2; }, kInvalid,
       "k: rank is 2, but it must be 4: [batch, seqlen_k, num_heads_kv, head_dim]"},
      {"k_rank_4_packed", p,
       [](SampleCall& c) {
         c.k.rank = 4;
         c.k.shape[3] = 1;
       },
       kInvalid, "k: rank is 4, but it must be 3: [total_k, num_heads_kv, head_dim]"},
      {"k_rank_3_paged", Base::kPaged, [](SampleCall& c) { c.k.rank = 3; }, kInvalid,
       "k: rank is 3, but it must be 4: [num_pages, page_size, num_heads_kv, head_dim]"},
      {"k_packed_without_cu_seqlens_k", p, [](SampleCall& c) { c.inputs.cu_seqlens_k = nullptr; },
       kInvalid, "k: rank is 3, but it must be 4: [batch, seqlen_k, num_heads_kv, head_dim]"},
      {"v_rank_1", d, [](SampleCall& c) { c.v.rank = 1; }, kInvalid,
       "v: rank is 1, but it must be 4: [batch, seqlen_k, num_heads_kv, head_dim_v]"},
      {"k_batch_differs", d, [](SampleCall& c) { c.k.shape[0] = 1; }, kInvalid,
       "k: batch is 1, but q has batch 2"},
      {"v_batch_differs", d, [](SampleCall& c) { c.v.shape[0] = 1; }, kInvalid,
       "v: batch is 1, but k has batch 2"},
      {"v_seqlen_differs", d, [](SampleCall& c) { c.v.shape[1] = 4; }, kInvalid,
       "v: seqlen_k is 4, but k has seqlen_k 5"},
      {"v_heads_differ", d, [](SampleCall& c) { c.v.shape[2] = 1; }, kInvalid,
       "v: num_heads_kv is 1, but k has num_heads_kv 2"},
      {"k_head_dim_differs", d, [](SampleCall& c) { c.k.shape[3] = 7; }, kInvalid,
       "k: head_dim is 7, but q has head_dim 8"},
      {"k_head_dim_differs_packed", p, [](SampleCall& c) { c.k.shape[2] = 4; }, kInvalid,
       "k: head_dim is 4, but q has head_dim 8"},
      {"v_total_differs", p, [](SampleCall& c) { c.v.shape[0] = 6; }, kInvalid,
       "v: total_k is 6, but k has total_k 7"},
      {"v_heads_differ_packed", p, [](SampleCall& c) { c.v.shape[1] = 1; }, kInvalid,
       "v: num_heads_kv is 1, but k has num_heads_kv 2"},
      {"head_dim_zero", d, [](SampleCall& c) { c.q.shape[3] = c.k.shape[3] = 0; }, kInvalid,
       "q: head_dim is 0, but it must be in [1, 512]"},
      {"head_dim_513", d,
       [](SampleCall& c) {
         c.q.shape[3] = c.k.shape[3] = 513;
         c.q.stride[3] = c.k.stride[3] = 0;
       },
       kInvalid, "q: head_dim is 513, but it must be in [1, 512]"},
      {"head_dim_v_zero", d, [](SampleCall& c) { c.v.shape[3] = 0; }, kInvalid,
       "v: head_dim_v is 0, but it must be in [1, 512]"},
      {"head_dim_v_1000", d,
       [](SampleCall& c) {
         c.v.shape[3] = 1000;
         c.v.stride[3] = 0;
       },
       kInvalid, "v: head_dim_v is 1000, but it must be in [1, 512]"},
      {"heads_no_multiple", d, [](SampleCall& c) { c.q.shape[2] = 3; }, kInvalid,
       "q: num_heads_q is 3, but it must be a multiple of num_heads_kv, which is 2"},
      {"heads_fewer_than_kv", d, [](SampleCall& c) { c.q.shape[2] = 1; }, kInvalid,
       "q: num_heads_q is 1, but it must be a multiple of num_heads_kv, which is 2"},
      {"heads_kv_zero", d, [](SampleCall& c) { c.k.shape[2] = c.v.shape[2] = 0; }, kInvalid,
       "k: num_heads_kv is 0, but q has num_heads_q 4"},
      {"scores_too_many", d,
       [](SampleCall& c) {
         c.q.shape[1] = int64_t{1} << 28;
         c.k.shape[1] = c.v.shape[1] = int64_t{1} << 29;
         c.q.stride[1] = c.k.stride[1] = c.v.stride[1] = 0;
       },
       kInvalid,
       "q: 536870912 rows of num_heads_q 4 meet up to 536870912 keys, but the scores of a call "
       "must "
       "not exceed 2^58"},
  };
}

std::vector<BadCall> bad_results() {
  const Base d = Base::kDense;
  const Base p = Base::kPacked;
  return {
      {"out_missing", d, [](SampleCall& c) { c.outputs.out = nullptr; }, kInvalid,
       "out: is missing, but it must be given"},
      {"out_dtype", d, [](SampleCall& c) { c.out.dtype = ATTENTILE_FLOAT16; }, kInvalid,
       "out: dtype is float16, but q has dtype float32"},
      {"out_rank", d, [](SampleCall& c) { c.out.rank = 3; }, kInvalid,
       "out: rank is 3, but it must be 4: [batch, seqlen_q, num_heads_q, head_dim_v]"},
      {"out_rank_packed", p, [](SampleCall& c) { c.out.rank = 2; }, kInvalid,
       "out: rank is 2, but it must be 3: [total_q, num_heads_q, head_dim_v]"},
      {"out_batch", d, [](SampleCall& c) { c.out.shape[0] = 1; }, kInvalid,
       "out: batch is 1, but q has batch 2"},
      {"out_seqlen", d, [](SampleCall& c) { c.out.shape[1] = 2; }, kInvalid,
       "out: seqlen_q is 2, but q has seqlen_q 3"},
      {"out_heads", d, [](SampleCall& c) { c.out.shape[2] = 2; }, kInvalid,
       "out: num_heads_q is 2, but q has num_heads_q 4"},
      {"out_head_dim", d, [](SampleCall& c) { c.out.shape[3] = 3; }, kInvalid,
       "out: head_dim_v is 3, but v has head_dim_v 4"},
      {"out_total", p, [](SampleCall& c) { c.out.shape[0] = 4; }, kInvalid,
       "out: total_q is 4, but q has total_q 5"},
      {"lse_dtype", d, [](SampleCall& c) { c.lse.dtype = ATTENTILE_FLOAT16; }, kInvalid,
       "lse: dtype is float16, but it must be float32"},
      {"lse_dtype_float64", d, [](SampleCall& c) { c.lse.dtype = ATTENTILE_FLOAT64; }, kInvalid,
       "lse: dtype is float64, but it must be float32"},
      {"lse_dtype_of_float64", d,
       [](SampleCall& c) {
         for (attentile_tensor* t : {&c.q, &c.k, &c.v, &c.out}) {
           *t = c.make_tensor(ATTENTILE_FLOAT64,
                              {t->shape[0], t->shape[1], t->shape[2], t->shape[3]});
         }
       },
       kInvalid, "lse: dtype is float32, but it must be float64"},
      {"lse_rank", d, [](SampleCall& c) { c.lse.rank = 2; }, kInvalid,
       "lse: rank is 2, but it must be 3: [batch, num_heads_q, seqlen_q]"},
      {"lse_rank_packed", p, [](SampleCall& c) { c.lse.rank = 1; }, kInvalid,
       "lse: rank is 1, but it must be 2: [num_heads_q, total_q]"},
      {"lse_transposed", d,
       [](SampleCall& c) {
         c.lse.shape[1] = 3;
         c.lse.shape[2] = 4;
       },
       kInvalid, "lse: num_heads_q is 3, but q has num_heads_q 4"},
      {"lse_seqlen", d, [](SampleCall& c) { c.lse.shape[2] = 2; }, kInvalid,
       "lse: seqlen_q is 2, but q has seqlen_q 3"},
      {"lse_total", p, [](SampleCall& c) { c.lse.shape[1] = 6; }, kInvalid,
       "lse: total_q is 6, but q has total_q 5"},
      {"lse_missing_in_backward", Base::kDenseBackward,
       [](SampleCall& c) { c.outputs.lse = nullptr; }, kInvalid,
       "lse: is missing, but the backward pass needs it"},
      {"out_missing_in_backward", Base::kPackedBackward,
       [](SampleCall& c) { c.outputs.out = nullptr; }, kInvalid,
       "out: is missing, but it must be given"},
      {"keep_dtype", d,
       [](SampleCall& c) {
         c.give("keep");
         c.keep.dtype = ATTENTILE_BOOL;
       },
       kInvalid, "keep: dtype is bool, but it must be uint8"},
      {"keep_rank", d,
       [](SampleCall& c) {
         c.give("keep");
         c.keep.rank = 2;
       },
       kInvalid, "keep: rank is 2, but it must be 4: [batch, num_heads_q, seqlen_q, seqlen_k]"},
      {"keep_seqlen", d,
       [](SampleCall& c) {
         c.give("keep");
         c.keep.shape[3] = 4;
       },
       kInvalid, "keep: seqlen_k is 4, but k has seqlen_k 5"},
      {"keep_seqlen_paged", Base::kPaged,
       [](SampleCall& c) {
         c.give("keep");
         c.keep.shape[3] = 6;
       },
       kInvalid, "keep: seqlen_k is 6, but seqused_k has seqlen_k 7"},
      {"keep_packed", p, [](SampleCall& c) { c.give("keep"); }, kInvalid,
       "keep: is given with cu_seqlens_q, but only a call of equal lengths can write it"},
  };
}

}  // namespace

std::vector<BadCall> bad_tokens() {
  std::vector<BadCall> cases = bad_inputs();
  for (BadCall& bad : bad_results()) cases.push_back(std::move(bad));
  return cases;
}

}  // namespace attentile::test

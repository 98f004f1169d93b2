// SPDX-License-Identifier: Apache-2.0
// The terms of the logits, and the gradients.
#include <cstdint>
#include <limits>
#include <utility>

#include "validate/bad_call.h"

namespace attentile::test {
namespace {

constexpr int32_t kInvalid = ATTENTILE_INVALID_ARGUMENT;

void set_shape(attentile_tensor& t, std::initializer_list<int64_t> shape) {
  t.rank = static_cast<int32_t>(shape.size());
  int axis = 0;
  for (int64_t size : shape) t.shape[axis++] = size;
}

std::vector<BadCall> bad_bias_and_mask() {
  const Base d = Base::kDense;
  return {
      {"bias_dtype_int", d,
       [](SampleCall& c) {
         c.give("bias");
         c.bias.dtype = ATTENTILE_INT32;
       },
       kInvalid, "bias: dtype is int32, but it must be float32 or that of q, which is float32"},
      {"bias_dtype_half", d,
       [](SampleCall& c) {
         c.give("bias");
         c.bias.dtype = ATTENTILE_FLOAT16;
       },
       kInvalid, "bias: dtype is float16, but it must be float32 or that of q, which is float32"},
      {"bias_batch", d,
       [](SampleCall& c) {
         c.give("bias");
         c.bias.shape[0] = 3;
         c.bias.stride[0] = 0;
       },
       kInvalid,
       "bias: shape is [3, 4, 3, 5], but it must broadcast to [batch, num_heads_q, seqlen_q, "
       "seqlen_k] = [2, 4, 3, 5]"},
      {"bias_kv_heads", d,
       [](SampleCall& c) {
         c.give("bias");
         c.bias.shape[1] = 2;
       },
       kInvalid,
       "bias: shape is [2, 2, 3, 5], but it must broadcast to [batch, num_heads_q, seqlen_q, "
       "seqlen_k] = [2, 4, 3, 5]"},
      {"bias_aligned_left", d,
       [](SampleCall& c) {
         c.give("bias");
         set_shape(c.bias, {2, 4});
       },
       kInvalid,
       "bias: shape is [2, 4], but it must broadcast to [batch, num_heads_q, seqlen_q, seqlen_k] = "
       "[2, 4, 3, 5]"},
      {"bias_per_key_wrong", d,
       [](SampleCall& c) {
         c.give("bias");
         set_shape(c.bias, {4});
       },
       kInvalid,
       "bias: shape is [4], but it must broadcast to [batch, num_heads_q, seqlen_q, seqlen_k] = "
       "[2, 4, 3, 5]"},
      {"bias_empty_keys", d,
       [](SampleCall& c) {
         c.give("bias");
         c.bias.shape[3] = 0;
       },
       kInvalid,
       "bias: shape is [2, 4, 3, 0], but it must broadcast to [batch, num_heads_q, seqlen_q, "
       "seqlen_k] = [2, 4, 3, 5]"},
      {"bias_total_rows_packed", Base::kPacked,
       [](SampleCall& c) {
         c.give("bias");
         set_shape(c.bias, {5, 4});
       },
       kInvalid,
       "bias: shape is [5, 4], but it must broadcast to [batch, num_heads_q, max_seqlen_q, "
       "max_seqlen_k] = [2, 4, 3, 4]"},
      {"mask_dtype", d,
       [](SampleCall& c) {
         c.give("mask");
         c.mask.dtype = ATTENTILE_FLOAT32;
       },
       kInvalid, "mask: dtype is float32, but it must be bool or uint8"},
      {"mask_dtype_int", d,
       [](SampleCall& c) {
         c.give("mask");
         c.mask.dtype = ATTENTILE_INT32;
       },
       kInvalid, "mask: dtype is int32, but it must be bool or uint8"},
      {"mask_keys", d,
       [](SampleCall& c) {
         c.give("mask");
         c.mask.shape[1] = 4;
       },
       kInvalid,
       "mask: shape is [3, 4], but it must broadcast to [batch, num_heads_q, seqlen_q, seqlen_k] = "
       "[2, 4, 3, 5]"},
      {"mask_rows", d,
       [](SampleCall& c) {
         c.give("mask");
         c.mask.shape[0] = 2;
       },
       kInvalid,
       "mask: shape is [2, 5], but it must broadcast to [batch, num_heads_q, seqlen_q, seqlen_k] = "
       "[2, 4, 3, 5]"},
      {"mask_batch_and_keys", d,
       [](SampleCall& c) {
         c.give("mask");
         set_shape(c.mask, {2, 5});
       },
       kInvalid,
       "mask: shape is [2, 5], but it must broadcast to [batch, num_heads_q, seqlen_q, seqlen_k] = "
       "[2, 4, 3, 5]"},
      {"mask_paged_capacity", Base::kPaged,
       [](SampleCall& c) {
         c.give("mask");
         c.mask.shape[1] = 8;
       },
       kInvalid,
       "mask: shape is [3, 8], but it must broadcast to [batch, num_heads_q, seqlen_q, seqlen_k] = "
       "[2, 4, 3, 7]"},
  };
}

std::vector<BadCall> bad_head_terms() {
  const Base d = Base::kDense;
  return {
      {"sink_dtype", d,
       [](SampleCall& c) {
         c.give("sink");
         c.sink.dtype = ATTENTILE_FLOAT16;
       },
       kInvalid, "sink: dtype is float16, but it must be float32"},
      {"sink_rank", d,
       [](SampleCall& c) {
         c.give("sink");
         set_shape(c.sink, {2, 2});
       },
       kInvalid, "sink: rank is 2, but it must be 1: [num_heads_q]"},
      {"sink_heads", d,
       [](SampleCall& c) {
         c.give("sink");
         c.sink.shape[0] = 2;
       },
       kInvalid, "sink: num_heads_q is 2, but q has num_heads_q 4"},
      {"slopes_dtype", d,
       [](SampleCall& c) {
         c.give("alibi_slopes");
         c.alibi_slopes.dtype = ATTENTILE_BFLOAT16;
       },
       kInvalid, "alibi_slopes: dtype is bfloat16, but it must be float32"},
      {"slopes_rank_0", d,
       [](SampleCall& c) {
         c.give("alibi_slopes");
         c.alibi_slopes.rank = 0;
       },
       kInvalid,
       "alibi_slopes: rank is 0, but it must be 1 or 2: [num_heads_q] or [batch, num_heads_q]"},
      {"slopes_rank_3", d,
       [](SampleCall& c) {
         c.give("alibi_slopes");
         set_shape(c.alibi_slopes, {2, 2, 2});
       },
       kInvalid,
       "alibi_slopes: rank is 3, but it must be 1 or 2: [num_heads_q] or [batch, num_heads_q]"},
      {"slopes_heads", d,
       [](SampleCall& c) {
         c.give("alibi_slopes");
         set_shape(c.alibi_slopes, {2});
       },
       kInvalid, "alibi_slopes: num_heads_q is 2, but q has num_heads_q 4"},
      {"slopes_batch", d,
       [](SampleCall& c) {
         c.give("alibi_slopes");
         set_shape(c.alibi_slopes, {1, 4});
       },
       kInvalid, "alibi_slopes: batch is 1, but q has batch 2"},
      {"slopes_batch_packed", Base::kPacked,
       [](SampleCall& c) {
         c.give("alibi_slopes");
         set_shape(c.alibi_slopes, {1, 4});
       },
       kInvalid, "alibi_slopes: batch is 1, but cu_seqlens_q has batch 2"},
      {"block_mask_dtype", d,
       [](SampleCall& c) {
         c.give("block_mask");
         c.block_mask.dtype = ATTENTILE_INT32;
         c.block_mask.shape[0] = 1;
       },
       kInvalid, "block_mask: dtype is int32, but it must be bool or uint8"},
      {"block_mask_rank", d,
       [](SampleCall& c) {
         c.give("block_mask");
         set_shape(c.block_mask, {2, 3});
       },
       kInvalid, "block_mask: rank is 2, but it must be 3: [num_heads_q or 1, tiles_q, tiles_k]"},
      {"block_mask_heads", d,
       [](SampleCall& c) {
         c.give("block_mask");
         c.block_mask.shape[0] = 2;
       },
       kInvalid,
       "block_mask: shape is [2, 2, 3], but its first size must be 1 or num_heads_q, which is 4"},
      {"block_mask_without_size_q", d,
       [](SampleCall& c) {
         c.give("block_mask");
         c.options.block_size_q = 0;
       },
       kInvalid, "block_size_q: is 0, but block_mask needs at least 1"},
      {"block_mask_without_size_k", d,
       [](SampleCall& c) {
         c.give("block_mask");
         c.options.block_size_k = 0;
       },
       kInvalid, "block_size_k: is 0, but block_mask needs at least 1"},
      {"block_mask_too_few_tiles_q", d,
       [](SampleCall& c) {
         c.give("block_mask");
         c.block_mask.shape[1] = 1;
       },
       kInvalid,
       "block_mask: tiles_q is 1, but block_size_q 2 over the longest query sequence of 3 makes 2"},
      {"block_mask_too_many_tiles_k", d,
       [](SampleCall& c) {
         c.give("block_mask");
         c.block_mask.shape[0] = 1;
         c.block_mask.shape[2] = 4;
       },
       kInvalid,
       "block_mask: tiles_k is 4, but block_size_k 2 over the longest key sequence of 5 makes 3"},
      {"block_mask_huge_size", d,
       [](SampleCall& c) {
         c.give("block_mask");
         c.options.block_size_k = std::numeric_limits<int64_t>::max();
       },
       kInvalid,
       "block_mask: tiles_k is 3, but block_size_k 9223372036854775807 over the longest key "
       "sequence of 5 makes 1"},
      {"block_mask_packed_totals", Base::kPacked,
       [](SampleCall& c) {
         c.give("block_mask");
         c.block_mask.shape[1] = 3;
         c.block_mask.shape[0] = 1;
       },
       kInvalid,
       "block_mask: tiles_q is 3, but block_size_q 2 over the longest query sequence of 3 makes 2"},
  };
}

std::vector<BadCall> bad_gradients() {
  const Base d = Base::kDenseBackward;
  const Base p = Base::kPackedBackward;
  return {
      {"dout_missing", d, [](SampleCall& c) { c.gradients.dout = nullptr; }, kInvalid,
       "dout: is missing, but the backward pass needs it"},
      {"dq_missing", d, [](SampleCall& c) { c.gradients.dq = nullptr; }, kInvalid,
       "dq: is missing, but the backward pass needs it"},
      {"dk_missing", p, [](SampleCall& c) { c.gradients.dk = nullptr; }, kInvalid,
       "dk: is missing, but the backward pass needs it"},
      {"dv_missing", d, [](SampleCall& c) { c.gradients.dv = nullptr; }, kInvalid,
       "dv: is missing, but the backward pass needs it"},
      {"dout_dtype", d, [](SampleCall& c) { c.dout.dtype = ATTENTILE_FLOAT16; }, kInvalid,
       "dout: dtype is float16, but q has dtype float32"},
      {"dout_head_dim", d, [](SampleCall& c) { c.dout.shape[3] = 2; }, kInvalid,
       "dout: head_dim_v is 2, but v has head_dim_v 4"},
      {"dlse_dtype", d,
       [](SampleCall& c) {
         c.give("dlse");
         c.dlse.dtype = ATTENTILE_BFLOAT16;
       },
       kInvalid, "dlse: dtype is bfloat16, but it must be float32"},
      {"dlse_heads", d,
       [](SampleCall& c) {
         c.give("dlse");
         c.dlse.shape[1] = 2;
       },
       kInvalid, "dlse: num_heads_q is 2, but q has num_heads_q 4"},
      {"dlse_rank_packed", p,
       [](SampleCall& c) {
         c.give("dlse");
         c.dlse.rank = 1;
       },
       kInvalid, "dlse: rank is 1, but it must be 2: [num_heads_q, total_q]"},
      {"dq_dtype", d, [](SampleCall& c) { c.dq.dtype = ATTENTILE_INT32; }, kInvalid,
       "dq: dtype is int32, but q has dtype float32"},
      {"dq_head_dim", d, [](SampleCall& c) { c.dq.shape[3] = 4; }, kInvalid,
       "dq: head_dim is 4, but q has head_dim 8"},
      {"dq_total", p, [](SampleCall& c) { c.dq.shape[0] = 3; }, kInvalid,
       "dq: total_q is 3, but q has total_q 5"},
      {"dk_heads_of_q", d,
       [](SampleCall& c) {
         c.dk.shape[2] = 4;
         c.dk.shape[1] = 5;
       },
       kInvalid, "dk: num_heads_kv is 4, but k has num_heads_kv 2"},
      {"dk_seqlen", d, [](SampleCall& c) { c.dk.shape[1] = 4; }, kInvalid,
       "dk: seqlen_k is 4, but k has seqlen_k 5"},
      {"dk_total", p, [](SampleCall& c) { c.dk.shape[0] = 6; }, kInvalid,
       "dk: total_k is 6, but k has total_k 7"},
      {"dv_head_dim", d, [](SampleCall& c) { c.dv.shape[3] = 1; }, kInvalid,
       "dv: head_dim_v is 1, but v has head_dim_v 4"},
      {"dv_dtype", p, [](SampleCall& c) { c.dv.dtype = ATTENTILE_FLOAT16; }, kInvalid,
       "dv: dtype is float16, but q has dtype float32"},
      {"dv_rank", p, [](SampleCall& c) { c.dv.rank = 2; }, kInvalid,
       "dv: rank is 2, but it must be 3: [total_k, num_heads_kv, head_dim_v]"},
      {"dbias_without_bias", d, [](SampleCall& c) { c.give("dbias"); }, kInvalid,
       "dbias: is given, but bias is missing"},
      {"dbias_dtype", d,
       [](SampleCall& c) {
         c.give("bias");
         c.give("dbias");
         c.dbias.dtype = ATTENTILE_FLOAT16;
       },
       kInvalid, "dbias: dtype is float16, but bias has dtype float32"},
      {"dbias_shape", d,
       [](SampleCall& c) {
         c.give("bias");
         c.give("dbias");
         c.dbias.shape[0] = 1;
       },
       kInvalid, "dbias: shape is [1, 4, 3, 5], but bias has shape [2, 4, 3, 5]"},
      {"dbias_rank", d,
       [](SampleCall& c) {
         c.give("bias");
         c.give("dbias");
         set_shape(c.bias, {3, 5});
       },
       kInvalid, "dbias: shape is [2, 4, 3, 5], but bias has shape [3, 5]"},
      {"dsink_without_sink", p, [](SampleCall& c) { c.give("dsink"); }, kInvalid,
       "dsink: is given, but sink is missing"},
      {"dsink_dtype", d,
       [](SampleCall& c) {
         c.give("sink");
         c.give("dsink");
         c.dsink.dtype = ATTENTILE_BFLOAT16;
       },
       kInvalid, "dsink: dtype is bfloat16, but it must be float32"},
      {"dsink_heads", d,
       [](SampleCall& c) {
         c.give("sink");
         c.give("dsink");
         c.dsink.shape[0] = 3;
       },
       kInvalid, "dsink: num_heads_q is 3, but q has num_heads_q 4"},
  };
}

}  // namespace

std::vector<BadCall> bad_terms() {
  std::vector<BadCall> cases = bad_bias_and_mask();
  for (BadCall& bad : bad_head_terms()) cases.push_back(std::move(bad));
  for (BadCall& bad : bad_gradients()) cases.push_back(std::move(bad));
  return cases;
}

}  // namespace attentile::test

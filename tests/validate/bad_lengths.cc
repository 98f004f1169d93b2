// SPDX-License-Identifier: Apache-2.0
// Index arrays: cu_seqlens, seqused_k, block_table, cache_batch_idx, leftpad_k.
#include <cstdint>
#include <utility>

#include "validate/bad_call.h"

namespace attentile::test {
namespace {

constexpr int32_t kInvalid = ATTENTILE_INVALID_ARGUMENT;

std::vector<BadCall> bad_cumulative_lengths() {
  const Base p = Base::kPacked;
  return {
      {"cu_seqlens_q_dtype", p, [](SampleCall& c) { c.cu_seqlens_q.dtype = ATTENTILE_FLOAT32; },
       kInvalid, "cu_seqlens_q: dtype is float32, but it must be int32"},
      {"cu_seqlens_k_dtype", p, [](SampleCall& c) { c.cu_seqlens_k.dtype = ATTENTILE_UINT8; },
       kInvalid, "cu_seqlens_k: dtype is uint8, but it must be int32"},
      {"cu_seqlens_q_rank", p, [](SampleCall& c) { c.cu_seqlens_q.rank = 0; }, kInvalid,
       "cu_seqlens_q: rank is 0, but it must be 1: [batch + 1]"},
      {"cu_seqlens_k_rank", p,
       [](SampleCall& c) {
         c.cu_seqlens_k.rank = 2;
         c.cu_seqlens_k.shape[1] = 1;
       },
       kInvalid, "cu_seqlens_k: rank is 2, but it must be 1: [batch + 1]"},
      {"cu_seqlens_q_empty", p, [](SampleCall& c) { c.cu_seqlens_q.shape[0] = 0; }, kInvalid,
       "cu_seqlens_q: size is 0, but it must be batch + 1, at least 1"},
      {"cu_seqlens_k_size", p, [](SampleCall& c) { c.cu_seqlens_k.shape[0] = 2; }, kInvalid,
       "cu_seqlens_k: batch + 1 is 2, but cu_seqlens_q has batch + 1 3"},
      {"cu_seqlens_q_start", p, [](SampleCall& c) { c.integers(c.cu_seqlens_q)[0] = 1; }, kInvalid,
       "cu_seqlens_q[0]: is 1, but it must be 0"},
      {"cu_seqlens_q_start_negative", p, [](SampleCall& c) { c.integers(c.cu_seqlens_q)[0] = -1; },
       kInvalid, "cu_seqlens_q[0]: is -1, but it must be 0"},
      {"cu_seqlens_k_start", p, [](SampleCall& c) { c.integers(c.cu_seqlens_k)[0] = 2; }, kInvalid,
       "cu_seqlens_k[0]: is 2, but it must be 0"},
      {"cu_seqlens_q_falls", p, [](SampleCall& c) { c.integers(c.cu_seqlens_q)[1] = 6; }, kInvalid,
       "cu_seqlens_q[2]: is 5, but it must be at least 6, the one before"},
      {"cu_seqlens_q_falls_below_zero", p,
       [](SampleCall& c) { c.integers(c.cu_seqlens_q)[1] = -2147483647 - 1; }, kInvalid,
       "cu_seqlens_q[1]: is -2147483648, but it must be at least 0, the one before"},
      {"cu_seqlens_k_falls", p, [](SampleCall& c) { c.integers(c.cu_seqlens_k)[2] = 3; }, kInvalid,
       "cu_seqlens_k[2]: is 3, but it must be at least 4, the one before"},
      {"cu_seqlens_q_ends_early", p, [](SampleCall& c) { c.integers(c.cu_seqlens_q)[2] = 4; },
       kInvalid, "cu_seqlens_q[2]: is 4, but q has total_q 5"},
      {"cu_seqlens_q_ends_late", p, [](SampleCall& c) { c.integers(c.cu_seqlens_q)[2] = 6; },
       kInvalid, "cu_seqlens_q[2]: is 6, but q has total_q 5"},
      {"cu_seqlens_k_ends_late", p,
       [](SampleCall& c) { c.integers(c.cu_seqlens_k)[2] = 2147483647; }, kInvalid,
       "cu_seqlens_k[2]: is 2147483647, but k has total_k 7"},
      {"cu_seqlens_backward", Base::kPackedBackward,
       [](SampleCall& c) { c.integers(c.cu_seqlens_k)[2] = 8; }, kInvalid,
       "cu_seqlens_k[2]: is 8, but k has total_k 7"},
      {"cu_seqlens_k_alone", p, [](SampleCall& c) { c.inputs.cu_seqlens_q = nullptr; }, kInvalid,
       "cu_seqlens_q: is missing, but cu_seqlens_k is given"},
      {"cu_seqlens_k_with_block_table", p, [](SampleCall& c) { c.give("block_table"); }, kInvalid,
       "cu_seqlens_k: is given with block_table, but the lengths of paged keys are seqused_k's"},
  };
}

std::vector<BadCall> bad_used_lengths() {
  const Base d = Base::kDense;
  return {
      {"seqused_k_dtype", d,
       [](SampleCall& c) {
         c.give("seqused_k");
         c.seqused_k.dtype = ATTENTILE_FLOAT32;
       },
       kInvalid, "seqused_k: dtype is float32, but it must be int32"},
      {"seqused_k_rank", d,
       [](SampleCall& c) {
         c.give("seqused_k");
         c.seqused_k.rank = 0;
       },
       kInvalid, "seqused_k: rank is 0, but it must be 1: [batch]"},
      {"seqused_k_size", d,
       [](SampleCall& c) {
         c.give("seqused_k");
         c.seqused_k.shape[0] = 3;
       },
       kInvalid, "seqused_k: batch is 3, but q has batch 2"},
      {"seqused_k_size_packed", Base::kPacked,
       [](SampleCall& c) {
         c.give("seqused_k");
         c.seqused_k.shape[0] = 1;
       },
       kInvalid, "seqused_k: batch is 1, but cu_seqlens_q has batch 2"},
      {"seqused_k_negative", d,
       [](SampleCall& c) {
         c.give("seqused_k");
         c.integers(c.seqused_k)[0] = -1;
       },
       kInvalid, "seqused_k[0]: is -1, but it must be in [0, 5]"},
      {"seqused_k_too_long", d,
       [](SampleCall& c) {
         c.give("seqused_k");
         c.integers(c.seqused_k)[1] = 6;
       },
       kInvalid, "seqused_k[1]: is 6, but it must be in [0, 5]"},
      {"seqused_k_beyond_packed_sequence", Base::kPacked,
       [](SampleCall& c) {
         c.give("seqused_k");
         c.integers(c.seqused_k)[1] = 4;
       },
       kInvalid, "seqused_k[1]: is 4, but it must be in [0, 3]"},
      {"seqused_k_too_long_in_backward", Base::kDenseBackward,
       [](SampleCall& c) {
         c.give("seqused_k");
         c.integers(c.seqused_k)[0] = 2147483647;
       },
       kInvalid, "seqused_k[0]: is 2147483647, but it must be in [0, 5]"},
      {"leftpad_k_dtype", d,
       [](SampleCall& c) {
         c.give("leftpad_k");
         c.leftpad_k.dtype = ATTENTILE_BOOL;
       },
       kInvalid, "leftpad_k: dtype is bool, but it must be int32"},
      {"leftpad_k_size", d,
       [](SampleCall& c) {
         c.give("leftpad_k");
         c.leftpad_k.shape[0] = 0;
       },
       kInvalid, "leftpad_k: batch is 0, but q has batch 2"},
      {"leftpad_k_negative", d,
       [](SampleCall& c) {
         c.give("leftpad_k");
         c.integers(c.leftpad_k)[1] = -1;
       },
       kInvalid, "leftpad_k[1]: is -1, but it must be in [0, 5]"},
      {"leftpad_k_beyond_keys", d,
       [](SampleCall& c) {
         c.give("leftpad_k");
         c.integers(c.leftpad_k)[0] = 6;
       },
       kInvalid, "leftpad_k[0]: is 6, but it must be in [0, 5]"},
      {"leftpad_k_beyond_used_keys", d,
       [](SampleCall& c) {
         c.give("leftpad_k");
         c.give("seqused_k");
         c.integers(c.leftpad_k)[1] = 3;
       },
       kInvalid, "leftpad_k[1]: is 3, but it must be in [0, 2]"},
      {"cache_batch_idx_dtype", d,
       [](SampleCall& c) {
         c.give("cache_batch_idx");
         c.cache_batch_idx.dtype = ATTENTILE_FLOAT32;
       },
       kInvalid, "cache_batch_idx: dtype is float32, but it must be int32"},
      {"cache_batch_idx_size", d,
       [](SampleCall& c) {
         c.give("cache_batch_idx");
         c.cache_batch_idx.shape[0] = 1;
       },
       kInvalid, "cache_batch_idx: batch is 1, but q has batch 2"},
      {"cache_batch_idx_negative", d,
       [](SampleCall& c) {
         c.give("cache_batch_idx");
         c.integers(c.cache_batch_idx)[0] = -1;
       },
       kInvalid, "cache_batch_idx[0]: is -1, but it must be in [0, 2), as k has batch_cache 2"},
      {"cache_batch_idx_too_high", d,
       [](SampleCall& c) {
         c.give("cache_batch_idx");
         c.integers(c.cache_batch_idx)[1] = 2;
       },
       kInvalid, "cache_batch_idx[1]: is 2, but it must be in [0, 2), as k has batch_cache 2"},
      {"cache_batch_idx_packed", Base::kPacked, [](SampleCall& c) { c.give("cache_batch_idx"); },
       kInvalid,
       "cache_batch_idx: is given with cu_seqlens_k, but k then has no rows per batch entry"},
      {"cache_batch_idx_paged", Base::kPaged, [](SampleCall& c) { c.give("cache_batch_idx"); },
       kInvalid,
       "cache_batch_idx: is given with block_table, but k then has no rows per batch entry"},
  };
}

std::vector<BadCall> bad_pages() {
  const Base p = Base::kPaged;
  return {
      {"block_table_without_lengths", p, [](SampleCall& c) { c.inputs.seqused_k = nullptr; },
       kInvalid, "seqused_k: is missing, but block_table needs it"},
      {"block_table_dtype", p, [](SampleCall& c) { c.block_table.dtype = ATTENTILE_FLOAT32; },
       kInvalid, "block_table: dtype is float32, but it must be int32"},
      {"block_table_rank", p, [](SampleCall& c) { c.block_table.rank = 1; }, kInvalid,
       "block_table: rank is 1, but it must be 2: [batch, max_pages]"},
      {"block_table_batch", p, [](SampleCall& c) { c.block_table.shape[0] = 1; }, kInvalid,
       "block_table: batch is 1, but q has batch 2"},
      {"block_table_too_few_pages", p, [](SampleCall& c) { c.block_table.shape[1] = 1; }, kInvalid,
       "seqused_k[0]: is 7, but it must be in [0, 4]"},
      {"block_table_no_pages", p, [](SampleCall& c) { c.block_table.shape[1] = 0; }, kInvalid,
       "seqused_k[0]: is 7, but it must be in [0, 0]"},
      {"seqused_k_beyond_pages", p, [](SampleCall& c) { c.integers(c.seqused_k)[1] = 9; }, kInvalid,
       "seqused_k[1]: is 9, but it must be in [0, 8]"},
      {"block_table_page_negative", p, [](SampleCall& c) { c.integers(c.block_table)[1] = -1; },
       kInvalid, "block_table[0][1]: is -1, but it must be in [0, 6), as k has num_pages 6"},
      {"block_table_page_too_high", p, [](SampleCall& c) { c.integers(c.block_table)[2] = 6; },
       kInvalid, "block_table[1][0]: is 6, but it must be in [0, 6), as k has num_pages 6"},
      {"block_table_page_far_away", p,
       [](SampleCall& c) { c.integers(c.block_table)[0] = 2147480000; }, kInvalid,
       "block_table[0][0]: is 2147480000, but it must be in [0, 6), as k has num_pages 6"},
      {"block_table_without_cache", p, [](SampleCall& c) { c.k.shape[0] = c.v.shape[0] = 0; },
       kInvalid, "block_table[0][0]: is 5, but it must be in [0, 0), as k has num_pages 0"},
      {"page_size_zero", p, [](SampleCall& c) { c.k.shape[1] = c.v.shape[1] = 0; }, kInvalid,
       "k: page_size is 0, but it must be at least 1"},
      {"page_size_differs", p, [](SampleCall& c) { c.v.shape[1] = 3; }, kInvalid,
       "v: page_size is 3, but k has page_size 4"},
      {"num_pages_differs", p, [](SampleCall& c) { c.v.shape[0] = 5; }, kInvalid,
       "v: num_pages is 5, but k has num_pages 6"},
      {"leftpad_k_beyond_pages", p,
       [](SampleCall& c) {
         c.give("leftpad_k");
         c.integers(c.leftpad_k)[0] = 8;
       },
       kInvalid, "leftpad_k[0]: is 8, but it must be in [0, 7]"},
      {"block_table_in_backward", Base::kDenseBackward,
       [](SampleCall& c) { c.give("block_table"); }, ATTENTILE_UNSUPPORTED,
       "block_table: is given, but only the forward pass supports it"},
      {"cache_batch_idx_in_backward", Base::kDenseBackward,
       [](SampleCall& c) { c.give("cache_batch_idx"); }, ATTENTILE_UNSUPPORTED,
       "cache_batch_idx: is given, but only the forward pass supports it"},
      {"leftpad_k_in_backward", Base::kPackedBackward, [](SampleCall& c) { c.give("leftpad_k"); },
       ATTENTILE_UNSUPPORTED, "leftpad_k: is given, but only the forward pass supports it"},
  };
}

}  // namespace

std::vector<BadCall> bad_lengths() {
  std::vector<BadCall> cases = bad_cumulative_lengths();
  for (BadCall& bad : bad_used_lengths()) cases.push_back(std::move(bad));
  for (BadCall& bad : bad_pages()) cases.push_back(std::move(bad));
  return cases;
}

}  // namespace attentile::test

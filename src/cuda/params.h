// SPDX-License-Identifier: Apache-2.0
// ForwardParams: what a forward kernel sees of a Problem. Plain data, passed by value: addresses in
// device memory, strides in elements, sizes, and the constants of the score arithmetic, worked out
// once on the host. Index arrays (cu_seqlens, block_table, ...) stay addresses: kernels read them.
#pragma once

#include <cstdint>

#include "mask.h"
#include "philox.h"

namespace attentile::cuda {

// A strided array of up to four dimensions. Absent: data = null.
struct ArrayParams {
  char* data = nullptr;
  int64_t stride[4] = {};
  bool is_float32 = false;  // else of q's dtype; of bias alone
  bool in_chunks =
      false;  // its rows are contiguous, whole chunks, and begin at multiples of 16 bytes
};

// A one-dimensional int32 array. Absent: data = null.
struct IndexParams {
  const int32_t* data = nullptr;
  int64_t stride = 0;
};

// logit = scale * dot product, softcap, bias and ALiBi applied. The tile values of the kernel are
// the dot products themselves where nothing but a positive scale stands between them and the
// softmax (no terms), else logits; a weight is 2^((value - row_max) * exponent).
struct ScoreParams {
  bool has_terms = false;
  float logit = 1;     // dot product -> logit; with softcap -> argument of tanh
  float softcap = 0;   // 0: none
  float exponent = 0;  // log2(e), or softmax_scale * log2(e)
  float value_hi = 1;  // tile value -> logit, in two parts
  float value_lo = 0;
};

struct ForwardParams {
  int32_t batch = 0;
  int32_t num_heads_q = 0;
  int32_t group_size = 0;  // query heads per KV head; 1 where there are none
  int32_t head_dim = 0;
  int32_t head_dim_v = 0;
  int32_t max_seqlen_q = 0;
  int32_t max_seqlen_k = 0;
  int32_t total_q = 0;  // rows of q and k where they are packed
  int32_t total_k = 0;
  int32_t batch_k = 0;  // first dimension of k and v: batch, rows of the cache, or pages

  ArrayParams q, k, v, out;  // (batch, row, head, column)
  ArrayParams lse;           // (batch, head, row, -), float32
  ArrayParams bias, mask;    // (batch, head, query, key)
  ArrayParams keep;          // the same, uint8
  ArrayParams sink;          // (head, -, -, -), float32
  ArrayParams alibi_slopes;  // (batch, head, -, -), float32

  bool packed_q = false;
  IndexParams cu_seqlens_q, cu_seqlens_k, seqused_k, cache_batch_idx, leftpad_k;
  const int32_t* block_table = nullptr;  // (batch, page)
  int64_t block_table_stride[2] = {};
  int32_t page_size = 0;  // 0: not paged

  bool top_left = false;
  bool has_position_offset = false;
  int64_t position_offset = 0;
  int64_t window_left = kUnbounded;
  int64_t window_right = kUnbounded;  // causal folded in

  ScoreParams score;
  Dropout dropout;
  float kept_scale = 1;  // 1 / (1 - p)

  // Sequences of at most few_queries queries: the heads of a group share tiles, and the keys are
  // divided among num_splits blocks, split_keys each. all_packed: longer ones share tiles too.
  int32_t few_queries = 0;
  int32_t split_keys = 0;
  int32_t num_splits = 1;
  bool all_packed = false;
  int32_t num_heads_kv = 0;

  char* workspace = nullptr;  // the caller's device memory, at a multiple of 16 bytes
};

// A key j with (j + key_phase) % 32 == 0 begins a group of dropout. Key tiles and splits begin at
// such keys, so that a group lies in one tile.
constexpr int32_t key_phase(const ForwardParams& p) {
  return p.dropout.enabled ? static_cast<int32_t>(p.dropout.key_base & 31) : 0;
}

// The most queries of a sequence whose heads share tiles.
constexpr int32_t most_packed_queries(const ForwardParams& p) {
  return p.all_packed || p.max_seqlen_q < p.few_queries ? p.max_seqlen_q : p.few_queries;
}

// The most queries of a sequence whose keys are divided.
constexpr int32_t most_split_queries(const ForwardParams& p) {
  return p.max_seqlen_q < p.few_queries ? p.max_seqlen_q : p.few_queries;
}

// What the splits leave in the workspace: of each row (batch entry, head, query) and split columns
// of O and two numbers, float32.
constexpr int64_t partial_rows(const ForwardParams& p) {
  return int64_t{p.batch} * p.num_heads_q * most_split_queries(p);
}
constexpr int32_t partial_columns(const ForwardParams& p) {
  return static_cast<int32_t>(round_up(p.head_dim_v, 4));
}
constexpr int64_t partial_bytes(const ForwardParams& p) {
  if (p.num_splits == 1) return 0;
  return partial_rows(p) * p.num_splits * (4 * int64_t{partial_columns(p)} + 8);
}

}  // namespace attentile::cuda

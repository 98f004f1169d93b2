// SPDX-License-Identifier: Apache-2.0
// Few queries with many keys (a step of decoding): one tile per KV head would leave most of a GPU
// idle, so the keys are divided too. A split has split_keys keys, counted from key 0 of the
// sequence, so a row's bits follow from its own sequence and from nothing else of the call. A block
// per split leaves, in float32, what the online softmax holds at its end:
//
//     O [head_dim_v], not yet divided, and (row_max, row_sum)            of each row and split
//
// and Combine (combine.h) merges them. A sequence whose keys lie in one split needs no merging.
#pragma once

#include "cuda/sm80/sequence.h"

namespace attentile::cuda {

// Split i: keys [first_key + i * split_keys, first_key + (i + 1) * split_keys) of the sequence.
struct KeySplits {
  int64_t first_key = 0;
  int32_t count = 1;  // 1: not divided
};
ATTENTILE_DEVICE KeySplits key_splits(const ForwardParams& p, const BlockTask& task) {
  const int64_t begin = task.band.lo(0);
  const int64_t end = task.band.hi(task.seqlen_q - 1);
  if (p.num_splits == 1 || task.seqlen_q > p.few_queries || begin >= end) return {};
  const int64_t phase = key_phase(p);
  const int64_t first = (begin + phase) / p.split_keys;
  const int64_t count = ceil_div(end + phase, p.split_keys) - first;
  return {first * p.split_keys - phase, static_cast<int32_t>(count)};
}

// Tiles of packed rows of a KV head of the longest sequence.
template <int kTileM>
constexpr int64_t packed_tiles(const ForwardParams& p) {
  return ceil_div(int64_t{most_packed_queries(p)} * p.group_size, kTileM);
}

// The task of this block: packed rows of one KV head, and one split of their keys.
template <int kTileM>
ATTENTILE_DEVICE PackedTask find_packed_task(const ForwardParams& p) {
  const uint32_t splits = static_cast<uint32_t>(p.num_splits);
  const uint32_t tiles = static_cast<uint32_t>(packed_tiles<kTileM>(p));
  const uint32_t heads = static_cast<uint32_t>(p.num_heads_q / p.group_size);
  const uint32_t index = block_idx().x;
  const int32_t split = static_cast<int32_t>(index % splits);
  const uint32_t head = index / splits / tiles;
  PackedTask task;
  task.warp = warp_idx();  // before anything can diverge
  task.kv_h = static_cast<int32_t>(head % heads);
  task.b = static_cast<int32_t>(head / heads);
  const RowRange queries = query_rows(p, task.b);
  if (!p.all_packed && queries.length > p.few_queries) return task;
  const int32_t q_begin = static_cast<int32_t>(tiles - 1 - index / splits % tiles) * kTileM;
  const int32_t q_end = static_cast<int32_t>(
      min64(int64_t{q_begin} + kTileM, int64_t{queries.length} * p.group_size));
  if (q_begin >= q_end) return task;
  task.seqlen_q = queries.length;
  task.row_q = queries.first;
  find_keys(p, task);
  const KeySplits parts = key_splits(p, task);
  if (split >= parts.count) return task;
  task.q_begin = q_begin;
  task.q_end = q_end;
  task.k_begin = task.band.lo(query_of(p, task, q_begin));
  task.k_end = task.band.hi(query_of(p, task, q_end - 1));
  if (parts.count > 1) {
    const int64_t first = parts.first_key + int64_t{split} * p.split_keys;
    task.split = split;
    task.k_begin = static_cast<int32_t>(max64(task.k_begin, first));
    task.k_end = static_cast<int32_t>(min64(task.k_end, first + p.split_keys));
  }
  return task;
}

// The workspace: O [rows, num_splits, columns], then (row_max, row_sum) [rows, num_splits].
struct Partials {
  struct alignas(8) Pair {
    float x;
    float y;
  };
  struct alignas(16) Quad {
    float value[4];
  };

  ATTENTILE_DEVICE static int64_t row(const ForwardParams& p, int32_t b, int32_t h, int32_t query) {
    return (int64_t{b} * p.num_heads_q + h) * most_split_queries(p) + query;
  }
  ATTENTILE_DEVICE static float* o(const ForwardParams& p, int64_t row, int32_t split) {
    return reinterpret_cast<float*>(p.workspace) +
           (row * p.num_splits + split) * partial_columns(p);
  }
  ATTENTILE_DEVICE static Pair* state(const ForwardParams& p, int64_t row, int32_t split) {
    const int64_t all = partial_rows(p) * p.num_splits * partial_columns(p);
    return reinterpret_cast<Pair*>(reinterpret_cast<float*>(p.workspace) + all) +
           row * p.num_splits + split;
  }
};

}  // namespace attentile::cuda

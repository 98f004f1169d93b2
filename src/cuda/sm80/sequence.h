// SPDX-License-Identifier: Apache-2.0
// What one block works on: a tile of queries of one batch entry, and the keys that some of them
// see. Its rows are the queries of one head, or, packed, of all heads of a group, which read the
// same keys: row r is then query r / group_size of head r % group_size of the group. Index arrays
// lie in device memory and nobody has checked them: whatever they hold, every row that follows from
// them lies inside its tensor.
#pragma once

#include <bit>

#include "cuda/device/device.h"
#include "cuda/params.h"

namespace attentile::cuda {

struct BlockTask {
  uint32_t warp = 0;    // this warp's number in the block
  int32_t b = 0;        // batch entry
  int32_t h = 0;        // query head; packed: unused
  int32_t kv_h = 0;     // KV head
  int32_t q_begin = 0;  // rows [q_begin, q_end) of the sequence; empty: nothing to do
  int32_t q_end = 0;
  int32_t seqlen_q = 0;
  int32_t batch_k = 0;  // index into the first dimension of k and v, unless paged
  int32_t row_q = 0;    // first row of the sequence in q and out
  int32_t row_k = 0;    // first kept row in k and v
  int32_t k_begin = 0;  // keys [k_begin, k_end) are those that some query of the tile sees
  int32_t k_end = 0;
  NarrowBand band;
  int32_t split = kUnsplit;  // which part of the sequence's keys, where they are in parts

  static constexpr int32_t kUnsplit = -1;
};
struct PackedTask : BlockTask {};

// The query and the head of a row.
template <class Task>
ATTENTILE_DEVICE int32_t query_of(const ForwardParams&, const Task&, int32_t row) {
  return row;
}
template <class Task>
ATTENTILE_DEVICE int32_t head_of(const ForwardParams&, const Task& task, int32_t) {
  return task.h;
}
ATTENTILE_DEVICE int32_t query_of(const ForwardParams& p, const PackedTask&, int32_t row) {
  return static_cast<int32_t>(static_cast<uint32_t>(row) / static_cast<uint32_t>(p.group_size));
}
ATTENTILE_DEVICE int32_t head_of(const ForwardParams& p, const PackedTask& task, int32_t row) {
  const uint32_t group_size = static_cast<uint32_t>(p.group_size);
  return static_cast<int32_t>(static_cast<uint32_t>(task.kv_h) * group_size +
                              static_cast<uint32_t>(row) % group_size);
}

// Where a warp keeps its task while registers are for accumulators: 64 bytes of shared memory, the
// warp's own, from which the task is loaded again for each use.
template <class Task>
struct SlotOf {
  static constexpr uint32_t kBytes = sizeof(Task);
  struct Words {
    Packed<4> part[kBytes / 16];
  };
  static_assert(sizeof(Words) == kBytes);

  SharedAddress at;

  ATTENTILE_DEVICE void store(const Task& task) const {
    const Words words = std::bit_cast<Words>(task);
    if (lane_idx() == 0) {
      ATTENTILE_UNROLL
      for (uint32_t i = 0; i < kBytes / 16; ++i) st_shared(at + 16 * i, words.part[i]);
    }
    bar_warp_sync();
  }
  ATTENTILE_DEVICE Task load() const {
    Words words;
    ATTENTILE_UNROLL
    for (uint32_t i = 0; i < kBytes / 16; ++i) words.part[i] = ld_shared<Packed<4>>(at + 16 * i);
    return std::bit_cast<Task>(words);
  }
};
using TaskSlot = SlotOf<BlockTask>;

ATTENTILE_DEVICE int32_t load_index(const IndexParams& array, int64_t index) {
  return ld_global_nc(array.data + index * array.stride);
}

ATTENTILE_DEVICE int32_t clamp32(int32_t x, int32_t low, int32_t high) {
  return x < low ? low : x > high ? high : x;
}

// First row and length of a batch entry.
struct RowRange {
  int32_t first;
  int32_t length;
};
ATTENTILE_DEVICE RowRange packed_rows(const IndexParams& cu_seqlens, int32_t b, int32_t total,
                                      int32_t longest) {
  const int32_t first = clamp32(load_index(cu_seqlens, b), 0, total);
  const int32_t last = clamp32(load_index(cu_seqlens, b + 1), first, total);
  return {first, clamp32(last - first, 0, longest)};
}

ATTENTILE_DEVICE RowRange query_rows(const ForwardParams& p, int32_t b) {
  if (p.cu_seqlens_q.data == nullptr) return {0, p.max_seqlen_q};
  return packed_rows(p.cu_seqlens_q, b, p.total_q, p.max_seqlen_q);
}

ATTENTILE_DEVICE RowRange key_rows(const ForwardParams& p, int32_t b) {
  RowRange rows = {0, p.max_seqlen_k};
  if (p.cu_seqlens_k.data != nullptr) {
    rows = packed_rows(p.cu_seqlens_k, b, p.total_k, p.max_seqlen_k);
  }
  if (p.seqused_k.data != nullptr) {
    rows.length = clamp32(load_index(p.seqused_k, b), 0, rows.length);
  }
  if (p.leftpad_k.data != nullptr) {
    const int32_t skipped = clamp32(load_index(p.leftpad_k, b), 0, rows.length);
    rows = {rows.first + skipped, rows.length - skipped};
  }
  return rows;
}

// Query i stands at position i + offset among the keys.
ATTENTILE_DEVICE int64_t position_offset(const ForwardParams& p, int32_t seqlen_q,
                                         int32_t seqlen_k) {
  if (p.has_position_offset) return p.position_offset;
  return p.top_left ? 0 : int64_t{seqlen_k} - seqlen_q;
}

// Where a batch entry's keys lie, and which of them its queries see.
ATTENTILE_DEVICE void find_keys(const ForwardParams& p, BlockTask& task) {
  const RowRange keys = key_rows(p, task.b);
  task.row_k = keys.first;
  task.batch_k = p.cu_seqlens_k.data != nullptr ? 0 : task.b;
  if (p.cache_batch_idx.data != nullptr) {
    task.batch_k = clamp32(load_index(p.cache_batch_idx, task.b), 0, p.batch_k - 1);
  }
  const BandMask band = {.seqlen_k = keys.length,
                         .offset = position_offset(p, task.seqlen_q, keys.length),
                         .window_left = p.window_left,
                         .window_right = p.window_right};
  task.band = narrow(band);
}

// The task of this block: rows of one head. Within a head the last tile comes first: under a causal
// mask it is the longest.
template <int kTileM>
ATTENTILE_DEVICE BlockTask find_task(const ForwardParams& p) {
  const uint32_t tiles = static_cast<uint32_t>(ceil_div(p.max_seqlen_q, kTileM));
  const uint32_t index = block_idx().x;
  const uint32_t head = index / tiles;
  BlockTask task;
  task.warp = warp_idx();  // before anything can diverge
  task.h = static_cast<int32_t>(head % static_cast<uint32_t>(p.num_heads_q));
  task.b = static_cast<int32_t>(head / static_cast<uint32_t>(p.num_heads_q));
  task.kv_h = task.h / p.group_size;
  const RowRange queries = query_rows(p, task.b);
  task.q_begin = static_cast<int32_t>(tiles - 1 - index % tiles) * kTileM;
  task.seqlen_q = queries.length;
  task.q_end = static_cast<int32_t>(min64(task.q_begin + kTileM, queries.length));
  if (task.q_begin >= task.q_end) return task;
  task.row_q = queries.first;
  find_keys(p, task);
  task.k_begin = task.band.lo(task.q_begin);
  task.k_end = task.band.hi(task.q_end - 1);
  return task;
}

// Address of element (a, b, c, 0).
template <class T>
ATTENTILE_DEVICE const T* element(const ArrayParams& array, int64_t a, int64_t b, int64_t c) {
  return reinterpret_cast<const T*>(array.data) + a * array.stride[0] + b * array.stride[1] +
         c * array.stride[2];
}

// Address of column 0 of key j of k or v.
template <class T>
ATTENTILE_DEVICE const T* key_row(const ForwardParams& p, const ArrayParams& array,
                                  const BlockTask& task, int32_t j) {
  const int32_t row = task.row_k + j;
  if (p.page_size == 0) return element<T>(array, task.batch_k, row, task.kv_h);
  const int64_t place =
      task.b * p.block_table_stride[0] + row / p.page_size * p.block_table_stride[1];
  const int32_t page = clamp32(ld_global_nc(p.block_table + place), 0, p.batch_k - 1);
  return element<T>(array, page, row % p.page_size, task.kv_h);
}

}  // namespace attentile::cuda

// SPDX-License-Identifier: Apache-2.0
// dbias: the sum of dS over the dimensions along which bias was broadcast. One block computes
// kTileM x kTileN elements of it (one row or column where queries or keys are summed): it computes
// dS of every tile that reaches them once more, in a fixed order, and adds in float32. Each element
// has one writer, elements that no pair reaches are 0.
#pragma once

#include "cuda/backward_params.h"
#include "cuda/device/device.h"
#include "cuda/sm80/gradient_scores.h"

namespace attentile::cuda {

template <class T, int kHeadDimClass>
struct BiasGradient {
  static constexpr int kHeadDim = kHeadDimClass;
  static constexpr int kWarps = kIsFloat32<T> && kHeadDim > 128 ? 2 : 4;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kMinBlocksPerSm = 1;
  static constexpr int kTileM = 16 * kWarps;
  static constexpr int kTileN = kHeadDim <= 128 && !kIsFloat32<T> ? 64 : 32;
  static constexpr int kKeyTiles = kTileN / 8;

  using Params = BackwardParams;
  using QueryTile = SharedTile<T, kTileM, kHeadDim>;  // Q and dO
  using KeyTile = SharedTile<T, kTileN, kHeadDim>;    // K and V
  using Pairs = PairTile<T, 1, kKeyTiles>;

  // The sums of a block in shared memory, at the end: rows of floats, in place of the tiles.
  static constexpr uint32_t kPitch = 4 * (kTileN + 8);
  static constexpr uint32_t kTilesBytes = 2 * QueryTile::kBytes + 2 * KeyTile::kBytes;
  static constexpr uint32_t kSumsBytes = kTileM * kPitch;
  static constexpr uint32_t kSharedBytes = kTilesBytes > kSumsBytes ? kTilesBytes : kSumsBytes;

  ATTENTILE_DEVICE static void run(const Params& p, SharedAddress start) {
    const Block block = find_block(p);
    Sums<1, kKeyTiles> sums;
    sums.reset();
    BlockTask task;
    task.warp = warp_idx();
    for (task.b = block.b.begin; task.b < block.b.end; ++task.b) {
      const RowRange queries = query_rows(p.call, task.b);
      task.seqlen_q = queries.length;
      task.row_q = queries.first;
      find_keys(p.call, task);
      for (task.h = block.h.begin; task.h < block.h.end; ++task.h) {
        task.kv_h = task.h / p.call.group_size;
        const int32_t q_end = block.q.end < task.seqlen_q ? block.q.end : task.seqlen_q;
        for (int32_t q0 = block.q.begin; q0 < q_end; q0 += kTileM) {
          task.q_begin = q0;
          task.q_end = static_cast<int32_t>(min64(q0 + kTileM, task.seqlen_q));
          add_keys(p, start, task, block, sums);
        }
      }
    }
    store(p, start, block, sums);
  }

 private:
  struct Range {
    int32_t begin;
    int32_t end;
  };
  struct Block {
    Range b, h, q, k;  // that reach its elements; k begins where a tile does, perhaps before 0
  };

  // index-th of the tiles of a dimension, or all of it where it is summed.
  ATTENTILE_DEVICE static Range range(int32_t shape, int32_t size, int32_t index, int32_t tile) {
    if (shape == 1) return {0, size};
    return {index * tile, index * tile + tile};
  }
  ATTENTILE_DEVICE static Block find_block(const Params& p) {
    const int32_t* shape = p.dbias_shape;
    const int32_t key_tiles = bias_key_tiles(p, kTileN);
    const uint32_t q_tiles = static_cast<uint32_t>(ceil_div(shape[2], kTileM));
    uint32_t index = block_idx().x;
    const auto next = [&](uint32_t count) {
      const int32_t digit = static_cast<int32_t>(index % count);
      index /= count;
      return digit;
    };
    Block block;
    block.k = range(shape[3], p.call.max_seqlen_k, next(static_cast<uint32_t>(key_tiles)), kTileN);
    block.k.begin -= key_shift(p.call);
    if (shape[3] != 1) block.k.end -= key_shift(p.call);
    block.q = range(shape[2], p.call.max_seqlen_q, next(q_tiles), kTileM);
    block.h = range(shape[1], p.call.num_heads_q, next(static_cast<uint32_t>(shape[1])), 1);
    block.b = range(shape[0], p.call.batch, next(static_cast<uint32_t>(shape[0])), 1);
    return block;
  }

  // The block's keys that a tile of queries sees.
  ATTENTILE_DEVICE static void add_keys(const Params& p, SharedAddress start, BlockTask& task,
                                        const Block& block, Sums<1, kKeyTiles>& sums) {
    for (int32_t k0 = block.k.begin; k0 < block.k.end; k0 += kTileN) {
      const int32_t least = task.band.lo(task.q_begin);
      const int32_t most = task.band.hi(task.q_end - 1);
      task.k_begin = k0 > least ? k0 : least;
      task.k_end = k0 + kTileN < most ? k0 + kTileN : most;
      if (task.k_begin < task.k_end) add_tile(p, start, task, k0, sums);
    }
  }

  ATTENTILE_DEVICE static void add_tile(const Params& p, SharedAddress start, const BlockTask& task,
                                        int32_t k0, Sums<1, kKeyTiles>& sums) {
    const QueryTile q = {start};
    const QueryTile dout = {start + QueryTile::kBytes};
    const KeyTile k = {start + 2 * QueryTile::kBytes};
    const KeyTile v = {start + 2 * QueryTile::kBytes + KeyTile::kBytes};
    const ForwardParams& call = p.call;
    bar_sync();  // all are done with the tiles before
    load_queries(p, task, call.q, call.head_dim, q);
    load_queries(p, task, p.dout, call.head_dim_v, dout);
    const TileRows keys = {.first = k0, .begin = task.k_begin, .end = task.k_end};
    load_keys(p, task, call.k, call.head_dim, {k, keys});
    load_keys(p, task, call.v, call.head_dim_v, {v, keys});
    cp_async_commit_group();
    cp_async_wait_group<0>();
    bar_sync();  // all of them are there
    const uint32_t row = 16 * task.warp;
    Pairs pairs;
    multiply_rows(q, row, k, 0, pairs.s.value);
    pairs.s.at = {task.q_begin + static_cast<int32_t>(row), k0, opaque(lane_idx())};
    pairs.stats.load(call, task, pairs.s.at);
    if (p.dbias_shape[3] == 1) pairs.stats.load_summed(call, task, pairs.s.at);
    pairs.weigh(call, task);
    Accumulator ds[1][kKeyTiles];
    multiply_rows(dout, row, v, 0, ds);
    pairs.differentiate(call, ds);
    for_elements<1, kKeyTiles>([&](int m, int n, int r) {
      float& sum = sums.value[m][n].value[r];
      sum = add_rn(sum, ds[m][n].value[r]);
    });
  }

  ATTENTILE_DEVICE static void load_queries(const Params& p, const BlockTask& task,
                                            const ArrayParams& array, int32_t columns,
                                            QueryTile tile) {
    const T* from =
        element<T>(array, first_dimension_q(p.call, task.b), task.row_q + task.q_begin, task.h);
    load_rows<kThreads>(
        tile, array, from,
        TileRows{
            .first = task.q_begin, .begin = task.q_begin, .end = task.q_end, .columns = columns});
  }
  struct Destination {
    KeyTile tile;
    TileRows rows;
  };
  ATTENTILE_DEVICE static void load_keys(const Params& p, const BlockTask& task,
                                         const ArrayParams& array, int32_t columns,
                                         Destination to) {
    to.rows.columns = columns;
    load_rows<kThreads>(to.tile, array, key_row<T>(p.call, array, task, task.k_begin), to.rows);
  }

  // Sums of the block's elements, through shared memory.
  ATTENTILE_DEVICE static void store(const Params& p, SharedAddress start, const Block& block,
                                     Sums<1, kKeyTiles>& sums) {
    const bool sum_keys = p.dbias_shape[3] == 1;
    const bool sum_queries = p.dbias_shape[2] == 1;
    const int lane = static_cast<int>(lane_idx());
    bar_sync();  // all are done with the tiles
    ATTENTILE_UNROLL
    for (int half = 0; half < 2; ++half) {
      const uint32_t row = 16 * warp_idx() + 8 * half + lane / 4;
      const SharedAddress to = start + row * kPitch;
      float of_row = 0.0f;
      ATTENTILE_UNROLL
      for (int n = 0; n < kKeyTiles; ++n) {
        const float* pair = sums.value[0][n].value + 2 * half;
        of_row = add_rn(of_row, add_rn(pair[0], pair[1]));
        if (sum_keys) continue;
        const auto column = static_cast<uint32_t>(8 * n + 2 * (lane % 4));
        st_shared(to + 4 * column,
                  Packed<2>{std::bit_cast<uint32_t>(pair[0]), std::bit_cast<uint32_t>(pair[1])});
      }
      of_row = quad_sum(of_row);
      if (sum_keys && lane % 4 == 0) st_shared(to, of_row);
    }
    bar_sync();
    const int32_t columns = sum_keys ? 1 : kTileN;
    const int32_t rows = sum_queries ? 1 : kTileM;
    for (int32_t i = static_cast<int32_t>(thread_idx()); i < rows * columns; i += kThreads) {
      const uint32_t row = static_cast<uint32_t>(i / columns);
      const uint32_t column = static_cast<uint32_t>(i % columns);
      float sum = ld_shared<float>(start + row * kPitch + 4 * column);
      for (uint32_t other = 1; sum_queries && other < kTileM; ++other) {
        sum = add_rn(sum, ld_shared<float>(start + other * kPitch + 4 * column));
      }
      const int32_t query = sum_queries ? 0 : block.q.begin + i / columns;
      const int32_t key = sum_keys ? 0 : block.k.begin + i % columns;
      if (query < p.dbias_shape[2] && key >= 0 && key < p.dbias_shape[3]) {
        store_element(p, block, query, key, sum);
      }
    }
  }

  ATTENTILE_DEVICE static void store_element(const Params& p, const Block& block, int32_t query,
                                             int32_t key, float value) {
    const int64_t column = int64_t{key} * p.dbias.stride[3];
    const int32_t b = block.b.begin;
    const int32_t h = block.h.begin;
    if (p.dbias.is_float32) {
      st_global(const_cast<float*>(element<float>(p.dbias, b, h, query) + column), value);
    } else {
      st_global(const_cast<T*>(element<T>(p.dbias, b, h, query) + column), from_f32<T>(value));
    }
  }
};

}  // namespace attentile::cuda

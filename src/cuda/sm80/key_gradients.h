// SPDX-License-Identifier: Apache-2.0
// dK and dV. One block computes kTileN rows of dk and dv of one KV head: it keeps their keys and
// values in shared memory and their gradients in registers, and walks over the queries that see
// them, head by head of the group, in tiles of kTileM:
//
//     S  = Q K^T,  dP = dO V^T               ldmatrix, mma m16n8k16, float32 accumulators
//     P, dT = from S, dP, lse and delta      gradient_scores.h; through shared memory, as T
//     dV = dV + P^T dO,  dK = dK + dT^T Q    both operands by ldmatrix.trans
//
// AtomicGradients computes dQ = dQ + dT K in the same walk, five products where two passes have
// seven; the blocks of a head's keys add to the same sums, in the order they come.
//
// The sum over the heads of a group and over queries has one order and one writer. For S and dP a
// warp has 16 kRowTiles queries x 32 keys, for dV and dK some keys x some columns. Two slots for Q
// where there is room, one for dO: while S and dP are computed the next Q arrives, while dT^T Q is,
// the next dO.
#pragma once

#include "cuda/backward_params.h"
#include "cuda/device/device.h"
#include "cuda/sm80/gradient_scores.h"

namespace attentile::cuda {

// The task of this block as a tile of all queries that see its keys; h is the first head of the
// group. k_begin = k_end where no key is used.
struct KeyTask {
  BlockTask tile;
  int32_t k0 = 0;      // first key of the tile; may be negative
  int32_t stored = 0;  // keys [max(k0, 0), stored) have rows in dk and dv
};

// Tiles of keys that a sequence may have.
inline constexpr int64_t key_tiles(const ForwardParams& p, int tile_n) {
  return ceil_div(int64_t{p.max_seqlen_k} + (p.dropout.enabled ? p.dropout.key_base & 31 : 0),
                  tile_n);
}

template <int kTileN>
ATTENTILE_DEVICE KeyTask find_key_task(const ForwardParams& p) {
  const uint32_t tiles = static_cast<uint32_t>(key_tiles(p, kTileN));
  const uint32_t num_heads_kv = static_cast<uint32_t>(p.num_heads_kv);
  const uint32_t head = block_idx().x / tiles;
  KeyTask task;
  BlockTask& tile = task.tile;
  tile.warp = warp_idx();  // before anything can diverge
  tile.kv_h = static_cast<int32_t>(head % num_heads_kv);
  tile.b = static_cast<int32_t>(head / num_heads_kv);
  tile.h = tile.kv_h * p.group_size;
  const RowRange queries = p.num_heads_q == 0 ? RowRange{} : query_rows(p, tile.b);
  RowRange given = {0, p.max_seqlen_k};
  if (p.cu_seqlens_k.data != nullptr) {
    given = packed_rows(p.cu_seqlens_k, tile.b, p.total_k, p.max_seqlen_k);
  }
  tile.seqlen_q = queries.length;
  tile.row_q = queries.first;
  find_keys(p, tile);
  task.k0 = static_cast<int32_t>(block_idx().x % tiles) * kTileN - key_shift(p);
  task.stored = static_cast<int32_t>(min64(task.k0 + kTileN, given.length));
  tile.k_begin = task.k0 < 0 ? 0 : task.k0;
  tile.k_end = task.stored < tile.band.seqlen_k ? task.stored : tile.band.seqlen_k;
  // Queries i with lo(i) < k_end and hi(i) > k_begin.
  tile.q_begin = static_cast<int32_t>(
      clamp64(int64_t{tile.k_begin} - tile.band.hi_shift + 1, 0, queries.length));
  tile.q_end = static_cast<int32_t>(
      clamp64(int64_t{tile.k_end} - tile.band.lo_shift, tile.q_begin, queries.length));
  if (tile.k_begin >= tile.k_end) tile.q_end = tile.q_begin;
  return task;
}

// kSumsDq: dq too, by atomic additions to float32 sums (KeyGradients, AtomicGradients).
template <class T, int kHeadDimClass, bool kSumsDq>
struct KeyBlock {
  static constexpr int kHeadDim = kHeadDimClass;
  static constexpr int kWarps = kIsFloat32<T> && kHeadDim <= 128 ? 4 : 8;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kMinBlocksPerSm = 1;
  static constexpr int kTileM = kIsFloat32<T> && kHeadDim > 128 ? 32 : 64;
  static constexpr int kTileN = kIsFloat32<T> ? 32 : kHeadDim <= 64 ? 128 : 64;
  static constexpr int kQuerySlots = kHeadDim <= 128 && !kIsFloat32<T> ? 2 : 1;

  // Of a warp in S and dP, which wide float32 tiles have for half of the warps.
  static constexpr int kRowTiles = kTileN <= 64 ? 1 : 2;
  static constexpr int kKeyTiles = 4;
  static constexpr int kWarpsAcross = kTileN / 32;
  static constexpr int kPairWarps = kTileM / (16 * kRowTiles) * kWarpsAcross;
  // Of a warp in dV and dK: 16 kKeyRowTiles keys, kHeadDim / kColumnGroups columns.
  static constexpr int kKeyGroups = kTileN == 128 || kHeadDim == 96 ? 4 : 2;
  static constexpr int kColumnGroups = kWarps / kKeyGroups;
  static constexpr int kKeyRowTiles = kTileN / kKeyGroups / 16;
  static constexpr int kColumns = kHeadDim / kColumnGroups;
  // Of a warp in dQ: 16 queries, a part of the columns, so many at a time.
  static constexpr int kDqColumns = kHeadDim / (kWarps / (kTileM / 16));
  static constexpr int kDqStep = kDqColumns % 32 == 0 ? 32 : 16;

  using Params = BackwardParams;
  using QueryTile = SharedTile<T, kTileM, kHeadDim>;  // Q, and dO
  using KeyTile = SharedTile<T, kTileN, kHeadDim>;    // K, then the rows of dk; V and dv
  using PairsTile = SharedTile<T, kTileM, kTileN>;    // P, and dT
  using Pairs = PairTile<T, kRowTiles, kKeyTiles>;
  using KeySums = Sums<kKeyRowTiles, kColumns / 8>;

  struct Arena {
    KeyTile k;
    KeyTile v;
    QueryTile dout;
    PairsTile p;
    PairsTile dt;
    SharedAddress q;      // kQuerySlots tiles
    TaskSlot task;        // this warp's
    SharedAddress flags;  // [kWarps] words

    ATTENTILE_DEVICE QueryTile q_slot(uint32_t slot) const {
      return {q + slot * QueryTile::kBytes};
    }
  };
  static constexpr uint32_t kDoutAt = 2 * KeyTile::kBytes;
  static constexpr uint32_t kPairsAt = kDoutAt + QueryTile::kBytes;
  static constexpr uint32_t kQueriesAt = kPairsAt + 2 * PairsTile::kBytes;
  static constexpr uint32_t kTasksAt = kQueriesAt + kQuerySlots * QueryTile::kBytes;
  static constexpr uint32_t kFlagsAt = kTasksAt + kWarps * TaskSlot::kBytes;
  static constexpr uint32_t kSharedBytes = kFlagsAt + 4 * kWarps;

  ATTENTILE_DEVICE static void run(const Params& p, SharedAddress start) {
    const KeyTask task = find_key_task<kTileN>(p.call);
    if (task.tile.k_begin >= task.stored) return;
    const Arena arena = {{start},
                         {start + KeyTile::kBytes},
                         {start + kDoutAt},
                         {start + kPairsAt},
                         {start + kPairsAt + PairsTile::kBytes},
                         start + kQueriesAt,
                         {start + kTasksAt + task.tile.warp * TaskSlot::kBytes},
                         start + kFlagsAt};
    arena.task.store(task.tile);
    load_keys(p, task, p.call.k, p.call.head_dim, arena.k);
    load_keys(p, task, p.call.v, p.call.head_dim_v, arena.v);
    KeySums dk;
    KeySums dv;
    for (bool isolate = false;; isolate = true) {
      walk(p, arena, {task.k0, isolate}, dk, dv);
      const float taint = add_rn(dk.taint(), dv.taint());
      const bool tainted = taint != taint;
      if (isolate || !any_in_block<kWarps>(arena.flags, arena.task.load().warp, tainted)) break;
    }
    store_tile(p, arena, dk, dv);
    bar_sync();
    store(task, p.dk, p.call.head_dim, arena.k);
    store(task, p.dv, p.call.head_dim_v, arena.v);
  }

 private:
  struct Walk {
    int32_t k0;
    bool isolate;
  };
  // A tile of queries of one head of the group.
  struct Step {
    int32_t h;
    int32_t q0;
  };

  ATTENTILE_DEVICE static void load_keys(const Params& p, const KeyTask& task,
                                         const ArrayParams& array, int32_t columns, KeyTile tile) {
    if (task.tile.q_begin >= task.tile.q_end) return;
    load_rows<kThreads>(tile, array, key_row<T>(p.call, array, task.tile, task.tile.k_begin),
                        TileRows{.first = task.k0,
                                 .begin = task.tile.k_begin,
                                 .end = task.tile.k_end,
                                 .columns = columns});
  }
  // Queries of a step, of q or dout; none after the last.
  ATTENTILE_DEVICE static void load_queries(const Params& p, const BlockTask& task, Step step,
                                            const ArrayParams& array, QueryTile tile) {
    if (step.h < task.h + p.call.group_size) {
      const T* from =
          element<T>(array, first_dimension_q(p.call, task.b), task.row_q + task.q_begin, step.h);
      load_rows<kThreads>(
          tile, array, from,
          TileRows{.first = step.q0,
                   .begin = task.q_begin,
                   .end = task.q_end,
                   .columns = &array == &p.dout ? p.call.head_dim_v : p.call.head_dim});
    }
    cp_async_commit_group();
  }

  ATTENTILE_DEVICE static Step first_step(const BlockTask& task) {
    return {task.h, task.q_begin / kTileM * kTileM};
  }
  ATTENTILE_DEVICE static Step step_after(const BlockTask& task, Step step) {
    if (step.q0 + kTileM < task.q_end) return {step.h, step.q0 + kTileM};
    return {step.h + 1, first_step(task).q0};
  }

  // All queries of all heads, into dk and dv. Each barrier makes visible what was copied or stored
  // before it, and says that all are done with what is overwritten after it.
  ATTENTILE_DEVICE static void walk(const Params& p, const Arena& arena, Walk walk, KeySums& dk,
                                    KeySums& dv) {
    dk.reset();
    dv.reset();
    const BlockTask first = arena.task.load();
    Step step = first_step(first);
    const int32_t h_end = first.q_begin < first.q_end ? first.h + p.call.group_size : first.h;
    const uint32_t key_group = first.warp / kColumnGroups * (16 * kKeyRowTiles);
    const uint32_t column_group = first.warp % kColumnGroups * kColumns;
    uint32_t slot = 0;
    if (step.h < h_end) {
      load_queries(p, first, step, p.call.q, arena.q_slot(0));
      load_queries(p, first, step, p.dout, arena.dout);
    }
    ATTENTILE_ROLL
    while (step.h < h_end) {
      const Step next = step_after(arena.task.load(), step);
      const QueryTile q = arena.q_slot(slot);
      cp_async_wait_group<kQuerySlots - 1>();
      bar_sync();  // Q (and K and V) is there; all have read dT and the other Q
      if constexpr (kQuerySlots == 2) {
        load_queries(p, arena.task.load(), next, p.call.q, arena.q_slot(slot ^ 1));
      }
      Accumulator dt[kRowTiles][kKeyTiles];
      pairs_of(p, arena, step, walk, q, dt);
      bar_sync();  // P and dT are there; all have read Q and dO as rows
      if (walk.isolate) {
        clear_special_values<kThreads>(q);
        clear_special_values<kThreads>(arena.dout);
        bar_sync();
      }
      multiply_columns(arena.p, key_group, arena.dout, column_group, dv.value);
      bar_sync();  // all have read dO
      load_queries(p, arena.task.load(), next, p.dout, arena.dout);
      multiply_columns(arena.dt, key_group, q, column_group, dk.value);
      if constexpr (kSumsDq) {
        if (!walk.isolate) add_dq(p, arena, step);
      }
      if constexpr (kQuerySlots == 2) {
        slot ^= 1;
      } else {
        bar_sync();  // all have read Q
        load_queries(p, arena.task.load(), next, p.call.q, arena.q_slot(0));
      }
      step = next;
    }
    cp_async_wait_group<0>();
  }

  // P and dT of one step, to shared memory.
  ATTENTILE_DEVICE static void pairs_of(const Params& p, const Arena& arena, Step step, Walk walk,
                                        QueryTile q, Accumulator (&dp)[kRowTiles][kKeyTiles]) {
    const auto task = [&] {
      BlockTask of_head = arena.task.load();
      of_head.h = step.h;
      return of_head;
    };
    const uint32_t warp = arena.task.load().warp;
    const bool has_pairs = kPairWarps == kWarps || warp < kPairWarps;
    const uint32_t row = warp / kWarpsAcross * (16 * kRowTiles);
    const uint32_t column = warp % kWarpsAcross * 32;
    Pairs pairs;
    if (has_pairs) {
      multiply_rows(q, row, arena.k, column, pairs.s.value);
      pairs.s.at = {step.q0 + static_cast<int32_t>(row), walk.k0 + static_cast<int32_t>(column),
                    opaque(lane_idx())};
      pairs.stats.load(p.call, task(), pairs.s.at);
      pairs.weigh(p.call, task());
      store_weights(arena.p, {static_cast<int>(row), static_cast<int>(column)}, walk, pairs);
    }
    cp_async_wait_group<kQuerySlots - 1>();
    bar_sync();  // dO is there
    if (!has_pairs) return;
    multiply_rows(arena.dout, row, arena.v, column, dp);
    pairs.differentiate(p.call, dp);
    if (p.call.score.softcap > 0) {
      multiply_rows(q, row, arena.k, column, pairs.s.value);
      apply_softcap(p.call, pairs.s.value, dp);
    }
    store_scores(arena.dt, {static_cast<int>(row), static_cast<int>(column)}, dp);
  }

  // P as dV sees it: 0 where dropped. isolate: NaN where dout's row, cleared, was not finite.
  ATTENTILE_DEVICE static void store_weights(PairsTile tile, Position to, Walk walk,
                                             const Pairs& pairs) {
    Accumulator weights[kRowTiles][kKeyTiles];
    for_elements<kRowTiles, kKeyTiles>([&](int m, int n, int r) {
      const float weight = pairs.s.value[m][n].value[r];
      const float kept = max_nan_f32(weight, 0.0f);
      const float marked = fma_rn(pairs.stats.row[m][r / 2].delta, 0.0f, kept);
      weights[m][n].value[r] = walk.isolate && weight != 0.0f ? marked : kept;
    });
    store_scores(tile, to, weights);
  }

  // dT K of one step, to the sums. Not twice: a warp isolates NaN by itself.
  ATTENTILE_DEVICE static void add_dq(const Params& p, const Arena& arena, Step step) {
    static_assert(!kIsFloat32<T>);
    constexpr uint32_t kRowGroups = kTileM / 16;
    const BlockTask task = arena.task.load();
    const uint32_t row = task.warp % kRowGroups * 16;
    const int32_t first = static_cast<int32_t>(task.warp / kRowGroups * kDqColumns);
    ATTENTILE_UNROLL
    for (int offset = 0; offset < kDqColumns; offset += kDqStep) {
      const int32_t column = first + offset;
      if (column >= p.call.head_dim) return;
      Accumulator sums[kDqStep / 8];
      multiply_tiles<false>(arena.dt, row, arena.k, column, sums);
      const float taint = taint_of(sums);
      if (any(taint != taint)) multiply_tiles<true>(arena.dt, row, arena.k, column, sums);
      ATTENTILE_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int32_t lane = static_cast<int32_t>(lane_idx());
        const int32_t query = step.q0 + static_cast<int32_t>(row) + 8 * half + lane / 4;
        if (query < task.q_begin || query >= task.q_end) continue;
        float* to = dq_sums(p.call, task.b, step.h, task.row_q + query) + column + lane % 4 * 2;
        ATTENTILE_UNROLL
        for (int64_t n = 0; n < kDqStep / 8; ++n) {
          if (column + 8 * n >= p.call.head_dim) continue;
          atomic_add_f32(to + 8 * n, sums[n].value[2 * half]);
          atomic_add_f32(to + 8 * n + 1, sums[n].value[2 * half + 1]);
        }
      }
    }
  }

  // dk and dv, scaled and rounded, to the tiles of K and V.
  ATTENTILE_DEVICE static void store_tile(const Params& p, const Arena& arena, const KeySums& dk,
                                          const KeySums& dv) {
    const int warp = static_cast<int>(arena.task.load().warp);
    const Position to = {warp / kColumnGroups * 16 * kKeyRowTiles, warp % kColumnGroups * kColumns};
    store_sums(arena.k, to, dk.value, p.softmax_scale);
    store_sums(arena.v, to, dv.value, p.call.kept_scale);
  }
  ATTENTILE_DEVICE static void store(const KeyTask& task, const ArrayParams& array, int32_t columns,
                                     KeyTile tile) {
    constexpr int kWarpKeys = kTileN / kWarps;
    const int first = static_cast<int>(task.tile.warp) * kWarpKeys;
    const int32_t key = task.k0 + first;
    const int32_t skipped = key < 0 ? static_cast<int32_t>(min64(-key, kWarpKeys)) : 0;
    const int64_t count = min64(kWarpKeys, task.stored - key) - skipped;
    if (count <= 0) return;
    T* to = const_cast<T*>(
        element<T>(array, task.tile.batch_k, task.tile.row_k + key + skipped, task.tile.kv_h));
    store_rows(tile, first + skipped,
               StoreRows<T>{.to = to,
                            .row_stride = array.stride[1],
                            .column_stride = array.stride[3],
                            .count = static_cast<int32_t>(count),
                            .columns = columns,
                            .in_chunks = array.in_chunks});
  }
};

template <class T, int kHeadDim>
struct KeyGradients : KeyBlock<T, kHeadDim, false> {};
template <class T, int kHeadDim>
struct AtomicGradients : KeyBlock<T, kHeadDim, true> {};

}  // namespace attentile::cuda

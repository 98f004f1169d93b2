// SPDX-License-Identifier: Apache-2.0
// dQ. One block computes kTileM rows of dq of one head as the forward pass computes out: queries
// and their dout stay in shared memory, dQ in registers, and the keys their queries see pass by in
// tiles of kTileN:
//
//     S  = Q K^T,  dP = dO V^T               ldmatrix, mma m16n8k16, float32 accumulators
//     dT = from S, dP, lse and delta         gradient_scores.h
//     dQ = dQ + dT K                         dT from the accumulators, K by ldmatrix.trans
//
// So dq has one writer and one order of addition, and no atomics; the price is that S and dP are
// computed here and for dK and dV. With atomic_dq, what is left of it is delta of rows of few keys.
// Two slots for K, one for V: while S is computed the next K
// arrives, while dT K is, the next V. Of float32 the products are fused multiply-adds, and what
// lse, rounded, leaves is found first, from the weights' sum.
#pragma once

#include "cuda/backward_params.h"
#include "cuda/device/device.h"
#include "cuda/sm80/gradient_scores.h"

namespace attentile::cuda {

template <class T, int kHeadDimClass>
struct QueryGradients {
  static constexpr int kHeadDim = kHeadDimClass;
  static constexpr int kRowTiles = kHeadDim <= 64 && !kIsFloat32<T> ? 2 : 1;
  static constexpr int kWarps = kIsFloat32<T> && kHeadDim > 128 ? 2 : 4;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kMinBlocksPerSm = kHeadDim <= 128 && !kIsFloat32<T> ? 2 : 1;
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr int kTileM = kWarps * kWarpRows;
  static constexpr int kTileN = kHeadDim <= 64 || kHeadDim > 128 || kIsFloat32<T> ? 32 : 64;
  static constexpr int kKeyTiles = kTileN / 8;
  // A block of so few keys sums P dP for delta first, and every block of float32 does.
  static constexpr int kNarrow = kIsFloat32<T> ? std::numeric_limits<int>::max() : kTileM + 64;

  using Params = BackwardParams;
  using QueryTile = SharedTile<T, kTileM, kHeadDim>;  // Q, then the rows of dq; and dO
  using KeyTile = SharedTile<T, kTileN, kHeadDim>;
  using Pairs = PairTile<T, kRowTiles, kKeyTiles>;

  struct Arena {
    QueryTile q;
    QueryTile dout;
    KeyTile v;
    SharedAddress k;      // two tiles
    TaskSlot task;        // this warp's
    SharedAddress flags;  // [kWarps] words

    ATTENTILE_DEVICE KeyTile k_slot(uint32_t slot) const { return {k + slot * KeyTile::kBytes}; }
  };
  static constexpr uint32_t kVAt = 2 * QueryTile::kBytes;
  static constexpr uint32_t kKAt = kVAt + KeyTile::kBytes;
  static constexpr uint32_t kTasksAt = kKAt + 2 * KeyTile::kBytes;
  static constexpr uint32_t kFlagsAt = kTasksAt + kWarps * TaskSlot::kBytes;
  static constexpr uint32_t kSharedBytes = kFlagsAt + 4 * kWarps;

  // A warp's rows: dQ, and for each the sums over keys of P dP and of P.
  struct Rows {
    Sums<kRowTiles, kHeadDim / 8> dq;
    RowSum<T> weighted_dp[kRowTiles][2];
    RowSum<T> weight[kRowTiles][2];

    ATTENTILE_DEVICE void reset() {
      dq.reset();
      ATTENTILE_UNROLL
      for (int m = 0; m < kRowTiles; ++m) {
        ATTENTILE_UNROLL
        for (int half = 0; half < 2; ++half) weighted_dp[m][half] = weight[m][half] = {};
      }
    }
  };

  ATTENTILE_DEVICE static void run(const Params& p, SharedAddress start) {
    const BlockTask task = find_task<kTileM>(p.call);
    if (task.q_begin >= task.q_end) return;
    Pass pass = task.k_end - task.k_begin <= kNarrow ? Pass::kSums : Pass::kGradients;
    if (p.atomic_dq && pass == Pass::kGradients) return;
    const Arena arena = {{start},
                         {start + QueryTile::kBytes},
                         {start + kVAt},
                         start + kKAt,
                         {start + kTasksAt + task.warp * TaskSlot::kBytes},
                         start + kFlagsAt};
    arena.task.store(task);
    load_queries(p, task, p.call.q, p.call.head_dim, arena.q);
    load_queries(p, task, p.dout, p.call.head_dim_v, arena.dout);
    cp_async_commit_group();
    Rows rows;
    ATTENTILE_ROLL
    for (bool more = true; more;) {
      walk(p, arena, pass, rows);
      more = pass == Pass::kSums;
      if (more) {
        store_summed_deltas(p, arena.task.load(), rows, true);
        if (p.atomic_dq) return;
        pass = Pass::kGradients;  // its first barrier comes before anybody loads these deltas
      } else if (pass == Pass::kGradients) {
        const float taint = rows.dq.taint();
        more = any_in_block<kWarps>(arena.flags, arena.task.load().warp, taint != taint);
        pass = Pass::kIsolated;
      }
    }
    store(p, arena, rows);
  }

 private:
  // Over the keys: for the sums that make delta alone; for dq; for dq once more, NaN isolated.
  enum class Pass { kSums, kGradients, kIsolated };

  ATTENTILE_DEVICE static int32_t first_query(const BlockTask& task) {
    return task.q_begin + static_cast<int32_t>(task.warp) * kWarpRows;
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
  // Keys [k0, k0 + kTileN) of k or v; none if they are all beyond the last.
  ATTENTILE_DEVICE static void load_keys(const Params& p, const BlockTask& task,
                                         const ArrayParams& array, int32_t k0, KeyTile tile) {
    if (k0 < task.k_end) {
      load_rows<kThreads>(
          tile, array, key_row<T>(p.call, array, task, task.k_begin),
          TileRows{.first = k0,
                   .begin = task.k_begin,
                   .end = task.k_end,
                   .columns = &array == &p.call.k ? p.call.head_dim : p.call.head_dim_v});
    }
    cp_async_commit_group();
  }
  ATTENTILE_DEVICE static int32_t first_key(const Params& p, const BlockTask& task) {
    return task.k_begin - (task.k_begin + key_shift(p.call)) % 32;
  }

  // All keys, into rows. Each barrier makes a tile visible whose copies every thread has waited
  // for, or says that all are done with one.
  ATTENTILE_DEVICE static void walk(const Params& p, const Arena& arena, Pass pass, Rows& rows) {
    rows.reset();
    const BlockTask task = arena.task.load();
    int32_t k0 = first_key(p, task);
    const int32_t k_end = task.k_begin < task.k_end ? task.k_end : k0;
    uint32_t slot = 0;
    if (k0 < k_end) {
      load_keys(p, task, p.call.k, k0, arena.k_slot(0));
      load_keys(p, task, p.call.v, k0, arena.v);
    }
    ATTENTILE_ROLL
    for (; k0 < k_end; k0 += kTileN, slot ^= 1) {
      const KeyTile k = arena.k_slot(slot);
      cp_async_wait_group<1>();
      bar_sync();  // K (and Q and dO) is there; all have read the other K
      load_keys(p, arena.task.load(), p.call.k, k0 + kTileN, arena.k_slot(slot ^ 1));
      Pairs pairs;
      const uint32_t warp_row = arena.task.load().warp * kWarpRows;
      multiply_rows(arena.q, warp_row, k, 0, pairs.s.value);
      pairs.s.at = {first_query(arena.task.load()), k0, opaque(lane_idx())};
      pairs.stats.load(p.call, arena.task.load(), pairs.s.at);
      pairs.weigh(p.call, arena.task.load(), pass == Pass::kSums ? kAnyWeight : 1.0f);
      cp_async_wait_group<1>();
      bar_sync();  // V is there
      Accumulator ds[kRowTiles][kKeyTiles];
      multiply_rows(arena.dout, arena.task.load().warp * kWarpRows, arena.v, 0, ds);
      bar_sync();  // all have read V
      load_keys(p, arena.task.load(), p.call.v, k0 + kTileN, arena.v);
      if ((p.sums_keys && !kIsFloat32<T>) || pass == Pass::kSums) add_row_sums(p, pairs, ds, rows);
      if (pass == Pass::kSums) continue;
      pairs.differentiate(p.call, ds);
      if (p.call.score.softcap > 0) {
        multiply_rows(arena.q, arena.task.load().warp * kWarpRows, k, 0, pairs.s.value);
        apply_softcap(p.call, pairs.s.value, ds);
      }
      if (pass == Pass::kIsolated) {
        bar_sync();  // all have read K as an operand of S
        clear_special_values<kThreads>(k);
        bar_sync();
      }
      multiply_accumulators(ds, k, lane_idx(), rows.dq.value);
    }
    cp_async_wait_group<0>();
  }

  ATTENTILE_DEVICE static void add_row_sums(const Params& p, const Pairs& pairs,
                                            const Accumulator (&dp)[kRowTiles][kKeyTiles],
                                            Rows& rows) {
    for_elements<kRowTiles, kKeyTiles>([&](int m, int n, int r) {
      const float weight = pairs.weight(m, n, r);
      const float kept = pairs.kept_dp(p.call, m, n, r, dp[m][n].value[r]);
      rows.weighted_dp[m][r / 2].add_product(weight, kept);
      rows.weight[m][r / 2].add(weight);
    });
  }

  // dq of this warp's rows, through its own rows of the tile of Q, which nobody else reads; and
  // what sums over all keys need of them.
  ATTENTILE_DEVICE static void store(const Params& p, const Arena& arena, Rows& rows) {
    const BlockTask task = arena.task.load();
    const int32_t q0 = first_query(task);
    if (q0 >= task.q_end) return;
    const int first = static_cast<int>(task.warp) * kWarpRows;
    if (p.sums_keys && !kIsFloat32<T>) store_summed_deltas(p, task, rows, false);
    store_sums(arena.q, {first, 0}, rows.dq.value, p.softmax_scale);
    bar_warp_sync();
    T* to = const_cast<T*>(
        element<T>(p.dq, first_dimension_q(p.call, task.b), task.row_q + q0, task.h));
    store_rows(arena.q, first,
               StoreRows<T>{.to = to,
                            .row_stride = p.dq.stride[1],
                            .column_stride = p.dq.stride[3],
                            .count = static_cast<int32_t>(min64(kWarpRows, task.q_end - q0)),
                            .columns = p.call.head_dim,
                            .in_chunks = p.dq.in_chunks});
  }

  // delta as sum P dP over sum P, for sums of dS over all keys, which cancel, and for rows of few
  // keys, whose own dS may: rowsum(dout * out) bears the rounding of out. Not where lse belongs to
  // more keys than these, so that the weights do not add up to 1.
  ATTENTILE_DEVICE static void store_summed_deltas(const Params& p, const BlockTask& task,
                                                   const Rows& rows, bool first) {
    const TileOrigin at = {first_query(task), 0, lane_idx()};
    TileStats<T, kRowTiles> stats;
    stats.load(p.call, task, at);
    bar_warp_sync();  // all lanes have read what one of four replaces
    const int32_t a = first_dimension_q(p.call, task.b);
    ATTENTILE_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      ATTENTILE_UNROLL
      for (int half = 0; half < 2; ++half) {
        const float weighted_dp = rows.weighted_dp[m][half].quad_total();
        const float weight = rows.weight[m][half].quad_total();
        const RowStat& row = stats.row[m][half];
        const float sunk = sink_weight(p.call, task.h, row.lse, 0.0f, kAnyWeight);
        const float total = add_rn(weight, sunk);
        const bool whole = row.lse < kInfinity &&
                           abs_f32(add_rn(1.0f - sunk, -weight)) <= rounding_of_weights<T>(row.lse);
        const int32_t query = at.query(m, half);
        if (query >= task.q_end || lane_idx() % 4 != 0) continue;
        const int32_t q_row = task.row_q + query;
        const int64_t index = stat_index(p.call, task.b, task.h, q_row);
        const float dlse =
            p.dlse.data == nullptr ? 0.0f : ld_global_nc(element<float>(p.dlse, a, task.h, q_row));
        const float summed = mul_rn(weighted_dp, reciprocal(total));
        if constexpr (kIsFloat32<T>) {
          if (whole) st_global(lse_rests(p.call) + index, log_rn(total));
        }
        // What is not finite tells more in rowsum(dout * out).
        const bool tells = whole && (!kIsFloat32<T> || mul_rn(summed, 0.0f) == 0.0f);
        st_global(first ? &row_stats(p.call)[index].delta : summed_deltas(p.call) + index,
                  tells ? add_rn(summed, -dlse) : row.delta);
      }
    }
  }
};

}  // namespace attentile::cuda

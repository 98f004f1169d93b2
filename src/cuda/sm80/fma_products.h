// SPDX-License-Identifier: Apache-2.0
// The two products of the forward pass in float32, by fused multiply-adds, for one warp of 16 rows:
//
//     S [16, kTileN] = Q K^T        O [16, kHeadDim] += P V
//
// Scores and O lie among the lanes as fma_tiles.h says.
#pragma once

#include "cuda/device/device.h"
#include "cuda/sm80/fma_tiles.h"
#include "cuda/sm80/online_softmax.h"
#include "cuda/sm80/scores.h"

namespace attentile::cuda {

template <int kHeadDim, int kTileM, int kTileN>
struct FmaProducts {
  using QueryTile = SharedTile<float, kTileM, kHeadDim>;
  using KeyTile = SharedTile<float, kTileN, kHeadDim>;  // K, and V likewise
  using Scores = ScoreTile<1, kTileN / 8>;
  using Rows = RowState<1, kHeadDim>;

  // Column of O in element 0 (or 2) of accumulator n.
  ATTENTILE_DEVICE static constexpr int column_of(int n, int t) { return fma_column(n, t); }

  // S = Q K^T, of the rows from first_row on.
  ATTENTILE_DEVICE static void multiply_queries(QueryTile q_tile, KeyTile k_tile,
                                                uint32_t first_row, Scores& s) {
    multiply_rows(q_tile, first_row, k_tile, 0, s.value);
  }

  // P is not rounded.
  using Weights = Scores;
  ATTENTILE_DEVICE static Weights round_weights(const Scores& s) { return s; }

  // O += P V.
  ATTENTILE_DEVICE static void multiply_values(KeyTile v, uint32_t lane, const Weights& weights,
                                               Rows& rows) {
    add_rows<false>(weights.value, v, lane, rows.acc_o);
  }

  // The same on a tile whose values may hold NaN or infinity, for a mask cuts it: a key that a row
  // does not see gets weight -1, and is left out.
  template <bool kHasMask, class Task>
  ATTENTILE_DEVICE static void multiply_special_values(const ForwardParams& p, SlotOf<Task> slot,
                                                       KeyTile v, const TileOrigin& at,
                                                       const Weights& weights, Rows& rows) {
    const Task task = slot.load();
    Weights seen = weights;
    seen.for_rows([&](int32_t row, auto for_keys) {
      const VisibleKeys keys = visible_keys<kHasMask>(p, task, row, at.k0);
      for_keys([&](int key, float& weight) { weight = keys.has(p, key) ? weight : -1.0f; });
    });
    add_rows<true>(seen.value, v, at.lane, rows.acc_o);
  }
};

}  // namespace attentile::cuda

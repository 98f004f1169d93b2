// SPDX-License-Identifier: Apache-2.0
// The two products of the forward pass in float32, by fused multiply-adds, for one warp of 16 rows:
//
//     S [16, kTileN] = Q K^T        O [16, kHeadDim] += P V
//
// Scores lie among the lanes as in the accumulators of mma (device/fragment.h), so all that happens
// between the products is the same: with g = lane / 4 and t = lane % 4 a thread has, of rows g and
// g + 8, columns 8 n + 2 t and 8 n + 2 t + 1. O lies alike, but for its columns: a thread has four
// neighbours of each 16, which it takes from V in one load.
#pragma once

#include "cuda/device/device.h"
#include "cuda/sm80/online_softmax.h"
#include "cuda/sm80/scores.h"
#include "cuda/sm80/tile_load.h"

namespace attentile::cuda {

template <int kHeadDim, int kTileM, int kTileN>
struct FmaProducts {
  using QueryTile = SharedTile<float, kTileM, kHeadDim>;
  using KeyTile = SharedTile<float, kTileN, kHeadDim>;  // K, and V likewise
  using Scores = ScoreTile<1, kTileN / 8>;
  using Rows = RowState<1, kHeadDim>;
  using Quad = Chunk<float>;
  // Column of O in element 0 (or 2) of accumulator n.
  ATTENTILE_DEVICE static constexpr int column_of(int n, int t) {
    return n / 2 * 16 + 4 * t + n % 2 * 2;
  }
  static constexpr uint32_t kPanelBytes = KeyTile::kPanelBytes;
  static constexpr uint32_t kPanelColumns = kPanelBytes / sizeof(float);
  static constexpr uint32_t kPanels = kHeadDim / kPanelColumns;
  static_assert(kPanelColumns == 32);

  // S = Q K^T, of the rows from first_row on: a sum per panel, and the sum of these, which errs
  // less than one long chain.
  ATTENTILE_DEVICE static void multiply_queries(QueryTile q_tile, KeyTile k_tile,
                                                uint32_t first_row, Scores& s) {
    const uint32_t g = lane_idx() / 4;
    const uint32_t t = lane_idx() % 4;
    ATTENTILE_UNROLL
    for (int n = 0; n < kTileN / 8; ++n) s.value[0][n] = {};
    ATTENTILE_ROLL
    for (uint32_t panel = 0; panel < kPanels; ++panel) {
      Accumulator part[kTileN / 8] = {};
      ATTENTILE_ROLL
      for (uint32_t c = 0; c < kPanelColumns; c += kChunkOf<float>) {
        const SharedAddress at_q = q_tile.at(g, c) + panel * kTileM * kPanelBytes;
        const SharedAddress at_k[2] = {k_tile.at(2 * t, c) + panel * kTileN * kPanelBytes,
                                       k_tile.at(2 * t + 1, c) + panel * kTileN * kPanelBytes};
        const Quad q[2] = {ld_shared<Quad>(at_q + first_row * kPanelBytes),
                           ld_shared<Quad>(at_q + (first_row + 8) * kPanelBytes)};
        ATTENTILE_UNROLL
        for (int n = 0; n < kTileN / 8; ++n) {
          ATTENTILE_UNROLL
          for (int e = 0; e < 2; ++e) {
            const Quad k = ld_shared<Quad>(at_k[e] + static_cast<uint32_t>(8 * n) * kPanelBytes);
            add_products(q[0], k, part[n].value[e]);
            add_products(q[1], k, part[n].value[2 + e]);
          }
        }
      }
      ATTENTILE_UNROLL
      for (int n = 0; n < kTileN / 8; ++n) {
        ATTENTILE_UNROLL
        for (int i = 0; i < 4; ++i) {
          s.value[0][n].value[i] = add_rn(s.value[0][n].value[i], part[n].value[i]);
        }
      }
    }
  }

  // P is not rounded.
  using Weights = Scores;
  ATTENTILE_DEVICE static Weights round_weights(const Scores& s) { return s; }

  // O += P V.
  ATTENTILE_DEVICE static void multiply_values(KeyTile v, uint32_t lane, const Weights& weights,
                                               Rows& rows) {
    add_values<false>(v, lane, weights, rows);
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
      const KeySpan span = band_span(task.band, query_of(p, task, row), at.k0);
      for_keys([&](int key, float& weight) {
        const bool sees = row < task.q_end && key >= span.lo && key < span.hi &&
                          mask_shows<kHasMask>(p, task, row, at.k0 + key);
        weight = sees ? weight : -1.0f;
      });
    });
    add_values<true>(v, at.lane, seen, rows);
  }

 private:
  ATTENTILE_DEVICE static void add_products(const Quad& a, const Quad& b, float& sum) {
    ATTENTILE_UNROLL
    for (int e = 0; e < kChunkOf<float>; ++e) sum = fma_rn(a.element[e], b.element[e], sum);
  }

  // The lanes of a row give each other their weights, one key at a time: column 8 n + 2 source + e.
  template <bool kSomeUnseen>
  ATTENTILE_DEVICE static void add_values(KeyTile v, uint32_t lane, const Weights& weights,
                                          Rows& rows) {
    const uint32_t t = lane % 4;
    ATTENTILE_ROLL
    for (uint32_t source = 0; source < 4; ++source) {
      ATTENTILE_UNROLL
      for (int n = 0; n < kTileN / 8; ++n) {
        ATTENTILE_UNROLL
        for (int e = 0; e < 2; ++e) {
          const float* mine = weights.value[0][n].value;
          const float weight[2] = {shfl_idx(mine[e], lane - t + source),
                                   shfl_idx(mine[2 + e], lane - t + source)};
          const uint32_t key = static_cast<uint32_t>(8 * n + e) + 2 * source;
          const SharedAddress at[2] = {v.at(key, 4 * t), v.at(key, 16 + 4 * t)};
          ATTENTILE_UNROLL
          for (int c = 0; c < kHeadDim / 8; c += 2) {
            const uint32_t panel = static_cast<uint32_t>(8 * c) / kPanelColumns;
            const Quad values = ld_shared<Quad>(at[c / 2 % 2] + panel * kTileN * kPanelBytes);
            ATTENTILE_UNROLL
            for (int i = 0; i < 8; ++i) {  // [accumulator][row][column]
              const float w = weight[i / 2 % 2];
              float& o = rows.acc_o[0][c + i / 4].value[i % 4];
              const float sum = fma_rn(w, values.element[i / 4 * 2 + i % 2], o);
              o = kSomeUnseen && w < 0 ? o : sum;
            }
          }
        }
      }
    }
  }
};

}  // namespace attentile::cuda

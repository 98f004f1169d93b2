// SPDX-License-Identifier: Apache-2.0
// The online softmax on accumulators (Milakov and Gimelshein 2018; FlashAttention-2, section 3.1).
// For each query the running maximum m, the sum l of weights relative to m, and O, not yet divided:
//
//     weight_j = 2^((s_j - m) exponent)      l = sum_j weight_j      O = sum_j weight_j v_j
//
// m is stale by design: it is raised, and l and O rescaled, only where a tile exceeds it by more
// than 2^8 in weight. A row's own values decide, so its bits depend on no neighbour, and most tiles
// leave O alone. m is subtracted before anything is multiplied, so the largest weight of a row
// whose maximum stands is exactly 1. The 4 lanes that share a row agree on m; l stays in parts, a
// lane its own, until the end.
#pragma once

#include "cuda/device/device.h"
#include "cuda/numerics.h"
#include "cuda/params.h"
#include "cuda/sm80/scores.h"

namespace attentile::cuda {

inline constexpr float kRaiseThreshold = 8;  // in log2 of the weight

// The largest (or the sum) of the values that the 4 lanes of a row hold, in each of them.
ATTENTILE_DEVICE float quad_max(float x) {
  x = max_f32(x, shfl_xor(x, 1));
  return max_f32(x, shfl_xor(x, 2));
}
ATTENTILE_DEVICE float quad_sum(float x) {
  x = add_rn(x, shfl_xor(x, 1));
  return add_rn(x, shfl_xor(x, 2));
}

// Rows of one warp: of each row tile, rows g (half 0) and g + 8 (half 1) are this thread's.
template <int kRowTiles, int kColumns>
struct RowState {
  Accumulator acc_o[kRowTiles][kColumns / 8];  // [16 kRowTiles, kColumns]
  float row_max[kRowTiles][2];                 // in tile values; -inf: nothing seen yet
  float row_sum[kRowTiles][2];

  ATTENTILE_DEVICE void reset() {
    ATTENTILE_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      ATTENTILE_UNROLL
      for (int n = 0; n < kColumns / 8; ++n) acc_o[m][n] = {};
      ATTENTILE_UNROLL
      for (int half = 0; half < 2; ++half) {
        row_max[m][half] = -kInfinity;
        row_sum[m][half] = 0.0f;
      }
    }
  }
  // The parts of l -> l.
  ATTENTILE_DEVICE void sum_quads() {
    ATTENTILE_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      ATTENTILE_UNROLL
      for (int half = 0; half < 2; ++half) row_sum[m][half] = quad_sum(row_sum[m][half]);
    }
  }
};

// Raises m where the tile asks for it, and rescales l and O there.
template <int kRowTiles, int kColumns, int kKeyTiles>
ATTENTILE_DEVICE void raise_row_max(RowState<kRowTiles, kColumns>& rows,
                                    const ScoreTile<kRowTiles, kKeyTiles>& s, float exponent) {
  float alpha[kRowTiles][2];
  bool raised = false;
  ATTENTILE_UNROLL
  for (int m = 0; m < kRowTiles; ++m) {
    ATTENTILE_UNROLL
    for (int half = 0; half < 2; ++half) {
      float tile_max = -kInfinity;  // NaN is no candidate: the weights show it
      ATTENTILE_UNROLL
      for (int n = 0; n < kKeyTiles; ++n) {
        tile_max = max_f32(tile_max, s.value[m][n].value[2 * half]);
        tile_max = max_f32(tile_max, s.value[m][n].value[2 * half + 1]);
      }
      tile_max = quad_max(tile_max);
      float& row_max = rows.row_max[m][half];
      const float excess = mul_rn(add_rn(tile_max, -row_max), exponent);
      const bool raise = excess > kRaiseThreshold;  // not where both are -inf: NaN
      alpha[m][half] = raise ? ex2_approx(-excess) : 1.0f;
      row_max = raise ? tile_max : row_max;
      raised = raised || raise;
    }
  }
  if (!any(raised)) return;
  ATTENTILE_UNROLL
  for (int m = 0; m < kRowTiles; ++m) {
    ATTENTILE_UNROLL
    for (int half = 0; half < 2; ++half) {
      rows.row_sum[m][half] = mul_rn(rows.row_sum[m][half], alpha[m][half]);
      ATTENTILE_UNROLL
      for (int n = 0; n < kColumns / 8; ++n) {
        float* pair = rows.acc_o[m][n].value + 2 * half;
        pair[0] = mul_rn(pair[0], alpha[m][half]);
        pair[1] = mul_rn(pair[1], alpha[m][half]);
      }
    }
  }
}

// Tile values -> weights, in place, taken into m and l; O is rescaled where m was raised.
template <int kRowTiles, int kColumns, int kKeyTiles>
ATTENTILE_DEVICE void online_softmax(RowState<kRowTiles, kColumns>& rows,
                                     ScoreTile<kRowTiles, kKeyTiles>& s, float exponent) {
  raise_row_max(rows, s, exponent);
  ATTENTILE_UNROLL
  for (int m = 0; m < kRowTiles; ++m) {
    ATTENTILE_UNROLL
    for (int half = 0; half < 2; ++half) {
      const float row_max = rows.row_max[m][half];
      const float base = row_max == -kInfinity ? 0.0f : row_max;  // -inf - -inf would be NaN
      float sum = 0.0f;
      ATTENTILE_UNROLL
      for (int n = 0; n < kKeyTiles; ++n) {
        ATTENTILE_UNROLL
        for (int e = 0; e < 2; ++e) {
          float& x = s.value[m][n].value[2 * half + e];
          x = ex2_approx(mul_rn(add_rn(x, -base), exponent));
          sum = add_rn(sum, x);
        }
      }
      rows.row_sum[m][half] = add_rn(rows.row_sum[m][half], sum);
    }
  }
}

// What a row comes to: out = O factor, and 0 in a dead row whatever O holds.
struct RowEnd {
  bool dead;  // no visible key, or all their logits are -inf
  float factor;
  float lse;
};

// e^-below; of float32 to its own accuracy, since a share scales a whole row.
template <class T>
ATTENTILE_DEVICE float share_of(float below) {
  if constexpr (kIsFloat32<T>) return exp_minus(below, 0.0f);
  return ex2_approx(mul_rn(below, -kLog2E));
}

// sink: one more logit, without a value; -inf where there is none. row_sum is the whole row's.
template <class T>
ATTENTILE_DEVICE RowEnd close_row(const ForwardParams& p, float row_max, float row_sum,
                                  float sink) {
  const bool dead = row_sum == 0.0f;
  if (sink == -kInfinity) {
    if (dead) return {true, 0.0f, -kInfinity};
    const float rest = fma_rn(row_max, p.score.value_lo, log_rn(row_sum));
    return {false, mul_rn(p.kept_scale, reciprocal(row_sum)),
            fma_rn(row_max, p.score.value_hi, rest)};
  }
  const float logit =
      dead ? -kInfinity : fma_rn(row_max, p.score.value_hi, mul_rn(row_max, p.score.value_lo));
  const float top = logit > sink ? logit : sink;
  const float share = share_of<T>(add_rn(top, -logit));
  const float sink_weight = share_of<T>(add_rn(top, -sink));
  const float total = add_rn(dead ? 0.0f : mul_rn(row_sum, share), sink_weight);
  return {dead, mul_rn(share, mul_rn(p.kept_scale, reciprocal(total))), add_rn(top, log_rn(total))};
}

}  // namespace attentile::cuda

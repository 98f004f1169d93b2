// SPDX-License-Identifier: Apache-2.0
// From the two products of a tile of pairs, S = Q K^T and dP = dO V^T, to the weights and dS:
//
//     P   = exp(min(logit - lse, 0))           logits as the forward pass has them (scores.h); of
//                                              float32 lse with what its rounding left
//     dS  = P (kept dP - delta)                kept: 0 where dropout drops a pair, else 1 / (1 - p)
//     dT  = dS (1 - tanh^2)                    with softcap
//
// A pair of weight 0, hidden or not, has dS = 0 whatever dP is.
#pragma once

#include <bit>

#include "cuda/backward_params.h"
#include "cuda/device/device.h"
#include "cuda/numerics.h"
#include "cuda/sm80/gradient_tiles.h"
#include "cuda/sm80/online_softmax.h"
#include "cuda/sm80/scores.h"

namespace attentile::cuda {

// Where the workspace keeps what it knows of queries; row: counted in q's rows.
ATTENTILE_DEVICE int64_t stat_index(const ForwardParams& p, int32_t b, int32_t h, int64_t row) {
  return (int64_t{first_dimension_q(p, b)} * p.num_heads_q + h) * num_rows(p) + row;
}
ATTENTILE_DEVICE RowStat* row_stats(const ForwardParams& p) {
  return reinterpret_cast<RowStat*>(p.workspace);
}
ATTENTILE_DEVICE float* summed_deltas(const ForwardParams& p) {
  return reinterpret_cast<float*>(row_stats(p) + num_stats(p));
}
// Of float32: there delta is the sum over all keys from the first, and the third word is for what
// lse, rounded, leaves.
ATTENTILE_DEVICE float* lse_rests(const ForwardParams& p) {
  return summed_deltas(p);
}

// The row of dq's sums of a query of head h, counted in q's rows.
ATTENTILE_DEVICE float* dq_sums(const ForwardParams& p, int32_t b, int32_t h, int64_t row) {
  float* first = reinterpret_cast<float*>(p.workspace + stat_bytes(p));
  return first + stat_index(p, b, h, row) * dq_pitch(p);
}

// A kernel that goes over rows, 64 of a head in a block, 8 lanes to each.
struct RowKernel {
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocksPerSm = 4;
  static constexpr int kTileM = 64;
  static constexpr uint32_t kSharedBytes = 0;
  static constexpr int kRowLanes = 8;
  static constexpr int kRowStep = kThreads / kRowLanes;

  using Params = BackwardParams;
};

// Of this thread's rows of a warp's tile; a query outside [begin, end) weighs nothing.
template <class T, int kRowTiles>
struct TileStats {
  RowStat row[kRowTiles][2];
  float lse_rest[kRowTiles][2] = {};  // of float32

  ATTENTILE_DEVICE void load(const ForwardParams& p, const BlockTask& task, TileOrigin at) {
    const int64_t of_task = stat_index(p, task.b, task.h, task.row_q);
    const RowStat* first = row_stats(p) + of_task;
    ATTENTILE_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      ATTENTILE_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int32_t query = at.query(m, half);
        const bool present = query >= task.q_begin && query < task.q_end;
        row[m][half] = present ? ld_global(first + query) : RowStat{kInfinity, 0.0f};
        if constexpr (kIsFloat32<T>) {
          lse_rest[m][half] = present ? ld_global(lse_rests(p) + of_task + query) : 0.0f;
        }
      }
    }
  }
  // delta for sums of dS over all keys of a row, in place of the other.
  ATTENTILE_DEVICE void load_summed(const ForwardParams& p, const BlockTask& task, TileOrigin at) {
    if constexpr (kIsFloat32<T>) return;
    const float* first = summed_deltas(p) + stat_index(p, task.b, task.h, task.row_q);
    ATTENTILE_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      ATTENTILE_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int32_t query = at.query(m, half);
        const bool present = query >= task.q_begin && query < task.q_end;
        if (present) row[m][half].delta = ld_global_nc(first + query);
      }
    }
  }
};

// A logit may exceed its row's lse by rounding, or because the lse is of another call: up to that
// much a sum over all keys tells, weights are at most 1.
inline constexpr float kMostAbove = 0x1p-4f;
inline constexpr float kAnyWeight = 2.0f;

// The weight of a score x in a row of that lse.
ATTENTILE_DEVICE float weight_of(const ScoreParams& score, float x, float lse) {
  const float below = fma_rn(x, -score.value_lo, fma_rn(x, -score.value_hi, lse));
  const float weight = ex2_approx(mul_rn(max_nan_f32(below, 0.0f), -kLog2E));
  return x == -kInfinity || lse == kInfinity ? 0.0f : weight;
}
// The same in float32, of an lse in two parts, and at most `most`: lse - logit keeps what its
// rounding loses (Knuth's two-sum), since a large lse leaves it few digits.
ATTENTILE_DEVICE float weight_of(const ScoreParams& score, float x, float lse, float lse_rest,
                                 float most) {
  const float logit = mul_rn(x, score.value_hi);
  const float logit_rest = fma_rn(x, score.value_lo, fma_rn(x, score.value_hi, -logit));
  const float below = add_rn(lse, -logit);
  const float minus_logit = add_rn(below, -lse);
  const float lost =
      add_rn(add_rn(lse, -add_rn(below, -minus_logit)), add_rn(-logit, -minus_logit));
  const float rest = add_rn(add_rn(lost, -logit_rest), lse_rest);
  const float weight =
      exp_minus(max_nan_f32(below, -kMostAbove), below < -kMostAbove ? 0.0f : rest);
  return x == -kInfinity || lse == kInfinity ? 0.0f : weight > most ? most : weight;
}

// What the sink has of a row's weight, at most `most`; a row that weighs nothing has no sink.
ATTENTILE_DEVICE float sink_weight(const ForwardParams& p, int32_t h, float lse, float lse_rest,
                                   float most = 1.0f) {
  if (p.sink.data == nullptr || lse == kInfinity) return 0.0f;
  const float sink = ld_global_nc(element<float>(p.sink, h, 0, 0));
  const float above = add_rn(add_rn(sink, -lse), -lse_rest);
  const float weight = ex2_approx(mul_rn(above > kMostAbove ? kMostAbove : above, kLog2E));
  return weight > most ? most : weight;
}

// How far a row's weights may be from 1 together by rounding, its lse's among it.
template <class T>
ATTENTILE_DEVICE float rounding_of_weights([[maybe_unused]] float lse) {
  if constexpr (kIsFloat32<T>) {
    const float rounding = mul_rn(add_rn(abs_f32(lse), 16.0f), 0x1.8p-23f);
    return rounding < kMostAbove ? rounding : kMostAbove;
  }
  return kIsFloat16<T> ? 0x1p-11f : 0x1p-8f;
}

// A lane's part of a sum over the keys of a row; of float32 with what the additions lose.
template <class T>
struct RowSum {
  float sum = 0.0f;

  ATTENTILE_DEVICE void add(float x) { sum = add_rn(sum, x); }
  // A weight of 0, hidden or not, adds nothing.
  ATTENTILE_DEVICE void add_product(float weight, float x) {
    sum = weight == 0.0f ? sum : fma_rn(weight, x, sum);
  }
  ATTENTILE_DEVICE float quad_total() const { return quad_sum(sum); }
};
template <>
struct RowSum<float> {
  float sum = 0.0f;
  float lost = 0.0f;

  ATTENTILE_DEVICE void add(float x) {
    const float more = add_rn(sum, x);
    const float of_x = add_rn(more, -sum);
    const float of_sum = add_rn(more, -of_x);
    lost = add_rn(lost, add_rn(add_rn(sum, -of_sum), add_rn(x, -of_x)));
    sum = more;
  }
  ATTENTILE_DEVICE void add_product(float weight, float x) {
    if (weight == 0.0f) return;
    const float product = mul_rn(weight, x);
    lost = add_rn(lost, fma_rn(weight, x, -product));
    add(product);
  }
  ATTENTILE_DEVICE float quad_total() const { return add_rn(quad_sum(sum), quad_sum(lost)); }
};

// visit(m, n, r) for each element of an accumulator tile.
template <int kRowTiles, int kKeyTiles, class Visit>
ATTENTILE_DEVICE void for_elements(Visit visit) {
  ATTENTILE_UNROLL
  for (int m = 0; m < kRowTiles; ++m) {
    ATTENTILE_UNROLL
    for (int n = 0; n < kKeyTiles; ++n) {
      ATTENTILE_UNROLL
      for (int r = 0; r < 4; ++r) visit(m, n, r);
    }
  }
}

// A warp's tile of pairs [16 kRowTiles, 8 kKeyTiles] on its way from S to dS.
template <class T, int kRowTiles, int kKeyTiles>
struct PairTile {
  using Elements = Accumulator[kRowTiles][kKeyTiles];

  ScoreTile<kRowTiles, kKeyTiles> s;  // S, then P, negative where dropout drops it
  TileStats<T, kRowTiles> stats;

  // Whether the band or a mask may hide some of it, or queries are missing.
  ATTENTILE_DEVICE bool is_partial(const ForwardParams& p, const BlockTask& task) const {
    const int32_t q_end = s.at.q0 + 16 * kRowTiles;
    if (p.mask.data != nullptr || s.at.q0 < task.q_begin || q_end > task.q_end) return true;
    return task.band.classify(s.at.q0, q_end, s.at.k0, s.at.k0 + 8 * kKeyTiles) != TileClass::kFull;
  }

  // S -> P, of float32 at most `most`.
  ATTENTILE_DEVICE void weigh(const ForwardParams& p, const BlockTask& task,
                              [[maybe_unused]] float most = 1.0f) {
    if (p.score.has_terms) add_terms<T>(p, task, s);
    if (any(is_partial(p, task))) hide_scores<true>(p, task, s);
    for_elements<kRowTiles, kKeyTiles>([&](int m, int n, int r) {
      float& x = s.value[m][n].value[r];
      const float lse = stats.row[m][r / 2].lse;
      if constexpr (kIsFloat32<T>) {
        x = weight_of(p.score, x, lse, stats.lse_rest[m][r / 2], most);
      } else {
        x = weight_of(p.score, x, lse);
      }
    });
    if (!p.dropout.enabled) return;
    ScoreTile<kRowTiles, kKeyTiles> kept = s;
    drop_weights(p, task, kept);
    for_elements<kRowTiles, kKeyTiles>([&](int m, int n, int r) {
      float& x = s.value[m][n].value[r];
      x = kept.value[m][n].value[r] == x ? x : -x;
    });
  }

  // dP -> dS.
  ATTENTILE_DEVICE void differentiate(const ForwardParams& p, Elements& dp) const {
    for_elements<kRowTiles, kKeyTiles>([&](int m, int n, int r) {
      float& x = dp[m][n].value[r];
      const float from_delta = add_rn(kept_dp(p, m, n, r, x), -stats.row[m][r / 2].delta);
      const float of_pair = weight(m, n, r);
      x = of_pair == 0.0f ? 0.0f : mul_rn(of_pair, from_delta);
    });
  }

  // P; and dP as it counts.
  ATTENTILE_DEVICE float weight(int m, int n, int r) const {
    return std::bit_cast<float>(bits(m, n, r) & 0x7FFFFFFFu);
  }
  ATTENTILE_DEVICE float kept_dp(const ForwardParams& p, int m, int n, int r, float dp) const {
    return bits(m, n, r) >> 31 != 0 ? 0.0f : mul_rn(dp, p.kept_scale);
  }

 private:
  ATTENTILE_DEVICE uint32_t bits(int m, int n, int r) const {
    return std::bit_cast<uint32_t>(s.value[m][n].value[r]);
  }
};

// dS -> dT. dots: S, computed once more, which costs products where keeping it costs registers.
template <int kRowTiles, int kKeyTiles>
ATTENTILE_DEVICE void apply_softcap(const ForwardParams& p,
                                    const Accumulator (&dots)[kRowTiles][kKeyTiles],
                                    Accumulator (&ds)[kRowTiles][kKeyTiles]) {
  for_elements<kRowTiles, kKeyTiles>([&](int m, int n, int r) {
    const float t = tanh_rn(mul_rn(dots[m][n].value[r], p.score.logit));
    float& x = ds[m][n].value[r];
    x = x == 0.0f ? x : mul_rn(x, fma_rn(-t, t, 1.0f));  // a hidden pair's t may be NaN
  });
}

}  // namespace attentile::cuda

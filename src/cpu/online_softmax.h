// SPDX-License-Identifier: Apache-2.0
// The online softmax of one panel (Milakov and Gimelshein 2018; FlashAttention-2, section 3.1): for
// each query, in its own lane, the running maximum m, the sum l of weights relative to m, and O,
// not yet divided by l. m is stale by design: it is raised, and l and O rescaled, only when a tile
// exceeds it by more than 2^10 in weight, by that lane alone. The result is exact either way, most
// tiles skip the rescale, and a query's bits never depend on its neighbours.
#pragma once

#include "cpu/score_tile.h"

namespace attentile::cpu {

// In log2 of the weight. In float64 the maximum is never stale: there its rounding would show.
template <class Real>
inline constexpr Real kRaiseThreshold = sizeof(Real) == 4 ? 10 : 0;

template <class Real>
struct Panel {
  int64_t q0 = 0;
  int rows = 0;
  int lanes = 0;
  Real* q_t = nullptr;      // [head_dim][lanes]
  Real* acc_o = nullptr;    // [head_dim_v][lanes]
  Real* row_max = nullptr;  // [lanes], in tile values; -inf: nothing seen yet
  Real* row_sum = nullptr;  // [lanes]
};

template <class Isa, class Real>
inline void reset_panel(const Panel<Real>& panel, int head_dim_v) {
  const int64_t lanes = panel.lanes;
  fill_lanes<Isa, Real>(panel.acc_o, head_dim_v * lanes, Real{0});
  fill_lanes<Isa, Real>(panel.row_max, lanes, -std::numeric_limits<Real>::infinity());
  fill_lanes<Isa, Real>(panel.row_sum, lanes, Real{0});
}

// Turns tile values s [keys][lanes] into weights, in place, and takes them into m and l; rescales O
// where m was raised.
template <class Isa, class Real>
inline void online_softmax(const Panel<Real>& panel, int keys, int head_dim_v,
                           Exponent<Real> exponent, Real* s) {
  using V = Vec<Isa, Real>;
  const V nothing = V::set1(-std::numeric_limits<Real>::infinity());
  const V zero = V::set1(Real{0});
  const V margin = V::set1(kRaiseThreshold<Real> / exponent.hi);
  const int lanes = panel.lanes;
  for (int i = 0; i < lanes; i += V::kLanes) {
    V tile_max = nothing;
    for (int k = 0; k < keys; ++k) tile_max = V::max(V::load(s + k * lanes + i), tile_max);
    V row_max = V::load(panel.row_max + i);
    if (V::any_lt(row_max + margin, tile_max)) {
      const V raised = V::select_lt(row_max + margin, tile_max, tile_max, row_max);
      const V alpha =
          V::select_lt(row_max, raised, exp2<Isa>(row_max - raised, exponent), V::set1(Real{1}));
      (V::load(panel.row_sum + i) * alpha).store(panel.row_sum + i);
      for (int c = 0; c < head_dim_v; ++c) {
        Real* o = panel.acc_o + static_cast<int64_t>(c) * lanes + i;
        (V::load(o) * alpha).store(o);
      }
      raised.store(panel.row_max + i);
      row_max = raised;
    }
    const V base = V::select_lt(nothing, row_max, row_max, zero);  // -inf - -inf would be NaN
    V sum = zero;
    for (int k = 0; k < keys; ++k) {
      const V weight = exp2<Isa>(V::load(s + k * lanes + i) - base, exponent);
      weight.store(s + k * lanes + i);
      sum = sum + weight;
    }
    (V::load(panel.row_sum + i) + sum).store(panel.row_sum + i);
  }
}

// What a row comes to. lse in two parts, hi + lo, that together carry more than either: the maximum
// and the logarithm of the sum relative to it. share: of the row's weight, what the keys have and
// not the sink.
struct RowEnd {
  double hi = 0;
  double lo = 0;
  double share = 1;
  double lse() const { return hi + lo; }
};

// Closes the rows (the sink is one more logit), and divisor[i] = l, what O and the weights relative
// to m are divided by; infinity for a row that saw nothing.
template <class Isa, class Real>
inline void close_rows(const Problem& p, int64_t h, const Panel<Real>& panel,
                       const ScoreScale<Real>& scale, Real* divisor, RowEnd* rows) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const double sink = sink_logit<Isa>(p, h);
  for (int i = 0; i < panel.lanes; ++i) {
    // The product is rounded as the backward pass rounds it, so that a dominant key weighs
    // exactly 1.
    const Real logit = scale.folded ? panel.row_max[i] * scale.logit : panel.row_max[i];
    const double row_max = panel.row_max[i] == -kInfinity ? -kInfinity : static_cast<double>(logit);
    const double row_sum = panel.row_sum[i];
    const bool empty = row_sum == 0.0;
    divisor[i] = empty ? static_cast<Real>(kInfinity) : panel.row_sum[i];
    if (sink == -kInfinity) {
      rows[i] = {empty ? -kInfinity : row_max, empty ? 0.0 : std::log(row_sum), 1.0};
      continue;
    }
    const double top = row_max > sink ? row_max : sink;
    const double keys = empty ? 0.0 : row_sum * std::exp(row_max - top);
    const double total = keys + std::exp(sink - top);
    rows[i] = {top, std::log(total), keys / total};
  }
}

}  // namespace attentile::cpu

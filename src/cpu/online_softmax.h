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
  Parts q_parts = {};
};

template <class Isa, class Real>
inline void reset_panel(const Panel<Real>& panel, int head_dim_v) {
  const int64_t lanes = panel.lanes;
  fill_lanes<Isa, Real>(panel.acc_o, head_dim_v * lanes, Real{0});
  fill_lanes<Isa, Real>(panel.row_max, lanes, -std::numeric_limits<Real>::infinity());
  fill_lanes<Isa, Real>(panel.row_sum, lanes, Real{0});
}

// Tile values [keys][lanes] and the weights they become, in place if both are the same.
template <class Real>
struct WeightTile {
  const Real* s = nullptr;
  Real* weights = nullptr;
  int keys = 0;
  const Tile* partial = nullptr;           // else every query sees every key
  Parts packed = {};                       // receives the weights, then `weights` may hold anything
  PendingProduct<Real>* beside = nullptr;  // what the matrix unit does meanwhile
};

// Keys of a tile that the queries of the vector from lane i on may see, in whole groups.
template <class Isa, class Real>
inline KeyRange keys_seen(const Tile& t, int i) {
  const int64_t last = t.q0 + min64(t.rows, i + Vec<Isa, Real>::kLanes) - 1;
  const int64_t begin = clamp64(t.s->band.lo(t.q0 + i) - t.k0, 0, t.keys);
  const int64_t end = clamp64(t.s->band.hi(last) - t.k0, begin, t.keys);
  return {begin / kKeyGroup * kKeyGroup, min64(round_up(end, kKeyGroup), t.keys)};
}

template <class Isa, class Real>
inline KeyRange keys_seen(const WeightTile<Real>& tile, int i) {
  return tile.partial != nullptr ? keys_seen<Isa, Real>(*tile.partial, i) : KeyRange{0, tile.keys};
}

// Raises m of the lanes from i on that the tile exceeds, and rescales their l and O.
template <class Isa, class Real>
[[gnu::noinline]] void raise_maximum(const Panel<Real>& panel, const WeightTile<Real>& tile, int i,
                                     int head_dim_v, Exponent<Real> exponent) {
  using V = Vec<Isa, Real>;
  const WeightExp<Isa, Real> exp(exponent);
  const V nothing = V::set1(-std::numeric_limits<Real>::infinity());
  // A little more than weigh_at_once() accepts, so that what one lane does depends on no other.
  constexpr Real kSlack = sizeof(Real) == 4 ? Real{0.01} : Real{0};
  const V margin = V::set1((kRaiseThreshold<Real> + kSlack) / exponent.hi);
  const int lanes = panel.lanes;
  const KeyRange seen = keys_seen<Isa, Real>(tile, i);
  V tile_max = nothing;
  for (int64_t k = seen.begin; k < seen.end; ++k) {
    tile_max = V::max(V::load(tile.s + k * lanes + i), tile_max);
  }
  const V row_max = V::load(panel.row_max + i);
  if (!V::any_lt(row_max + margin, tile_max)) return;
  const V raised = V::select_lt(row_max + margin, tile_max, tile_max, row_max);
  if (V::any_lt(nothing, row_max)) {
    const V alpha = V::select_lt(row_max, raised, exp(row_max - raised), V::set1(Real{1}));
    (V::load(panel.row_sum + i) * alpha).store(panel.row_sum + i);
    for (int c = 0; c < head_dim_v; ++c) {
      Real* o = panel.acc_o + static_cast<int64_t>(c) * lanes + i;
      (V::load(o) * alpha).store(o);
    }
  }
  raised.store(panel.row_max + i);
}

// m of the lanes from i on as it is subtracted: 0 where nothing was seen, for -inf - -inf would be
// NaN.
template <class Isa, class Real>
inline Vec<Isa, Real> base_of(const Panel<Real>& panel, int i) {
  using V = Vec<Isa, Real>;
  const V row_max = V::load(panel.row_max + i);
  return V::select_lt(V::set1(-std::numeric_limits<Real>::infinity()), row_max, row_max,
                      V::set1(Real{0}));
}

// One vector of lanes, from lane i on, whatever its tile values; m is raised. True: subnormal
// weights are left out, which add_subnormal() finds again where all tile values are still there.
template <class Isa, class Real>
[[gnu::noinline]] bool weigh_any(const Panel<Real>& panel, const WeightTile<Real>& tile, int i,
                                 Exponent<Real> exponent) {
  using V = Vec<Isa, Real>;
  const WeightExp<Isa, Real> exp(exponent);
  const V zero = V::set1(Real{0});
  const int lanes = panel.lanes;
  const KeyRange seen = keys_seen<Isa, Real>(tile, i);
  const V base = base_of<Isa, Real>(panel, i);
  V sum = zero;
  for (int64_t k = 0; k < seen.begin; ++k) zero.store(tile.weights + k * lanes + i);
  const auto weigh = [&] {
    for (int64_t k = seen.begin; k < seen.end; ++k) {
      const V weight = exp(V::load(tile.s + k * lanes + i) - base);
      weight.store(tile.weights + k * lanes + i);
      sum = sum + weight;
    }
  };
  bool left_out = false;
  if (tile.partial == nullptr && tile.s != tile.weights) {
    const SubnormalsAreZero<Isa, Real> zeros;
    weigh();
    left_out = zeros.dropped();
  } else {
    weigh();
  }
  for (int64_t k = seen.end; k < tile.keys; ++k) zero.store(tile.weights + k * lanes + i);
  (V::load(panel.row_sum + i) + sum).store(panel.row_sum + i);
  return left_out;
}

// What the weights of a tile are computed with.
template <class Isa, class Real>
struct Weigher {
  WeightExp<Isa, Real> exp;
  // Tile values less m: a little nearer than those of faint weights, and one whose weight is 0 and
  // that exp.unchecked() takes.
  Vec<Isa, Real> least;
  Vec<Isa, Real> floor;
};

// The weights of one vector of lanes, from lane i on, straight into tile.packed, and their sum.
// Beside it the matrix unit goes on with its product. What the loop needs is copied: for all that
// compilers know, a tile register is stored there.
template <class V>
struct Weighed {
  V sum;
  bool faint = false;  // of three parts: some weights may be
  bool none = false;   // all weights are 0
};
enum class TileValues { kNear, kFar, kSomeHidden };
template <int kParts, TileValues kValues, class Isa, class Real>
inline Weighed<Vec<Isa, Real>> weigh_and_pack(const WeightTile<Real>& tile, int i, int lanes,
                                              Vec<Isa, Real> base,
                                              const Weigher<Isa, Real>& weigher) {
  using V = Vec<Isa, Real>;
  using Unit = MatrixUnit<Isa, Real>;
  const WeightExp<Isa, Real> exp = weigher.exp;
  const Parts packed = tile.packed;
  const V zero = V::set1(Real{0});
  constexpr bool kBounded = kValues == TileValues::kSomeHidden;
  const KeyRange seen = kBounded ? keys_seen<Isa, Real>(tile, i) : KeyRange{0, tile.keys};
  const Real* s = tile.s + seen.begin * lanes + i;
  const int keys = static_cast<int>(seen.end);
  PendingProduct<Real>* beside = tile.beside;
  const V floor = weigher.floor;
  V sum = zero;
  V farthest = zero;
  typename Unit::Faintness faintness;
  const auto weigh = [&](V t) {
    if (kBounded) {  // -inf is no faint weight
      const V weight = exp.bounded(t);
      if (kParts == kExactParts) faintness.see(weight);
      return weight;
    }
    if (kValues == TileValues::kFar) t = V::max(floor, t);
    if (kParts == kExactParts) farthest = V::min(t, farthest);
    return exp.unchecked(t);
  };
  int k = 0;
  for (; kBounded && k < seen.begin; k += 2) {
    Unit::template store_weights<kParts>(zero, zero, packed, i, k);
  }
  for (; k + 1 < keys; k += 2, s += 2 * lanes) {
    const V first = weigh(V::load(s) - base);
    const V second = weigh(V::load(s + lanes) - base);
    sum = sum + first;
    sum = sum + second;
    Unit::template store_weights<kParts>(first, second, packed, i, k);
    if (k % 4 == 2 && beside != nullptr) Unit::step(*beside);
  }
  for (; k < packed.ld; k += 2) {
    V first = zero;
    if (k < keys) first = weigh(V::load(s) - base);
    sum = sum + first;
    Unit::template store_weights<kParts>(first, zero, packed, i, k);
  }
  if (kBounded) return {sum, faintness.any(), !V::any_lt(zero, sum)};
  return {sum, V::any_lt(farthest, weigher.least)};
}

// One vector of lanes, from lane i on, by the fast way. m is raised, or was not looked at. False:
// the weights are not right, for nothing was seen before, or one is above the threshold or was not
// a number.
template <class Isa, class Real>
inline bool weigh_at_once(const Panel<Real>& panel, const WeightTile<Real>& tile, int i,
                          const Weigher<Isa, Real>& weigher, bool raised,
                          Weighed<Vec<Isa, Real>>& found) {
  using V = Vec<Isa, Real>;
  constexpr Real kInfinity = std::numeric_limits<Real>::infinity();
  const int lanes = panel.lanes;
  if (!raised && !V::any_lt(V::set1(-kInfinity), V::load(panel.row_max + i))) return false;
  const V base = raised ? base_of<Isa, Real>(panel, i) : V::load(panel.row_max + i);
  const V most =
      V::set1(raised ? kInfinity : static_cast<Real>(1 << static_cast<int>(kRaiseThreshold<Real>)));
  const V zero = V::set1(Real{0});
  V sum = zero;
  using Unit = MatrixUnit<Isa, Real>;
  if (Unit::kPresent && tile.packed.data != nullptr) {
    Unit::with_parts(tile.packed, [&](auto parts) {
      constexpr int kParts = decltype(parts)::value;
      const auto weigh = [&](auto values) {
        found = weigh_and_pack<kParts, values.value, Isa, Real>(tile, i, lanes, base, weigher);
      };
      if (tile.partial != nullptr) {
        weigh(std::integral_constant<TileValues, TileValues::kSomeHidden>());
      } else if (raised) {
        weigh(std::integral_constant<TileValues, TileValues::kFar>());
      } else {
        weigh(std::integral_constant<TileValues, TileValues::kNear>());
      }
      sum = found.sum;
    });
  } else {
    for (int k = 0; k < tile.keys; ++k) {
      const V weight = weigher.exp.unchecked(V::load(tile.s + k * lanes + i) - base);
      sum = sum + weight;
      weight.store(tile.weights + k * lanes + i);
    }
  }
  if (V::any_lt(V::select_lt(sum, most, sum, V::set1(Real{-1})), zero)) return false;
  (V::load(panel.row_sum + i) + sum).store(panel.row_sum + i);
  return true;
}

// The bit that stands for the lanes from i on; some vectors share one where there are more than 64.
template <class Real>
[[gnu::always_inline]] inline uint64_t left_out_bit(const Panel<Real>& panel, int64_t i) {
  return uint64_t{1} << (i * 64 / panel.lanes);
}

// Puts the subnormal weights of the lanes from i on where they are left out.
template <class Isa>
[[gnu::noinline]] void restore_subnormal(const Panel<float>& panel, const WeightTile<float>& tile,
                                         int i, Exponent<float> exponent) {
  using V = Vec<Isa, float>;
  const WeightExp<Isa, float> exp(exponent);
  const V base = base_of<Isa, float>(panel, i);
  const int64_t lanes = panel.lanes;
  for (int64_t k = 0; k < tile.keys; ++k) {
    exp(V::load(tile.s + k * lanes + i) - base).store(tile.weights + k * lanes + i);
  }
}

// Whether some key of the tile has a weight that is not 0 for some of the lanes from i on.
template <class Isa>
[[gnu::noinline]] bool any_weight(const Panel<float>& panel, const WeightTile<float>& tile, int i,
                                  Exponent<float> exponent) {
  using V = Vec<Isa, float>;
  const V row_max = V::load(panel.row_max + i);
  const int64_t lanes = panel.lanes;
  V nearest = V::load(tile.s + i) - row_max;
  for (int64_t k = 1; k < tile.keys; ++k) {
    nearest = V::max(V::load(tile.s + k * lanes + i) - row_max, nearest);
  }
  return V::any_lt(V::set1(-151.0f / exponent.hi), nearest);
}

// Packs the weights of the lanes from i on. True: some are faint and left out; tile.weights holds
// all.
template <class Isa, class Real>
inline bool pack_lanes(const Panel<Real>& panel, const WeightTile<Real>& tile, int i) {
  return MatrixUnit<Isa, Real>::pack_weights(
      {tile.weights + i, panel.lanes, tile.keys, Vec<Isa, Real>::kLanes},
      columns_from(tile.packed, i));
}

struct LeftOut {
  uint64_t vectors = 0;  // as left_out_bit() tells them
  bool all = false;      // packed weights are all 0
};

// Turns tile values into weights, and takes them into m and l; rescales O where m was raised. Most
// tiles raise no m: their weights are computed without a look at the maximum, and thrown away where
// a sum says that one was above the threshold, infinite or not a number. Returns which vectors of
// lanes have weights that are left out: subnormal ones, which add_subnormal() adds to O, or
// (packed) those that add_faint_right() does.
template <class Isa, class Real>
inline LeftOut online_softmax(const Panel<Real>& panel, const WeightTile<Real>& tile,
                              int head_dim_v, Exponent<Real> exponent) {
  using V = Vec<Isa, Real>;
  const Weigher<Isa, Real> weigher = {
      WeightExp<Isa, Real>(exponent),
      V::set1(static_cast<Real>(0.01 - kFaintExponent) / exponent.hi),
      V::set1(Real{-1e4} / exponent.hi)};
  const bool packs = tile.packed.data != nullptr;
  const bool may_be_right = (packs || tile.partial == nullptr) && tile.s != tile.weights;
  LeftOut left_out;
  int weightless = 0;
  for (int i = 0; i < panel.lanes; i += V::kLanes) {
    Weighed<V> found = {V::set1(Real{0})};
    bool lacks = false;
    const auto weigh = [&](bool raised) {
      if (tile.partial != nullptr) {
        return weigh_at_once<Isa, Real>(panel, tile, i, weigher, raised, found);
      }
      const SubnormalsAreZero<Isa, Real> zeros;
      const bool right = weigh_at_once<Isa, Real>(panel, tile, i, weigher, raised, found);
      lacks = zeros.dropped();
      return right;
    };
    bool weighed = may_be_right && weigh(false);
    if (!weighed) {
      raise_maximum<Isa, Real>(panel, tile, i, head_dim_v, exponent);
      weighed = may_be_right && packs && weigh(true);
    }
    if (!weighed) lacks = weigh_any<Isa, Real>(panel, tile, i, exponent);
    if (packs) {
      if constexpr (sizeof(Real) == 4) {
        bool none = weighed && found.none;
        bool again = tile.packed.parts == kExactParts && (weighed ? found.faint : lacks);
        if (again && weighed && !any_weight<Isa>(panel, tile, i, exponent)) {
          again = false;  // all are packed as the 0 they are
          none = true;
        }
        weightless += none ? 1 : 0;
        if (again) restore_subnormal<Isa>(panel, tile, i, exponent);
        lacks = (!weighed || again) && pack_lanes<Isa, Real>(panel, tile, i);
      }
    }
    if (lacks) left_out.vectors |= left_out_bit(panel, i);
  }
  left_out.all = weightless * V::kLanes == panel.lanes;
  return left_out;
}

// O += the subnormal weights of the lanes from i on times values [keys][v_ld], 2^64 moved from one
// factor to the other, so that no product meets a subnormal number. Their part in l is nothing
// beside a weight near 1. factors [keys][lanes]: of dropout, or null.
template <class Isa>
[[gnu::noinline]] void add_subnormal(const Panel<float>& panel, const WeightTile<float>& tile,
                                     int i, const GemmTile<float>& values, const float* factors,
                                     Exponent<float> exponent) {
  using V = Vec<Isa, float>;
  const WeightExp<Isa, float> exp(exponent);
  const V zero = V::set1(0.0f);
  const V least = V::set1(0x1p-86f);  // half of 2^64 times the smallest subnormal number
  const V normal = V::set1(0x1p-62f);
  const V row_max = V::load(panel.row_max + i);
  const int64_t lanes = panel.lanes;
  for (int64_t k = 0; k < tile.keys; ++k) {
    const V weight = exp.times_2_64(V::load(tile.s + k * lanes + i) - row_max);
    V small = V::select_lt(weight, normal, V::select_lt(weight, least, zero, weight), zero);
    if (!V::any_lt(zero, small)) continue;
    if (factors != nullptr) small = small * V::load(factors + k * lanes + i);
    for (int64_t c = 0; c < values.rows; ++c) {
      float* o = panel.acc_o + c * lanes + i;
      const V before = V::load(o);
      const V sum = V::fma(small, V::set1(values.a[k * values.a_step + c] * 0x1p-64f), before);
      V::select_lt(zero, small, sum, before).store(o);
    }
  }
}

// What a row comes to. lse in two parts, hi + lo, that together carry more than either: the maximum
// and the logarithm of the sum relative to it. share: of the row's weight, what the keys have and
// not the sink. Uninitialised: arrays of them are large, and filled as far as they are used.
struct RowEnd {
  double hi;
  double lo;
  double share;
  double lse() const { return hi + lo; }
};

// Closes the rows (the sink is one more logit), and divisor[i] = l, what O and the weights relative
// to m are divided by; infinity for a row that saw nothing.
template <class Isa, class Real>
inline void close_rows(const Problem& p, int64_t h, const Panel<Real>& panel,
                       const ScoreScale<Real>& scale, Real* divisor, RowEnd* rows) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const double sink = sink_logit<Isa>(p, h);
  const auto log = [&](double x) { return p.lse.present ? std::log(x) : 0.0; };  // is it asked for
  for (int i = 0; i < panel.lanes; ++i) {
    // The product is rounded as the backward pass rounds it, so that a dominant key weighs
    // exactly 1.
    const Real logit = scale.folded ? panel.row_max[i] * scale.logit : panel.row_max[i];
    const double row_max = panel.row_max[i] == -kInfinity ? -kInfinity : static_cast<double>(logit);
    const double row_sum = panel.row_sum[i];
    const bool empty = row_sum == 0.0;
    divisor[i] = empty ? static_cast<Real>(kInfinity) : panel.row_sum[i];
    if (sink == -kInfinity) {
      rows[i] = {empty ? -kInfinity : row_max, empty ? 0.0 : log(row_sum), 1.0};
      continue;
    }
    const double top = row_max > sink ? row_max : sink;
    const double keys = empty ? 0.0 : row_sum * std::exp(row_max - top);
    const double total = keys + std::exp(sink - top);
    rows[i] = {top, log(total), keys / total};
  }
}

}  // namespace attentile::cpu

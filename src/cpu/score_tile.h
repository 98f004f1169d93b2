// SPDX-License-Identifier: Apache-2.0
// One tile of scores, S^T [keys][lanes]: queries of a panel along the SIMD lanes, one row per key.
// Scale, softcap, bias, ALiBi and every mask are applied here, by all algorithms alike. Row k of a
// tile is key k0 + k; lane i is query q0 + i; lanes beyond `rows` carry zeros and are never stored.
#pragma once

#include <limits>

#include "cpu/dot_products.h"
#include "cpu/packed_gemm.h"
#include "cpu/tile_io.h"

namespace attentile::cpu {

struct Tile {
  int64_t b = 0;     // batch entry
  int64_t h = 0;     // query head
  int64_t kv_h = 0;  // KV head, where a task is about one; else by group_size
  const Sequence* s = nullptr;
  int64_t q0 = 0;
  int rows = 0;
  int lanes = 0;
  int64_t k0 = 0;
  int keys = 0;       // at most step_n
  bool dead = false;  // backward: has_dead_rows()
  // From q0 to that of the tile after this: of the same keys where it is positive, else of the
  // next.
  int64_t next_rows = 0;
};

// Constants of the score arithmetic. When nothing but a positive scale stands between the dot
// product and the softmax, the scale is left to the exponent: weight = 2^((s - max) * exponent),
// and the maximum is subtracted before anything is multiplied.
template <class Real>
struct ScoreScale {
  bool folded = false;  // tile values are raw dot products
  Real logit = 1;       // dot product -> logit (or -> argument of tanh with softcap)
  Real softcap = 0;
  Exponent<Real> exponent;  // tile value difference -> log2 of the weight
};

inline constexpr double kLog2E = 1.4426950408889634;
inline constexpr double kLog2ETail = 2.0355273740931033e-17;  // log2(e) - kLog2E

template <class Isa>
inline double clamp(double value, double least, double most) {
  return value < least ? least : (value > most ? most : value);
}

template <class Isa, class Real>
inline Real to_finite(double value) {
  constexpr double kLargest = sizeof(Real) == 4 ? 3.4028234663852886e38 : 1.7976931348623157e308;
  return static_cast<Real>(clamp<Isa>(value, -kLargest, kLargest));
}

template <class Isa, class Real>
inline ScoreScale<Real> make_score_scale(const Problem& p, bool may_fold) {
  ScoreScale<Real> scale;
  const bool plain = p.softcap == 0.0 && !p.bias.present && !p.alibi_slopes.present;
  const double exponent = p.softmax_scale * kLog2E;
  scale.folded = may_fold && plain && exponent > 1e-30 && exponent < 1e30;
  scale.logit = to_finite<Isa, Real>(p.softmax_scale);
  if (p.softcap > 0) {
    // In float both factors of cap * tanh(S / cap) must be normal numbers; no logit that float
    // holds and the contract promises (up to 1e30) tells a cap beyond these ends from the end
    // itself.
    const double cap = sizeof(Real) == 8 ? p.softcap : clamp<Isa>(p.softcap, 1e-30, 1e34);
    scale.softcap = static_cast<Real>(cap);
    scale.logit = to_finite<Isa, Real>(p.softmax_scale / cap);
  }
  const double factor = scale.folded ? exponent : kLog2E;
  scale.exponent.hi = static_cast<Real>(factor);
  const double tail =
      scale.folded ? std::fma(p.softmax_scale, kLog2E, -exponent) + p.softmax_scale * kLog2ETail
                   : kLog2ETail;
  const double rest = factor - static_cast<double>(scale.exponent.hi);  // 0 in double
  scale.exponent.lo = static_cast<Real>(rest + tail);
  return scale;
}

// Block pattern: whether some (all = false) or every (all = true) pattern tile that meets the
// queries [q0, q0 + rows) and the keys from k0 on is visible. Key tiles never straddle a pattern
// column.
template <class Isa>
inline bool pattern_visible(const Problem& p, int64_t h, int64_t q0, int64_t rows, int64_t k0,
                            bool all) {
  const int64_t column = k0 / p.block_size_k;
  for (int64_t r = q0 / p.block_size_q; r * p.block_size_q < q0 + rows; ++r) {
    const bool visible = *p.block_mask.at(h, r, column, 0) != 0;
    if (visible != all) return visible;
  }
  return all;
}

// First key after k at which a new key tile begins.
template <class Isa>
inline int64_t next_key_tile(const Problem& p, int64_t tile_n, int64_t k) {
  if (!p.block_mask.present) return (k / tile_n + 1) * tile_n;
  const int64_t column = k / p.block_size_k * p.block_size_k;
  return min64(column + ((k - column) / tile_n + 1) * tile_n, column + p.block_size_k);
}

template <class Isa>
inline TileClass classify(const Problem& p, const Tile& t) {
  TileClass band = t.s->band.classify(t.q0, t.q0 + t.rows, t.k0, t.k0 + t.keys);
  if (band == TileClass::kHidden) return band;
  if (p.block_mask.present) {
    if (!pattern_visible<Isa>(p, t.h, t.q0, t.rows, t.k0, false)) return TileClass::kHidden;
    if (!pattern_visible<Isa>(p, t.h, t.q0, t.rows, t.k0, true)) band = TileClass::kPartial;
  }
  return p.mask.present ? TileClass::kPartial : band;
}

// Turns [rows][keys] of slow memory into [keys][lanes]: calls put(k, i, v) for every key of the
// tile and every vector of its lanes, v holding the values of queries i, i + 1, ...; 0 beyond the
// rows. load(cell, count) gives the values of `count` keys of one query, the first at `cell`, and 0
// beyond them; load_whole(cell) the same of a whole vector, which is asked most of the time.
template <class Isa, class Real, class LoadWhole, class Load, class Put>
inline void visit_by_keys(const Tile& t, const Array4& from, LoadWhole load_whole, Load load,
                          Put put) {
  using V = Vec<Isa, Real>;
  constexpr int kLanes = V::kLanes;
  const char* tile = from.at(t.b, t.h, t.q0, t.k0);
  const int64_t row = from.stride[2] * size_of(from.dtype);
  const int64_t column = from.stride[3] * size_of(from.dtype);
  for (int i0 = 0; i0 < t.lanes; i0 += kLanes) {
    for (int k0 = 0; k0 < t.keys; k0 += kLanes) {
      const int count = static_cast<int>(min64(kLanes, t.keys - k0));
      const char* cells = i0 < t.rows ? tile + i0 * row + k0 * column : tile;
      V block[kLanes];
      if (count == kLanes && i0 + kLanes <= t.rows) {
        for (int i = 0; i < kLanes; ++i) block[i] = load_whole(cells + i * row);
      } else {
        for (int i = 0; i < kLanes; ++i) {
          block[i] = i0 + i < t.rows ? load(cells + i * row, count) : V::set1(Real{0});
        }
      }
      transpose(block);
      for (int n = 0; n < count; ++n) put(k0 + n, i0, block[n]);
    }
  }
}

// The way back: values(k, i) is the vector of queries i, i + 1, ... of key k, and `to` receives the
// rows. By rows, since most often these are contiguous, while a column takes a page an element.
template <class Isa, class Real, class Values>
inline void store_by_rows(Worker<Isa, Real>& w, const Tile& t, const Array4& to, Values values) {
  using V = Vec<Isa, Real>;
  constexpr int kLanes = V::kLanes;
  for (int i0 = 0; i0 < t.rows; i0 += kLanes) {
    const int rows = static_cast<int>(min64(kLanes, t.rows - i0));
    for (int k0 = 0; k0 < t.keys; k0 += kLanes) {
      const int count = static_cast<int>(min64(kLanes, t.keys - k0));
      V block[kLanes];
      for (int n = 0; n < kLanes; ++n) block[n] = values(k0 + min64(n, count - 1), i0);
      transpose(block);
      for (int i = 0; i < rows; ++i) {
        store_vector<Isa, Real>(block[i], to.at(t.b, t.h, t.q0 + i0 + i, t.k0 + k0), to.dtype,
                                to.stride[3], count);
      }
    }
  }
  w.count_written(static_cast<int64_t>(t.rows) * t.keys * size_of(to.dtype));
}

// hide[k][i] = -inf where the boolean mask hides key k from query i.
template <class Isa, class Real>
inline void hide_masked(Worker<Isa, Real>& w, const Tile& t, Real* hide) {
  using V = Vec<Isa, Real>;
  const Array4& mask = w.problem.mask;
  const auto load = [&](const char* cell, int count) {
    Real hidden[V::kLanes] = {};
    for (int n = 0; n < count; ++n) {
      if (cell[n * mask.stride[3]] == 0) hidden[n] = -std::numeric_limits<Real>::infinity();
    }
    return V::load(hidden);
  };
  const auto put = [&](int k, int i, V hidden) {
    Real* cell = hide + k * t.lanes + i;
    (V::load(cell) + hidden).store(cell);
  };
  const auto load_bytes = [](const char* cell) {
    Real hidden[V::kLanes];
    for (int n = 0; n < V::kLanes; ++n) {  // a loop that compilers turn into vectors
      hidden[n] = cell[n] == 0 ? -std::numeric_limits<Real>::infinity() : Real{0};
    }
    return V::load(hidden);
  };
  if (mask.stride[3] == 1) {
    visit_by_keys<Isa, Real>(t, mask, load_bytes, load, put);
  } else {
    const auto load_all = [&](const char* cell) { return load(cell, V::kLanes); };
    visit_by_keys<Isa, Real>(t, mask, load_all, load, put);
  }
  w.count_read(static_cast<int64_t>(t.rows) * t.keys);
}

// hide[k][i] = 0 where query i sees key k, else -inf.
template <class Isa, class Real>
inline void fill_hide(Worker<Isa, Real>& w, const Tile& t, Real* hide, Real* lane_buffer) {
  const Problem& p = w.problem;
  using V = Vec<Isa, Real>;
  constexpr Real kHidden = -std::numeric_limits<Real>::infinity();
  Real* lo = lane_buffer;
  Real* hi = lane_buffer + t.lanes;
  for (int i = 0; i < t.lanes; ++i) {
    const int64_t query = t.q0 + (i < t.rows ? i : t.rows - 1);
    lo[i] = static_cast<Real>(clamp64(t.s->band.lo(query) - t.k0, 0, t.keys));
    hi[i] = static_cast<Real>(clamp64(t.s->band.hi(query) - t.k0, 0, t.keys));
  }
  for (int k = 0; k < t.keys; ++k) {
    const V key = V::set1(static_cast<Real>(k));
    for (int i = 0; i < t.lanes; i += V::kLanes) {
      const V below = V::select_lt(key, V::load(lo + i), V::set1(kHidden), V::set1(Real{0}));
      V::select_lt(key, V::load(hi + i), below, V::set1(kHidden)).store(hide + k * t.lanes + i);
    }
  }
  if (p.block_mask.present) {
    for (int i = 0; i < t.rows; ++i) {
      if (pattern_visible<Isa>(p, t.h, t.q0 + i, 1, t.k0, false)) continue;
      for (int k = 0; k < t.keys; ++k) hide[k * t.lanes + i] = kHidden;
    }
  }
  if (p.mask.present) hide_masked<Isa, Real>(w, t, hide);
}

// The sink's logit; -inf where there is none.
template <class Isa>
inline double sink_logit(const Problem& p, int64_t h) {
  if (!p.sink.present) return -std::numeric_limits<double>::infinity();
  return load_scalar<Isa, float>(p.sink.at(h, 0, 0, 0), DType::kFloat32);
}

// Calls visit(i) for the rows of the tile whose lse is `lse`.
template <class Isa, class Real, class F>
inline void for_rows_with_lse(const Problem& p, const Tile& t, double lse, F visit) {
  for (int i = 0; i < t.rows; ++i) {
    const char* cell = p.lse.at(t.s->batch_q, t.h, t.s->row_q + t.q0 + i, 0);
    if (static_cast<double>(load_scalar<Isa, Real>(cell, p.lse.dtype)) == lse) visit(i);
  }
}

// Backward: whether some row may see nothing, by its lse: -inf, or the sink's logit.
template <class Isa, class Real>
inline bool has_dead_rows(const Problem& p, const Tile& t) {
  bool found = false;
  const auto note = [&](int) { found = true; };
  for_rows_with_lse<Isa, Real>(p, t, -std::numeric_limits<double>::infinity(), note);
  if (p.sink.present) for_rows_with_lse<Isa, Real>(p, t, sink_logit<Isa>(p, t.h), note);
  return found;
}

// Hides every key from the rows whose lse is -inf: their gradients are 0 whatever they see.
template <class Isa, class Real>
inline void hide_dead_rows(const Problem& p, const Tile& t, Real* hide) {
  constexpr Real kHidden = -std::numeric_limits<Real>::infinity();
  for_rows_with_lse<Isa, Real>(p, t, static_cast<double>(kHidden), [&](int i) {
    for (int k = 0; k < t.keys; ++k) hide[k * t.lanes + i] = kHidden;
  });
}

// From rows whose weight is all the sink's, hides the keys of weight 0: such a row may see nothing,
// and a NaN in its dout must not reach dv then. weights: P, or dS.
template <class Isa, class Real>
inline void hide_weightless(const Problem& p, const Tile& t, const Real* weights, Real* hide) {
  if (!p.sink.present) return;
  for_rows_with_lse<Isa, Real>(p, t, sink_logit<Isa>(p, t.h), [&](int i) {
    for (int k = 0; k < t.keys; ++k) {
      const int at = k * t.lanes + i;
      if (weights[at] == 0) hide[at] = -std::numeric_limits<Real>::infinity();
    }
  });
}

// Asks for what an array of pairs has for the tile after this.
template <class Isa>
inline void prefetch_pairs(const Tile& t, const Array4& from) {
  if (from.stride[3] != 1) return;
  const int64_t bytes = t.keys * size_of(from.dtype);
  const int64_t row_bytes = from.stride[2] * size_of(from.dtype);
  const int64_t q0 = t.q0 + t.next_rows;
  const int64_t rows = row_bytes == 0 ? 1 : min64(t.lanes, t.s->seqlen_q - q0);
  const char* next = from.at(t.b, t.h, q0, t.k0) + (t.next_rows > 0 ? 0 : bytes);
  for (int64_t i = 0; i < rows; ++i, next += row_bytes) {
    for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(next + byte, 0, 2);
  }
}

// Calls put(k, i, v) with what is added to the logits, as visit_by_keys() does, and asks for the
// next tile.
template <class Isa, class Real, class Put>
inline void visit_bias(Worker<Isa, Real>& w, const Tile& t, Put put) {
  using V = Vec<Isa, Real>;
  const Array4& from = w.problem.bias;
  const auto load = [&](const char* cell, int count) {
    return load_vector<Isa, Real>(cell, from.dtype, from.stride[3], count);
  };
  const auto visit = [&](auto load_whole) {
    visit_by_keys<Isa, Real>(t, from, load_whole, load, put);
  };
  const bool in_rows = from.stride[3] == 1;
  if (in_rows && from.dtype == (sizeof(Real) == 4 ? DType::kFloat32 : DType::kFloat64)) {
    visit([](const char* cell) { return V::load(reinterpret_cast<const Real*>(cell)); });
  } else {  // the choice by dtype is made for every vector
    visit([&](const char* cell) { return load(cell, V::kLanes); });
  }
  prefetch_pairs<Isa>(t, from);
  w.count_read(static_cast<int64_t>(t.rows) * t.keys * size_of(from.dtype));
}

// x -= slope * |i + offset - j|, in one rounding: beside a distant key the slope's product is
// large, and rounded alone it would cost the logit its last bits.
template <class Isa, class Real>
inline void add_alibi(const Problem& p, const Tile& t, Real* x) {
  using V = Vec<Isa, Real>;
  const Real slope = load_scalar<Isa, Real>(p.alibi_slopes.at(t.b, t.h, 0, 0), DType::kFloat32);
  Real step[V::kLanes];
  for (int i = 0; i < V::kLanes; ++i) step[i] = static_cast<Real>(i);
  const V lane = V::load(step);
  for (int k = 0; k < t.keys; ++k) {
    // Of lane 0; the offset may be any int64.
    const __int128 distance = static_cast<__int128>(t.q0) + t.s->band.offset - (t.k0 + k);
    for (int i = 0; i < t.lanes; i += V::kLanes) {
      const V apart = V::abs(V::set1(static_cast<Real>(distance + i)) + lane);
      Real* cell = x + k * t.lanes + i;
      V::fma(V::set1(-slope), apart, V::load(cell)).store(cell);
    }
  }
}

// What the score arithmetic of a tile reads and works in.
template <class Real>
struct ScoreTile {
  const Real* k = nullptr;  // [keys][k_ld]
  int64_t k_ld = 0;
  const Real* q_t = nullptr;     // [head_dim][lanes]
  Real* s = nullptr;             // [keys][lanes], the result
  Real* hide = nullptr;          // [keys][lanes], filled if the tile is partial
  Real* extra = nullptr;         // [keys][lanes]
  Real* lane = nullptr;          // [2][lanes]
  Real* cap = nullptr;           // [keys][lanes], receives tanh(S / softcap); may be null
  const Real* q_rows = nullptr;  // [rows][k_ld], for a sequence of few queries
  Parts k_parts = {};            // of the keys
  Parts q_parts = {};
};

// Scale, softcap and bias, in place on dot products.
template <class Isa, class Real>
inline void scale_products(Worker<Isa, Real>& w, const Tile& t, const ScoreScale<Real>& scale,
                           const ScoreTile<Real>& tile) {
  using V = Vec<Isa, Real>;
  if (scale.folded) return;
  const bool biased = w.problem.bias.present;
  const V logit = V::set1(scale.logit);
  const bool capped = scale.softcap > 0;
  for (int i = 0; i < t.keys * t.lanes && (capped || !biased); i += V::kLanes) {
    V x = V::load(tile.s + i) * logit;
    if (capped) {
      x = tanh<Isa>(x);
      if (tile.cap != nullptr) x.store(tile.cap + i);
      x = x * V::set1(scale.softcap);
    }
    x.store(tile.s + i);
  }
  if (!biased) return;
  visit_bias<Isa, Real>(w, t, [&](int k, int i, V bias) {
    Real* cell = tile.s + k * t.lanes + i;
    const V x = V::load(cell);
    (capped ? x + bias : V::fma(x, logit, bias)).store(cell);
  });
}

// A partial tile is computed in groups of so many keys, each for the vectors of lanes alone in
// which some query sees some of them.
inline constexpr int kKeyGroup = 16;

struct VectorRange {
  int begin = 0;
  int end = 0;
};

template <class Isa, class Real>
inline VectorRange vectors_seeing(const Tile& t, int k, int keys) {
  constexpr int64_t kLanes = Vec<Isa, Real>::kLanes;
  const BandMask& band = t.s->band;
  const int64_t first = t.k0 + k;
  VectorRange range = {0, static_cast<int>(t.lanes / kLanes)};
  while (range.begin < range.end &&
         band.hi(t.q0 + min64(t.rows, (range.begin + 1) * kLanes) - 1) <= first) {
    ++range.begin;
  }
  while (range.begin < range.end && band.lo(t.q0 + (range.end - 1) * kLanes) >= first + keys) {
    --range.end;
  }
  return range;
}

// Calls do_group(k, keys, vectors) for the groups of the tile, those alike in one; for a whole tile
// once.
template <class Isa, class Real, class F>
inline void for_key_groups(const Tile& t, bool partial, F do_group) {
  constexpr int kLanes = Vec<Isa, Real>::kLanes;
  if (!partial) return do_group(0, t.keys, VectorRange{0, t.lanes / kLanes});
  int begin = 0;
  VectorRange last = vectors_seeing<Isa, Real>(t, 0, kKeyGroup);
  for (int k = kKeyGroup; k < t.keys; k += kKeyGroup) {
    const VectorRange range = vectors_seeing<Isa, Real>(t, k, kKeyGroup);
    if (range.begin == last.begin && range.end == last.end) continue;
    if (last.begin < last.end) do_group(begin, k - begin, last);
    begin = k;
    last = range;
  }
  if (last.begin < last.end) do_group(begin, t.keys - begin, last);
}

// S^T of few queries, 0 in lanes beyond rows. Keys and queries are padded with zeros to whole
// vectors.
template <class Isa>
inline void dot_tile(const Tile& t, const ScoreTile<float>& tile) {
  constexpr int kKeys = kDotSums<Isa>;
  const float* key[kKeys];
  float dots[kKeys];
  fill_lanes<Isa, float>(tile.s, static_cast<int64_t>(t.keys) * t.lanes, 0.0f);
  for (int k = 0; k < t.keys; k += kKeys) {
    const int count = static_cast<int>(min64(kKeys, t.keys - k));
    for (int n = 0; n < kKeys; ++n) key[n] = tile.k + (k + min64(n, count - 1)) * tile.k_ld;
    for (int i = 0; i < t.rows; ++i) {
      dot_products<Isa, float, 1>({tile.q_rows + i * tile.k_ld, 0, tile.k_ld}, key, dots);
      for (int n = 0; n < count; ++n) tile.s[(k + n) * t.lanes + i] = dots[n];
    }
  }
}

// The products of a tile: S^T = K Q^T.
template <class Isa, class Real>
inline void multiply_tile(Worker<Isa, Real>& w, const Tile& t, bool partial,
                          const ScoreTile<Real>& tile) {
  if constexpr (sizeof(Real) == 4) {
    if (tile.q_rows != nullptr) return dot_tile<Isa>(t, tile);
  }
  const bool packed = tile.q_parts.data != nullptr;
  for_key_groups<Isa, Real>(t, partial && !packed, [&](int k, int keys, VectorRange vectors) {
    const int lane = vectors.begin * Vec<Isa, Real>::kLanes;
    const GemmTile<Real> product = {.a = tile.k + k * tile.k_ld,
                                    .a_row = tile.k_ld,
                                    .a_step = 1,
                                    .b = tile.q_t + lane,
                                    .b_step = t.lanes,
                                    .c = tile.s + k * t.lanes + lane,
                                    .c_row = t.lanes,
                                    .rows = keys,
                                    .cols = vectors.end * Vec<Isa, Real>::kLanes - lane,
                                    .depth = static_cast<int>(w.problem.head_dim),
                                    .left = tile.k_parts,
                                    .right = tile.q_parts};
    multiply_scores<Isa, Real>(product, tile.extra);
  });
}

// The logits of a tile, -inf where hidden; with a folded scale its raw dot products.
template <class Isa, class Real>
inline void tile_logits(Worker<Isa, Real>& w, const Tile& t, bool partial,
                        const ScoreScale<Real>& scale, const ScoreTile<Real>& tile) {
  using V = Vec<Isa, Real>;
  const int count = t.keys * t.lanes;
  multiply_tile<Isa, Real>(w, t, partial, tile);
  scale_products<Isa, Real>(w, t, scale, tile);
  if (w.problem.alibi_slopes.present) add_alibi<Isa, Real>(w.problem, t, tile.s);
  if (partial) {
    fill_hide<Isa, Real>(w, t, tile.hide, tile.lane);
    if (t.dead) hide_dead_rows<Isa, Real>(w.problem, t, tile.hide);
    const V zero = V::set1(Real{0});
    const V hidden = V::set1(-std::numeric_limits<Real>::infinity());
    for (int i = 0; i < count; i += V::kLanes) {
      V::select_lt(V::load(tile.hide + i), zero, hidden, V::load(tile.s + i)).store(tile.s + i);
    }
  }
}

}  // namespace attentile::cpu

// SPDX-License-Identifier: Apache-2.0
// A tile of few queries against kDecodeKeys keys of one KV head, the lanes along head_dim for the
// products and along the keys for the softmax; see decode.h. Row r = g * seqlen_q + i is query i of
// the g-th query head of the KV head.
#pragma once

#include <cstring>

#include "cpu/forward.h"

namespace attentile::cpu {

// One piece's result, in the workspace; O not yet divided by l.
struct DecodeState {
  float* acc_o = nullptr;    // [rows][padded_dim_v]
  float* row_max = nullptr;  // [rows], in tile values; -inf: nothing seen yet
  float* row_sum = nullptr;  // [rows][lanes]
};

// What a task works on and in.
struct DecodeTask {
  const Sequence* s = nullptr;
  int64_t b = 0;
  int64_t kv_h = 0;
  int seqlen_q = 0;
  int row0 = 0;  // rows [row0, row0 + rows) are those below
  int rows = 0;
  int64_t k0 = 0;  // of the tile
  int keys = 0;
  bool partial = false;      // some row may not see some key of the tile
  float* q = nullptr;        // [rows][padded_dim]
  float* s_rows = nullptr;   // [rows][kDecodeKeys], S and then P; up to kDecodeRows
  float* hide = nullptr;     // [rows][kDecodeKeys], 0 or -inf, if partial
  float* extra = nullptr;    // [kDecodeKeys]
  float* widened = nullptr;  // [2][kDecodeKeys][padded_dim or padded_dim_v]
  DecodeState state;

  [[gnu::always_inline]] int64_t head(const Problem& p, int row) const {
    return kv_h * p.group_size + (row0 + row) / seqlen_q;
  }
  [[gnu::always_inline]] int64_t query(int row) const { return (row0 + row) % seqlen_q; }
};

// The same task for kDecodeRows of its rows at most, from row0 on.
[[gnu::always_inline]] inline DecodeTask rows_of(const DecodeTask& t, int row0,
                                                 const CpuPlan& plan) {
  DecodeTask part = t;
  part.row0 = row0;
  part.rows = static_cast<int>(min64(kDecodeRows, t.rows - row0));
  part.q += row0 * int64_t{plan.padded_dim};
  part.state.acc_o += row0 * int64_t{plan.padded_dim_v};
  part.state.row_max += row0;
  part.state.row_sum += row0 * int64_t{plan.lanes};
  return part;
}

// Rows of keys or values: those of a tile, and a few after them, which are fetched ahead; beyond
// the last key of all it is that one again.
template <class Element>
struct RowPointers {
  const Element* row[kDecodeKeys + kDecodeAheadV];
};

// Where the rows lie.
template <class Isa, class Element>
inline void find_rows(const Problem& p, const DecodeTask& t, const Array4& array, int64_t end,
                      RowPointers<Element>& rows) {
  const auto find = [&](int64_t key) { return p.key_row(array, *t.s, t.b, t.kv_h, key); };
  const int64_t step = array.stride[1] * size_of(array.dtype);
  const char* first = find(t.k0);
  for (int64_t n = 0; n < kDecodeKeys + kDecodeAheadV; ++n) {
    const int64_t at = min64(n, end - 1 - t.k0);
    rows.row[n] = reinterpret_cast<const Element*>(p.paged() ? find(t.k0 + at) : first + at * step);
  }
}

// Copies of them, where their values are not neighbours or do not fill whole vectors.
template <class Isa>
inline void copy_rows(Worker<Isa, float>& w, const KeyRows& keys, float* to,
                      RowPointers<float>& rows) {
  load_keys<Isa, float>(w, keys, to);
  for (int64_t n = 0; n < kDecodeKeys + kDecodeAheadV; ++n) {
    rows.row[n] = to + min64(n, keys.keys.end - keys.keys.begin - 1) * keys.ld;
  }
}

template <class Isa, class Element>
[[gnu::always_inline]] inline void fetch_row(const Element* row, int64_t dim) {
  constexpr int64_t kLine = 64 / sizeof(Element);
  for (int64_t c = 0; c < dim; c += kLine) __builtin_prefetch(row + c, 0, 2);
}

// S[r][k] = q[r] . key[k] for kRows rows and all keys of the tile.
template <class Isa, class Element, int kRows>
inline void multiply_keys(const DecodeTask& t, int64_t dim, const RowPointers<Element>& keys,
                          int row) {
  constexpr int kKeys = kDotSums<Isa> / kRows;
  float* s = t.s_rows + row * kDecodeKeys;
  for (int k = 0; k < t.keys; k += kKeys) {
    if (t.row0 + row == 0) {
      for (int n = 0; n < kKeys; ++n) fetch_row<Isa>(keys.row[k + n + kDecodeAheadK], dim);
    }
    float dots[kDotSums<Isa>];
    dot_products<Isa, Element, kRows>({t.q + row * dim, dim, dim}, keys.row + k, dots);
    for (int m = 0; m < kRows; ++m) {
      std::memcpy(s + m * kDecodeKeys + k, dots + int64_t{m} * kKeys, kKeys * sizeof(float));
    }
  }
}

template <class Isa, class Element>
inline void tile_products(const DecodeTask& t, int64_t dim, const RowPointers<Element>& keys) {
  int row = 0;
  for (; row + 4 <= t.rows; row += 4) multiply_keys<Isa, Element, 4>(t, dim, keys, row);
  for (; row + 2 <= t.rows; row += 2) multiply_keys<Isa, Element, 2>(t, dim, keys, row);
  if (row < t.rows) multiply_keys<Isa, Element, 1>(t, dim, keys, row);
}

// O[r] += P[r] V for kRows rows and kVecs vectors of columns.
template <class Isa, class Element, int kRows, int kVecs>
inline void accumulate_values(const DecodeTask& t, int64_t dim, const RowPointers<Element>& values,
                              int row, int64_t column) {
  using V = Vec<Isa, float>;
  V acc[kRows][kVecs];
  for (int m = 0; m < kRows; ++m) {
    for (int n = 0; n < kVecs; ++n) acc[m][n] = V::set1(0.0f);
  }
  const float* weights = t.s_rows + row * kDecodeKeys;
  for (int k = 0; k < t.keys; ++k) {
    const Element* value = values.row[k] + column;
    if (t.row0 + row + column == 0) fetch_row<Isa>(values.row[k + kDecodeAheadV], dim);
    V v_vec[kVecs];
    for (int n = 0; n < kVecs; ++n) v_vec[n] = load_values<Isa>(value + n * V::kLanes);
    for (int m = 0; m < kRows; ++m) {
      const V weight = V::set1(weights[m * kDecodeKeys + k]);
      for (int n = 0; n < kVecs; ++n) acc[m][n] = V::fma(weight, v_vec[n], acc[m][n]);
    }
  }
  for (int m = 0; m < kRows; ++m) {
    float* o = t.state.acc_o + (row + m) * dim + column;
    for (int n = 0; n < kVecs; ++n) {
      (V::load(o + n * V::kLanes) + acc[m][n]).store(o + n * V::kLanes);
    }
  }
}

template <class Isa, class Element, int kRows>
inline void tile_output_rows(const DecodeTask& t, int64_t dim, const RowPointers<Element>& values,
                             int row) {
  constexpr int64_t kLanes = Vec<Isa, float>::kLanes;
  constexpr int kMost = kRows == 1 ? 8 : 4;
  int64_t column = 0;
  for (; column + kMost * kLanes <= dim; column += kMost * kLanes) {
    accumulate_values<Isa, Element, kRows, kMost>(t, dim, values, row, column);
  }
  for (; column + 2 * kLanes <= dim; column += 2 * kLanes) {
    accumulate_values<Isa, Element, kRows, 2>(t, dim, values, row, column);
  }
  if (column < dim) accumulate_values<Isa, Element, kRows, 1>(t, dim, values, row, column);
}

// The same sums over the pairs that are not hidden, for tiles where a NaN or infinity in a value
// must not reach the rows that do not see it.
template <class Isa, class Element>
[[gnu::noinline]] void tile_output_visible(const DecodeTask& t, int64_t dim,
                                           const RowPointers<Element>& values) {
  using V = Vec<Isa, float>;
  for (int row = 0; row < t.rows; ++row) {
    for (int64_t c = 0; c < dim; c += V::kLanes) {
      V acc = V::set1(0.0f);
      for (int k = 0; k < t.keys; ++k) {
        const int64_t at = row * kDecodeKeys + k;
        if (t.hide[at] == 0) {
          acc = V::fma(V::set1(t.s_rows[at]), load_values<Isa>(values.row[k] + c), acc);
        }
      }
      float* o = t.state.acc_o + row * dim + c;
      (V::load(o) + acc).store(o);
    }
  }
}

template <class Isa, class Element>
inline bool values_finite(const DecodeTask& t, int64_t dim, const RowPointers<Element>& values) {
  using V = Vec<Isa, float>;
  const V zero = V::set1(0.0f);
  V sum = zero;  // x * 0 is 0 for finite x, else NaN
  for (int k = 0; k < t.keys; ++k) {
    for (int64_t c = 0; c < dim; c += V::kLanes) {
      sum = V::fma(load_values<Isa>(values.row[k] + c), zero, sum);
    }
  }
  const V one = V::set1(1.0f);
  return !V::any_lt(zero, V::select_lt(sum, one, zero, one));
}

template <class Isa, class Element>
inline void tile_output(const DecodeTask& t, int64_t dim, const RowPointers<Element>& values) {
  if (t.partial && !values_finite<Isa>(t, dim, values)) {
    return tile_output_visible<Isa>(t, dim, values);
  }
  int row = 0;
  for (; row + 4 <= t.rows; row += 4) tile_output_rows<Isa, Element, 4>(t, dim, values, row);
  for (; row + 2 <= t.rows; row += 2) tile_output_rows<Isa, Element, 2>(t, dim, values, row);
  if (row < t.rows) tile_output_rows<Isa, Element, 1>(t, dim, values, row);
}

// lane[i] = i.
template <class Isa>
inline Vec<Isa, float> lane_numbers() {
  using V = Vec<Isa, float>;
  float number[V::kLanes];
  for (int i = 0; i < V::kLanes; ++i) number[i] = static_cast<float>(i);
  return V::load(number);
}

// Scale, softcap, bias and ALiBi of one row, in place on dot products; as scale_products(), for
// distances below 2^24 to the last bit.
template <class Isa>
inline void scale_row(Worker<Isa, float>& w, const DecodeTask& t, const ScoreScale<float>& scale,
                      int row) {
  using V = Vec<Isa, float>;
  const Problem& p = w.problem;
  if (scale.folded) return;
  const int64_t h = t.head(p, row);
  if (p.bias.present) {
    fill_lanes<Isa, float>(t.extra, kDecodeKeys, 0.0f);
    load_row<Isa, float>(p.bias.at(t.b, h, t.query(row), t.k0), p.bias.dtype, p.bias.stride[3],
                         t.keys, t.extra);
    w.count_read(t.keys * size_of(p.bias.dtype));
  }
  float slope = 0;
  if (p.alibi_slopes.present) {
    slope = load_scalar<Isa, float>(p.alibi_slopes.at(t.b, h, 0, 0), DType::kFloat32);
  }
  const __int128 distance = static_cast<__int128>(t.query(row)) + t.s->band.offset - t.k0;
  const V lane = lane_numbers<Isa>();
  const V logit = V::set1(scale.logit);
  float* s = t.s_rows + row * kDecodeKeys;
  for (int k = 0; k < t.keys; k += V::kLanes) {
    V x = V::load(s + k);
    if (scale.softcap > 0) {
      x = tanh<Isa>(x * logit) * V::set1(scale.softcap);
      if (p.bias.present) x = x + V::load(t.extra + k);
    } else {
      x = p.bias.present ? V::fma(x, logit, V::load(t.extra + k)) : x * logit;
    }
    if (p.alibi_slopes.present) {
      const V apart = V::abs(V::set1(static_cast<float>(distance - k)) - lane);
      x = V::fma(V::set1(-slope), apart, x);
    }
    x.store(s + k);
  }
}

// hide[k] = 0 where the row sees key k, else -inf; hidden keys of S become -inf.
template <class Isa>
inline void hide_keys(Worker<Isa, float>& w, const DecodeTask& t, int row) {
  using V = Vec<Isa, float>;
  const Problem& p = w.problem;
  const V hidden = V::set1(-std::numeric_limits<float>::infinity());
  const V zero = V::set1(0.0f);
  const int64_t query = t.query(row);
  const auto within = [&](int64_t key) {
    return V::set1(static_cast<float>(clamp64(key - t.k0, 0, t.keys)));
  };
  const V lo = within(t.s->band.lo(query));
  const V hi = within(t.s->band.hi(query));
  const V lane = lane_numbers<Isa>();
  float* hide = t.hide + row * kDecodeKeys;
  float* s = t.s_rows + row * kDecodeKeys;
  for (int k = 0; k < t.keys; k += V::kLanes) {
    const V key = lane + V::set1(static_cast<float>(k));
    const V below = V::select_lt(key, lo, hidden, zero);
    V::select_lt(key, hi, below, hidden).store(hide + k);
  }
  if (p.mask.present) {
    const char* mask = p.mask.at(t.b, t.head(p, row), query, t.k0);
    for (int k = 0; k < t.keys; ++k) {
      if (mask[k * p.mask.stride[3]] == 0) hide[k] = -std::numeric_limits<float>::infinity();
    }
    w.count_read(t.keys);
  }
  for (int k = 0; k < t.keys; k += V::kLanes) {
    V::select_lt(V::load(hide + k), zero, hidden, V::load(s + k)).store(s + k);
  }
}

// Turns one row's logits into weights, and takes them into m and l; rescales O where m was raised.
template <class Isa>
inline void weigh_row(const DecodeTask& t, const WeightExp<Isa, float>& exp, float margin,
                      int64_t dim_v, int row) {
  using V = Vec<Isa, float>;
  constexpr float kNothing = -std::numeric_limits<float>::infinity();
  float* s = t.s_rows + row * kDecodeKeys;
  const int end = static_cast<int>(round_up(t.keys, V::kLanes));
  for (int k = t.keys; k < end; ++k) s[k] = kNothing;
  V tile_max = V::set1(kNothing);
  for (int k = 0; k < end; k += V::kLanes) tile_max = V::max(V::load(s + k), tile_max);
  float& row_max = t.state.row_max[row];
  float* row_sum = t.state.row_sum + row * V::kLanes;
  if (V::any_lt(V::set1(row_max + margin), tile_max)) {
    float lane_max[V::kLanes];
    tile_max.store(lane_max);
    float raised = row_max;
    for (int i = 0; i < V::kLanes; ++i) raised = lane_max[i] > raised ? lane_max[i] : raised;
    if (row_max != kNothing) {
      const V alpha = exp(V::set1(row_max) - V::set1(raised));
      (V::load(row_sum) * alpha).store(row_sum);
      float* o = t.state.acc_o + row * dim_v;
      for (int64_t c = 0; c < dim_v; c += V::kLanes) (V::load(o + c) * alpha).store(o + c);
    }
    row_max = raised;
  }
  const V base = V::set1(row_max == kNothing ? 0.0f : row_max);  // -inf - -inf would be NaN
  V sum = V::load(row_sum);
  for (int k = 0; k < end; k += V::kLanes) {
    const V weight = exp(V::load(s + k) - base);
    weight.store(s + k);
    sum = sum + weight;
  }
  sum.store(row_sum);
}

}  // namespace attentile::cpu

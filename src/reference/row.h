// SPDX-License-Identifier: Apache-2.0
// One row of attention by the definition: the keys that query i of head h sees, their logits, and
// the softmax over them in two passes (maximum, then sum).
//
//     S_j = softmax_scale * q . k_j;  softcap * tanh(S_j / softcap);
//           + bias - slope * |i + offset - j|
//     lse = log(sum_j exp(S_j) [+ exp(sink)])
//     P_j = exp(S_j - lse)
//
// Hidden keys are not in the list at all, so nothing they hold can reach a sum. Real is the type of
// the arithmetic. S and P are rounded to `rounding` after they are computed: kFloat64 (no rounding)
// makes the oracle, float with q's dtype makes standard attention in that precision. Keys and
// values of one KV head are decoded once and serve all rows: O(seqlen_k * head_dim) memory per
// worker.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "cpu/executor.h"
#include "dtype.h"
#include "problem.h"

namespace attentile::reference {

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();
inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// What a task asks now and then: may I go on?
struct Watch {
  cpu::Progress* progress = nullptr;
  int worker = 0;
  bool keep_going(int64_t step) const { return step % 256 != 0 || progress->keep_going(worker); }
};

// A list whose new elements are not set: they are written, under a watch, before they are read. So
// making a long one takes no time.
template <class T>
struct Unset : std::allocator<T> {
  template <class U>
  struct rebind {
    using other = Unset<U>;
  };
  template <class U>
  void construct(U* at) {
    ::new (static_cast<void*>(at)) U;
  }
};
template <class T>
using List = std::vector<T, Unset<T>>;

// Sets the first n elements to 0. False: stopped.
template <class T>
bool clear_list(List<T>* list, int64_t n, const Watch& watch) {
  constexpr int64_t kStep = 4096;
  for (int64_t begin = 0; begin < n; begin += kStep) {
    if (!watch.progress->keep_going(watch.worker)) return false;
    std::fill_n(list->data() + begin, min64(kStep, n - begin), T{0});
  }
  return true;
}

inline double load(const Array4& array, int64_t a, int64_t b, int64_t c, int64_t d) {
  return load_as_double(array.at(a, b, c, d), array.dtype, 0);
}

inline void store(const Array4& array, const int64_t (&at)[4], double value) {
  store_from_double(array.at(at[0], at[1], at[2], at[3]), array.dtype, 0, value);
}

// Sum of products. float adds in index order, as a plain loop does; double keeps eight partial
// sums.
template <class Real>
Real dot(const Real* a, const Real* b, int64_t n) {
  constexpr int64_t kLanes = sizeof(Real) == sizeof(double) ? 8 : 1;
  Real partial[kLanes] = {};
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) partial[lane] += a[c + lane] * b[c + lane];
  }
  for (; c < n; ++c) partial[0] += a[c] * b[c];
  Real sum = 0;
  for (Real part : partial) sum += part;
  return sum;
}

// The same sum over absolute values: what a condition number is made of.
template <class Real>
double dot_of_magnitudes(const Real* a, const Real* b, int64_t n) {
  constexpr int64_t kLanes = 8;
  double partial[kLanes] = {};
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      partial[lane] += std::fabs(static_cast<double>(a[c + lane] * b[c + lane]));
    }
  }
  for (; c < n; ++c) partial[0] += std::fabs(static_cast<double>(a[c] * b[c]));
  double sum = 0;
  for (double part : partial) sum += part;
  return sum;
}

// target[c] += factor * row[c]
template <class Real>
void add_scaled(Real* target, Real factor, const Real* row, int64_t n) {
  for (int64_t c = 0; c < n; ++c) target[c] += factor * row[c];
}

template <class Real>
void add_scaled_magnitudes(double* target, double factor, const Real* row, int64_t n) {
  for (int64_t c = 0; c < n; ++c) target[c] += factor * std::fabs(static_cast<double>(row[c]));
}

// Decodes n elements; tells whether all are finite.
template <class Real>
bool load_row(const char* first, const Array4& array, int64_t n, Real* row) {
  const int64_t step = array.stride[3] * size_of(array.dtype);
  bool finite = true;
  for (int64_t c = 0; c < n; ++c) {
    row[c] = static_cast<Real>(load_as_double(first + c * step, array.dtype, 0));
    finite = finite && std::isfinite(row[c]);
  }
  return finite;
}

inline int64_t longest_seqlen_k(const Problem& problem) {
  int64_t longest = 0;
  for (int64_t b = 0; b < problem.batch; ++b) {
    longest = std::max(longest, problem.sequence(b).seqlen_k);
  }
  return longest;
}

// Queries of all heads and sequences: the unit of progress.
inline double total_rows(const Problem& problem) {
  double rows = 0;
  for (int64_t b = 0; b < problem.batch; ++b) {
    rows += static_cast<double>(problem.sequence(b).seqlen_q);
  }
  return rows * static_cast<double>(problem.num_heads_q);
}

template <class Real>
struct AttentionRow {
  AttentionRow(const Problem& p, DType rounding_dtype, bool conditions)
      : problem(p), rounding(rounding_dtype), with_conditions(conditions) {
    const int64_t n = longest_seqlen_k(p);
    k.resize(static_cast<size_t>(n * p.head_dim));
    v.resize(static_cast<size_t>(n * p.head_dim_v));
    q.resize(static_cast<size_t>(p.head_dim));
    out.resize(static_cast<size_t>(p.head_dim_v));
    keys.reserve(static_cast<size_t>(n));
    for (std::vector<Real>* list : {&tanh_term, &weight, &kept}) list->resize(keys.capacity());
    finite_key.resize(keys.capacity());
    if (with_conditions) {
      magnitude.resize(keys.capacity());
      out_condition.resize(out.size());
    }
  }

  // Decodes the keys and values that sequence b may read. False: stopped.
  bool enter_head(int64_t batch_entry, int64_t head_kv, const Watch& watch) {
    b = batch_entry;
    kv_head = head_kv;
    s = problem.sequence(b);
    for (int64_t j = 0; j < s.seqlen_k; ++j) {
      if (!watch.keep_going(j)) return false;
      const bool k_finite = load_row(problem.key_row(problem.k, s, b, kv_head, j), problem.k,
                                     problem.head_dim, k.data() + j * problem.head_dim);
      const bool v_finite = load_row(problem.key_row(problem.v, s, b, kv_head, j), problem.v,
                                     problem.head_dim_v, v.data() + j * problem.head_dim_v);
      finite_key[j] = k_finite && v_finite;
    }
    return true;
  }

  // Fills keys, weight, lse and what else belongs to query i of head h. False: stopped.
  bool enter_row(int64_t head, int64_t query, const Watch& watch) {
    h = head;
    i = query;
    finite =
        load_row(problem.q.at(s.batch_q, s.row_q + i, h, 0), problem.q, problem.head_dim, q.data());
    if (!find_visible_keys(watch)) return false;
    for (size_t n = 0; n < keys.size(); ++n) {
      if (!watch.keep_going(static_cast<int64_t>(n))) return false;
      weight[n] = logit(n);
      finite = finite && finite_key[keys[n]] && weight[n] < std::numeric_limits<Real>::infinity();
      const bool keep = !problem.dropout.enabled || problem.dropout.keep(b, h, i, keys[n]);
      kept[n] = keep ? static_cast<Real>(problem.dropout.scale) : Real{0};
    }
    softmax();
    if (with_conditions) weigh_magnitudes();
    return true;
  }

  // out = sum_j kept_j P_j v_j. A dropped or underflowed weight still multiplies: 0 * NaN is NaN.
  bool compute_out(const Watch& watch) {
    std::fill(out.begin(), out.end(), Real{0});
    std::fill(out_condition.begin(), out_condition.end(), 0.0);
    if (dead) return true;
    for (size_t n = 0; n < keys.size(); ++n) {
      if (!watch.keep_going(static_cast<int64_t>(n))) return false;
      const Real* row = v.data() + keys[n] * problem.head_dim_v;
      add_scaled(out.data(), weight[n] * kept[n], row, problem.head_dim_v);
      if (!with_conditions) continue;
      add_scaled_magnitudes(out_condition.data(), magnitude[n] * static_cast<double>(kept[n]), row,
                            problem.head_dim_v);
    }
    return true;
  }

  Real rounded(Real value) const { return static_cast<Real>(round_to(rounding, value)); }

  const Problem& problem;
  const DType rounding;
  const bool with_conditions;

  int64_t b = 0, kv_head = 0, h = 0, i = 0;
  Sequence s;
  List<Real> k, v;                  // [seqlen_k][head_dim], [seqlen_k][head_dim_v]
  std::vector<uint8_t> finite_key;  // [seqlen_k]: no NaN or infinity in k and v

  std::vector<Real> q;          // [head_dim]
  std::vector<int64_t> keys;    // the visible keys, rising; the next arrays go with it
  std::vector<Real> tanh_term;  // tanh(S / softcap)
  std::vector<Real> weight;     // P
  std::vector<Real> kept;       // dropout: 0 or 1 / (1 - p)
  Real lse = 0;
  Real sink_weight = 0;  // exp(sink - lse), 0 without a sink
  bool dead = false;     // no visible key, or all their logits are -inf
  bool finite = true;    // no NaN or infinity among q and the visible keys, values and logits

  std::vector<Real> out;  // [head_dim_v]

  std::vector<double> magnitude;  // conditions of P: see weigh_magnitudes
  std::vector<double> out_condition;
  double sink_magnitude = 0;
  double lse_condition = 0;

 private:
  bool find_visible_keys(const Watch& watch) {
    keys.clear();
    for (int64_t j = s.band.lo(i); j < s.band.hi(i); ++j) {
      if (!watch.keep_going(j)) return false;
      if (problem.mask.present && load(problem.mask, b, h, i, j) == 0) continue;
      if (problem.block_mask.present &&
          load(problem.block_mask, h, i / problem.block_size_q, j / problem.block_size_k, 0) == 0) {
        continue;
      }
      keys.push_back(j);
    }
    return true;
  }

  Real logit(size_t n) {
    const int64_t j = keys[n];
    const Real* key = k.data() + j * problem.head_dim;
    const Real scale = static_cast<Real>(problem.softmax_scale);
    Real x = dot(q.data(), key, problem.head_dim) * scale;
    if (with_conditions) {
      magnitude[n] =
          std::fabs(problem.softmax_scale) * dot_of_magnitudes(q.data(), key, problem.head_dim);
    }
    if (problem.softcap > 0) {
      // Beyond these ends a cap is none, or hides all there is to see, in float.
      const bool narrow = sizeof(Real) == sizeof(float);
      const Real cap =
          static_cast<Real>(narrow ? std::clamp(problem.softcap, 1e-30, 1e34) : problem.softcap);
      tanh_term[n] = std::tanh(x / cap);
      x = cap * tanh_term[n];
    }
    if (problem.bias.present) add_term(n, static_cast<Real>(load(problem.bias, b, h, i, j)), &x);
    if (problem.alibi_slopes.present) {
      const __int128 distance = static_cast<__int128>(i) + s.band.offset - j;
      const Real slope = static_cast<Real>(load(problem.alibi_slopes, b, h, 0, 0));
      add_term(n, -slope * static_cast<Real>(distance < 0 ? -distance : distance), &x);
    }
    return rounded(x);
  }

  void add_term(size_t n, Real term, Real* x) {
    *x += term;
    if (with_conditions) magnitude[n] += std::fabs(static_cast<double>(term));
  }

  // Logits, held in weight, become P.
  void softmax() {
    constexpr Real kNone = -std::numeric_limits<Real>::infinity();
    const bool has_sink = problem.sink.present;
    const Real sink = has_sink ? static_cast<Real>(load(problem.sink, h, 0, 0, 0)) : kNone;
    Real row_max = kNone;
    bool nan = false;
    for (size_t n = 0; n < keys.size(); ++n) {
      nan = nan || std::isnan(weight[n]);
      row_max = std::max(row_max, weight[n]);
    }
    dead = row_max == kNone && !nan;
    if (dead) {
      lse = sink;
      sink_weight = sink == kNone ? Real{0} : std::exp(sink - lse);
      return;
    }
    nan = nan || std::isnan(sink);
    row_max = std::max(row_max, sink);
    if (nan || row_max == -kNone) row_max = std::numeric_limits<Real>::quiet_NaN();
    Real row_sum = 0;
    for (size_t n = 0; n < keys.size(); ++n) {
      weight[n] = std::exp(weight[n] - row_max);
      row_sum += weight[n];
    }
    sink_weight = std::exp(sink - row_max);
    row_sum += sink_weight;
    lse = row_max + std::log(row_sum);
    for (size_t n = 0; n < keys.size(); ++n) weight[n] = rounded(weight[n] / row_sum);
    sink_weight /= row_sum;
  }

  // magnitude: from the sum of |terms| of each logit to that of its weight. float64 has no wider
  // type to hide the rounding of its logits in, so there P_j also carries how far an error of the
  // logits moves it: P_j (1 + (1 - P_j) A_j + sum over the others of P_l A_l). docs/decisions/0006.
  void weigh_magnitudes() {
    lse_condition = 0;
    sink_magnitude = 0;
    if (dead) return;
    const double sink =
        problem.sink.present && sink_weight != 0 ? std::fabs(load(problem.sink, h, 0, 0, 0)) : 0;
    double mean = static_cast<double>(sink_weight) * sink;
    for (size_t n = 0; n < keys.size(); ++n) {
      if (weight[n] == 0) magnitude[n] = 0;
      mean += static_cast<double>(weight[n]) * magnitude[n];
    }
    lse_condition = 1 + mean;
    const double amplify = problem.dtype == DType::kFloat64 ? 1 : 0;
    const auto weigh = [&](double p, double terms) {
      return p * (1 + amplify * ((1 - p) * terms + std::max(0.0, mean - p * terms)));
    };
    for (size_t n = 0; n < keys.size(); ++n) {
      magnitude[n] = weigh(static_cast<double>(weight[n]), magnitude[n]);
    }
    sink_magnitude = weigh(static_cast<double>(sink_weight), sink);
  }
};

}  // namespace attentile::reference

// SPDX-License-Identifier: Apache-2.0
// The vector vocabulary of the kernels. Vec<Isa, Real> is one register of `kLanes` values; an
// instruction set is added by specialising it (scalar.h, avx2.h, avx512.h, neon.h). Every name here
// carries the Isa tag, so that code compiled for one instruction set never serves another.
//
// A specialisation offers, all lane-wise:
//   load(p) store(p) set1(x)       unaligned memory, broadcast
//   a + b, a - b, a * b, a / b, fma(a, b, c) = a * b + c
//   fms(a, b, c) = a * b - c       float only
//   max(a, b) = a > b ? a : b      so b where either is NaN;  min(a, b) = a < b ? a : b
//   select_lt(a, b, x, y)          a < b ? x : y, so y where either is NaN
//   any_lt(a, b)                   whether a < b in some lane
//   abs(a)  round(a)               round: nearest integer, ties to even, float only
//   scale2(a, n)                   a * 2^n for integral n in [-200, 128], float only; underflow is
//                                  gradual
//   load_f16(p) load_bf16(p)       float only: kLanes 16-bit values, widened
//   store_f16(p) store_bf16(p)     float only: rounded to nearest, ties to even
#pragma once

#include <cmath>
#include <cstdint>

namespace attentile::cpu {

template <class Isa, class Real>
struct Vec;

// r[i][j] = r[j][i] for the kLanes vectors at r.
template <class Isa, class Real>
inline void transpose(Vec<Isa, Real>* r) {
  constexpr int kLanes = Vec<Isa, Real>::kLanes;
  Real from[kLanes][kLanes];
  Real to[kLanes][kLanes];
  for (int i = 0; i < kLanes; ++i) r[i].store(from[i]);
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < kLanes; ++j) to[j][i] = from[i][j];
  }
  for (int i = 0; i < kLanes; ++i) r[i] = Vec<Isa, Real>::load(to[i]);
}

// Lane i of the result: the sum of the lanes of r[i], each added up in the same order. Changes r.
template <class Isa>
inline Vec<Isa, float> sum_each(Vec<Isa, float>* r) {
  transpose(r);
  for (int n = Vec<Isa, float>::kLanes / 2; n > 0; n /= 2) {
    for (int i = 0; i < n; ++i) r[i] = r[i] + r[i + n];
  }
  return r[0];
}

// 2^(n + f) for integral n and |f| <= 1/2: a degree-6 polynomial in f (relative error 9e-9 with
// these rounded coefficients, so the result is right to about one unit in the last place), scaled
// by 2^n.
template <class Isa>
inline Vec<Isa, float> exp2_parts(Vec<Isa, float> n, Vec<Isa, float> f) {
  using V = Vec<Isa, float>;
  V p = V::fma(V::set1(1.54531629e-4f), f, V::set1(1.33908634e-3f));
  p = V::fma(p, f, V::set1(9.61808256e-3f));
  p = V::fma(p, f, V::set1(5.55035711e-2f));
  p = V::fma(p, f, V::set1(2.40226508e-1f));
  p = V::fma(p, f, V::set1(6.93147188e-1f));
  p = V::fma(p, f, V::set1(1.0f));
  return V::scale2(p, n);
}

// A factor in two parts, hi + lo, that together carry about twice the precision of Real.
template <class Real>
struct Exponent {
  Real hi = 0;
  Real lo = 0;
};

// While one lives, results that would be subnormal become 0 at no cost; an x86 core takes two
// hundred multiply-adds' time to make such a number, and again to multiply it. dropped(): it
// happened. Elsewhere subnormal numbers cost nothing, and nothing happens; nor in float64, whose
// weights are never computed apart.
template <class Isa, class Real>
class SubnormalsAreZero {
 public:
#if defined(__SSE__)
  SubnormalsAreZero() {
    if constexpr (sizeof(Real) == 8) return;
    asm volatile("stmxcsr %0" : "=m"(before_)::"memory");
    const uint32_t flush = (before_ | kFlushToZero) & ~kUnderflow;
    asm volatile("ldmxcsr %0" ::"m"(flush) : "memory");
  }
  ~SubnormalsAreZero() {
    if constexpr (sizeof(Real) == 4) asm volatile("ldmxcsr %0" ::"m"(before_) : "memory");
  }
  bool dropped() const {
    if constexpr (sizeof(Real) == 8) return false;
    uint32_t now;
    asm volatile("stmxcsr %0" : "=m"(now)::"memory");
    return (now & kUnderflow) != 0;
  }

 private:
  static constexpr uint32_t kFlushToZero = 1u << 15, kUnderflow = 1u << 4;
  uint32_t before_ = 0;
#else
  SubnormalsAreZero() {}  // NOLINT(modernize-use-equals-default): else it were unused
  bool dropped() const { return false; }

 private:
#endif
  SubnormalsAreZero(const SubnormalsAreZero&) = delete;
  SubnormalsAreZero& operator=(const SubnormalsAreZero&) = delete;
};

// t * c = n + f with integral n and |f| <= 1/2, f right to about 2^-25 however large t * c is: the
// rounding of t * c.hi to n cancels in the fused product.
template <class Isa>
inline void split_exponent(Vec<Isa, float> t, Exponent<float> c, Vec<Isa, float>& n,
                           Vec<Isa, float>& f) {
  using V = Vec<Isa, float>;
  const V hi = V::set1(c.hi);
  n = V::round(t * hi);
  f = V::fma(t, V::set1(c.lo), V::fms(t, hi, n));
}

// 2^(t c) for c > 0 and t c <= 128: 0 below the smallest subnormal, NaN for NaN, exact for integral
// t c.
template <class Isa>
inline Vec<Isa, float> exp2(Vec<Isa, float> t, Exponent<float> c) {
  using V = Vec<Isa, float>;
  V n;
  V f;
  split_exponent<Isa>(V::max(V::set1(-200.0f / c.hi), t), c, n, f);
  return exp2_parts<Isa>(n, f);
}

template <class Isa>
inline Vec<Isa, double> exp2(Vec<Isa, double> t, Exponent<double> c);

// 2^(t c) as the forward pass takes it, t being a logit less its row's maximum.
template <class Isa, class Real>
struct WeightExp {
  Exponent<Real> c;

  explicit WeightExp(Exponent<Real> exponent) : c(exponent) {}
  Vec<Isa, Real> operator()(Vec<Isa, Real> t) const { return exp2<Isa>(t, c); }
  // The same, and for t c > 0 too, where it may be any number above 2^60.
  Vec<Isa, Real> bounded(Vec<Isa, Real> t) const {
    using V = Vec<Isa, Real>;
    return exp2<Isa>(V::min(V::set1(Real{120} / c.hi), t), c);
  }
  // May also be an infinity or NaN where t c is below -2^17.
  Vec<Isa, Real> unchecked(Vec<Isa, Real> t) const { return bounded(t); }
  // 2^64 times as much, a normal number where the weight is subnormal; anything below 2^-86 where
  // it is 0. float alone.
  Vec<Isa, Real> times_2_64(Vec<Isa, Real> t) const {
    using V = Vec<Isa, Real>;
    V n;
    V f;
    split_exponent<Isa>(V::max(V::set1(-200.0f / c.hi), t), c, n, f);
    return exp2_parts<Isa>(n + V::set1(64.0f), f);
  }
};

template <class Isa>
inline Vec<Isa, double> exp2_snapped(Vec<Isa, double> t, Exponent<double> c,
                                     Vec<Isa, double> snap) {
  using V = Vec<Isa, double>;
  constexpr double kLn2 = 0.6931471805599453;
  double value[V::kLanes];
  double tolerance[V::kLanes];
  t.store(value);
  snap.store(tolerance);
  for (int lane = 0; lane < V::kLanes; ++lane) {
    const double x = value[lane] * c.hi;
    if (!(x > -2000.0)) {  // also -inf, whose remainder would be NaN
      value[lane] = x <= -2000.0 ? 0.0 : x;
      continue;
    }
    const double nearest = std::nearbyint(x);
    const double rest = std::fma(value[lane], c.hi, -x) + value[lane] * c.lo;
    const bool snapped = std::fabs(x - nearest) <= tolerance[lane];
    const double power = std::exp2(snapped ? nearest : x);
    value[lane] = snapped ? power : power + power * rest * kLn2;
  }
  return V::load(value);
}

template <class Isa>
inline Vec<Isa, double> exp2(Vec<Isa, double> t, Exponent<double> c) {
  return exp2_snapped<Isa>(t, c, Vec<Isa, double>::set1(0.0));
}

// A row's lse as the backward pass subtracts it, in log2: (base + (whole + fraction) / c) c. base
// is 0 unless lse is so large that whole would not be exact.
template <class V>
struct RowShift {
  V base;
  V whole;     // integral
  V fraction;  // at most 1/2
  V snap;
};

// 2^(x c) / 2^(lse c), at most 1, as the backward pass takes it: x c less fraction is right to
// about 2^-25 however far x and lse are apart. Exponents within `snap` of an integer are taken as
// it, so that weights which are powers of two come out exact although lse was rounded to float.
template <class Isa, class Real>
struct ShiftedExp {
  using V = Vec<Isa, Real>;
  Exponent<Real> c;

  explicit ShiftedExp(Exponent<Real> exponent) : c(exponent) {}

  V operator()(V x, const RowShift<V>& row) const {
    if constexpr (sizeof(Real) == 8) {
      const V t = (x - row.base) - row.fraction;
      return exp2_snapped<Isa>(V::min(V::set1(Real{0}), t), c, row.snap);
    } else {
      const V zero = V::set1(0.0f);
      const V hi = V::set1(c.hi);
      const V t = V::max(V::set1(-9e4f), x - row.base);
      const V n = V::round(V::fms(t, hi, row.fraction));
      const V f = V::fma(t, V::set1(c.lo), V::fms(t, hi, n) - row.fraction);
      const V kept = V::select_lt(row.snap, V::abs(f), f, f * zero);  // a product: NaN stays NaN
      const V e = V::max(V::set1(-200.0f), V::min(zero, n - row.whole));
      return V::min(V::set1(1.0f), exp2_parts<Isa>(e, kept));
    }
  }
};

// Hyperbolic tangent to about two units in the last place: an odd polynomial for |x| < 0.625, else
// 1 - 2 / (e^2x + 1).
template <class Isa>
inline Vec<Isa, float> tanh(Vec<Isa, float> x) {
  using V = Vec<Isa, float>;
  const V z = x * x;
  V p = V::fma(V::set1(-5.70498872745e-3f), z, V::set1(2.06390887954e-2f));
  p = V::fma(p, z, V::set1(-5.37397155531e-2f));
  p = V::fma(p, z, V::set1(1.33314422036e-1f));
  p = V::fma(p, z, V::set1(-3.33332819422e-1f));
  const V small = V::fma(p * z, x, x);
  const V magnitude = V::min(V::set1(10.0f), V::abs(x));
  const V e = exp2<Isa>(magnitude, {2.88539004f, 3.85192596e-8f});
  const V large = V::set1(1.0f) - V::set1(2.0f) / (e + V::set1(1.0f));
  const V signed_large = V::select_lt(x, V::set1(0.0f), V::set1(0.0f) - large, large);
  return V::select_lt(magnitude, V::set1(0.625f), small, signed_large);
}

template <class Isa>
inline Vec<Isa, double> tanh(Vec<Isa, double> x) {
  using V = Vec<Isa, double>;
  double value[V::kLanes];
  x.store(value);
  for (int lane = 0; lane < V::kLanes; ++lane) value[lane] = std::tanh(value[lane]);
  return V::load(value);
}

}  // namespace attentile::cpu

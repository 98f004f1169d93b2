// SPDX-License-Identifier: Apache-2.0
// The portable instruction set: four lanes in an array, no intrinsics, no special flags. It is the
// fallback on machines without a faster path and the yardstick of the others. Products and sums are
// rounded separately (no fused multiply-add) but in fms.
#pragma once

#include <bit>

#include "attentile/attention.h"
#include "cpu/simd/vec.h"
#include "dtype.h"

namespace attentile::cpu {

struct Scalar {
  static constexpr Isa kIsa = Isa::kScalar;
  static constexpr int kTileVecs = 2;
  static constexpr int tile_rows(int) { return 4; }
};

template <class Real>
struct Vec<Scalar, Real> {
  static constexpr int kLanes = 4;
  Real lane[kLanes];

  template <class F>
  static Vec map(F f) {
    Vec r;
    for (int i = 0; i < kLanes; ++i) r.lane[i] = f(i);
    return r;
  }
  static Vec load(const Real* p) {
    return map([&](int i) { return p[i]; });
  }
  static Vec set1(Real x) {
    return map([&](int) { return x; });
  }
  void store(Real* p) const {
    for (int i = 0; i < kLanes; ++i) p[i] = lane[i];
  }
  friend Vec operator+(Vec a, Vec b) {
    return map([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  friend Vec operator-(Vec a, Vec b) {
    return map([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  friend Vec operator*(Vec a, Vec b) {
    return map([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  friend Vec operator/(Vec a, Vec b) {
    return map([&](int i) { return a.lane[i] / b.lane[i]; });
  }
  static Vec fma(Vec a, Vec b, Vec c) {
    return map([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
  }
  // Rounded once, as everywhere: exponents are split with it.
  static Vec fms(Vec a, Vec b, Vec c) {
    return map([&](int i) {
      return static_cast<Real>(static_cast<double>(a.lane[i]) * b.lane[i] - c.lane[i]);
    });
  }
  static Vec max(Vec a, Vec b) {
    return map([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static Vec min(Vec a, Vec b) {
    return map([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static Vec select_lt(Vec a, Vec b, Vec x, Vec y) {
    return map([&](int i) { return a.lane[i] < b.lane[i] ? x.lane[i] : y.lane[i]; });
  }
  static bool any_lt(Vec a, Vec b) {
    bool any = false;
    for (int i = 0; i < kLanes; ++i) any |= a.lane[i] < b.lane[i];
    return any;
  }
  static Vec abs(Vec a) {
    return map([&](int i) { return a.lane[i] < 0 ? -a.lane[i] : a.lane[i]; });
  }
  static Vec round(Vec a) {
    // Adding 1.5 * 2^fraction_bits leaves no fraction; right for |a| < 2^22.
    constexpr Real kMagic = sizeof(Real) == 4 ? Real{0x1.8p23} : Real{0x1.8p52};
    return map([&](int i) { return (a.lane[i] + kMagic) - kMagic; });
  }
  static Vec scale2(Vec a, Vec n) {
    return map([&](int i) {
      // NaN and what is out of range become a number here; a carries NaN.
      const int whole = n.lane[i] >= -200 && n.lane[i] <= 128 ? static_cast<int>(n.lane[i]) : 0;
      const int half = whole / 2;
      return a.lane[i] * power_of_two(half) * power_of_two(whole - half);
    });
  }
  static Vec load_f16(const uint16_t* p) {
    return map([&](int i) { return static_cast<Real>(float16_to_float(p[i])); });
  }
  static Vec load_bf16(const uint16_t* p) {
    return map([&](int i) { return static_cast<Real>(bfloat16_to_float(p[i])); });
  }
  void store_f16(uint16_t* p) const {
    for (int i = 0; i < kLanes; ++i) p[i] = double_to_float16(lane[i]);
  }
  void store_bf16(uint16_t* p) const {
    for (int i = 0; i < kLanes; ++i) p[i] = double_to_bfloat16(lane[i]);
  }

 private:
  static float power_of_two(int n) {  // n in [-126, 127]
    return std::bit_cast<float>(static_cast<uint32_t>(n + 127) << 23);
  }
};

}  // namespace attentile::cpu

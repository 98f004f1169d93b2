// SPDX-License-Identifier: Apache-2.0
// Functions that a kernel needs once per row or for rare options, more accurate than the special
// function unit, from IEEE operations alone where they can be: the same bits on every machine.
#pragma once

#include <bit>
#include <limits>

#include "cuda/device/arithmetic.h"

namespace attentile::cuda {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr float kLog2E = 1.44269504f;

ATTENTILE_DEVICE float abs_f32(float x) {
  return x < 0 ? -x : x;
}

// 1 / x within 1 ulp, and exact where it is a power of two: the approximation, improved by Newton's
// step. A division would be a call.
ATTENTILE_DEVICE float reciprocal(float x) {
  const float y = rcp_approx(x);
  return fma_rn(fma_rn(-x, y, 1.0f), y, y);
}

// exp(-(x + more)) of x and a small rest of it, as accurate as ex2 itself: what the product with
// log2(e), rounded, loses of a large x is made up for.
ATTENTILE_DEVICE float exp_minus(float x, float more) {
  constexpr float kLog2ELo = 0x1.4ae0cp-26f;
  constexpr float kLn2 = 0x1.62e43p-1f;
  const float exponent = mul_rn(x, -kLog2E);
  const float lost = fma_rn(x, -kLog2ELo, fma_rn(x, -kLog2E, -exponent));
  const float power = ex2_approx(exponent);
  return power > 0 ? fma_rn(power, fma_rn(lost, kLn2, -more), power) : power;
}

// Natural logarithm of a normal x > 0, within 1 ulp or so of it or of 1: x = 2^e f, sqrt(1/2) <= f
// < sqrt(2), and log(f) = 2 artanh((f - 1) / (f + 1)) by its series.
ATTENTILE_DEVICE float log_rn(float x) {
  if (!(x < kInfinity)) return x;
  constexpr uint32_t kHalfRoot = 0x3F3504F3;  // the bits of sqrt(1/2)
  const uint32_t shifted = std::bit_cast<uint32_t>(x) - kHalfRoot;
  const float f = std::bit_cast<float>((shifted & 0x007FFFFFu) + kHalfRoot);
  const float e = static_cast<float>(static_cast<int32_t>(shifted) >> 23);
  const float s = mul_rn(add_rn(f, -1.0f), reciprocal(add_rn(f, 1.0f)));
  const float z = mul_rn(s, s);
  float series = fma_rn(z, 1.0f / 9, 1.0f / 7);
  series = fma_rn(z, series, 1.0f / 5);
  series = fma_rn(z, series, 1.0f / 3);
  const float twice = add_rn(s, s);
  const float log_f = fma_rn(mul_rn(twice, z), series, twice);
  constexpr float kLn2Hi = 0x1.62e4p-1f;     // 15 bits: its product with e is exact
  constexpr float kLn2Lo = 0x1.7f7d1cp-20f;  // the rest
  return fma_rn(e, kLn2Hi, fma_rn(e, kLn2Lo, log_f));
}

// tanh within a few ulp: its series near 0, elsewhere 1 - 2 / (e^2|x| + 1).
ATTENTILE_DEVICE float tanh_rn(float x) {
  const float a = abs_f32(x);
  if (a < 0.3f) {
    const float z = mul_rn(x, x);
    float series = fma_rn(z, 62.0f / 2835, -17.0f / 315);
    series = fma_rn(z, series, 2.0f / 15);
    series = fma_rn(z, series, -1.0f / 3);
    return fma_rn(mul_rn(x, z), series, x);
  }
  const float e = ex2_approx(mul_rn(a, 2 * kLog2E));
  const float y = fma_rn(-2.0f, rcp_approx(add_rn(e, 1.0f)), 1.0f);
  return x < 0 ? -y : y;
}

}  // namespace attentile::cuda

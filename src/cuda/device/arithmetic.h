// SPDX-License-Identifier: Apache-2.0
// Float arithmetic whose rounding is said, the approximations of the special function unit, and
// conversions to the 16-bit formats. Kernels are compiled with -fmad=false, as the library is with
// -ffp-contract=off: they fuse where they call fma_rn and nowhere else, so the emulator and the
// device round alike. Only the approximations may differ between them, by an ulp or two.
#pragma once

#include <bit>
#include <cmath>

#include "cuda/device/config.h"

namespace attentile::cuda {

// 16-bit elements as they lie in memory.
struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};
template <class T>
inline constexpr bool kIsFloat16 = __is_same(T, Float16);
template <class T>
inline constexpr bool kIsBFloat16 = __is_same(T, BFloat16);
template <class T>
inline constexpr bool kIsFloat32 = __is_same(T, float);

// a * b + c, rounded once; a * b; a + b; all to nearest even.
ATTENTILE_DEVICE float fma_rn(float a, float b, float c) {
#if ATTENTILE_PTX
  return __fmaf_rn(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}
ATTENTILE_DEVICE float mul_rn(float a, float b) {
#if ATTENTILE_PTX
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
ATTENTILE_DEVICE float add_rn(float a, float b) {
#if ATTENTILE_PTX
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

// ex2.approx.ftz.f32: 2^x within 2 ulp; exact for integers, 0 for -inf, +0 where subnormal.
ATTENTILE_DEVICE float ex2_approx(float x, [[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return emulator::ex2_approx(x, site);
#endif
}

// lg2.approx.ftz.f32: log2(x); -inf for 0 and subnormals, NaN for x < 0.
ATTENTILE_DEVICE float lg2_approx(float x, [[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return emulator::lg2_approx(x, site);
#endif
}

// rcp.approx.ftz.f32: 1 / x within 1 ulp; infinite for 0 and subnormals.
ATTENTILE_DEVICE float rcp_approx(float x, [[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return emulator::rcp_approx(x, site);
#endif
}

// tanh.approx.f32: absolute error below 2^-10.9; for softcap where that is enough.
ATTENTILE_DEVICE float tanh_approx(float x, [[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return emulator::tanh_approx(x, site);
#endif
}

// a / b rounded to nearest even.
ATTENTILE_DEVICE float div_rn(float a, float b) {
#if ATTENTILE_PTX
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

// max.f32: the larger operand, the other one if one is NaN. max.NaN.f32: NaN if either is.
ATTENTILE_DEVICE float max_f32(float a, float b) {
#if ATTENTILE_PTX
  return fmaxf(a, b);
#else
  return std::fmax(a, b);
#endif
}
ATTENTILE_DEVICE float max_nan_f32(float a, float b) {
#if ATTENTILE_PTX
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
#else
  return emulator::max_nan_f32(a, b);
#endif
}

// cvt.rn.{f16x2,bf16x2}.f32: two floats to one register of T, `low` in its low half; to nearest
// even, NaN becomes 0x7FFF.
template <class T>
ATTENTILE_DEVICE uint32_t cvt_rn_x2(float low, float high) {
  static_assert(kIsFloat16<T> || kIsBFloat16<T>);
#if ATTENTILE_PTX
  uint32_t pair;
  if constexpr (kIsFloat16<T>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
#else
  return kIsFloat16<T> ? emulator::cvt_f16x2(low, high) : emulator::cvt_bf16x2(low, high);
#endif
}

// The float value of the low (0) or high (1) half of a register of T; exact.
template <class T>
ATTENTILE_DEVICE float cvt_f32(uint32_t pair, int half) {
  static_assert(kIsFloat16<T> || kIsBFloat16<T>);
  if constexpr (kIsBFloat16<T>) {
    return std::bit_cast<float>(half == 0 ? pair << 16 : pair & 0xFFFF0000u);
  } else {
    const uint16_t bits = static_cast<uint16_t>(half == 0 ? pair : pair >> 16);
#if ATTENTILE_PTX
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(bits));
    return y;
#else
    return emulator::cvt_f32_f16(bits);
#endif
  }
}

// One element.
template <class T>
ATTENTILE_DEVICE float to_f32(T element) {
  if constexpr (kIsFloat32<T>) {
    return element;
  } else {
    return cvt_f32<T>(element.bits, 0);
  }
}
template <class T>
ATTENTILE_DEVICE T from_f32(float value) {
  if constexpr (kIsFloat32<T>) {
    return value;
  } else {
    return {static_cast<uint16_t>(cvt_rn_x2<T>(value, 0.0f))};
  }
}

// cvt.rna.tf32.f32: to 10 fraction bits, to nearest, ties away from zero; the low 13 bits are 0.
ATTENTILE_DEVICE uint32_t cvt_tf32(float x) {
#if ATTENTILE_PTX
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
#else
  return emulator::cvt_tf32(x);
#endif
}

}  // namespace attentile::cuda

// SPDX-License-Identifier: Apache-2.0
// NEON (AArch64 baseline): 4 float lanes, 2 double lanes, 32 registers.
#pragma once

#include <arm_neon.h>

#include "attentile/attention.h"
#include "cpu/simd/vec.h"

namespace attentile::cpu {

struct Neon {
  static constexpr Isa kIsa = Isa::kNeon;
  static constexpr int kTileVecs = 2;
  static constexpr int tile_rows(int vecs) { return vecs == 2 ? 8 : 12; }
};

template <>
struct Vec<Neon, float> {
  static constexpr int kLanes = 4;
  float32x4_t v;

  static Vec load(const float* p) { return {vld1q_f32(p)}; }
  static Vec set1(float x) { return {vdupq_n_f32(x)}; }
  void store(float* p) const { vst1q_f32(p, v); }
  friend Vec operator+(Vec a, Vec b) { return {vaddq_f32(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {vsubq_f32(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {vmulq_f32(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {vdivq_f32(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
  static Vec fms(Vec a, Vec b, Vec c) { return {vfmaq_f32(vnegq_f32(c.v), a.v, b.v)}; }
  static Vec max(Vec a, Vec b) { return {vbslq_f32(vcgtq_f32(a.v, b.v), a.v, b.v)}; }
  static Vec min(Vec a, Vec b) { return {vbslq_f32(vcltq_f32(a.v, b.v), a.v, b.v)}; }
  static Vec select_lt(Vec a, Vec b, Vec x, Vec y) {
    return {vbslq_f32(vcltq_f32(a.v, b.v), x.v, y.v)};
  }
  static bool any_lt(Vec a, Vec b) { return vmaxvq_u32(vcltq_f32(a.v, b.v)) != 0; }
  static Vec abs(Vec a) { return {vabsq_f32(a.v)}; }
  static Vec round(Vec a) { return {vrndnq_f32(a.v)}; }
  static Vec scale2(Vec a, Vec n) {  // in two steps, so that 2^n itself may be subnormal
    const int32x4_t whole = vcvtq_s32_f32(n.v);
    const int32x4_t half = vshrq_n_s32(whole, 1);
    return a * power_of_two(half) * power_of_two(vsubq_s32(whole, half));
  }
  static Vec load_f16(const uint16_t* p) {
    return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))};
  }
  static Vec load_bf16(const uint16_t* p) {
    return {vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16))};
  }
  void store_f16(uint16_t* p) const { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v))); }
  void store_bf16(uint16_t* p) const {
    const uint32x4_t bits = vreinterpretq_u32_f32(v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t bias = vaddq_u32(odd, vdupq_n_u32(0x7FFF));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    const uint32x4_t number = vceqq_f32(v, v);
    vst1_u16(p, vshrn_n_u32(vbslq_u32(number, vaddq_u32(bits, bias), quiet), 16));
  }

 private:
  static Vec power_of_two(int32x4_t n) {
    return {vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23))};
  }
};

template <>
struct Vec<Neon, double> {
  static constexpr int kLanes = 2;
  float64x2_t v;

  static Vec load(const double* p) { return {vld1q_f64(p)}; }
  static Vec set1(double x) { return {vdupq_n_f64(x)}; }
  void store(double* p) const { vst1q_f64(p, v); }
  friend Vec operator+(Vec a, Vec b) { return {vaddq_f64(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {vsubq_f64(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {vmulq_f64(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {vdivq_f64(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f64(c.v, a.v, b.v)}; }
  static Vec max(Vec a, Vec b) { return {vbslq_f64(vcgtq_f64(a.v, b.v), a.v, b.v)}; }
  static Vec min(Vec a, Vec b) { return {vbslq_f64(vcltq_f64(a.v, b.v), a.v, b.v)}; }
  static Vec select_lt(Vec a, Vec b, Vec x, Vec y) {
    return {vbslq_f64(vcltq_f64(a.v, b.v), x.v, y.v)};
  }
  static bool any_lt(Vec a, Vec b) {
    const uint64x2_t less = vcltq_f64(a.v, b.v);
    return (vgetq_lane_u64(less, 0) | vgetq_lane_u64(less, 1)) != 0;
  }
  static Vec abs(Vec a) { return {vabsq_f64(a.v)}; }
};

inline Vec<Neon, float> sum_each(Vec<Neon, float>* r) {
  return {vpaddq_f32(vpaddq_f32(r[0].v, r[1].v), vpaddq_f32(r[2].v, r[3].v))};
}

}  // namespace attentile::cpu

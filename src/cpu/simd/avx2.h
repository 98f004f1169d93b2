// SPDX-License-Identifier: Apache-2.0
// AVX2 with FMA and F16C: 8 float lanes, 4 double lanes, 16 registers.
#pragma once

#include <immintrin.h>

#include "attentile/attention.h"
#include "cpu/simd/vec.h"

namespace attentile::cpu {

struct Avx2 {
  static constexpr Isa kIsa = Isa::kAvx2;
  static constexpr int kTileVecs = 2;
  static constexpr int tile_rows(int vecs) { return vecs == 2 ? 6 : 8; }
};

template <>
struct Vec<Avx2, float> {
  static constexpr int kLanes = 8;
  __m256 v;

  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec set1(float x) { return {_mm256_set1_ps(x)}; }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  static Vec fms(Vec a, Vec b, Vec c) { return {_mm256_fmsub_ps(a.v, b.v, c.v)}; }
  static Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
  static Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
  static Vec select_lt(Vec a, Vec b, Vec x, Vec y) {
    return {_mm256_blendv_ps(y.v, x.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
  }
  static bool any_lt(Vec a, Vec b) {
    return _mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)) != 0;
  }
  static Vec abs(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
  static Vec round(Vec a) { return {_mm256_round_ps(a.v, 8)}; }
  static Vec scale2(Vec a, Vec n) {  // in two steps, so that 2^n itself may be subnormal
    const __m256i whole = _mm256_cvtps_epi32(n.v);
    const __m256i half = _mm256_srai_epi32(whole, 1);
    return a * power_of_two(half) * power_of_two(_mm256_sub_epi32(whole, half));
  }
  static Vec load_f16(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  static Vec load_bf16(const uint16_t* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))};
  }
  void store_f16(uint16_t* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, 0));
  }
  void store_bf16(uint16_t* p) const {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i rounded = _mm256_blendv_epi8(_mm256_add_epi32(bits, bias), quiet, nan);
    const __m256i high = _mm256_srli_epi32(rounded, 16);
    const __m128i packed =
        _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
  }

 private:
  static Vec power_of_two(__m256i n) {
    return {
        _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23))};
  }
};

template <>
struct Vec<Avx2, double> {
  static constexpr int kLanes = 4;
  __m256d v;

  static Vec load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static Vec set1(double x) { return {_mm256_set1_pd(x)}; }
  void store(double* p) const { _mm256_storeu_pd(p, v); }
  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_pd(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_pd(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_pd(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm256_div_pd(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
  static Vec max(Vec a, Vec b) { return {_mm256_max_pd(a.v, b.v)}; }
  static Vec min(Vec a, Vec b) { return {_mm256_min_pd(a.v, b.v)}; }
  static Vec select_lt(Vec a, Vec b, Vec x, Vec y) {
    return {_mm256_blendv_pd(y.v, x.v, _mm256_cmp_pd(a.v, b.v, _CMP_LT_OQ))};
  }
  static bool any_lt(Vec a, Vec b) {
    return _mm256_movemask_pd(_mm256_cmp_pd(a.v, b.v, _CMP_LT_OQ)) != 0;
  }
  static Vec abs(Vec a) { return {_mm256_andnot_pd(_mm256_set1_pd(-0.0), a.v)}; }
};

inline void transpose(Vec<Avx2, float>* r) {
  __m256 t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i].v, r[i + 1].v);
    t[i + 1] = _mm256_unpackhi_ps(r[i].v, r[i + 1].v);
  }
  for (int i = 0; i < 8; i += 4) {  // four columns of four rows in each 128-bit part
    for (int j = 0; j < 2; ++j) {
      r[i + 2 * j].v = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0x44);
      r[i + 2 * j + 1].v = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0xee);
    }
  }
  for (int i = 0; i < 4; ++i) {  // of rows 0..3 and 4..7
    t[i] = _mm256_permute2f128_ps(r[i].v, r[i + 4].v, 0x20);
    t[i + 4] = _mm256_permute2f128_ps(r[i].v, r[i + 4].v, 0x31);
  }
  for (int i = 0; i < 8; ++i) r[i].v = t[i];
}

// 2^(t c) = 2^-64 2^(n + 64) 2^f for integral n, |f| <= 1/2 and the polynomial of exp2_parts(). n
// is rounded by adding a number so large that its last bits then hold n + 64 + 127, the exponent of
// 2^(n + 64); the last factor makes subnormal numbers where it must.
template <>
struct WeightExp<Avx2, float> {
  using V = Vec<Avx2, float>;
  __m256 c, tail, least, most;

  explicit WeightExp(Exponent<float> exponent)
      : c(_mm256_set1_ps(exponent.hi)),
        tail(_mm256_set1_ps(exponent.lo)),
        least(_mm256_set1_ps(-151.0f / exponent.hi)),
        most(_mm256_set1_ps(62.0f / exponent.hi)) {}

  V operator()(V t) const { return times_2_64(t) * V::set1(0x1p-64f); }
  V bounded(V t) const { return (*this)(V::min(V{most}, t)); }
  V unchecked(V t) const { return bounded(t); }
  V times_2_64(V x) const {
    const __m256 t = _mm256_max_ps(least, x.v);
    const __m256 magic = _mm256_set1_ps(0x1.8p23f + 127 + 64);
    const __m256 z = _mm256_fmadd_ps(t, c, magic);
    const __m256 n = _mm256_sub_ps(z, magic);
    const __m256 f = _mm256_fmadd_ps(t, tail, _mm256_fmsub_ps(t, c, n));
    const __m256 scale = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(z), 23));
    __m256 p = _mm256_fmadd_ps(_mm256_set1_ps(1.54531629e-4f), f, _mm256_set1_ps(1.33908634e-3f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(9.61808256e-3f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(5.55035711e-2f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(2.40226508e-1f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(6.93147188e-1f));
    return {_mm256_mul_ps(_mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f)), scale)};
  }
};

inline Vec<Avx2, float> sum_each(Vec<Avx2, float>* r) {
  __m256 four[2];
  for (int64_t i = 0; i < 2; ++i) {
    four[i] = _mm256_hadd_ps(_mm256_hadd_ps(r[4 * i].v, r[4 * i + 1].v),
                             _mm256_hadd_ps(r[4 * i + 2].v, r[4 * i + 3].v));
  }
  return {_mm256_add_ps(_mm256_permute2f128_ps(four[0], four[1], 0x20),
                        _mm256_permute2f128_ps(four[0], four[1], 0x31))};
}

}  // namespace attentile::cpu

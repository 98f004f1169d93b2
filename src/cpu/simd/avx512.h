// SPDX-License-Identifier: Apache-2.0
// AVX-512 (F, BW, DQ, VL): 16 float lanes, 8 double lanes, 32 registers.
#pragma once

#include <immintrin.h>

#include "attentile/attention.h"
#include "cpu/philox_lanes.h"
#include "cpu/simd/vec.h"

namespace attentile::cpu {

struct Avx512 {
  static constexpr bool kWide512 = true;  // the vectors below are its
  static constexpr Isa kIsa = Isa::kAvx512;
  static constexpr int kTileVecs = 4;
  static constexpr int tile_rows(int vecs) { return vecs == 4 ? 6 : (vecs == 3 ? 8 : 12); }
};

template <class Isa>
  requires(Isa::kWide512)
struct Vec<Isa, float> {
  static constexpr int kLanes = 16;
  __m512 v;

  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec set1(float x) { return {_mm512_set1_ps(x)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static Vec fms(Vec a, Vec b, Vec c) { return {_mm512_fmsub_ps(a.v, b.v, c.v)}; }
  static Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
  static Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
  static Vec select_lt(Vec a, Vec b, Vec x, Vec y) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), y.v, x.v)};
  }
  static bool any_lt(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ) != 0; }
  static Vec abs(Vec a) { return {_mm512_abs_ps(a.v)}; }
  static Vec round(Vec a) { return {_mm512_roundscale_ps(a.v, 8)}; }
  static Vec scale2(Vec a, Vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }
  static Vec load_f16(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static Vec load_bf16(const uint16_t* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
  }
  void store_f16(uint16_t* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, 8));
  }
  void store_bf16(uint16_t* p) const {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i rounded = _mm512_mask_blend_epi32(nan, _mm512_add_epi32(bits, bias), quiet);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  }
};

template <class Isa>
  requires(Isa::kWide512)
struct Vec<Isa, double> {
  static constexpr int kLanes = 8;
  __m512d v;

  static Vec load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static Vec set1(double x) { return {_mm512_set1_pd(x)}; }
  void store(double* p) const { _mm512_storeu_pd(p, v); }
  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_pd(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_pd(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_pd(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm512_div_pd(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
  static Vec max(Vec a, Vec b) { return {_mm512_max_pd(a.v, b.v)}; }
  static Vec min(Vec a, Vec b) { return {_mm512_min_pd(a.v, b.v)}; }
  static Vec select_lt(Vec a, Vec b, Vec x, Vec y) {
    return {_mm512_mask_blend_pd(_mm512_cmp_pd_mask(a.v, b.v, _CMP_LT_OQ), y.v, x.v)};
  }
  static bool any_lt(Vec a, Vec b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_LT_OQ) != 0; }
  static Vec abs(Vec a) { return {_mm512_abs_pd(a.v)}; }
};

template <class Isa>
  requires(Isa::kWide512)
inline void transpose(Vec<Isa, float>* r) {
  __m512 t[16];
  for (int i = 0; i < 16; i += 2) {  // pairs of rows
    t[i] = _mm512_unpacklo_ps(r[i].v, r[i + 1].v);
    t[i + 1] = _mm512_unpackhi_ps(r[i].v, r[i + 1].v);
  }
  for (int i = 0; i < 16; i += 4) {  // four columns of four rows in each 128-bit part
    for (int j = 0; j < 2; ++j) {
      const __m512d low = _mm512_castps_pd(t[i + j]);
      const __m512d high = _mm512_castps_pd(t[i + j + 2]);
      r[i + 2 * j].v = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      r[i + 2 * j + 1].v = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  }
  for (int i = 0; i < 4; ++i) {  // 128-bit parts: of rows 0..7 and 8..15
    t[i] = _mm512_shuffle_f32x4(r[i].v, r[i + 4].v, 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(r[i].v, r[i + 4].v, 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(r[i + 8].v, r[i + 12].v, 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(r[i + 8].v, r[i + 12].v, 0xdd);
  }
  for (int i = 0; i < 8; ++i) {
    r[i].v = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    r[i + 8].v = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
  }
}

template <class Isa>
  requires(Isa::kWide512)
inline Vec<Isa, float> sum_each(Vec<Isa, float>* r) {
  __m512 t[8];
  for (int64_t i = 0; i < 8; ++i) {
    t[i] = _mm512_add_ps(_mm512_unpacklo_ps(r[2 * i].v, r[2 * i + 1].v),
                         _mm512_unpackhi_ps(r[2 * i].v, r[2 * i + 1].v));
  }
  for (int64_t i = 0; i < 4; ++i) {  // now four sums in each 128-bit part
    const __m512d low = _mm512_castps_pd(t[2 * i]);
    const __m512d high = _mm512_castps_pd(t[2 * i + 1]);
    t[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
  }
  for (int64_t n = 2; n > 0; n /= 2) {
    for (int64_t i = 0; i < n; ++i) {
      t[i] = _mm512_add_ps(_mm512_shuffle_f32x4(t[2 * i], t[2 * i + 1], 0x88),
                           _mm512_shuffle_f32x4(t[2 * i], t[2 * i + 1], 0xdd));
    }
  }
  return {t[0]};
}

// 2^(i / 32).
template <class Isa>
struct PowersOfTwo {
  alignas(64) float value[32];
  constexpr PowersOfTwo() : value() {
    double power = 1;
    for (float& v : value) {
      v = static_cast<float>(power);
      power *= 1.0218971486541166782;  // 2^(1/32)
    }
  }
};

// 2^(t c) = 2^(n / 32) 2^f for integral n and |f| <= 1/64: the first factor from a table in two
// registers, the second of degree 3 (relative error 6e-10 before rounding), 1 where f is 0. Twelve
// instructions.
template <class Isa>
  requires(Isa::kWide512)
struct WeightExp<Isa, float> {
  static constexpr PowersOfTwo<Isa> kPowers{};
  __m512 c, tail, low, high, least, most;

  explicit WeightExp(Exponent<float> exponent)
      : c(_mm512_set1_ps(exponent.hi)),
        tail(_mm512_set1_ps(exponent.lo)),
        low(_mm512_load_ps(kPowers.value)),
        high(_mm512_load_ps(kPowers.value + 16)),
        least(_mm512_set1_ps(-150.01f / exponent.hi)),
        most(_mm512_set1_ps(120.0f / exponent.hi)) {}

  // 0 where the result would be rounded to 0: to let it be would cost a hundred times as much.
  Vec<Isa, float> operator()(Vec<Isa, float> t) const {
    const __mmask16 normal = _mm512_cmp_ps_mask(t.v, least, _CMP_NLT_UQ);
    __m512 n;
    const __m512 power = parts(_mm512_max_ps(least, t.v), &n);
    return {_mm512_maskz_scalef_ps(normal, power, n)};
  }
  Vec<Isa, float> bounded(Vec<Isa, float> t) const { return (*this)({_mm512_min_ps(most, t.v)}); }
  Vec<Isa, float> times_2_64(Vec<Isa, float> t) const {
    __m512 n;
    const __m512 power = parts(_mm512_max_ps(least, t.v), &n);
    return {_mm512_scalef_ps(power, _mm512_add_ps(n, _mm512_set1_ps(64.0f)))};
  }
  Vec<Isa, float> unchecked(Vec<Isa, float> t) const {
    __m512 n;
    const __m512 power = parts(_mm512_min_ps(most, t.v), &n);  // NaN stays NaN
    return {_mm512_scalef_ps(power, n)};
  }

 private:
  // 2^(t c) = power * 2^floor(n).
  __m512 parts(__m512 t, __m512* n) const {
    const __m512 magic = _mm512_set1_ps(0x1.8p18f);  // a sum with it is a multiple of 1/32
    const __m512 z = _mm512_fmadd_ps(t, c, magic);
    *n = _mm512_sub_ps(z, magic);
    const __m512 f = _mm512_fmadd_ps(t, tail, _mm512_fmsub_ps(t, c, *n));
    const __m512 power = _mm512_permutex2var_ps(low, _mm512_castps_si512(z), high);
    __m512 q = _mm512_fmadd_ps(f, _mm512_set1_ps(0.0555041087f), _mm512_set1_ps(0.240226507f));
    q = _mm512_fmadd_ps(f, q, _mm512_set1_ps(0.693147181f));
    return _mm512_fmadd_ps(power, _mm512_mul_ps(q, f), power);
  }
};

// The same table.
template <class Isa>
  requires(Isa::kWide512)
struct ShiftedExp<Isa, float> {
  using V = Vec<Isa, float>;
  __m512 c, tail, low, high;

  explicit ShiftedExp(Exponent<float> exponent)
      : c(_mm512_set1_ps(exponent.hi)),
        tail(_mm512_set1_ps(exponent.lo)),
        low(_mm512_load_ps(WeightExp<Isa, float>::kPowers.value)),
        high(_mm512_load_ps(WeightExp<Isa, float>::kPowers.value + 16)) {}

  V operator()(V x, const RowShift<V>& row) const {
    const __m512 magic = _mm512_set1_ps(0x1.8p18f);
    const __m512 t = _mm512_max_ps(_mm512_set1_ps(-9e4f), _mm512_sub_ps(x.v, row.base.v));
    const __m512 z = _mm512_add_ps(_mm512_fmsub_ps(t, c, row.fraction.v), magic);
    const __m512 n = _mm512_sub_ps(z, magic);
    const __m512 f =
        _mm512_fmadd_ps(t, tail, _mm512_sub_ps(_mm512_fmsub_ps(t, c, n), row.fraction.v));
    const __mmask16 off = _mm512_cmp_ps_mask(_mm512_abs_ps(f), row.snap.v, _CMP_NLE_UQ);
    const __m512 power = _mm512_permutex2var_ps(low, _mm512_castps_si512(z), high);
    const __m512 slope =
        _mm512_fmadd_ps(f, _mm512_set1_ps(0.240226507f), _mm512_set1_ps(0.693157345f));
    const __m512 q = _mm512_maskz_mul_ps(off, slope, f);
    const __m512 e = _mm512_sub_ps(n, row.whole.v);
    const __mmask16 normal = _mm512_cmp_ps_mask(e, _mm512_set1_ps(-150.0f), _CMP_NLT_UQ);
    const __m512 weight = _mm512_maskz_scalef_ps(normal, _mm512_fmadd_ps(power, q, power), e);
    return {_mm512_min_ps(_mm512_set1_ps(1.0f), weight)};
  }
};

// A product of 32 bits by 32 is there for every other lane: the even ones, then the odd ones.
template <class Isa>
  requires(Isa::kWide512)
struct PhiloxLanes<Isa, 16> {
  static void draw(const Philox4& counter, const uint32_t* rows, const Dropout& dropout,
                   uint32_t (*word)[16]) {
    __m512i c[4];
    for (int n = 0; n < 4; ++n) c[n] = _mm512_set1_epi32(static_cast<int>(counter.word[n]));
    c[1] = _mm512_loadu_si512(rows);
    uint32_t key[2] = {dropout.key0, dropout.key1};
    for (int round = 0; round < 10; ++round) {
      __m512i low[2];
      const __m512i high0 = multiply(c[0], 0xD2511F53u, &low[0]);
      const __m512i high1 = multiply(c[2], 0xCD9E8D57u, &low[1]);
      c[0] = xor3(high1, c[1], key[0]);
      c[2] = xor3(high0, c[3], key[1]);
      c[1] = low[1];
      c[3] = low[0];
      key[0] += 0x9E3779B9u;
      key[1] += 0xBB67AE85u;
    }
    for (int n = 0; n < 4; ++n) _mm512_storeu_si512(word[n], c[n]);
  }

 private:
  // The upper halves of the products; *low: the lower ones.
  static __m512i multiply(__m512i x, uint32_t factor, __m512i* low) {
    const __m512i y = _mm512_set1_epi32(static_cast<int>(factor));
    const __m512i even = _mm512_mul_epu32(x, y);
    const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), y);
    *low = _mm512_mask_shuffle_epi32(even, 0xAAAA, odd, _MM_PERM_CCAA);
    return _mm512_mask_shuffle_epi32(odd, 0x5555, even, _MM_PERM_DDBB);
  }
  static __m512i xor3(__m512i a, __m512i b, uint32_t key) {
    return _mm512_ternarylogic_epi32(a, b, _mm512_set1_epi32(static_cast<int>(key)), 0x96);
  }
};

}  // namespace attentile::cpu

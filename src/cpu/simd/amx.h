// SPDX-License-Identifier: Apache-2.0
// Intel AMX: eight tile registers of 16 rows x 64 bytes, and one instruction that multiplies two of
// them. Vectors are those of AVX-512. Facts: Intel SDM, volume 2, TDPBF16PS: products of pairs are
// summed in float32, rounded to nearest, subnormals taken as and flushed to zero.
#pragma once

#include "cpu/matrix_unit.h"
#include "cpu/simd/avx512.h"
#include "cpu/tile_gemm.h"

namespace attentile::cpu {

struct Amx {
  static constexpr Isa kIsa = Isa::kAmx;
  static constexpr bool kWide512 = true;
  static constexpr int kTileVecs = Avx512::kTileVecs;
  static constexpr int tile_rows(int vecs) { return Avx512::tile_rows(vecs); }
};

template <>
struct MatrixUnit<Amx, float> {
  static constexpr bool kPresent = true;
  static constexpr int kTile = 16;
  using V = Vec<Amx, float>;

  // Around a task: all eight registers 16 x 64 bytes; afterwards the thread has no tile state.
  static void begin() {
    struct alignas(64) Config {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    static constexpr Config kConfig{};
    asm volatile("ldtilecfg %0" : : "m"(kConfig));
  }
  static void end() { asm volatile("tilerelease"); }

  // C (+)= A B of packed operands. Writes whole tiles: rows of C up to a multiple of 16.
  static void multiply(const GemmTile<float>& t) {
    t.left.parts == 1 ? multiply_parts<1>(t) : multiply_parts<2>(t);
  }

  // The rows of src as a left operand.
  static void pack_left(const PackSource<float>& src, const Parts& dst) {
    clear_marks(dst, 0);
    const int64_t padded_rows = (src.rows + kTile - 1) / kTile * kTile;
    for (int64_t row = 0; row < padded_rows; ++row) {
      bool hard = false;
      for (int c = 0; c < dst.ld; c += 32) {
        __m512 x[2] = {};
        for (int n = 0; n < 2 && row < src.rows; ++n) {
          x[n] = load_columns(src.data + row * src.ld + c + int64_t{kTile} * n,
                              src.columns - c - kTile * n);
          if (dst.hard != nullptr) hard |= drop_hard(x[n]);
        }
        store_parts<false>(x[0], x[1], dst, row * dst.ld + c);
      }
      if (dst.hard != nullptr && row < src.rows) mark(dst, row, hard);
    }
  }

  // The columns of src as the rows of a left operand, and zeros for 32 in depth beyond. Marks rows
  // of src.
  static void pack_left_transposed(const PackSource<float>& src, const Parts& dst) {
    clear_marks(dst, src.rows);
    for (int row = 0; row < src.columns; row += kTile) {
      for (int64_t k0 = 0; k0 < padded_depth(src.rows) + 32; k0 += 32) {
        V block[2][kTile];
        for (int i = 0; i < 32; ++i) {
          __m512 x = {};
          if (k0 + i < src.rows) {
            x = load_columns(src.data + (k0 + i) * src.ld + row, src.columns - row);
            if (dst.hard != nullptr && drop_hard(x)) mark(dst, k0 + i, true);
          }
          block[i / kTile][i % kTile] = {x};
        }
        transpose(block[0]);
        transpose(block[1]);
        for (int i = 0; i < kTile; ++i) {
          store_parts<false>(block[0][i].v, block[1][i].v, dst, (row + i) * dst.ld + k0);
        }
      }
    }
  }

  // Rows k and k + 1 of a right operand, sixteen columns from `column` on.
  static void store_right(V first, V second, const Parts& dst, int64_t column, int64_t k) {
    store_parts<true>(first.v, second.v, dst, column * dst.ld + kTile * k);
  }

  // src, its columns a multiple of 16, as a right operand. Marks columns of src or rows.
  enum class Mark { kColumns, kRows };
  static void pack_right(const PackSource<float>& src, const Parts& dst) {
    pack_right(src, Mark::kColumns, dst);
  }
  static void pack_right(const PackSource<float>& src, Mark marked, const Parts& dst) {
    const bool by_column = marked == Mark::kColumns;
    clear_marks(dst, by_column ? src.columns : src.rows);
    for (int col = 0; col < src.columns; col += kTile) {
      for (int k = 0; k < dst.ld; k += 2) {
        __m512 x[2] = {};
        for (int n = 0; n < 2 && k + n < src.rows; ++n) {
          x[n] = _mm512_loadu_ps(src.data + (k + n) * src.ld + col);
          if (dst.hard == nullptr) continue;
          const __mmask16 hard = hard_lanes(x[n]);
          if (hard == 0) continue;
          x[n] = _mm512_maskz_mov_ps(static_cast<__mmask16>(~hard), x[n]);
          if (!by_column) mark(dst, k + n, true);
          for (int i = 0; i < kTile && by_column; ++i) {
            if ((hard >> i & 1) != 0) mark(dst, col + i, true);
          }
        }
        store_parts<true>(x[0], x[1], dst, col * dst.ld + int64_t{kTile} * k);
      }
    }
  }

  // Values that have no parts, in lanes.
  static __mmask16 hard_lanes(__m512 x) {
    constexpr int kNan = 0x81, kInfinity = 0x18;
    return _mm512_fpclass_ps_mask(x, kNan | kInfinity);
  }
  static bool is_hard(V x) { return hard_lanes(x.v) != 0; }
  static V only_hard(V x) { return {_mm512_maskz_mov_ps(hard_lanes(x.v), x.v)}; }

 private:
  static void clear_marks(const Parts& dst, int64_t count) {
    if (dst.hard == nullptr) return;
    *dst.any_hard = 0;
    for (int64_t i = 0; i < count; ++i) dst.hard[i] = 0;
  }
  static void mark(const Parts& dst, int64_t i, bool hard) {
    dst.hard[i] = hard;
    *dst.any_hard |= static_cast<uint8_t>(hard);
  }
  static __m512 load_columns(const float* src, int count) {
    if (count >= kTile) return _mm512_loadu_ps(src);
    if (count <= 0) return _mm512_setzero_ps();
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), src);
  }
  static bool drop_hard(__m512& x) {
    const __mmask16 hard = hard_lanes(x);
    x = _mm512_maskz_mov_ps(static_cast<__mmask16>(~hard), x);
    return hard != 0;
  }

  // x rounded to bfloat16 (half away from zero), so that x less it is exact. Some NaN become
  // numbers: what is left is NaN then.
  static __m512 leading_part(__m512 x) {
    const __m512i bits = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
    return _mm512_castsi512_ps(
        _mm512_and_si512(bits, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u))));
  }

  // The parts of a and b as 32 bfloat16: a then b, or kPairs: alternating.
  template <bool kPairs>
  static void store_parts(__m512 a, __m512 b, const Parts& to, int64_t at) {
    uint16_t* dst = to.data + at;
    for (int part = 1; part < to.parts; ++part, dst += to.stride) {
      const __m512 a_high = leading_part(a);
      const __m512 b_high = leading_part(b);
      store_pair<kPairs>(a_high, b_high, dst);
      a = _mm512_sub_ps(a, a_high);
      b = _mm512_sub_ps(b, b_high);
    }
    store_pair<kPairs>(a, b, dst);
  }
  template <bool kPairs>
  static void store_pair(__m512 a, __m512 b, uint16_t* dst) {
    __m512i words = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a));
    if (kPairs) words = _mm512_permutexvar_epi16(alternating(), words);
    _mm512_storeu_si512(dst, words);
  }
  static __m512i alternating() {  // 0, 16, 1, 17, ...
    const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_or_si512(low,
                           _mm512_slli_epi32(_mm512_add_epi32(low, _mm512_set1_epi32(16)), 16));
  }

  // One wrapper per instruction; the register is part of it.
  template <int kRegister>
  static void tile_zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(kRegister));
  }
  template <int kRegister>
  static void tile_load(const void* address, int64_t stride_bytes) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2"
                 :
                 : "r"(address), "r"(stride_bytes), "i"(kRegister)
                 : "memory");
  }
  template <int kRegister>
  static void tile_store(void* address, int64_t stride_bytes) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)"
                 :
                 : "r"(address), "r"(stride_bytes), "i"(kRegister)
                 : "memory");
  }
  template <int kC, int kA, int kB>
  static void tile_multiply() {
    asm volatile("tdpbf16ps %%tmm%c0, %%tmm%c1, %%tmm%c2" : : "i"(kB), "i"(kA), "i"(kC));
  }

  // Blocks of 2 x 2 tiles: C in registers 0 to 3, A in 4 and 5, B in 6 and 7.
  template <int kParts>
  static void multiply_parts(const GemmTile<float>& t) {
    int col = 0;
    for (; col + 2 * kTile <= t.cols; col += 2 * kTile) multiply_columns<kParts, 2>(t, col);
    if (col < t.cols) multiply_columns<kParts, 1>(t, col);
  }
  template <int kParts, int kCols>
  static void multiply_columns(const GemmTile<float>& t, int col) {
    int row = 0;
    for (; row + kTile < t.rows; row += 2 * kTile) multiply_block<kParts, 2, kCols>(t, row, col);
    if (row < t.rows) multiply_block<kParts, 1, kCols>(t, row, col);
  }
  template <int kParts, int kRows, int kCols>
  static void multiply_block(const GemmTile<float>& t, int row, int col) {
    float* c = t.c + row * t.c_row + col;
    const int64_t c_bytes = t.c_row * 4;
    if (t.accumulate) {
      tile_load<0>(c, c_bytes);
      if constexpr (kCols > 1) tile_load<1>(c + kTile, c_bytes);
      if constexpr (kRows > 1) tile_load<2>(c + kTile * t.c_row, c_bytes);
      if constexpr (kRows > 1 && kCols > 1) tile_load<3>(c + kTile * t.c_row + kTile, c_bytes);
    } else {
      tile_zero<0>();
      if constexpr (kCols > 1) tile_zero<1>();
      if constexpr (kRows > 1) tile_zero<2>();
      if constexpr (kRows > 1 && kCols > 1) tile_zero<3>();
    }
    const uint16_t* a = t.left.data + row * t.left.ld;
    const uint16_t* b = t.right.data + col * t.right.ld;
    const int64_t a_bytes = t.left.ld * 2;
    // Small products first: then the sum is rounded at its full size least often.
    for (int i = kParts - 1; i >= 0; --i) {
      for (int j = kParts - 1; j >= 0; --j) {
        const uint16_t* a_part = a + i * t.left.stride;
        const uint16_t* b_part = b + j * t.right.stride;
        for (int k = 0; k < t.depth; k += 32, a_part += 32, b_part += int64_t{32} * kTile) {
          tile_load<4>(a_part, a_bytes);
          tile_load<6>(b_part, 64);
          tile_multiply<0, 4, 6>();
          if constexpr (kRows > 1) tile_load<5>(a_part + kTile * t.left.ld, a_bytes);
          if constexpr (kRows > 1) tile_multiply<2, 5, 6>();
          if constexpr (kCols > 1) tile_load<7>(b_part + kTile * t.right.ld, 64);
          if constexpr (kCols > 1) tile_multiply<1, 4, 7>();
          if constexpr (kRows > 1 && kCols > 1) tile_multiply<3, 5, 7>();
        }
      }
    }
    tile_store<0>(c, c_bytes);
    if constexpr (kCols > 1) tile_store<1>(c + kTile, c_bytes);
    if constexpr (kRows > 1) tile_store<2>(c + kTile * t.c_row, c_bytes);
    if constexpr (kRows > 1 && kCols > 1) tile_store<3>(c + kTile * t.c_row + kTile, c_bytes);
  }
};

}  // namespace attentile::cpu

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

  template <class Function>
  [[gnu::always_inline]] static void with_parts(const Parts& operand, Function function) {
    if (operand.parts == 3) return function(std::integral_constant<int, 3>());
    if (operand.parts == 2) return function(std::integral_constant<int, 2>());
    function(std::integral_constant<int, 1>());
  }

  // C (+)= A B of packed operands. Writes whole tiles: rows of C up to a multiple of 16.
  static void multiply(const GemmTile<float>& t) {
    with_parts(t.left, [&](auto parts) { multiply_parts<parts.value>(t); });
  }

  // C (+)= A B in steps of some 64 cycles of the unit, for other work to go on beside them: until
  // finish() nothing else may multiply.
  [[gnu::always_inline]] static void step(PendingProduct<float>& p) {
    if (!p.waits) return;
    if (p.row + kTile >= p.tile.rows || p.col + 2 * kTile > p.tile.cols) return step_edge(p);
    if (p.depth == 0 && p.part == 0) load_sums<2, 2>(p.tile, p.row, p.col);
    const int parts = p.tile.left.parts;
    if (p.part < small_products(parts)) {
      parts == 3 ? multiply_small<3, 2, 2>(p.tile, p.row, p.col, p.depth, p.part)
                 : multiply_small<2, 2, 2>(p.tile, p.row, p.col, p.depth, p.part);
      if (++p.part < small_products(parts)) return;
      p.depth += 32;
      if (p.depth < p.tile.depth) {
        p.part = 0;
      } else {
        p.depth = 0;
      }
      return;
    }
    multiply_large<2, 2>(p.tile, p.row, p.col, p.depth);
    p.depth += 32;
    if (p.depth < p.tile.depth) return;
    store_sums<2, 2>(p.tile, p.row, p.col);
    next_block(p);
  }
  static void finish(PendingProduct<float>& p) {
    while (p.waits) step(p);
  }

  // The rows of src as a left operand: marked ones, or weights or dS. True: of those, some are
  // faint, and packed as 0.
  static bool pack_left(const PackSource<float>& src, const Parts& dst) {
    return pack_without_faint(dst, [&](auto parts, auto leave_out) {
      return pack_left_parts<parts.value, leave_out.value>(src, dst);
    });
  }

  // The columns of src as the rows of a left operand, and zeros for 32 in depth beyond. Marks rows
  // of src.
  static void pack_left_transposed(const PackSource<float>& src, const Parts& dst) {
    with_parts(dst, [&](auto parts) { pack_left_transposed_parts<parts.value>(src, dst); });
  }

  // src, its columns a multiple of 16, as a right operand. Marks columns of src or rows.
  enum class Mark { kColumns, kRows };
  static void pack_right(const PackSource<float>& src, const Parts& dst,
                         Mark marked = Mark::kColumns) {
    with_parts(dst, [&](auto parts) { pack_right_parts<parts.value>(src, marked, dst); });
  }
  // Weights or dS. As for pack_left().
  static bool pack_weights(const PackSource<float>& src, const Parts& dst) {
    return pack_without_faint(dst, [&](auto parts, auto leave_out) {
      return pack_weights_parts<parts.value, leave_out.value>(src, dst);
    });
  }
  // Rows k and k + 1 of weights, sixteen columns from `column` on.
  template <int kParts>
  [[gnu::always_inline]] static void store_weights(V first, V second, const Parts& dst,
                                                   int64_t column, int64_t k) {
    store_parts<kParts, kParts != 3>(first.v, second.v, dst, column * dst.ld + kTile * k);
  }

  // 32 in depth of a row of weights, from `depth` on: the first sixteen, and the second.
  template <int kParts>
  [[gnu::always_inline]] static void store_left(V first, V second, const Parts& dst, int64_t row,
                                                int64_t depth) {
    store_parts<kParts, kParts != 3>(first.v, second.v, dst, row * dst.ld + depth);
  }
  // Whether some of the weights seen is faint.
  class Faintness {
   public:
    void see(V x) { least_ = _mm512_min_epu32(least_, nearness(x.v)); }
    bool any() const { return below_faint(least_) != 0; }

   private:
    __m512i least_ = _mm512_set1_epi32(-1);
  };

  static bool is_hard(V x, int parts) { return hard_of(x, parts) != 0; }
  static V only_hard(V x, int parts) { return {_mm512_maskz_mov_ps(hard_of(x, parts), x.v)}; }
  // Weights or dS of three parts that are faint, those alone; the others are 0.
  static V only_faint(V x) { return {_mm512_maskz_mov_ps(faint_lanes(x.v), x.v)}; }
  static bool any_faint(V x) { return faint_lanes(x.v) != 0; }

 private:
  // Weights are packed as if none were faint, and once more where one was.
  template <class Pack>
  [[gnu::always_inline]] static bool pack_without_faint(const Parts& dst, Pack pack) {
    bool faint = false;
    with_parts(dst, [&](auto parts) { faint = pack(parts, std::false_type()); });
    if (faint) pack(std::integral_constant<int, kExactParts>(), std::true_type());
    return faint;
  }
  static constexpr int kFaint = (127 - kFaintExponent) << 23;
  static __m512i magnitude(__m512 x) {
    return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7FFFFFFF));
  }
  // Below kFaint - 1 for what is faint, above for 0 and all else.
  static __m512i nearness(__m512 x) { return _mm512_sub_epi32(magnitude(x), _mm512_set1_epi32(1)); }
  static __mmask16 faint_lanes(__m512 x) { return below_faint(nearness(x)); }
  static __mmask16 below_faint(__m512i nearness) {
    return _mm512_cmp_epu32_mask(nearness, _mm512_set1_epi32(kFaint - 1), _MM_CMPINT_LT);
  }

  static void next_block(PendingProduct<float>& p) {
    p.depth = 0;
    p.part = 0;
    p.row += 2 * kTile;
    if (p.row < p.tile.rows) return;
    p.row = 0;
    p.col += 2 * kTile;
    p.waits = p.col < p.tile.cols;
  }
  // A block that is not 2 x 2, at once.
  [[gnu::noinline]] static void step_edge(PendingProduct<float>& p) {
    const bool wide = p.col + 2 * kTile <= p.tile.cols;
    const bool high = p.row + kTile < p.tile.rows;
    with_parts(p.tile.left, [&](auto parts) {
      constexpr int kParts = decltype(parts)::value;
      if (wide) return multiply_block<kParts, 1, 2>(p.tile, p.row, p.col);
      high ? multiply_block<kParts, 2, 1>(p.tile, p.row, p.col)
           : multiply_block<kParts, 1, 1>(p.tile, p.row, p.col);
    });
    next_block(p);
  }

  // Operands of which values without parts are marked are inputs. Of the others, weights and dS,
  // three parts are cut off instead of rounded: cheaper, and they never overflow.
  template <int kParts, bool kLeaveOut>
  static bool pack_left_parts(const PackSource<float>& src, const Parts& dst) {
    clear_marks(dst, 0);
    const int64_t padded_rows = (src.rows + kTile - 1) / kTile * kTile;
    const bool marks = dst.hard != nullptr;
    Faintness faintness;
    for (int64_t row = 0; row < padded_rows; ++row) {
      const bool inside = row < src.rows;
      bool hard = false;
      for (int c = 0; c < dst.ld; c += 32) {
        __m512 x[2] = {};
        for (int n = 0; n < 2 && inside; ++n) {
          x[n] = load_columns(src.data + row * src.ld + c + int64_t{kTile} * n,
                              src.columns - c - kTile * n);
          if (marks) {
            hard |= drop_hard<kParts>(x[n]);
          } else if (kParts == kExactParts) {
            x[n] = look_at<kLeaveOut>(x[n], faintness);
          }
        }
        marks ? store_parts<kParts, true>(x[0], x[1], dst, row * dst.ld + c)
              : store_parts<kParts, kParts != 3>(x[0], x[1], dst, row * dst.ld + c);
      }
      if (marks && inside) mark(dst, row, hard);
    }
    return faintness.any();
  }

  template <int kParts>
  static void pack_left_transposed_parts(const PackSource<float>& src, const Parts& dst) {
    clear_marks(dst, src.rows);
    for (int row = 0; row < src.columns; row += kTile) {
      for (int64_t k0 = 0; k0 < padded_depth(src.rows) + 32; k0 += 32) {
        V block[2][kTile];
        for (int i = 0; i < 32; ++i) {
          __m512 x = {};
          if (k0 + i < src.rows) {
            x = load_columns(src.data + (k0 + i) * src.ld + row, src.columns - row);
            if (dst.hard != nullptr && drop_hard<kParts>(x)) mark(dst, k0 + i, true);
          }
          block[i % 2][i / 2] = {x};
        }
        transpose(block[0]);
        transpose(block[1]);
        for (int i = 0; i < kTile; ++i) {
          store_parts<kParts, true>(block[0][i].v, block[1][i].v, dst, (row + i) * dst.ld + k0);
        }
      }
    }
  }

  // Which two values in depth make a pair: so that packing takes no shuffle, 16 from each other
  // along head_dim and along queries, and neighbours along keys, of which any may be the first.
  template <int kParts>
  static void pack_right_parts(const PackSource<float>& src, Mark marked, const Parts& dst) {
    const bool by_column = marked == Mark::kColumns;
    clear_marks(dst, by_column ? src.columns : src.rows);
    for (int col = 0; col < src.columns; col += kTile) {
      for (int k0 = 0; k0 < dst.ld; k0 += 32) {
        for (int pair = 0; pair < kTile; ++pair) {
          __m512 x[2] = {};
          for (int n = 0; n < 2; ++n) {
            const int k = k0 + pair + kTile * n;
            if (k >= src.rows) continue;
            x[n] = _mm512_loadu_ps(src.data + k * src.ld + col);
            const __mmask16 hard = hard_lanes<kParts>(x[n]);
            if (hard == 0) continue;
            x[n] = _mm512_maskz_mov_ps(static_cast<__mmask16>(~hard), x[n]);
            if (!by_column) mark(dst, k, true);
            for (int i = 0; i < kTile && by_column; ++i) {
              if ((hard >> i & 1) != 0) mark(dst, col + i, true);
            }
          }
          store_parts<kParts, true>(x[0], x[1], dst,
                                    col * dst.ld + int64_t{kTile} * (k0 + 2 * pair));
        }
      }
    }
  }
  template <int kParts, bool kLeaveOut>
  static bool pack_weights_parts(const PackSource<float>& src, const Parts& dst) {
    Faintness faintness;
    for (int col = 0; col < src.columns; col += kTile) {
      for (int k = 0; k < dst.ld; k += 2) {
        __m512 x[2] = {};
        for (int n = 0; n < 2 && k + n < src.rows; ++n) {
          x[n] = _mm512_loadu_ps(src.data + (k + n) * src.ld + col);
          if (kParts == kExactParts) x[n] = look_at<kLeaveOut>(x[n], faintness);
        }
        store_parts<kParts, kParts != 3>(x[0], x[1], dst, col * dst.ld + int64_t{kTile} * k);
      }
    }
    return faintness.any();
  }

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
  // Values that have no parts, in lanes: NaN and infinity. Of three parts also what is so large
  // that tiny weights of it would show, or so small that parts of it would be subnormal.
  template <int kParts>
  static __mmask16 hard_lanes(__m512 x) {
    constexpr int kNan = 0x81, kInfinity = 0x18;
    if constexpr (kParts != 3) return _mm512_fpclass_ps_mask(x, kNan | kInfinity);
    constexpr int kMost = (127 + 64) << 23;
    const __m512i size = magnitude(x);
    const __m512i above = _mm512_sub_epi32(size, _mm512_set1_epi32(kFaint));
    const __mmask16 outside =
        _mm512_cmp_epu32_mask(above, _mm512_set1_epi32(kMost - kFaint), _MM_CMPINT_NLT);
    return _mm512_mask_test_epi32_mask(outside, size, size);
  }
  static __mmask16 hard_of(V x, int parts) {
    return parts == 3 ? hard_lanes<3>(x.v) : hard_lanes<1>(x.v);
  }
  template <int kParts>
  static bool drop_hard(__m512& x) {
    const __mmask16 hard = hard_lanes<kParts>(x);
    x = _mm512_maskz_mov_ps(static_cast<__mmask16>(~hard), x);
    return hard != 0;
  }

  // x, without what is faint or with a look at it.
  template <bool kLeaveOut>
  static __m512 look_at(__m512 x, Faintness& faintness) {
    if constexpr (kLeaveOut) {
      return _mm512_maskz_mov_ps(static_cast<__mmask16>(~faint_lanes(x)), x);
    }
    faintness.see({x});
    return x;
  }

  static __m512 high_half(__m512i x) {
    return _mm512_castsi512_ps(
        _mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u))));
  }
  // x rounded to bfloat16 (half away from zero) or cut off, so that x less it is exact. Some NaN
  // become numbers where it is rounded: what is left is NaN then.
  template <bool kRound>
  static __m512 leading_part(__m512 x) {
    const __m512i bits = _mm512_castps_si512(x);
    return high_half(kRound ? _mm512_add_epi32(bits, _mm512_set1_epi32(0x8000)) : bits);
  }

  // The parts of a and b, alternating. The last part of three is what is left, exactly.
  template <int kParts, bool kRound>
  static void store_parts(__m512 a, __m512 b, const Parts& to, int64_t at) {
    uint16_t* dst = to.data + at;
    for (int part = 1; part < kParts; ++part, dst += to.stride) {
      const __m512 a_high = leading_part<kRound>(a);
      const __m512 b_high = leading_part<kRound>(b);
      store_pair(a_high, b_high, dst);
      a = _mm512_sub_ps(a, a_high);
      b = _mm512_sub_ps(b, b_high);
    }
    if constexpr (kParts == 3) return store_pair(a, high_half(_mm512_castps_si512(b)), dst);
    const __m512i words = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a));
    _mm512_storeu_si512(dst, _mm512_permutexvar_epi16(alternating(), words));
  }
  static void store_pair(__m512 a, __m512 b, uint16_t* dst) {
    __m512i low = _mm512_srli_epi32(_mm512_castps_si512(a), 16);
    asm("" : "+v"(low));  // else compilers make one slow shuffle of it
    _mm512_storeu_si512(dst, _mm512_or_si512(low, _mm512_castps_si512(b)));
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
  template <int kRows, int kCols>
  static void load_sums(const GemmTile<float>& t, int row, int col) {
    float* c = t.c + row * t.c_row + col;
    if (!t.accumulate) {
      tile_zero<0>();
      if constexpr (kCols > 1) tile_zero<1>();
      if constexpr (kRows > 1) tile_zero<2>();
      if constexpr (kRows > 1 && kCols > 1) tile_zero<3>();
      return;
    }
    const int64_t bytes = t.c_row * 4;
    tile_load<0>(c, bytes);
    if constexpr (kCols > 1) tile_load<1>(c + kTile, bytes);
    if constexpr (kRows > 1) tile_load<2>(c + kTile * t.c_row, bytes);
    if constexpr (kRows > 1 && kCols > 1) tile_load<3>(c + kTile * t.c_row + kTile, bytes);
  }
  template <int kRows, int kCols>
  static void store_sums(const GemmTile<float>& t, int row, int col) {
    float* c = t.c + row * t.c_row + col;
    const int64_t bytes = t.c_row * 4;
    tile_store<0>(c, bytes);
    if constexpr (kCols > 1) tile_store<1>(c + kTile, bytes);
    if constexpr (kRows > 1) tile_store<2>(c + kTile * t.c_row, bytes);
    if constexpr (kRows > 1 && kCols > 1) tile_store<3>(c + kTile * t.c_row + kTile, bytes);
  }

  // One part of A by one of B, 32 in depth. Of the operands, those that are new are loaded; the
  // others are still there from the product before.
  struct New {
    bool a;
    bool b;
  };
  template <int kRows, int kCols, New kNew>
  [[gnu::always_inline]] static void multiply_slice(const GemmTile<float>& t, int row, int col,
                                                    int a_part, int b_part, int64_t k) {
    const int64_t ld = t.left.ld;
    const uint16_t* a = t.left.data + a_part * t.left.stride + row * ld + k;
    const uint16_t* b = t.right.data + b_part * t.right.stride + col * t.right.ld + k * kTile;
    if constexpr (kNew.a) tile_load<4>(a, ld * 2);
    if constexpr (kNew.b) tile_load<6>(b, 64);
    tile_multiply<0, 4, 6>();
    if constexpr (kNew.a && kRows > 1) tile_load<5>(a + kTile * ld, ld * 2);
    if constexpr (kRows > 1) tile_multiply<2, 5, 6>();
    if constexpr (kNew.b && kCols > 1) tile_load<7>(b + kTile * t.right.ld, 64);
    if constexpr (kCols > 1) tile_multiply<1, 4, 7>();
    if constexpr (kRows > 1 && kCols > 1) tile_multiply<3, 5, 7>();
  }

  // Products of parts: the small ones first, then the sum is rounded at its full size least often;
  // each has an operand of the one before. Of three parts, those below the last bit are left out.
  static constexpr int small_products(int parts) { return parts == 3 ? 5 : (parts == 2 ? 3 : 0); }
  template <int kParts, int kRows, int kCols>
  [[gnu::always_inline]] static void multiply_small(const GemmTile<float>& t, int row, int col,
                                                    int64_t k, int n) {
    constexpr New kA = {true, false}, kB = {false, true}, kBoth = {true, true};
    if constexpr (kParts == 3) {
      switch (n) {
        case 0: return multiply_slice<kRows, kCols, kBoth>(t, row, col, 0, 2, k);
        case 1: return multiply_slice<kRows, kCols, kB>(t, row, col, 0, 1, k);
        case 2: return multiply_slice<kRows, kCols, kA>(t, row, col, 1, 1, k);
        case 3: return multiply_slice<kRows, kCols, kB>(t, row, col, 1, 0, k);
        default: return multiply_slice<kRows, kCols, kA>(t, row, col, 2, 0, k);
      }
    } else {
      switch (n) {
        case 0: return multiply_slice<kRows, kCols, kBoth>(t, row, col, 0, 1, k);
        case 1: return multiply_slice<kRows, kCols, kA>(t, row, col, 1, 1, k);
        default: return multiply_slice<kRows, kCols, kB>(t, row, col, 1, 0, k);
      }
    }
  }
  template <int kRows, int kCols>
  [[gnu::always_inline]] static void multiply_large(const GemmTile<float>& t, int row, int col,
                                                    int64_t k) {
    multiply_slice<kRows, kCols, New{true, true}>(t, row, col, 0, 0, k);
  }

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
  static void multiply_block(const GemmTile<float>& tile, int row, int col) {
    const GemmTile<float> t = tile;  // in registers, whatever is stored
    load_sums<kRows, kCols>(t, row, col);
    constexpr int kSmall = small_products(kParts);
    for (int k = 0; kSmall > 0 && k < t.depth; k += 32) {
      for (int n = 0; n < kSmall; ++n) multiply_small<kParts, kRows, kCols>(t, row, col, k, n);
    }
    for (int k = 0; k < t.depth; k += 32) multiply_large<kRows, kCols>(t, row, col, k);
    store_sums<kRows, kCols>(t, row, col);
  }
};

}  // namespace attentile::cpu

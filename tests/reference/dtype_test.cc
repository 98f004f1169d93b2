// SPDX-License-Identifier: Apache-2.0
// Storage conversions: all 65,536 patterns of both 16-bit formats, and rounding of random doubles
// against an arithmetic definition of round-to-nearest-even, and the compiler's types where it has.
#include "dtype.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "reference/random_problem.h"

#if defined(__aarch64__)
using Half = __fp16;  // g++ 12 has no _Float16 in C++ there
#else
using Half = _Float16;
#endif

namespace attentile {
namespace {

// The value of a pattern from its three fields, in double.
double decode(uint16_t bits, int exponent_bits, int fraction_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = (bits >> fraction_bits) & ((1 << exponent_bits) - 1);
  const int fraction = bits & ((1 << fraction_bits) - 1);
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1) {
    return fraction != 0 ? NAN : sign * INFINITY;
  }
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - fraction_bits);
  return sign * std::ldexp((1 << fraction_bits) + fraction, exponent - bias - fraction_bits);
}

// Nearest even by searching: the magnitude in units of the last place, rounded by nearbyint.
double round_by_arithmetic(double value, int exponent_bits, int fraction_bits) {
  if (!std::isfinite(value) || value == 0) return value;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int unit = std::max(std::ilogb(value), 1 - bias) - fraction_bits;
  const double rounded = std::ldexp(std::nearbyint(std::ldexp(value, -unit)), unit);
  const double largest = std::ldexp(2.0 - std::ldexp(1.0, -fraction_bits), bias);
  return std::fabs(rounded) > largest ? std::copysign(INFINITY, value) : rounded;
}

void expect_same(double a, double b, double source) {
  if (std::isnan(b)) {
    ASSERT_TRUE(std::isnan(a)) << source;
  } else {
    ASSERT_EQ(a, b) << source;
    ASSERT_EQ(std::signbit(a), std::signbit(b)) << source;
  }
}

struct Format {
  DType dtype;
  int exponent_bits;
  int fraction_bits;
};
constexpr Format kFormats[] = {{DType::kFloat16, 5, 10}, {DType::kBFloat16, 8, 7}};

TEST(DType, EveryPatternDecodesAndComesBack) {
  for (const Format& format : kFormats) {
    for (uint32_t pattern = 0; pattern < 65536; ++pattern) {
      const uint16_t bits = static_cast<uint16_t>(pattern);
      const uint16_t stored[4] = {bits};
      const double value = load_as_double(stored, format.dtype, 0);
      expect_same(value, decode(bits, format.exponent_bits, format.fraction_bits), pattern);
      uint16_t written[4] = {};
      store_from_double(written, format.dtype, 0, value);
      const uint16_t back = written[0];
      if (std::isnan(value)) {
        const uint16_t infinity = format.dtype == DType::kFloat16 ? 0x7C00 : 0x7F80;
        ASSERT_GT(back & 0x7FFF, infinity) << pattern;
        ASSERT_EQ(back & 0x8000, bits & 0x8000) << pattern;
      } else {
        ASSERT_EQ(back, bits);
      }
    }
  }
}

// Between each pattern and the next: just below half, half (a tie), just above.
TEST(DType, RoundsToNearestEvenAtEveryTie) {
  for (const Format& format : kFormats) {
    const uint16_t infinity = format.dtype == DType::kFloat16 ? 0x7C00 : 0x7F80;
    for (uint16_t bits = 0; bits < infinity; ++bits) {
      const double low = decode(bits, format.exponent_bits, format.fraction_bits);
      const double unit = decode(bits + 1, format.exponent_bits, format.fraction_bits) - low;
      const double step = bits + 1 == infinity
                              ? low - decode(bits - 1, format.exponent_bits, format.fraction_bits)
                              : unit;
      const double half = low + step / 2;
      for (const double value : {std::nextafter(half, 0.0), half, std::nextafter(half, INFINITY)}) {
        for (const double sign : {1.0, -1.0}) {
          const double expected =
              round_by_arithmetic(sign * value, format.exponent_bits, format.fraction_bits);
          expect_same(round_to(format.dtype, sign * value), expected, value);
        }
      }
    }
  }
}

TEST(DType, RandomDoublesOfEveryExponent) {
  reference::Random random(11);
  for (int n = 0; n < 400000; ++n) {
    const uint64_t bits = random.bits();
    const double wide = std::bit_cast<double>(bits);
    const double near = std::ldexp(random.normal(), static_cast<int>(random.integer(-150, 150)));
    for (const double value : {wide, near}) {
      for (const Format& format : kFormats) {
        expect_same(round_to(format.dtype, value),
                    round_by_arithmetic(value, format.exponent_bits, format.fraction_bits), value);
      }
#ifdef __FLT16_MAX__
      if (!std::isnan(value)) {
        expect_same(round_to(DType::kFloat16, value), static_cast<double>(static_cast<Half>(value)),
                    value);
      }
#endif
    }
  }
}

TEST(DType, SpecialValues) {
  for (const Format& format : kFormats) {
    expect_same(round_to(format.dtype, NAN), NAN, 0);
    expect_same(round_to(format.dtype, INFINITY), INFINITY, 0);
    expect_same(round_to(format.dtype, -INFINITY), -INFINITY, 0);
    expect_same(round_to(format.dtype, -0.0), -0.0, 0);
    expect_same(round_to(format.dtype, std::numeric_limits<double>::denorm_min()), 0.0, 0);
    expect_same(round_to(format.dtype, 1e300), INFINITY, 0);
  }
  expect_same(round_to(DType::kFloat16, 65519.999), 65504, 0);
  expect_same(round_to(DType::kFloat16, 65520), INFINITY, 0);
}

TEST(DType, IntegersAndWideTypesLoad) {
  const int32_t integers[2] = {-7, 2147483647};
  EXPECT_EQ(load_as_double(integers, DType::kInt32, 0), -7);
  EXPECT_EQ(load_as_double(integers, DType::kInt32, 1), 2147483647);
  const uint8_t bytes[2] = {0, 255};
  EXPECT_EQ(load_as_double(bytes, DType::kUInt8, 1), 255);
  EXPECT_EQ(load_as_double(bytes, DType::kBool, 0), 0);
  float narrow[2] = {0, 0};
  store_from_double(narrow, DType::kFloat32, 1, 0.1);
  EXPECT_EQ(narrow[1], 0.1f);
  EXPECT_EQ(load_as_double(narrow, DType::kFloat32, 1), static_cast<double>(0.1f));
  EXPECT_EQ(round_to(DType::kFloat32, 0.1), static_cast<double>(0.1f));
  EXPECT_EQ(round_to(DType::kFloat64, 0.1), 0.1);
}

}  // namespace
}  // namespace attentile

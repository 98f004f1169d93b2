// SPDX-License-Identifier: Apache-2.0
// Conversions between the storage types and float / double, one element at a time: round to nearest
// even, subnormals kept, NaN quietened. float16 and bfloat16 are held as their 16 bits.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "attentile/tensor.h"

namespace attentile {

[[gnu::always_inline]] constexpr float bfloat16_to_float(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

[[gnu::always_inline]] constexpr float float16_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1Fu;
  const uint32_t fraction = bits & 0x3FFu;
  if (exponent == 0) {  // zero or subnormal: fraction * 2^-24, exact in float
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  if (exponent == 0x1F) return std::bit_cast<float>(sign | 0x7F800000u | (fraction << 13));
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
}

// Rounds a double to a binary format of 16 bits with the given exponent and fraction widths.
template <int kExponentBits, int kFractionBits>
[[gnu::always_inline]] constexpr uint16_t round_to_16_bits(double value) {
  constexpr int kBias = (1 << (kExponentBits - 1)) - 1;
  constexpr uint16_t kInfinity = ((1 << kExponentBits) - 1) << kFractionBits;
  const uint64_t bits = std::bit_cast<uint64_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 63) << 15);
  const int exponent = static_cast<int>((bits >> 52) & 0x7FF) - 1023;
  const uint64_t fraction = bits & ((uint64_t{1} << 52) - 1);
  if (exponent == 1024) {
    const uint16_t quiet = fraction != 0 ? uint16_t{1} << (kFractionBits - 1) : uint16_t{0};
    return sign | kInfinity | quiet;
  }
  if (exponent < 1 - kBias - kFractionBits - 1) return sign;  // below half the smallest subnormal
  if (exponent > kBias) return sign | kInfinity;
  const uint64_t significand = fraction | (uint64_t{1} << 52);
  const bool subnormal = exponent < 1 - kBias;
  const int shift = 52 - kFractionBits + (subnormal ? 1 - kBias - exponent : 0);
  const uint64_t remainder = significand & ((uint64_t{1} << shift) - 1);
  const uint64_t half = uint64_t{1} << (shift - 1);
  uint64_t rounded = significand >> shift;
  if (remainder > half || (remainder == half && (rounded & 1) != 0)) ++rounded;
  // A carry out of the fraction moves into the exponent field, as it should.
  const uint64_t base =
      subnormal ? 0 : static_cast<uint64_t>(exponent + kBias - 1) << kFractionBits;
  return sign | static_cast<uint16_t>(base + rounded);
}

[[gnu::always_inline]] constexpr uint16_t double_to_bfloat16(double value) {
  return round_to_16_bits<8, 7>(value);
}
[[gnu::always_inline]] constexpr uint16_t double_to_float16(double value) {
  return round_to_16_bits<5, 10>(value);
}

// Element `index` of an array of `dtype`; integers and booleans convert too.
inline double load_as_double(const void* data, DType dtype, int64_t index) {
  const char* address = static_cast<const char*>(data) + index * size_of(dtype);
  switch (dtype) {
    case DType::kFloat32: {
      float value;
      std::memcpy(&value, address, sizeof value);
      return value;
    }
    case DType::kFloat64: {
      double value;
      std::memcpy(&value, address, sizeof value);
      return value;
    }
    case DType::kFloat16:
    case DType::kBFloat16: {
      uint16_t bits;
      std::memcpy(&bits, address, sizeof bits);
      return dtype == DType::kFloat16 ? float16_to_float(bits) : bfloat16_to_float(bits);
    }
    case DType::kInt32: {
      int32_t value;
      std::memcpy(&value, address, sizeof value);
      return value;
    }
    case DType::kUInt8:
    case DType::kBool: return *reinterpret_cast<const uint8_t*>(address);
  }
  return 0.0;
}

// Stores value, rounded once, as element `index`; floating types only.
inline void store_from_double(void* data, DType dtype, int64_t index, double value) {
  char* address = static_cast<char*>(data) + index * size_of(dtype);
  if (dtype == DType::kFloat64) {
    std::memcpy(address, &value, sizeof value);
  } else if (dtype == DType::kFloat32) {
    const float narrow = static_cast<float>(value);
    std::memcpy(address, &narrow, sizeof narrow);
  } else {
    const uint16_t bits =
        dtype == DType::kFloat16 ? double_to_float16(value) : double_to_bfloat16(value);
    std::memcpy(address, &bits, sizeof bits);
  }
}

// value rounded to dtype and back: what storing it would leave.
inline double round_to(DType dtype, double value) {
  switch (dtype) {
    case DType::kFloat32: return static_cast<float>(value);
    case DType::kFloat16: return float16_to_float(double_to_float16(value));
    case DType::kBFloat16: return bfloat16_to_float(double_to_bfloat16(value));
    default: return value;
  }
}

}  // namespace attentile

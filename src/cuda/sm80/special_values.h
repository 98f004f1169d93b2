// SPDX-License-Identifier: Apache-2.0
// O += P V where a NaN or infinity among the values of a tile must reach the queries that see it
// and no others, although 0 times it is not 0. V is split in two: its finite part, zeros elsewhere,
// multiplies P as always; its special part is counted, by the tensor cores too. With
//
//     a = 0 where a query does not see a key, else 1, or 2^14 where its weight is 0
//     b = 0 where a value is finite, 1 for inf, 2^7 for -inf, 2^14 for NaN
//
// a tile of at most 64 keys gives a b = (infs seen) + 2^7 (-infs seen) + 2^14 (what makes a NaN), a
// sum that float32 holds exactly as long as the last term is 0.
#pragma once

#include "cuda/device/device.h"
#include "cuda/numerics.h"

namespace attentile::cuda {

inline constexpr float kMinusInfinityMark = 128;
inline constexpr float kNanMark = 16384;

// Two values of V, as one register of T holds them.
struct SplitValues {
  uint32_t finite;
  uint32_t marks;
};
template <class T>
ATTENTILE_DEVICE SplitValues split_values(uint32_t pair) {
  constexpr uint32_t kExponent = kIsFloat16<T> ? 0x7C00 : 0x7F80;
  SplitValues split = {0, 0};
  ATTENTILE_UNROLL
  for (int half = 0; half < 2; ++half) {
    const uint32_t bits = pair >> (16 * half) & 0xFFFF;
    const bool finite = (bits & kExponent) != kExponent;
    const bool nan = (bits & 0x7FFF) > kExponent;
    const uint32_t infinity =
        bits >> 15 == 0 ? from_f32<T>(1.0f).bits : from_f32<T>(kMinusInfinityMark).bits;
    const uint32_t mark = nan ? from_f32<T>(kNanMark).bits : infinity;
    split.finite |= (finite ? bits : 0) << (16 * half);
    split.marks |= (finite ? 0 : mark) << (16 * half);
  }
  return split;
}

// a of two weights, as one register of T holds them.
template <class T>
ATTENTILE_DEVICE uint32_t mark_weights(uint32_t pair, bool first_seen, bool second_seen) {
  const uint32_t zero = from_f32<T>(kNanMark).bits;
  const uint32_t other = from_f32<T>(1.0f).bits;
  const uint32_t first = (pair & 0x7FFF) == 0 ? zero : other;
  const uint32_t second = (pair & 0x7FFF0000) == 0 ? zero : other;
  return (first_seen ? first : 0) | (second_seen ? second : 0) << 16;
}

// What the marks of an element of O add to it.
ATTENTILE_DEVICE float add_special(float o, float marks) {
  if (marks == 0.0f) return o;
  const bool minus = marks >= kMinusInfinityMark;
  const bool plus = (static_cast<uint32_t>(marks) & 127) != 0;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float special = marks >= kNanMark || (minus && plus) ? nan : minus ? -kInfinity : kInfinity;
  return add_rn(o, special);
}

}  // namespace attentile::cuda

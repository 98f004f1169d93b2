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

// Both elements of a register at once: of each its half of 16 bits, which no carry leaves.
ATTENTILE_DEVICE constexpr uint32_t both(uint32_t half) {
  return half << 16 | half;
}
template <class T>
struct PairBits {
  static constexpr int kFractionBits = kIsFloat16<T> ? 10 : 7;
  static constexpr uint32_t kFraction = (1u << kFractionBits) - 1;
  static constexpr uint32_t kExponent = 0x7FFF - kFraction;
  // 1.0, and 2^7 in the exponent.
  static constexpr uint32_t kOne = kIsFloat16<T> ? 0x3C00 : 0x3F80;
  static constexpr uint32_t kTimes128 = 7u << kFractionBits;
};

// Two values of V, as one register of T holds them.
struct SplitValues {
  uint32_t finite;
  uint32_t marks;
};
template <class T>
ATTENTILE_DEVICE SplitValues split_values(uint32_t pair) {
  using Bits = PairBits<T>;
  // An exponent of all ones carries into the place of the sign, a fraction of any into that of the
  // exponent.
  const uint32_t special =
      ((pair & both(Bits::kExponent)) + both(Bits::kFraction + 1)) >> 15 & both(1);
  if (special == 0) return {pair, 0};
  const uint32_t nan =
      ((pair & both(Bits::kFraction)) + both(Bits::kFraction)) >> Bits::kFractionBits & special;
  const uint32_t minus = pair >> 15 & special & ~nan;
  return {pair & ~(special * 0xFFFF),
          special * Bits::kOne + minus * Bits::kTimes128 + nan * (2 * Bits::kTimes128)};
}

// a of two weights, as one register of T holds them.
template <class T>
ATTENTILE_DEVICE uint32_t mark_weights(uint32_t pair, bool first_seen, bool second_seen) {
  using Bits = PairBits<T>;
  const uint32_t zero = both(1) - (((pair & both(0x7FFF)) + both(0x7FFF)) >> 15 & both(1));
  const uint32_t seen = (first_seen ? 0xFFFFu : 0u) | (second_seen ? 0xFFFF0000u : 0u);
  return (both(Bits::kOne) + zero * (2 * Bits::kTimes128)) & seen;
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

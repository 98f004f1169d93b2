// SPDX-License-Identifier: Apache-2.0
// The band mask: causal, window, ragged tail and varlen are one interval of visible keys per query.
// Query i of a sequence sees keys [lo(i), hi(i)). Both ends never fall as i grows, so the keys a
// range of queries sees, and whether a tile is hidden, partial or full, follow from its corners.
// Pure integer arithmetic, shared by every backend and the tests; always inlined, so that a file
// compiled for one instruction set leaves no copy of it for others to call.
#pragma once

#include <cstdint>

namespace attentile {

inline constexpr int64_t kUnbounded = -1;  // a window side without limit

enum class TileClass { kHidden, kPartial, kFull };

struct KeyRange {
  int64_t begin = 0;
  int64_t end = 0;  // empty when end <= begin
};

[[gnu::always_inline]] constexpr int64_t min64(int64_t a, int64_t b) {
  return a < b ? a : b;
}
[[gnu::always_inline]] constexpr int64_t max64(int64_t a, int64_t b) {
  return a > b ? a : b;
}
[[gnu::always_inline]] constexpr int64_t clamp64(int64_t x, int64_t low, int64_t high) {
  return x < low ? low : (x > high ? high : x);
}
[[gnu::always_inline]] constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
[[gnu::always_inline]] constexpr int64_t round_up(int64_t a, int64_t b) {
  return ceil_div(a, b) * b;
}

struct BandMask {
  int64_t seqlen_k = 0;
  int64_t offset = 0;  // query i stands at position i + offset among the keys
  int64_t window_left = kUnbounded;
  int64_t window_right = kUnbounded;  // causal is window_right = 0

  // First and one past the last visible key of query i, both in [0, seqlen_k]; hidden rows may
  // have lo >= hi. The sums saturate: positions and windows may be any int64.
  [[gnu::always_inline]] constexpr int64_t lo(int64_t i) const {
    if (window_left == kUnbounded) return 0;
    return clamp_position(i, -static_cast<__int128>(window_left));
  }
  [[gnu::always_inline]] constexpr int64_t hi(int64_t i) const {
    if (window_right == kUnbounded) return seqlen_k;
    return clamp_position(i, static_cast<__int128>(window_right) + 1);
  }
  [[gnu::always_inline]] constexpr bool visible(int64_t i, int64_t j) const {
    return j >= lo(i) && j < hi(i);
  }

  // Keys that some query of [q_begin, q_end) may see: a cover, exact at both ends.
  [[gnu::always_inline]] constexpr KeyRange keys(int64_t q_begin, int64_t q_end) const {
    if (q_begin >= q_end) return {0, 0};
    return {lo(q_begin), hi(q_end - 1)};
  }
  // Class of the tile queries [q_begin, q_end) x keys [k_begin, k_end).
  [[gnu::always_inline]] constexpr TileClass classify(int64_t q_begin, int64_t q_end,
                                                      int64_t k_begin, int64_t k_end) const {
    if (q_begin >= q_end || k_begin >= k_end) return TileClass::kHidden;
    if (k_end <= lo(q_begin) || k_begin >= hi(q_end - 1)) return TileClass::kHidden;
    const bool full = k_begin >= lo(q_end - 1) && k_end <= hi(q_begin);
    return full ? TileClass::kFull : TileClass::kPartial;
  }

 private:
  [[gnu::always_inline]] constexpr int64_t clamp_position(int64_t i, __int128 shift) const {
    const __int128 position = static_cast<__int128>(i) + offset + shift;
    if (position < 0) return 0;
    return position > seqlen_k ? seqlen_k : static_cast<int64_t>(position);
  }
};

// The same band where sizes are below 2^31 - 1: two sums of 32 bits, for kernels whose registers
// are few. A shift saturates where no query and key come near enough to tell.
struct NarrowBand {
  int32_t seqlen_k = 0;
  int32_t lo_shift = 0;  // query i sees keys from i + lo_shift on
  int32_t hi_shift = 0;  // and before i + hi_shift

  [[gnu::always_inline]] constexpr int32_t lo(int32_t i) const { return clamp(i, lo_shift); }
  [[gnu::always_inline]] constexpr int32_t hi(int32_t i) const { return clamp(i, hi_shift); }

  // Of the tile queries [q_begin, q_end) x keys [k_begin, k_end); none of the ranges is empty.
  [[gnu::always_inline]] constexpr TileClass classify(int32_t q_begin, int32_t q_end,
                                                      int32_t k_begin, int32_t k_end) const {
    if (k_end <= lo(q_begin) || k_begin >= hi(q_end - 1)) return TileClass::kHidden;
    const bool full = k_begin >= lo(q_end - 1) && k_end <= hi(q_begin);
    return full ? TileClass::kFull : TileClass::kPartial;
  }

 private:
  [[gnu::always_inline]] constexpr int32_t clamp(int32_t i, int32_t shift) const {
    return static_cast<int32_t>(clamp64(int64_t{i} + shift, 0, seqlen_k));
  }
};

[[gnu::always_inline]] constexpr NarrowBand narrow(const BandMask& band) {
  constexpr int64_t kLeast = -(int64_t{1} << 31);
  constexpr int64_t kMost = (int64_t{1} << 31) - 1;
  const __int128 lo = static_cast<__int128>(band.offset) - band.window_left;
  const __int128 hi = static_cast<__int128>(band.offset) + band.window_right + 1;
  const auto saturate = [](__int128 x) {
    return static_cast<int32_t>(x < kLeast ? kLeast : x > kMost ? kMost : static_cast<int64_t>(x));
  };
  return {.seqlen_k = static_cast<int32_t>(band.seqlen_k),
          .lo_shift = band.window_left == kUnbounded ? static_cast<int32_t>(kLeast) : saturate(lo),
          .hi_shift = band.window_right == kUnbounded ? static_cast<int32_t>(kMost) : saturate(hi)};
}

}  // namespace attentile

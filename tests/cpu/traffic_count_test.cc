// SPDX-License-Identifier: Apache-2.0
// count_tiles against a walk over every panel and tile, and at sizes that no walk would end on.
#include <gtest/gtest.h>

#include <string>

#include "cpu/traffic.h"
#include "support/random.h"

namespace attentile::cpu {
namespace {

using testing::Random;

Sequence sequence(int64_t seqlen_q, const BandMask& band) {
  Sequence s;
  s.seqlen_q = seqlen_q;
  s.seqlen_k = band.seqlen_k;
  s.band = band;
  return s;
}

// By the definition of the band alone.
int64_t walk(const Sequence& s, const Grid& grid, bool by_row) {
  const auto visible = [&](int64_t i, int64_t j) {
    const int64_t position = i + s.band.offset;
    return (s.band.window_left == kUnbounded || j >= position - s.band.window_left) &&
           (s.band.window_right == kUnbounded || j <= position + s.band.window_right);
  };
  int64_t total = 0;
  for (int64_t q = 0; q < s.seqlen_q; q += grid.rows) {
    const int64_t q_end = min64(q + grid.rows, s.seqlen_q);
    for (int64_t k = 0; k < s.seqlen_k; k += grid.keys) {
      bool any = false;
      for (int64_t i = q; i < q_end && !any; ++i) {
        for (int64_t j = k; j < min64(k + grid.keys, s.seqlen_k) && !any; ++j) any = visible(i, j);
      }
      if (any) total += by_row ? q_end - q : 1;
    }
  }
  return total;
}

TEST(CountTiles, IsWhatAWalkFinds) {
  Random random(5);
  const auto between = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random.uniform() * static_cast<double>(high - low + 1));
  };
  int some = 0;
  for (int round = 0; round < 4000; ++round) {
    BandMask band;
    band.seqlen_k = between(0, 40);
    band.offset = between(-45, 45);
    band.window_left = between(0, 2) == 0 ? kUnbounded : between(0, 30);
    band.window_right = between(0, 2) == 0 ? kUnbounded : between(0, 30);
    const Sequence s = sequence(between(0, 40), band);
    const Grid grid = {.rows = between(1, 9), .keys = between(1, 9)};
    for (const bool by_row : {false, true}) {
      const int64_t expected = walk(s, grid, by_row);
      some += expected > 0 ? 1 : 0;
      ASSERT_EQ(static_cast<int64_t>(count_tiles(s, grid, by_row)), expected)
          << s.seqlen_q << " x " << s.seqlen_k << ", offset " << band.offset << ", window "
          << band.window_left << " " << band.window_right << ", grid " << grid.rows << " x "
          << grid.keys << (by_row ? ", by row" : "");
    }
  }
  EXPECT_GT(some, 4000);
}

TEST(CountTiles, OfHugeSequences) {
  const int64_t n = int64_t{1} << 28;
  const BandMask whole = {.seqlen_k = n};
  EXPECT_EQ(static_cast<int64_t>(count_tiles(sequence(n, whole), {1, 1}, false)), n * n);
  EXPECT_EQ(static_cast<int64_t>(count_tiles(sequence(n, whole), {16, 64}, false)), n * n / 1024);
  const BandMask causal = {.seqlen_k = n, .window_right = 0};
  EXPECT_EQ(static_cast<int64_t>(count_tiles(sequence(n, causal), {1, 1}, false)), n * (n + 1) / 2);
  // Panel i of 64 queries sees the tiles 0 .. i of 64 keys.
  const int64_t tiles = n / 64;
  EXPECT_EQ(static_cast<int64_t>(count_tiles(sequence(n, causal), {64, 64}, true)),
            64 * (tiles * (tiles + 1) / 2));
  const BandMask window = {.seqlen_k = n, .window_left = 1000, .window_right = 0};
  EXPECT_EQ(static_cast<int64_t>(count_tiles(sequence(n, window), {1, 1}, false)),
            n * 1001 - 1000 * 1001 / 2);
  const int64_t keys = int64_t{1} << 57;
  EXPECT_EQ(static_cast<int64_t>(count_tiles(sequence(1, {.seqlen_k = keys}), {16, 1}, true)),
            keys);
  const int64_t far = int64_t{1} << 62;
  const BandMask beyond = {.seqlen_k = n, .offset = -far, .window_left = far, .window_right = far};
  EXPECT_EQ(static_cast<int64_t>(count_tiles(sequence(n, beyond), {1, 1}, false)), n * (n + 1) / 2);
}

}  // namespace
}  // namespace attentile::cpu

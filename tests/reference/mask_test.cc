// SPDX-License-Identifier: Apache-2.0
// The band mask against its two inequalities, for every pair, tile and range of small problems, and
// at the ends of int64.
#include "mask.h"

#include <gtest/gtest.h>

#include <limits>

namespace attentile {
namespace {

constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

// The contract, in 128 bits: i + offset - left <= j <= i + offset + right, 0 <= j < seqlen_k.
bool visible_by_contract(const BandMask& band, int64_t i, int64_t j) {
  const __int128 position = static_cast<__int128>(i) + band.offset;
  if (j < 0 || j >= band.seqlen_k) return false;
  if (band.window_left != kUnbounded && j < position - band.window_left) return false;
  return band.window_right == kUnbounded || j <= position + band.window_right;
}

void check_rows(const BandMask& band, int64_t seqlen_q) {
  for (int64_t i = 0; i < seqlen_q; ++i) {
    ASSERT_GE(band.lo(i), 0);
    ASSERT_LE(band.hi(i), band.seqlen_k);
    if (i > 0) {
      ASSERT_GE(band.lo(i), band.lo(i - 1));
      ASSERT_GE(band.hi(i), band.hi(i - 1));
    }
    for (int64_t j = 0; j < band.seqlen_k; ++j) {
      ASSERT_EQ(band.visible(i, j), visible_by_contract(band, i, j)) << i << " " << j;
    }
  }
}

void check_tile(const BandMask& band, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
  int64_t seen = 0;
  for (int64_t i = i0; i < i1; ++i) {
    for (int64_t j = j0; j < j1; ++j) seen += visible_by_contract(band, i, j) ? 1 : 0;
  }
  const TileClass tile = band.classify(i0, i1, j0, j1);
  const bool full = seen == (i1 - i0) * (j1 - j0) && seen > 0;
  ASSERT_EQ(tile == TileClass::kFull, full);
  if (tile == TileClass::kHidden) {
    ASSERT_EQ(seen, 0);
  }
  // A partial tile may turn out empty only when rows of it see no key at all.
  if (tile == TileClass::kPartial && seen == 0) {
    bool hidden_row = false;
    for (int64_t i = i0; i < i1; ++i) hidden_row = hidden_row || band.lo(i) >= band.hi(i);
    ASSERT_TRUE(hidden_row || band.lo(i1 - 1) > band.lo(i0));
  }
}

void check_keys(const BandMask& band, int64_t i0, int64_t i1) {
  const KeyRange range = band.keys(i0, i1);
  int64_t first = -1;
  int64_t last = -1;
  for (int64_t j = 0; j < band.seqlen_k; ++j) {
    for (int64_t i = i0; i < i1; ++i) {
      if (!visible_by_contract(band, i, j)) continue;
      if (first < 0) first = j;
      last = j;
    }
  }
  if (first < 0) return;
  ASSERT_LE(range.begin, first);
  ASSERT_GE(range.end, last + 1);
  ASSERT_GE(range.begin, band.lo(i0));
  ASSERT_LE(range.end, band.hi(i1 - 1));
}

// Every (seqlen_q, seqlen_k, left, right) up to 12 in both alignments.
TEST(BandMask, EverySmallProblem) {
  for (int64_t sq = 0; sq <= 12; ++sq) {
    for (int64_t sk = 0; sk <= 12; ++sk) {
      for (const int64_t offset : {int64_t{0}, sk - sq}) {
        for (int64_t left = -1; left <= 12; ++left) {
          for (int64_t right = -1; right <= 12; ++right) {
            check_rows({sk, offset, left, right}, sq);
            if (testing::Test::HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

// Every tile and row range of problems up to 6 x 7.
TEST(BandMask, EveryTile) {
  for (int64_t sk = 1; sk <= 7; ++sk) {
    for (int64_t offset = -4; offset <= 4; ++offset) {
      for (int64_t left = -1; left <= 4; ++left) {
        for (int64_t right = -1; right <= 4; ++right) {
          const BandMask band = {sk, offset, left, right};
          for (int64_t i0 = 0; i0 < 6; ++i0) {
            for (int64_t i1 = i0 + 1; i1 <= 6; ++i1) {
              check_keys(band, i0, i1);
              for (int64_t j0 = 0; j0 < sk; ++j0) {
                for (int64_t j1 = j0 + 1; j1 <= sk; ++j1) check_tile(band, i0, i1, j0, j1);
              }
              if (testing::Test::HasFatalFailure()) return;
            }
          }
        }
      }
    }
  }
}

TEST(BandMask, EmptyTilesAreHidden) {
  const BandMask band = {8, 0, kUnbounded, kUnbounded};
  EXPECT_EQ(band.classify(3, 3, 0, 8), TileClass::kHidden);
  EXPECT_EQ(band.classify(0, 4, 8, 8), TileClass::kHidden);
  EXPECT_EQ(band.keys(2, 2).end, 0);
}

TEST(BandMask, ExtremePositionsSaturate) {
  for (const int64_t offset :
       {kMin, kMin + 1, int64_t{-1} << 40, int64_t{0}, int64_t{1} << 40, kMax - 1, kMax}) {
    for (const int64_t left : {int64_t{-1}, int64_t{0}, int64_t{5}, kMax - 1, kMax}) {
      for (const int64_t right : {int64_t{-1}, int64_t{0}, int64_t{5}, kMax - 1, kMax}) {
        check_rows({9, offset, left, right}, 9);
      }
    }
  }
  const BandMask far = {kMax, kMax, kUnbounded, 0};
  EXPECT_EQ(far.hi(kMax), kMax);
  const BandMask below = {kMax, kMin, 0, 0};
  EXPECT_EQ(below.lo(0), 0);
  EXPECT_EQ(below.hi(0), 0);
}

TEST(BandMask, IntegerHelpers) {
  static_assert(ceil_div(0, 4) == 0 && ceil_div(1, 4) == 1 && ceil_div(8, 4) == 2);
  static_assert(round_up(9, 8) == 16 && clamp64(7, 0, 5) == 5 && clamp64(-7, 0, 5) == 0);
  static_assert(min64(kMin, kMax) == kMin && max64(kMin, kMax) == kMax);
}

}  // namespace
}  // namespace attentile

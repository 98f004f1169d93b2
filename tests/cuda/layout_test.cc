// SPDX-License-Identifier: Apache-2.0
// Fragment maps and swizzles against tables written down independently of the formulas.
#include <map>
#include <set>

#include "cuda/support.h"

namespace attentile::cuda::test {
namespace {

// The A fragment as PTX's figure has it: for a0..a7 the row is the group, plus 8 for a2, a3, a6,
// a7; the column is twice the thread in the group plus i & 1, plus 8 from a4 on.
TEST(Fragment, AOfM16N8K16IsTheFigureOfTheManual) {
  std::set<std::pair<int, int>> seen;
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane >> 2;
    const int thread = lane & 3;
    for (int i = 0; i < 8; ++i) {
      const int row = (i < 2 || (i >= 4 && i < 6)) ? group : group + 8;
      const int column = thread * 2 + (i & 1) + (i >= 4 ? 8 : 0);
      const Position at = fragment_a(lane, i / 2, i % 2);
      EXPECT_EQ(at, (Position{row, column})) << lane << " " << i;
      seen.insert({at.row, at.column});
    }
  }
  EXPECT_EQ(seen.size(), 256u);
}

TEST(Fragment, BOfM16N8K16IsTheFigureOfTheManual) {
  std::set<std::pair<int, int>> seen;
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = (lane & 3) * 2 + (i & 1) + (i >= 2 ? 8 : 0);
      const Position at = fragment_b(lane, i / 2, i % 2);
      EXPECT_EQ(at, (Position{row, lane >> 2}));
      seen.insert({at.row, at.column});
    }
  }
  EXPECT_EQ(seen.size(), 128u);
}

TEST(Fragment, AccumulatorIsTheFigureOfTheManual) {
  std::set<std::pair<int, int>> seen;
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = i < 2 ? lane >> 2 : (lane >> 2) + 8;
      const Position at = fragment_c(lane, i);
      EXPECT_EQ(at, (Position{row, (lane & 3) * 2 + (i & 1)}));
      seen.insert({at.row, at.column});
    }
  }
  EXPECT_EQ(seen.size(), 128u);
}

TEST(Fragment, Tf32FragmentsAreTheFiguresOfTheManual) {
  std::set<std::pair<int, int>> a;
  std::set<std::pair<int, int>> b;
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = (lane >> 2) + (i == 1 || i == 3 ? 8 : 0);
      const Position at = fragment_a_tf32(lane, i);
      EXPECT_EQ(at, (Position{row, (lane & 3) + (i >= 2 ? 4 : 0)}));
      a.insert({at.row, at.column});
    }
    for (int i = 0; i < 2; ++i) {
      const Position at = fragment_b_tf32(lane, i);
      EXPECT_EQ(at, (Position{(lane & 3) + (i == 1 ? 4 : 0), lane >> 2}));
      b.insert({at.row, at.column});
    }
  }
  EXPECT_EQ(a.size(), 128u);
  EXPECT_EQ(b.size(), 64u);
}

TEST(Fragment, PackedAccumulatorsAreAFragmentOfA) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int tile = 0; tile < 2; ++tile) {
      for (int i = 0; i < 4; ++i) {
        const Position c = fragment_c(lane, i);
        const Position a = fragment_a(lane, 2 * tile + i / 2, i % 2);
        EXPECT_EQ(a, (Position{c.row, c.column + 8 * tile}));
      }
    }
  }
}

// Lane l receives from matrix j elements (l / 4, 2 (l % 4) + half), with .trans the transposed
// ones.
TEST(Fragment, LdmatrixAddressesFeedTheFragments) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int j = 0; j < 4; ++j) {
      for (int half = 0; half < 2; ++half) {
        const int row = lane / 4;
        const int column = 2 * (lane % 4) + half;
        const Position a = ldmatrix_a(8 * j + row);
        EXPECT_EQ((Position{a.row, a.column + column}), fragment_a(lane, j, half));
        const Position at = ldmatrix_a_trans(8 * j + column);  // stored [k, row]
        EXPECT_EQ((Position{at.column + row, at.row}), fragment_a(lane, j, half));
        const Position b = ldmatrix_b(8 * j + row);  // stored [n, k]
        const Position in_b = fragment_b(lane, j % 2, half);
        EXPECT_EQ((Position{b.column + column, b.row - 8 * (j / 2)}), in_b);
        const Position t = ldmatrix_b_trans(8 * j + column);  // stored [k, n]
        EXPECT_EQ((Position{t.row, t.column + row - 8 * (j / 2)}), in_b);
      }
    }
  }
}

// The offset with its bits exchanged one by one.
uint32_t swizzled_bit_by_bit(uint32_t offset, int bits) {
  uint32_t result = offset;
  for (int i = 0; i < bits; ++i) {
    if ((offset >> (7 + i) & 1u) != 0) result ^= 1u << (4 + i);
  }
  return result;
}

TEST(Swizzle, IsTheXorOfAddressBits) {
  for (uint32_t offset = 0; offset < 8192; ++offset) {
    EXPECT_EQ(swizzle<Swizzle::k128>(offset), swizzled_bit_by_bit(offset, 3));
    EXPECT_EQ(swizzle<Swizzle::k64>(offset), swizzled_bit_by_bit(offset, 2));
    EXPECT_EQ(swizzle<Swizzle::k32>(offset), swizzled_bit_by_bit(offset, 1));
    EXPECT_EQ(swizzle<Swizzle::kNone>(offset), offset);
  }
}

template <class Tile, int kRows, int kColumns, int kElementBytes>
void expect_bijective_and_free_of_conflicts() {
  std::set<uint32_t> offsets;
  for (uint32_t row = 0; row < kRows; ++row) {
    for (uint32_t column = 0; column < kColumns; ++column)
      offsets.insert(Tile::offset(row, column));
  }
  EXPECT_EQ(offsets.size(), static_cast<size_t>(kRows * kColumns));
  EXPECT_EQ(*offsets.rbegin(), Tile::kBytes - kElementBytes);
  // The same 16 bytes of 8 consecutive rows: 8 different groups of 4 banks.
  for (uint32_t row = 0; row < kRows; row += 8) {
    for (uint32_t column = 0; column < kColumns; column += 16 / kElementBytes) {
      std::set<uint32_t> groups;
      for (uint32_t i = 0; i < 8; ++i) groups.insert(Tile::offset(row + i, column) / 16 % 8);
      EXPECT_EQ(groups.size(), 8u) << row << " " << column;
      EXPECT_EQ(Tile::offset(row, column) % 16, 0u);
    }
  }
}

TEST(Swizzle, TilesAreBijectiveAndFreeOfConflicts) {
  expect_bijective_and_free_of_conflicts<SharedTile<BFloat16, 64, 16>, 64, 16, 2>();
  expect_bijective_and_free_of_conflicts<SharedTile<BFloat16, 64, 32>, 64, 32, 2>();
  expect_bijective_and_free_of_conflicts<SharedTile<BFloat16, 64, 64>, 64, 64, 2>();
  expect_bijective_and_free_of_conflicts<SharedTile<BFloat16, 128, 96>, 128, 96, 2>();
  expect_bijective_and_free_of_conflicts<SharedTile<BFloat16, 32, 128>, 32, 128, 2>();
  expect_bijective_and_free_of_conflicts<SharedTile<BFloat16, 64, 256>, 64, 256, 2>();
  expect_bijective_and_free_of_conflicts<SharedTile<float, 64, 32>, 64, 32, 4>();
}

TEST(Swizzle, PanelsFollowEachOther) {
  using Tile = SharedTile<BFloat16, 64, 128>;
  EXPECT_EQ(Tile::kPanelBytes, 128u);
  EXPECT_EQ(Tile::kAlignment, 1024u);
  EXPECT_EQ(Tile::offset(0, 64), 64u * 128);
  EXPECT_EQ(Tile::offset(1, 0), 128u + 16);
  EXPECT_EQ(Tile::offset(8, 8), 8u * 128 + 16);
}

}  // namespace
}  // namespace attentile::cuda::test

// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10 against Random123's known answers, and the counter layout of dropout against a
// second formulation of the contract's four lines.
#include "philox.h"

#include <gtest/gtest.h>

namespace attentile {
namespace {

// Random123 1.14, tests/kat_vectors, lines "philox4x32 10".
struct KnownAnswer {
  Philox4 counter;
  uint32_t key[2];
  Philox4 answer;
};
constexpr KnownAnswer kKnownAnswers[] = {
    {{{0, 0, 0, 0}}, {0, 0}, {{0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8}}},
    {{{0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF}},
     {0xFFFFFFFF, 0xFFFFFFFF},
     {{0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD}}},
    {{{0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344}},
     {0xA4093822, 0x299F31D0},
     {{0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1}}},
};

TEST(Philox, KnownAnswers) {
  for (const KnownAnswer& known : kKnownAnswers) {
    const Philox4 random = philox4x32_10(known.counter, known.key[0], known.key[1]);
    for (int w = 0; w < 4; ++w) EXPECT_EQ(random.word[w], known.answer.word[w]) << w;
  }
}

struct Position {
  int64_t b, h, i, j;
};

// Straight from the contract, in one expression per line.
bool keep_by_contract(uint64_t seed, uint64_t offset, double p, Position at, int64_t num_heads_q) {
  const auto [b, h, i, j] = at;
  const uint32_t key0 = static_cast<uint32_t>(seed & 0xFFFFFFFF);
  const uint32_t key1 = static_cast<uint32_t>((seed >> 32) ^ (offset >> 32));
  const uint32_t c0 = static_cast<uint32_t>(4 * (j / 32) + (j % 8) / 2);
  const uint32_t c1 = static_cast<uint32_t>(i);
  const uint32_t c2 = static_cast<uint32_t>(b * num_heads_q + h);
  const Philox4 random =
      philox4x32_10({{c0, c1, c2, static_cast<uint32_t>(offset & 0xFFFFFFFF)}}, key0, key1);
  uint16_t lanes[8];
  for (int w = 0; w < 4; ++w) {
    lanes[2 * w] = static_cast<uint16_t>(random.word[w]);
    lanes[2 * w + 1] = static_cast<uint16_t>(random.word[w] >> 16);
  }
  return lanes[2 * ((j % 32) / 8) + j % 2] >= std::floor(65536 * p + 0.5);
}

TEST(Dropout, FollowsTheContract) {
  const uint64_t seed = 0x0123456789ABCDEF;
  const uint64_t offset = 0xFEDCBA9876543210;
  for (const double p : {0.1, 0.5, 0.9}) {
    Dropout dropout = make_dropout(p, seed, offset);
    dropout.num_heads_q = 3;
    for (int64_t b = 0; b < 2; ++b) {
      for (int64_t h = 0; h < 3; ++h) {
        for (int64_t i = 0; i < 5; ++i) {
          for (int64_t j = 0; j < 100; ++j) {
            ASSERT_EQ(dropout.keep(b, h, i, j), keep_by_contract(seed, offset, p, {b, h, i, j}, 3));
          }
        }
      }
    }
  }
}

TEST(Dropout, EveryLaneOfACallServesOneKey) {
  for (uint64_t block = 0; block < 4; ++block) {
    bool used[4][8] = {};
    for (uint64_t j = 32 * block; j < 32 * block + 32; ++j) {
      const uint32_t call = Dropout::column(j) - static_cast<uint32_t>(4 * block);
      ASSERT_LT(call, 4u);
      bool& cell = used[call][Dropout::lane(j)];
      EXPECT_FALSE(cell);
      cell = true;
    }
  }
}

TEST(Dropout, BasesShiftThePositions) {
  Dropout whole = make_dropout(0.5, 7, 9);
  whole.num_heads_q = 8;
  Dropout piece = whole;
  piece.query_base = 100;
  piece.key_base = 37;
  piece.head_base = 3;
  piece.batch_base = 5;
  for (int64_t i = 0; i < 20; ++i) {
    for (int64_t j = 0; j < 70; ++j) {
      ASSERT_EQ(piece.keep(1, 2, i, j), whole.keep(6, 5, i + 100, j + 37));
    }
  }
}

TEST(Dropout, KeepsTheAskedShare) {
  for (const double p : {0.0, 1e-9, 0.25, 0.8, 1.0}) {
    Dropout dropout = make_dropout(p, 3, 0);
    dropout.num_heads_q = 1;
    int64_t kept = 0;
    constexpr int64_t kSide = 400;
    for (int64_t i = 0; i < kSide; ++i) {
      for (int64_t j = 0; j < kSide; ++j) kept += dropout.keep(0, 0, i, j) ? 1 : 0;
    }
    const double share = static_cast<double>(kept) / (kSide * kSide);
    EXPECT_NEAR(share, 1 - p, p == 0 || p == 1 ? 0 : 0.006) << p;  // 6 sigma of the binomial
  }
  EXPECT_EQ(make_dropout(1.0, 0, 0).scale, 0.0);
  EXPECT_EQ(make_dropout(1.0, 0, 0).threshold, 65536u);
  EXPECT_EQ(make_dropout(0.5, 0, 0).scale, 2.0);
  EXPECT_EQ(make_dropout(1.5 / 65536, 0, 0).threshold, 2u);  // half goes up
  EXPECT_FALSE(make_dropout(0.0, 0, 0).enabled);
}

}  // namespace
}  // namespace attentile

// SPDX-License-Identifier: Apache-2.0
// write_keep_mask writes every decision where its strides say, and nothing else; it can be stopped.
#include "keep_mask.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <vector>

#include "reference/random_problem.h"
#include "support/guarded_buffer.h"

namespace attentile {
namespace {

// 2 sequences of 5 queries, 3 heads; a poisoned byte follows each cell.
void expect_decisions(const Dropout& dropout, int64_t seqlen_k, int num_threads) {
  reference::TestProblem test({2, 5, seqlen_k, 3, 1, 1, 1});
  Problem& p = test.problem;
  p.window_right = 0;  // hidden pairs are written too
  p.dropout = dropout;
  const int64_t row = 2 * seqlen_k;
  std::vector<uint8_t> keep(static_cast<size_t>(2 * 3 * 5 * row), 77);
  p.keep = reference::array4(keep.data(), DType::kUInt8, 3 * 5 * row, 5 * row, row, 2);
  ExecutionContext context;
  context.num_threads = num_threads;
  ASSERT_TRUE(write_keep_mask(p, context).ok());
  size_t at = 0;
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t h = 0; h < 3; ++h) {
      for (int64_t i = 0; i < 5; ++i) {
        for (int64_t j = 0; j < seqlen_k; ++j, at += 2) {
          const bool expected = !dropout.enabled || dropout.keep(b, h, i, j);
          ASSERT_EQ(keep[at], expected ? 1 : 0) << b << h << i << " " << j;
          ASSERT_EQ(keep[at + 1], 77);
        }
      }
    }
  }
}

TEST(KeepMask, HoldsEveryDecision) {
  Dropout dropout = make_dropout(0.4, 21, 22);
  dropout.num_heads_q = 3;
  for (int num_threads : {1, 3}) {
    for (int64_t seqlen_k : {1, 31, 32, 40, 129}) {
      expect_decisions(dropout, seqlen_k, num_threads);
      expect_decisions({}, seqlen_k, num_threads);
    }
  }
}

// Keys of a piece begin anywhere in the eight that share a call of the generator.
TEST(KeepMask, BeginsAtAnyKey) {
  Dropout dropout = make_dropout(0.4, 21, 22);
  dropout.num_heads_q = 9;
  dropout.query_base = 100;
  dropout.head_base = 4;
  dropout.batch_base = 2;
  for (int64_t key_base : {1, 8, 31, 37, 1 << 20}) {
    dropout.key_base = key_base;
    for (int64_t seqlen_k : {1, 7, 64, 70}) expect_decisions(dropout, seqlen_k, 1);
  }
  dropout.key_base = std::numeric_limits<int64_t>::max();
  expect_decisions(dropout, 40, 1);
}

// 2^28 cells, in rows of 2^10 and in one: far more than are written before poll is asked.
TEST(KeepMask, PollStopsIt) {
  constexpr int64_t kCells = int64_t{1} << 28;
  for (int64_t seqlen_k : {int64_t{1} << 10, kCells}) {
    const testing::GuardedBuffer cells = testing::GuardedBuffer::sparse(kCells);
    if (!cells.valid()) GTEST_SKIP() << "no address space";
    reference::TestProblem test({1, kCells / seqlen_k, seqlen_k, 1, 1, 1, 1});
    Problem& p = test.problem;
    p.keep = reference::array4(cells.data(), DType::kUInt8, 0, 0, seqlen_k, 1);
    int polls = 0;
    ExecutionContext context;
    context.num_threads = 1;
    context.poll_data = &polls;
    context.poll = [](void* data, double fraction) {
      EXPECT_EQ(fraction, 1.0);
      ++*static_cast<int*>(data);
      return 1;
    };
    EXPECT_EQ(write_keep_mask(p, context).code(), StatusCode::kCancelled);
    EXPECT_EQ(polls, 1);
    EXPECT_EQ(cells.data()[0], 1);
    EXPECT_EQ(cells.data()[kCells - 1], 0);  // not reached
  }
}

}  // namespace
}  // namespace attentile

// SPDX-License-Identifier: Apache-2.0
// write_keep_mask writes every decision where its strides say, and nothing else.
#include "keep_mask.h"

#include <gtest/gtest.h>

#include "reference/random_problem.h"

namespace attentile {
namespace {

TEST(KeepMask, HoldsEveryDecision) {
  reference::TestProblem test({2, 5, 40, 3, 3, 1, 1});
  Problem& p = test.problem;
  p.window_right = 0;  // hidden pairs are written too
  p.dropout = make_dropout(0.4, 21, 22);
  p.dropout.num_heads_q = 3;
  std::vector<uint8_t> keep(2 * 3 * 5 * 40 * 2, 77);
  p.keep = reference::array4(keep.data(), DType::kUInt8, 3 * 5 * 80, 5 * 80, 80, 2);
  write_keep_mask(p);
  size_t at = 0;
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t h = 0; h < 3; ++h) {
      for (int64_t i = 0; i < 5; ++i) {
        for (int64_t j = 0; j < 40; ++j, at += 2) {
          ASSERT_EQ(keep[at], p.dropout.keep(b, h, i, j) ? 1 : 0);
          ASSERT_EQ(keep[at + 1], 77);
        }
      }
    }
  }
  p.dropout = {};
  write_keep_mask(p);
  for (at = 0; at < keep.size(); at += 2) ASSERT_EQ(keep[at], 1);
}

}  // namespace
}  // namespace attentile

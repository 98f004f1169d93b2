// SPDX-License-Identifier: Apache-2.0
// merge: against one softmax over all keys, the neutral element, in place, strides and dtypes.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "attentile/attention.h"
#include "dtype.h"
#include "reference/random_problem.h"

namespace attentile {
namespace {

using reference::ExactResult;
using reference::Random;
using reference::TestProblem;

constexpr double kInf = std::numeric_limits<double>::infinity();

TensorView view(const std::vector<double>& data, std::initializer_list<int64_t> shape) {
  return contiguous_view(data.data(), DType::kFloat64, shape);
}

// One row, one column.
struct Cell {
  std::vector<double> out, lse;
  PartialState state() const { return {view(out, {1, 1, 1, 1}), view(lse, {1, 1, 1})}; }
};

// The problem over keys [begin, end), at their places in the whole.
ExactResult part_of(const TestProblem& test, int64_t begin, int64_t end) {
  Problem part = test.problem;
  part.backward = false;
  part.has_position_offset = true;
  part.position_offset = test.problem.max_seqlen_k - test.problem.max_seqlen_q - begin;
  part.max_seqlen_k = end - begin;
  part.dropout.key_base = begin;
  part.k.data = part.k.at(0, begin, 0, 0);
  part.v.data = part.v.at(0, begin, 0, 0);
  return TestProblem::exact_of(part, 1);
}

TEST(Merge, ThreePartsOfTheKeysEqualOneCall) {
  for (const bool window : {false, true}) {
    TestProblem test({2, 70, 90, 4, 2, 8, 5});
    Random random(3);
    test.fill(&random);
    test.problem.window_right = 0;
    if (window) test.problem.window_left = 11;
    test.problem.dropout = make_dropout(0.3, 5, 6);
    test.problem.dropout.num_heads_q = 4;
    const ExactResult whole = test.exact_forward();
    const ExactResult parts[3] = {part_of(test, 0, 20), part_of(test, 20, 57),
                                  part_of(test, 57, 90)};
    std::vector<PartialState> states;
    for (const ExactResult& part : parts) {
      states.push_back({view(part.out.value, {2, 70, 4, 5}), view(part.lse.value, {2, 4, 70})});
    }
    std::vector<double> out(whole.out.value.size(), NAN), lse(whole.lse.value.size(), NAN);
    const PartialState result = {view(out, {2, 70, 4, 5}), view(lse, {2, 4, 70})};
    ASSERT_TRUE(merge(states, result).ok());
    for (size_t n = 0; n < out.size(); ++n) ASSERT_NEAR(out[n], whole.out.value[n], 1e-14);
    for (size_t n = 0; n < lse.size(); ++n) ASSERT_NEAR(lse[n], whole.lse.value[n], 1e-13);

    // In place into the second part, on several threads: the same bits.
    ExecutionContext context;
    context.num_threads = 3;
    ASSERT_TRUE(merge(states, states[1], context).ok());
    EXPECT_EQ(parts[1].out.value, out);
    EXPECT_EQ(parts[1].lse.value, lse);
  }
}

TEST(Merge, EmptyStatesAreNeutral) {
  const Cell empty = {{NAN}, {-kInf}};  // whatever out holds
  const Cell some = {{3.7}, {-2.25}};
  const Cell result = {{NAN}, {NAN}};
  for (const auto& parts : {std::vector<PartialState>{empty.state(), some.state()},
                            std::vector<PartialState>{some.state(), empty.state()},
                            std::vector<PartialState>{some.state()}}) {
    ASSERT_TRUE(merge(parts, result.state()).ok());
    EXPECT_EQ(result.out[0], 3.7);
    EXPECT_EQ(result.lse[0], -2.25);
  }
  ASSERT_TRUE(merge({empty.state(), empty.state()}, result.state()).ok());
  EXPECT_EQ(result.out[0], 0);
  EXPECT_EQ(result.lse[0], -kInf);
}

TEST(Merge, WeightsByHand) {
  const Cell a = {{1}, {0}};
  const Cell b = {{5}, {std::log(3.0)}};
  const Cell result = {{NAN}, {NAN}};
  ASSERT_TRUE(merge({a.state(), b.state()}, result.state()).ok());
  EXPECT_NEAR(result.out[0], 4, 1e-15);
  EXPECT_NEAR(result.lse[0], std::log(4.0), 1e-15);
  const Cell far = {{7}, {1e30}};
  ASSERT_TRUE(merge({a.state(), far.state()}, result.state()).ok());
  EXPECT_EQ(result.out[0], 7);
  EXPECT_EQ(result.lse[0], 1e30);
}

TEST(Merge, NanStaysInItsRow) {
  const std::vector<double> out = {1, 2}, lse = {NAN, 0}, zero = {0, 0};
  std::vector<double> merged(2), merged_lse(2);
  const auto state = [](const std::vector<double>& o, const std::vector<double>& l) {
    return PartialState{view(o, {1, 2, 1, 1}), view(l, {1, 1, 2})};
  };
  ASSERT_TRUE(merge({state(out, lse), state(out, zero)}, state(merged, merged_lse)).ok());
  EXPECT_TRUE(std::isnan(merged[0]) && std::isnan(merged_lse[0]));
  EXPECT_EQ(merged[1], 2);
}

TEST(Merge, PackedStridedAndNarrow) {
  // Packed [rows, heads, columns] in bfloat16 with every second column, lse [heads, rows] float32.
  constexpr int64_t kRows = 5, kHeads = 2, kColumns = 3;
  std::vector<uint16_t> out[2];
  std::vector<float> lse[2];
  std::vector<PartialState> states;
  Random random(9);
  for (int p = 0; p < 2; ++p) {
    for (int64_t n = 0; n < kRows * kHeads * kColumns * 2; ++n) {
      out[p].push_back(double_to_bfloat16(random.normal()));
    }
    for (int64_t n = 0; n < kRows * kHeads; ++n) {
      lse[p].push_back(static_cast<float>(random.normal()));
    }
    TensorView strided =
        contiguous_view(out[p].data(), DType::kBFloat16, {kRows, kHeads, kColumns});
    for (int64_t& stride : strided.stride) stride *= 2;
    states.push_back({strided, contiguous_view(lse[p].data(), DType::kFloat32, {kHeads, kRows})});
  }
  std::vector<uint16_t> merged(kRows * kHeads * kColumns);
  std::vector<float> merged_lse(kRows * kHeads);
  const PartialState result = {
      contiguous_view(merged.data(), DType::kBFloat16, {kRows, kHeads, kColumns}),
      contiguous_view(merged_lse.data(), DType::kFloat32, {kHeads, kRows})};
  ASSERT_TRUE(merge(states, result).ok());
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t h = 0; h < kHeads; ++h) {
      const double l0 = static_cast<double>(lse[0][h * kRows + i]);
      const double l1 = static_cast<double>(lse[1][h * kRows + i]);
      const double share = 1 / (1 + std::exp(l1 - l0));
      for (int64_t c = 0; c < kColumns; ++c) {
        const int64_t index = (i * kHeads + h) * kColumns + c;
        const double expected =
            share * static_cast<double>(bfloat16_to_float(out[0][2 * index])) +
            (1 - share) * static_cast<double>(bfloat16_to_float(out[1][2 * index]));
        const double got = static_cast<double>(bfloat16_to_float(merged[index]));
        EXPECT_NEAR(got, expected, 0x1p-8 * std::fabs(expected));  // half an ulp
      }
      EXPECT_FLOAT_EQ(merged_lse[h * kRows + i],
                      static_cast<float>(std::log(std::exp(l0) + std::exp(l1))));
    }
  }
}

}  // namespace
}  // namespace attentile

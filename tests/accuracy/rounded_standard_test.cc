// SPDX-License-Identifier: Apache-2.0
// The yardstick itself: standard attention with S and P rounded to q's dtype against a second
// writing of it, and the size of its error in each precision. A yardstick that errs too much allows
// too much, and nothing else would tell.
#include "reference/rounded_standard.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "dtype.h"
#include "reference/random_problem.h"

namespace attentile::reference {
namespace {

constexpr int64_t kQueries = 5, kKeys = 7, kDim = 4;

float to_bfloat16(float x) {
  return static_cast<float>(round_to(DType::kBFloat16, static_cast<double>(x)));
}

// Integers of q, k and v, of which every product is exact in float32, so that no order of
// operations and no fused multiply-add can change a bit. The logits have more bits than bfloat16.
struct IntegerProblem : TestProblem {
  explicit IntegerProblem(int64_t head_dim_v)
      : TestProblem({1, kQueries, kKeys, 1, 1, kDim, head_dim_v}) {
    Random random(11);
    fill(&random);
    problem.dtype = DType::kBFloat16;
    problem.softmax_scale = 0x1p-9;
    for (double& x : q) x = static_cast<double>(random.integer(-31, 31));
    for (double& x : k) x = static_cast<double>(random.integer(-31, 31));
    for (double& x : v) x = static_cast<double>(random.integer(-15, 15));
    for (double& x : dout) x = static_cast<double>(random.integer(-15, 15));
  }
};

struct Scores {
  std::vector<float> p[kQueries];
  float lse[kQueries];
};

// S = bfloat16(scale * q . k), P = bfloat16(exp(S - max) / sum), row by row.
Scores scores_of(const IntegerProblem& test, bool* rounded) {
  Scores scores;
  for (int64_t i = 0; i < kQueries; ++i) {
    std::vector<float>& p = scores.p[i];
    for (int64_t j = 0; j < kKeys; ++j) {
      double dot = 0;
      for (int64_t c = 0; c < kDim; ++c) dot += test.q[i * kDim + c] * test.k[j * kDim + c];
      const float s = static_cast<float>(dot) * 0x1p-9f;
      p.push_back(to_bfloat16(s));
      *rounded = *rounded || p.back() != s;
    }
    const float max = *std::max_element(p.begin(), p.end());
    float sum = 0;
    for (float& x : p) {
      x = std::exp(x - max);
      sum += x;
    }
    for (float& x : p) x = to_bfloat16(x / sum);
    scores.lse[i] = max + std::log(sum);
  }
  return scores;
}

// v is the unit matrix, so out is P.
TEST(RoundedStandard, RoundsScoresAndWeightsToBfloat16) {
  IntegerProblem test(kKeys);
  for (int64_t j = 0; j < kKeys; ++j) {
    for (int64_t c = 0; c < kKeys; ++c) test.v[j * kKeys + c] = j == c ? 1 : 0;
  }
  ExactResult standard;
  ASSERT_TRUE(compute_standard(test.problem, {}, &standard).ok());
  bool rounded = false;
  const Scores scores = scores_of(test, &rounded);
  EXPECT_TRUE(rounded) << "the case could not fail";
  for (int64_t i = 0; i < kQueries; ++i) {
    EXPECT_EQ(standard.lse.at(0, 0, i, 0), static_cast<double>(scores.lse[i])) << i;
    for (int64_t j = 0; j < kKeys; ++j) {
      EXPECT_EQ(standard.out.at(0, i, 0, j), static_cast<double>(scores.p[i][j])) << i << j;
    }
  }
}

TEST(RoundedStandard, SumsInFloatAndRoundsTheResults) {
  constexpr int64_t kDimV = 3;
  const IntegerProblem test(kDimV);
  ExactResult standard;
  ASSERT_TRUE(compute_standard(test.problem, {}, &standard).ok());
  bool rounded = false;
  const Scores scores = scores_of(test, &rounded);
  for (int64_t c = 0; c < kDimV; ++c) {
    for (int64_t i = 0; i < kQueries; ++i) {
      float out = 0;
      for (int64_t j = 0; j < kKeys; ++j) {
        out += scores.p[i][j] * static_cast<float>(test.v[j * kDimV + c]);
      }
      EXPECT_EQ(standard.out.at(0, i, 0, c), static_cast<double>(to_bfloat16(out))) << i << c;
    }
    for (int64_t j = 0; j < kKeys; ++j) {
      float dv = 0;
      for (int64_t i = 0; i < kQueries; ++i) {
        dv += scores.p[i][j] * static_cast<float>(test.dout[i * kDimV + c]);
      }
      EXPECT_EQ(standard.dv.at(0, j, 0, c), static_cast<double>(to_bfloat16(dv))) << j << c;
    }
  }
}

double worst_error(const ExactArray& exact, const ExactArray& standard) {
  double error = 0;
  double largest = 0;
  for (size_t n = 0; n < exact.value.size(); ++n) {
    error = std::max(error, std::fabs(standard.value[n] - exact.value[n]));
    largest = std::max(largest, std::fabs(exact.value[n]));
  }
  return error / largest;
}

// Each dtype errs by a few of its own units: neither those of a narrower type nor of a wider one.
TEST(RoundedStandard, ErrsByUnitsOfItsDType) {
  const struct {
    DType dtype;
    double unit;
  } cases[] = {{DType::kFloat64, 0x1p-53},
               {DType::kFloat32, 0x1p-24},
               {DType::kFloat16, 0x1p-11},
               {DType::kBFloat16, 0x1p-8}};
  for (const auto& [dtype, unit] : cases) {
    SCOPED_TRACE(to_string(dtype));
    TestProblem test({2, 33, 33, 4, 2, 24, 16});
    Random random(17);
    test.fill(&random);
    for (auto* list : {&test.q, &test.k, &test.v, &test.dout}) {
      for (double& x : *list) x = round_to(dtype, x);
    }
    test.problem.dtype = dtype;
    ExactResult exact;
    ExactResult standard;
    ASSERT_TRUE(compute_exact(test.problem, {}, &exact).ok());
    ASSERT_TRUE(compute_standard(test.problem, {}, &standard).ok());
    for (const auto part : {&ExactResult::out, &ExactResult::lse, &ExactResult::dq,
                            &ExactResult::dk, &ExactResult::dv}) {
      const double error = worst_error(exact.*part, standard.*part);
      EXPECT_LT(error, 16 * unit);
      EXPECT_GT(error, unit / 64);
    }
  }
}

}  // namespace
}  // namespace attentile::reference

// SPDX-License-Identifier: Apache-2.0
// The oracle's gradients against finite differences of its forward pass, in float64, on random
// shapes and features. The scalar is L = sum out * dout + sum lse * dlse, and a gradient is
// (8 (L(h) - L(-h)) - (L(2h) - L(-2h))) / 12h, whose error is of fourth order.
#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <sstream>

#include "reference/random_problem.h"

namespace attentile::reference {
namespace {

constexpr int kConfigurations = 96;
constexpr int kElementsPerTensor = 10;
constexpr double kStep = 1e-3;

double loss(const TestProblem& test) {
  const ExactResult result = test.exact_forward();
  double sum = 0;
  for (size_t n = 0; n < result.out.value.size(); ++n) sum += result.out.value[n] * test.dout[n];
  for (size_t n = 0; n < test.dlse.size(); ++n) {
    if (result.lse.value[n] != -INFINITY) sum += result.lse.value[n] * test.dlse[n];
  }
  return sum;
}

double numeric_gradient(const TestProblem& test, double* element) {
  const double at = *element;
  const auto loss_at = [&](double value) {
    *element = value;
    return loss(test);
  };
  const double near = loss_at(at + kStep) - loss_at(at - kStep);
  const double far = loss_at(at + 2 * kStep) - loss_at(at - 2 * kStep);
  *element = at;
  return (8 * near - far) / (12 * kStep);
}

class FiniteDifference : public testing::TestWithParam<int> {};

TEST_P(FiniteDifference, GradientsMatch) {
  const uint64_t seed = static_cast<uint64_t>(GetParam());
  const std::unique_ptr<TestProblem> test = random_problem(seed);
  const ExactResult exact = test->exact();
  Random random(seed + 1000);
  struct Pair {
    const char* name;
    std::vector<double>* input;
    const ExactArray* gradient;
  };
  for (const Pair& pair : {Pair{"q", &test->q, &exact.dq}, Pair{"k", &test->k, &exact.dk},
                           Pair{"v", &test->v, &exact.dv}, Pair{"bias", &test->bias, &exact.dbias},
                           Pair{"sink", &test->sink, &exact.dsink}}) {
    ASSERT_EQ(pair.input->size(), pair.gradient->value.size()) << pair.name;
    for (int n = 0; n < kElementsPerTensor && !pair.input->empty(); ++n) {
      const size_t index =
          static_cast<size_t>(random.integer(0, static_cast<int64_t>(pair.input->size()) - 1));
      const double numeric = numeric_gradient(*test, &(*pair.input)[index]);
      const double given = pair.gradient->value[index];
      EXPECT_NEAR(given, numeric, 2e-8 + 1e-7 * std::fabs(numeric))
          << "d" << pair.name << "[" << index << "] with" << test->features;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Random, FiniteDifference, testing::Range(0, kConfigurations));

// The seeds above are only worth something if together they meet every feature, often.
TEST(FiniteDifferenceSeeds, MeetEveryFeature) {
  std::multiset<std::string> met;
  for (int seed = 0; seed < kConfigurations; ++seed) {
    const auto test = random_problem(static_cast<uint64_t>(seed));
    std::istringstream words(test->features);
    for (std::string word; words >> word;) met.insert(word);
    if (test->problem.group_size > 1) met.insert("gqa");
  }
  for (const char* feature :
       {"varlen", "causal", "window", "top_left", "position_offset", "mask", "block_mask",
        "seqused_k", "softcap", "dlse", "sink", "bias", "alibi", "dropout", "scale", "gqa"}) {
    EXPECT_GE(met.count(feature), 8u) << feature;
  }
}

}  // namespace
}  // namespace attentile::reference

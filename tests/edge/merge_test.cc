// SPDX-License-Identifier: Apache-2.0
// merge on edge values: (0, -inf) is neutral, alone and with others, and nothing is ever NaN that
// was not NaN before.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "attentile/attention.h"
#include "support/dense_tensor.h"
#include "support/random.h"

namespace attentile::edge {
namespace {

using testing::DenseTensor;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
const std::vector<int64_t> kOutShape = {2, 5, 3, 7};
const std::vector<int64_t> kLseShape = {2, 3, 5};

struct State {
  DenseTensor out;
  DenseTensor lse;
  PartialState view() const { return {out.view(), lse.view()}; }
};

DType lse_dtype(DType dtype) {
  return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

State neutral(DType dtype) {
  State state{DenseTensor(dtype, kOutShape), DenseTensor(lse_dtype(dtype), kLseShape)};
  state.lse.fill(-kInfinity);
  return state;
}

State random_state(DType dtype, uint64_t seed) {
  testing::Random random(seed);
  State state = neutral(dtype);
  for (int64_t i = 0; i < state.out.count(); ++i) state.out.set(i, random.normal());
  for (int64_t i = 0; i < state.lse.count(); ++i) state.lse.set(i, 3.0 * random.normal());
  return state;
}

State merged(DType dtype, const std::vector<State>& states) {
  std::vector<PartialState> parts;
  for (const State& state : states) parts.push_back(state.view());
  State result{DenseTensor(dtype, kOutShape), DenseTensor(lse_dtype(dtype), kLseShape)};
  result.out.fill(std::numeric_limits<double>::quiet_NaN());
  const Status status = merge(parts, result.view());
  EXPECT_TRUE(status.ok()) << status.message();
  return result;
}

void expect_same(const State& expected, const State& got) {
  EXPECT_EQ(expected.out.bytes, got.out.bytes);
  EXPECT_EQ(expected.lse.bytes, got.lse.bytes);
}

class Merge : public ::testing::TestWithParam<DType> {};

TEST_P(Merge, NeutralStatesChangeNothing) {
  const DType dtype = GetParam();
  const State state = random_state(dtype, 1);
  expect_same(state, merged(dtype, {state}));
  expect_same(state, merged(dtype, {state, neutral(dtype)}));
  expect_same(state, merged(dtype, {neutral(dtype), state}));
  expect_same(state, merged(dtype, {neutral(dtype), neutral(dtype), state, neutral(dtype)}));
}

TEST_P(Merge, NeutralStatesAloneStayNeutral) {
  const DType dtype = GetParam();
  expect_same(neutral(dtype), merged(dtype, {neutral(dtype)}));
  expect_same(neutral(dtype), merged(dtype, {neutral(dtype), neutral(dtype)}));
}

TEST_P(Merge, OfNothingIsNeutral) {
  const DType dtype = GetParam();
  expect_same(neutral(dtype), merged(dtype, {}));
}

TEST_P(Merge, FollowsTheFormula) {
  const DType dtype = GetParam();
  const std::vector<State> states = {random_state(dtype, 2), random_state(dtype, 3), neutral(dtype),
                                     random_state(dtype, 4)};
  const State got = merged(dtype, states);
  const double unit = dtype == DType::kFloat64   ? 1e-14
                      : dtype == DType::kFloat32 ? 2e-6
                      : dtype == DType::kFloat16 ? 2e-3
                                                 : 2e-2;
  for (int64_t b = 0; b < kOutShape[0]; ++b) {
    for (int64_t h = 0; h < kOutShape[2]; ++h) {
      for (int64_t i = 0; i < kOutShape[1]; ++i) {
        double sum = 0.0;
        for (const State& state : states) sum += std::exp(state.lse.at(b, h, i));
        EXPECT_NEAR(got.lse.at(b, h, i), std::log(sum), dtype == DType::kFloat64 ? 1e-13 : 2e-6);
        for (int64_t d = 0; d < kOutShape[3]; ++d) {
          double out = 0.0;
          for (const State& state : states) {
            out += std::exp(state.lse.at(b, h, i)) / sum * state.out.at(b, i, h, d);
          }
          EXPECT_NEAR(got.out.at(b, i, h, d), out, unit * 4);
        }
      }
    }
  }
}

TEST_P(Merge, ExtremeLseAreFine) {
  const DType dtype = GetParam();
  for (double lse : {-1e30, -1e5, 1e5, 1e30}) {
    State first = random_state(dtype, 5);
    State second = random_state(dtype, 6);
    first.lse.fill(lse);
    second.lse.fill(lse);
    const State got = merged(dtype, {first, second});
    for (int64_t i = 0; i < got.out.count(); ++i) {
      const double mean = 0.5 * (first.out.get(i) + second.out.get(i));
      ASSERT_NEAR(got.out.get(i), mean, 0.02 + 0.01 * std::fabs(mean)) << lse;
    }
    second.lse.fill(lse - 1e3 * std::fmax(1.0, std::fabs(lse)));
    expect_same(first, merged(dtype, {first, second}));
  }
}

TEST_P(Merge, NaNStaysInItsRow) {
  const DType dtype = GetParam();
  State first = random_state(dtype, 7);
  const State second = random_state(dtype, 8);
  const State clean = merged(dtype, {first, second});
  first.lse.put(std::numeric_limits<double>::quiet_NaN(), 1, 2, 3);
  const State got = merged(dtype, {first, second});
  EXPECT_TRUE(std::isnan(got.lse.at(1, 2, 3)));
  for (int64_t b = 0; b < kOutShape[0]; ++b) {
    for (int64_t h = 0; h < kOutShape[2]; ++h) {
      for (int64_t i = 0; i < kOutShape[1]; ++i) {
        if (b == 1 && h == 2 && i == 3) continue;
        EXPECT_EQ(got.lse.at(b, h, i), clean.lse.at(b, h, i));
        for (int64_t d = 0; d < kOutShape[3]; ++d) {
          EXPECT_EQ(got.out.at(b, i, h, d), clean.out.at(b, i, h, d));
        }
      }
    }
  }
}

TEST_P(Merge, MayWriteOverAPart) {
  const DType dtype = GetParam();
  State first = random_state(dtype, 9);
  const State second = random_state(dtype, 10);
  const State expected = merged(dtype, {first, second});
  const Status status = merge({first.view(), second.view()}, first.view());
  ASSERT_TRUE(status.ok()) << status.message();
  expect_same(expected, first);
}

INSTANTIATE_TEST_SUITE_P(Edge, Merge,
                         ::testing::Values(DType::kFloat32, DType::kFloat16, DType::kBFloat16,
                                           DType::kFloat64),
                         [](const auto& parameter) {
                           return std::string(to_string(parameter.param));
                         });

}  // namespace
}  // namespace attentile::edge

// SPDX-License-Identifier: Apache-2.0
// The kernels' 2^x and tanh in portable lanes, against double.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "cpu/simd/scalar.h"
#include "reference/random_problem.h"

namespace attentile::cpu {
namespace {

using Lanes = Vec<Scalar, float>;

float first(Lanes lanes) {
  float value[Lanes::kLanes];
  lanes.store(value);
  return value[0];
}

// Distance in units in the last place of the right value.
double ulps(float got, double right) {
  const int exponent = std::max(std::ilogb(right), -126);
  return std::fabs(static_cast<double>(got) - right) / std::ldexp(1.0, exponent - 23);
}

TEST(Functions, Exp2IsExactForIntegers) {
  for (int n = -149; n <= 127; ++n) {
    EXPECT_EQ(first(exp2<Scalar>(Lanes::set1(static_cast<float>(n)), {1.0f, 0.0f})),
              std::ldexp(1.0f, n))
        << n;
  }
  EXPECT_EQ(first(exp2<Scalar>(Lanes::set1(-151.0f), {1.0f, 0.0f})), 0.0f);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(first(exp2<Scalar>(Lanes::set1(nan), {1.0f, 0.0f}))));
}

TEST(Functions, Exp2IsRightToAboutOneUnit) {
  reference::Random random(5);
  for (int n = 0; n < 200000; ++n) {
    const float x = static_cast<float>(-126 + 253 * random.uniform());
    const float got = first(exp2<Scalar>(Lanes::set1(x), {1.0f, 0.0f}));
    ASSERT_LE(ulps(got, std::exp2(static_cast<double>(x))), 1.1) << x;
  }
}

TEST(Functions, TanhIsRightToAFewUnits) {
  reference::Random random(6);
  for (int n = 0; n < 200000; ++n) {
    const float x = static_cast<float>(20 * random.uniform() * random.uniform() *
                                       (random.chance(0.5) ? 1 : -1));
    if (x == 0) continue;
    const float got = first(tanh<Scalar>(Lanes::set1(x)));
    ASSERT_LE(ulps(got, std::tanh(static_cast<double>(x))), 3.0) << x;
  }
  EXPECT_EQ(first(tanh<Scalar>(Lanes::set1(0.0f))), 0.0f);
  EXPECT_EQ(first(tanh<Scalar>(Lanes::set1(30.0f))), 1.0f);
  EXPECT_EQ(first(tanh<Scalar>(Lanes::set1(-30.0f))), -1.0f);
}

}  // namespace
}  // namespace attentile::cpu

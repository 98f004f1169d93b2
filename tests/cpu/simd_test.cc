// SPDX-License-Identifier: Apache-2.0
// Every operation of the vector vocabulary (simd/vec.h), on every instruction set of this machine,
// against its definition: ties, NaN, infinity, subnormals, both zeros, in every lane.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "cpu/cpu_info.h"
#include "cpu/simd_ops.h"
#include "dtype.h"

namespace attentile::cpu {
namespace {

constexpr int kMaxLanes = 16;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Not through available_isas(): vectors can be tested where kernels are not built.
std::vector<const SimdOps*> sets() {
  std::vector<const SimdOps*> list = {&scalar_ops()};
#if defined(ATTENTILE_TEST_X86_VECTORS)
  if (cpu_supports(Isa::kAvx2)) list.push_back(&avx2_ops());
  if (cpu_supports(Isa::kAvx512)) list.push_back(&avx512_ops());
#elif defined(__aarch64__)
  list.push_back(&neon_ops());
#endif
  return list;
}

class Simd : public ::testing::TestWithParam<const SimdOps*> {};

INSTANTIATE_TEST_SUITE_P(Isa, Simd, ::testing::ValuesIn(sets()), [](const auto& parameter) {
  return std::string(to_string(parameter.param->isa));
});

// Calls f(inputs, count) for runs of `lanes` inputs, shifted by one each round so that every value
// meets several lanes; the last run is filled up with the first value.
template <class T, class F>
void in_runs(const std::vector<T>& values, int lanes, F f) {
  for (size_t shift = 0; shift < 2; ++shift) {
    for (size_t begin = shift; begin < values.size(); begin += static_cast<size_t>(lanes)) {
      T run[kMaxLanes];
      for (size_t i = 0; i < static_cast<size_t>(lanes); ++i) {
        run[i] = begin + i < values.size() ? values[begin + i] : values[0];
      }
      f(run);
    }
  }
}

template <class Real>
bool same(Real a, Real b) {
  return (std::isnan(a) && std::isnan(b)) || (a == b && std::signbit(a) == std::signbit(b));
}

float of_bits(uint32_t bits) {
  return std::bit_cast<float>(bits);
}

std::vector<float> specials() {
  std::vector<float> list;
  for (float x : {0.0f, 1.0f, 1.5f, 2.0f, 1e-30f, 1e30f, std::numeric_limits<float>::max(),
                  std::numeric_limits<float>::min(), std::numeric_limits<float>::denorm_min(),
                  1e-40f, kInfinity, kNan}) {
    list.push_back(x);
    list.push_back(-x);
  }
  return list;
}

// --- 16-bit values -------------------------------------------------------------------------------

TEST_P(Simd, LoadsEverySixteenBitValue) {
  std::vector<uint16_t> all(65536);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
  const SimdOps& ops = *GetParam();
  in_runs(all, ops.narrow.lanes, [&](const uint16_t* run) {
    float got_f16[kMaxLanes], got_bf16[kMaxLanes];
    ops.load_f16(run, got_f16);
    ops.load_bf16(run, got_bf16);
    for (int i = 0; i < ops.narrow.lanes; ++i) {
      ASSERT_TRUE(same(got_f16[i], float16_to_float(run[i]))) << run[i] << " lane " << i;
      ASSERT_TRUE(same(got_bf16[i], bfloat16_to_float(run[i]))) << run[i] << " lane " << i;
    }
  });
}

using StoreFunction = void (*)(const float*, uint16_t*);

void expect_stores(const std::vector<float>& values, int lanes, StoreFunction store,
                   uint16_t (*expected)(double), float (*widen)(uint16_t)) {
  in_runs(values, lanes, [&](const float* run) {
    uint16_t got[kMaxLanes];
    store(run, got);
    for (int i = 0; i < lanes; ++i) {
      const bool nan = std::isnan(run[i]);
      ASSERT_EQ(std::isnan(widen(got[i])), nan) << run[i];
      if (!nan) {
        ASSERT_EQ(got[i], expected(static_cast<double>(run[i])))
            << std::bit_cast<uint32_t>(run[i]) << " lane " << i;
      }
    }
  });
}

TEST_P(Simd, StoresBFloat16ToNearestTiesToEven) {
  // Every bfloat16, the tie above it, both neighbours of the tie, and of itself.
  std::vector<float> values;
  for (uint32_t high = 0; high < 65536; ++high) {
    for (uint32_t low : {0x0000u, 0x0001u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu}) {
      values.push_back(of_bits(high << 16 | low));
    }
  }
  expect_stores(
      values, GetParam()->narrow.lanes, GetParam()->store_bf16,
      [](double x) { return double_to_bfloat16(x); },
      [](uint16_t x) { return bfloat16_to_float(x); });
}

TEST_P(Simd, StoresFloat16ToNearestTiesToEven) {
  std::vector<float> values = specials();
  for (uint32_t bits = 0; bits < 0x7C00; ++bits) {
    const float low = float16_to_float(static_cast<uint16_t>(bits));
    // Beyond the largest float16 comes what would be next if the format had one more exponent.
    const float high =
        bits + 1 < 0x7C00 ? float16_to_float(static_cast<uint16_t>(bits + 1)) : 65536.0f;
    const float tie = (low + high) / 2;  // exact in float
    for (float x : {low, tie, std::nextafterf(tie, 0.0f), std::nextafterf(tie, kInfinity)}) {
      values.push_back(x);
      values.push_back(-x);
    }
  }
  expect_stores(
      values, GetParam()->narrow.lanes, GetParam()->store_f16,
      [](double x) { return double_to_float16(x); },
      [](uint16_t x) { return float16_to_float(x); });
}

// --- rounding and scaling ------------------------------------------------------------------------

TEST_P(Simd, RoundsTiesToEven) {
  std::vector<float> values = {kNan, 0.0f, 0.25f, 0.49999997f, 0.50000006f, 1e-40f};
  for (int whole = 0; whole < 2000; ++whole) {
    for (float part : {0.0f, 0.25f, 0.5f, 0.75f})
      values.push_back(static_cast<float>(whole) + part);
  }
  for (float x : {100000.5f, 100001.5f, 2097150.5f, 2097151.5f}) values.push_back(x);
  const size_t positive = values.size();
  for (size_t i = 0; i < positive; ++i) values.push_back(-values[i]);
  const SimdOps& ops = *GetParam();
  in_runs(values, ops.narrow.lanes, [&](const float* run) {
    float got[kMaxLanes];
    ops.round(run, got);
    for (int i = 0; i < ops.narrow.lanes; ++i) {
      if (std::isnan(run[i])) {
        ASSERT_TRUE(std::isnan(got[i]));
      } else {
        ASSERT_EQ(got[i], std::nearbyint(run[i])) << run[i];  // zeros of either sign
      }
    }
  });
}

TEST_P(Simd, ScalesByPowersOfTwoWithGradualUnderflow) {
  const SimdOps& ops = *GetParam();
  const int lanes = ops.narrow.lanes;
  for (float a :
       {0.70710677f, 0.99999994f, 1.0f, 1.0000001f, 1.3333334f, 1.4142135f, -1.25f, 0.0f, kNan}) {
    std::vector<float> exponents;
    for (int n = -200; n <= 128; ++n) exponents.push_back(static_cast<float>(n));
    in_runs(exponents, lanes, [&](const float* run) {
      float values[kMaxLanes], got[kMaxLanes];
      std::fill_n(values, kMaxLanes, a);
      ops.scale2(values, run, got);
      for (int i = 0; i < lanes; ++i) {
        const float expected = std::ldexp(a, static_cast<int>(run[i]));
        ASSERT_TRUE(same(got[i], expected)) << a << " * 2^" << run[i] << " is " << got[i];
      }
    });
  }
  float nan[kMaxLanes], got[kMaxLanes];
  std::fill_n(nan, kMaxLanes, kNan);
  ops.scale2(nan, nan, got);
  for (int i = 0; i < lanes; ++i) EXPECT_TRUE(std::isnan(got[i]));
}

// --- comparisons ---------------------------------------------------------------------------------

template <class Real>
void expect_comparisons(const LaneOps<Real>& ops) {
  const std::vector<float> all = specials();
  for (const float left : all) {
    for (size_t turn = 0; turn < all.size(); ++turn) {
      Real a[kMaxLanes], b[kMaxLanes], max[kMaxLanes], min[kMaxLanes], chosen[kMaxLanes],
          abs[kMaxLanes];
      bool any = false;
      for (int i = 0; i < ops.lanes; ++i) {
        a[i] = static_cast<Real>(left);
        b[i] = static_cast<Real>(all[(turn + static_cast<size_t>(i)) % all.size()]);
        any = any || a[i] < b[i];
      }
      ops.max(a, b, max);
      ops.min(a, b, min);
      ops.select_lt(a, b, chosen);
      ops.abs(b, abs);
      for (int i = 0; i < ops.lanes; ++i) {
        ASSERT_TRUE(same(max[i], a[i] > b[i] ? a[i] : b[i])) << a[i] << " " << b[i];
        ASSERT_TRUE(same(min[i], a[i] < b[i] ? a[i] : b[i])) << a[i] << " " << b[i];
        ASSERT_EQ(chosen[i], a[i] < b[i] ? Real{1} : Real{2}) << a[i] << " " << b[i];
        const Real magnitude = std::fabs(b[i]);
        ASSERT_TRUE(abs[i] == magnitude || (std::isnan(abs[i]) && std::isnan(magnitude))) << b[i];
      }
      ASSERT_EQ(ops.any_lt(a, b), any);
    }
  }
}

template <class Real>
void expect_any_in_each_lane(const LaneOps<Real>& ops) {
  Real low[kMaxLanes], high[kMaxLanes];
  for (int lane = 0; lane < ops.lanes; ++lane) {
    std::fill_n(low, kMaxLanes, Real{1});
    std::fill_n(high, kMaxLanes, Real{1});
    EXPECT_FALSE(ops.any_lt(low, high));
    high[lane] = Real{2};
    EXPECT_TRUE(ops.any_lt(low, high)) << "lane " << lane;
    EXPECT_FALSE(ops.any_lt(high, low)) << "lane " << lane;
    high[lane] = std::numeric_limits<Real>::quiet_NaN();
    EXPECT_FALSE(ops.any_lt(low, high)) << "lane " << lane;
  }
}

TEST_P(Simd, ComparesAsTheDefinitionsSay) {
  expect_comparisons(GetParam()->narrow);
  expect_comparisons(GetParam()->wide);
  expect_any_in_each_lane(GetParam()->narrow);
  expect_any_in_each_lane(GetParam()->wide);
}

}  // namespace
}  // namespace attentile::cpu

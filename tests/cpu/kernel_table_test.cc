// SPDX-License-Identifier: Apache-2.0
// The kernels that are built in are found by name and by no other, and the peak that they are
// measured against is one.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "attentile/attention.h"
#include "cpu/cpu_info.h"
#include "cpu/kernel.h"
#include "cpu/peak.h"

namespace attentile::cpu {
namespace {

constexpr Isa kAll[] = {Isa::kAuto,       Isa::kScalar, Isa::kAvx2,     Isa::kAvx512,
                        Isa::kAvx512Bf16, Isa::kNeon,   Isa::kNeonBf16, Isa::kAmx};

std::vector<Isa> built_in(bool wide) {
  const KernelTable table = kernel_table(wide);
  std::vector<Isa> isas;
  for (int n = 0; n < table.count; ++n) isas.push_back(table.sets[n]->isa);
  return isas;
}

int lanes_of(Isa isa, bool wide) {
  switch (isa) {
    case Isa::kScalar: return 4;
    case Isa::kAvx2: return wide ? 4 : 8;
    case Isa::kAvx512:
    case Isa::kAmx:
    case Isa::kAvx512Bf16: return wide ? 8 : 16;
    case Isa::kNeon:
    case Isa::kNeonBf16: return wide ? 2 : 4;
    default: return 0;
  }
}

TEST(KernelTable, HasWhatItNamesAndNothingElse) {
  for (const bool wide : {false, true}) {
    const std::vector<Isa> isas = built_in(wide);
    EXPECT_EQ(std::count(isas.begin(), isas.end(), Isa::kScalar), 1);
    for (const Isa isa : kAll) {
      const KernelSet* set = find_kernels(isa, wide);
      const bool listed = std::count(isas.begin(), isas.end(), isa) > 0;
      ASSERT_EQ(set != nullptr, listed) << to_string(isa);
      if (set == nullptr) continue;
      EXPECT_EQ(set->isa, isa);
      EXPECT_EQ(set->lanes, lanes_of(isa, wide)) << to_string(isa);
      for (int id = 0; id < kNumKernels; ++id) {
        const bool none = wide && id == kFlash2Decode;  // float64 goes by panels
        EXPECT_EQ(set->run[id] == nullptr, none) << id;
      }
    }
  }
  EXPECT_EQ(built_in(false), built_in(true));
}

TEST(KernelTable, IsBestFirst) {
  std::vector<Isa> expected;
  for (const Isa isa : isa_priority()) {
    if (find_kernels(isa, false) != nullptr) expected.push_back(isa);
  }
  EXPECT_EQ(built_in(false), expected);
}

// Wide bounds: machines differ, and a busy one is slow.
TEST(Peak, IsAPlausibleNumberOfGigaflops) {
  for (const Isa isa : available_isas()) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat64}) {
      for (const double gflops :
           {measure_peak_gflops(isa, dtype, 1), measure_product_gflops(isa, dtype, 1)}) {
        EXPECT_GT(gflops, 0.0) << to_string(isa);
        EXPECT_LT(gflops, 1000.0) << to_string(isa);
      }
    }
  }
}

// GFLOP/s of the probe run by hand, the best of some runs.
double peak_by_hand(Isa isa) {
  double best = 0.0;
  for (int round = 0; round < 15; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    const double operations = find_kernels(isa, false)->peak_probe(40'000);
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
    best = std::max(best, operations / time.count() * 1e-9);
  }
  return best;
}

TEST(Peak, CountsTheWorkOfEveryTask) {
  // The work of one task in eight would be an eighth of this, however often it is measured; a busy
  // machine reaches the bound in one of the attempts.
  for (const Isa isa : available_isas()) {
    const double bound = 0.3 * peak_by_hand(isa);
    double measured = 0.0;
    for (int attempt = 0; attempt < 50 && measured <= bound; ++attempt) {
      measured = std::max(measured, measure_peak_gflops(isa, DType::kFloat32, 1));
    }
    EXPECT_GT(measured, bound) << to_string(isa);
  }
}

TEST(Peak, WiderRegistersDoMore) {
  if (!cpu_supports(Isa::kAvx512) || find_kernels(Isa::kAvx512, false) == nullptr) {
    GTEST_SKIP() << "no AVX-512 here";
  }
  EXPECT_GT(measure_peak_gflops(Isa::kAvx512, DType::kFloat32, 1),
            measure_peak_gflops(Isa::kScalar, DType::kFloat32, 1));
}

TEST(Peak, IsZeroWithoutKernelsOrThreads) {
  for (const Isa isa : kAll) {
    if (find_kernels(isa, false) == nullptr || !cpu_supports(isa)) {
      EXPECT_EQ(measure_peak_gflops(isa, DType::kFloat32, 1), 0.0) << to_string(isa);
      EXPECT_EQ(measure_product_gflops(isa, DType::kFloat32, 1), 0.0) << to_string(isa);
    }
  }
  EXPECT_EQ(measure_peak_gflops(Isa::kScalar, DType::kFloat32, 0), 0.0);
  EXPECT_EQ(measure_peak_gflops(Isa::kScalar, DType::kFloat32, -1), 0.0);
}

}  // namespace
}  // namespace attentile::cpu

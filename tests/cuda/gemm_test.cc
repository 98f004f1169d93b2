// SPDX-License-Identifier: Apache-2.0
// A pipelined product gives one result under every schedule, completion and seed, and each seeded
// bug is caught.
#include "cuda/kernels/gemm.h"

#include <cmath>
#include <cstring>
#include <random>

#include "cuda/support.h"
#include "dtype.h"

namespace attentile::cuda::test {
namespace {

template <class T, bool kBIsRowMajor = false, Bug kBug = Bug::kNone>
struct Product {
  static constexpr int kDepth = 256;
  static constexpr int kTile = 64;

  explicit Product(const Options& options)
      : device(options),
        a(device, kTile * kDepth, {.name = "a", .writable = false}),
        b(device, kTile * kDepth, {.name = "b", .writable = false}),
        c(device, kTile * kTile, {.name = "c", .initialised = false}) {
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    for (int i = 0; i < kTile * kDepth; ++i) {
      a[i] = round(normal(random));
      b[i] = round(normal(random));
    }
    using Kernel = Gemm<T, kBIsRowMajor, kBug>;
    report = device.launch<Kernel>({1, 1, 1}, Kernel::kSharedBytes,
                                   {a.data(), b.data(), c.data(), kDepth});
  }
  static T round(double x) {
    return {kIsFloat16<T> ? double_to_float16(x) : double_to_bfloat16(x)};
  }
  static double value(T x) {
    return kIsFloat16<T> ? float16_to_float(x.bits) : bfloat16_to_float(x.bits);
  }
  double worst_error() {
    double worst = 0;
    for (int m = 0; m < kTile; ++m) {
      for (int n = 0; n < kTile; ++n) {
        double sum = 0;
        for (int k = 0; k < kDepth; ++k) {
          sum += value(a[m * kDepth + k]) * value(b[kBIsRowMajor ? k * kTile + n : n * kDepth + k]);
        }
        const double error = std::fabs(sum - c[m * kTile + n]);
        worst = error <= worst ? worst : std::isnan(error) ? INFINITY : error;
      }
    }
    return worst;
  }

  Device device;
  Buffer<T> a, b;
  Buffer<float> c;
  Report report;
};

template <class P>
void expect_right(P product) {
  EXPECT_TRUE(product.report.clean()) << product.report.text();
  EXPECT_LT(product.worst_error(), 1e-4);
  EXPECT_EQ(product.device.uninitialised_bytes(product.c.data()), 0u);
}

TEST(Gemm, IsRightInBothTypesAndLayouts) {
  expect_right(Product<BFloat16>({}));
  expect_right(Product<Float16>({}));
  expect_right(Product<BFloat16, true>({}));
  expect_right(Product<Float16, true>({}));
}

TEST(Gemm, BitsDependOnNeitherScheduleNorCompletion) {
  const std::vector<float> expected = Product<BFloat16>({}).c.values();
  for (const Schedule schedule : kSchedules) {
    for (const Completion completion : kCompletions) {
      for (const uint64_t seed : {1, 2}) {
        Product<BFloat16> product({.schedule = schedule, .completion = completion, .seed = seed});
        EXPECT_TRUE(product.report.clean()) << product.report.text();
        EXPECT_EQ(0, std::memcmp(expected.data(), product.c.data(), 4 * expected.size()));
      }
    }
  }
}

TEST(Gemm, HardwareModelStaysClose) {
  for (const int arch : {80, 90}) {
    Product<BFloat16> product({.mma = MmaModel::kHardware, .arch = arch});
    EXPECT_TRUE(product.report.clean()) << product.report.text();
    EXPECT_LT(product.worst_error(), 1e-3);
    EXPECT_NE(product.c.values(), Product<BFloat16>({}).c.values());
  }
}

TEST(Gemm, SwizzledTilesHaveNoBankConflicts) {
  const Product<BFloat16> k_major({});
  const Product<BFloat16, true> row_major({});
  EXPECT_EQ(k_major.report.total.bank_conflicts, 0u);
  EXPECT_EQ(row_major.report.total.bank_conflicts, 0u);
  EXPECT_GT(k_major.report.total.shared_wavefronts, 0u);
}

TEST(Gemm, CountsItsWork) {
  const Product<BFloat16> product({});
  const emulator::Counters& total = product.report.total;
  EXPECT_EQ(total.mma, 64u * 64 * 256 / (16 * 8 * 16));
  EXPECT_EQ(total.global_read_bytes, 2u * 64 * 256 * 2);
  EXPECT_EQ(total.global_read_sectors * 32, total.global_read_bytes);
  EXPECT_EQ(total.global_written_bytes, 64u * 64 * 4);
  EXPECT_EQ(total.barriers, 4u * 2 * 4);
  EXPECT_EQ(total.copies, 2u * 64 * 256 / 8);
}

// A report names the kernel's file.
template <Bug kBug>
const Finding* found(const Product<BFloat16, false, kBug>& product, Fault fault) {
  const Finding* finding = product.report.find(fault);
  EXPECT_NE(finding, nullptr) << product.report.text();
  if (finding != nullptr && finding->where.line != 0) {
    EXPECT_NE(finding->where.file.find("kernels/gemm.h"), std::string::npos);
  }
  return finding;
}

template <Bug kBug>
void expect_in_every_mode(Fault fault) {
  for (const Completion completion : kCompletions) {
    for (const Schedule schedule : kSchedules) {
      const Product<BFloat16, false, kBug> product(
          {.schedule = schedule, .completion = completion});
      EXPECT_NE(found<kBug>(product, fault), nullptr);
    }
  }
}

TEST(GemmBugs, RemovedWait) {
  expect_in_every_mode<Bug::kNoWait>(Fault::kInFlight);
}
TEST(GemmBugs, WaitForTooFewGroups) {
  expect_in_every_mode<Bug::kWaitsForTooFew>(Fault::kInFlight);
}
TEST(GemmBugs, RemovedCommit) {
  expect_in_every_mode<Bug::kNoCommit>(Fault::kInFlight);
}
TEST(GemmBugs, RemovedBarrierAfterWait) {
  expect_in_every_mode<Bug::kNoBarrierAfterWait>(Fault::kReadAfterWrite);
}
TEST(GemmBugs, RemovedBarrierBeforeReuse) {
  expect_in_every_mode<Bug::kNoBarrierBeforeReuse>(Fault::kWriteAfterRead);
}
TEST(GemmBugs, BothStagesInOneBuffer) {
  expect_in_every_mode<Bug::kSameStage>(Fault::kInFlight);
}
TEST(GemmBugs, SwizzleOnOneSide) {
  Product<BFloat16, false, Bug::kNoSwizzleOnRead> product({});
  EXPECT_GT(product.worst_error(), 1.0);
  EXPECT_GT(product.report.total.bank_conflicts, 0u);
}
TEST(GemmBugs, WrongFragment) {
  Product<BFloat16, false, Bug::kWrongFragmentOfB> product({});
  EXPECT_GT(product.worst_error(), 1.0);
}
TEST(GemmBugs, MisalignedRow) {
  const Product<BFloat16, false, Bug::kMisalignedRow> product({});
  found<Bug::kMisalignedRow>(product, Fault::kMisaligned);
}
TEST(GemmBugs, BarrierThatOneWarpLeavesOut) {
  for (const Schedule schedule : kSchedules) {
    const Product<BFloat16, false, Bug::kDivergentBarrier> product({.schedule = schedule});
    EXPECT_TRUE(product.report.has(Fault::kDivergentBarrier)) << product.report.text();
    EXPECT_TRUE(product.report.has(Fault::kReadAfterWrite) ||
                product.report.has(Fault::kWriteAfterRead) || product.report.has(Fault::kInFlight))
        << product.report.text();
    EXPECT_FALSE(product.report.completed);  // that warp misses the last barrier
  }
}
TEST(GemmBugs, RowOutOfBounds) {
  const Product<BFloat16, false, Bug::kRowOutOfBounds> product({});
  const Finding* finding = found<Bug::kRowOutOfBounds>(product, Fault::kOutOfBounds);
  EXPECT_NE(finding->detail.find("beyond the end of 'a'"), std::string::npos) << finding->detail;
}

}  // namespace
}  // namespace attentile::cuda::test

// SPDX-License-Identifier: Apache-2.0
// The conformance table through the emulated kernels, forward and backward, against the float64
// oracle: of 16-bit dtypes 220 cells of generated cases besides the hand-written ones, of float32
// 55 hand-written ones; or as many as ATTENTILE_CELLS says and a quarter more of float32, or the
// one that ATTENTILE_FILTER names, with atomic_dq where ATTENTILE_ATOMIC_DQ is set.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "conformance/crash_report.h"
#include "conformance/runner.h"
#include "cuda/backward_entry.h"

namespace attentile::cuda::test {
namespace {

using conformance::Summary;

constexpr const char* kRefused =
    "flash2: block_mask: is given, but the CUDA kernels have no block patterns";

Summary run_table(const std::string& filter, int64_t cells, bool atomic_dq = false) {
  conformance::Options options;
  options.count = cells;
  options.filter = filter;
  options.entries = {conformance::Entry::kEmulator};
  options.algorithms = {Algorithm::kFlash2};
  options.isas = {Isa::kAuto};
  options.emulator = run_both_passes;
  options.atomic_dq = atomic_dq;
  if (GTEST_FLAG_GET(fail_fast)) options.max_failures = 1;
  return conformance::run(options);
}

// `least` cells at least were not refused.
void report(const Summary& summary, int64_t least = 0) {
  ASSERT_TRUE(summary.status.ok()) << summary.status.message();
  ASSERT_GT(summary.cells, 0);
  EXPECT_GE(summary.passed, least);
  for (const conformance::Failure& failure : summary.failures) {
    ADD_FAILURE() << failure.cell << "\n  " << failure.what << "\n  " << failure.command;
  }
  for (const auto& [reason, count] : summary.refusals) {
    const bool too_wide = reason.find("the CUDA kernels take at most 256") != std::string::npos;
    EXPECT_TRUE(too_wide || reason == kRefused) << count << " refused: " << reason;
  }
  std::string worst;
  for (const auto& [name, ratio] : summary.worst_ratios) {
    worst += " " + name + " " + std::to_string(ratio);
  }
  std::printf("%lld cells, %lld passed, %lld refused; largest error / allowed:%s\n",
              static_cast<long long>(summary.cells), static_cast<long long>(summary.passed),
              static_cast<long long>(summary.refused), worst.c_str());
}

int64_t cells_wanted() {
  const char* text = std::getenv("ATTENTILE_EMULATED_CELLS");
  if (text == nullptr) text = std::getenv("ATTENTILE_CELLS");
  if (text != nullptr) return std::atoll(text) / 2;
  return std::getenv("ATTENTILE_FULL") != nullptr ? 1200 : 110;
}

TEST(BackwardTable, BFloat16) {
  conformance::install_crash_report();
  if (const char* filter = std::getenv("ATTENTILE_FILTER")) {
    return report(run_table(filter, 1, std::getenv("ATTENTILE_ATOMIC_DQ") != nullptr));
  }
  report(run_table("dtype=bf16", cells_wanted()), cells_wanted() / 2);
}

TEST(BackwardTable, Float16) {
  if (std::getenv("ATTENTILE_FILTER") != nullptr) GTEST_SKIP() << "another test runs the cell";
  report(run_table("dtype=f16", cells_wanted()), cells_wanted() / 2);
}

TEST(BackwardTable, Float32) {
  if (std::getenv("ATTENTILE_FILTER") != nullptr) GTEST_SKIP() << "another test runs the cell";
  report(run_table("dtype=f32", cells_wanted() / 2), cells_wanted() / 4);
}

TEST(BackwardTable, AtomicDq) {
  if (std::getenv("ATTENTILE_FILTER") != nullptr) GTEST_SKIP() << "another test runs the cell";
  report(run_table("dtype=bf16", cells_wanted() / 2, true), cells_wanted() / 4);
}

}  // namespace
}  // namespace attentile::cuda::test

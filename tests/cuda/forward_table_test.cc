// SPDX-License-Identifier: Apache-2.0
// The conformance table through the emulated forward kernel, against the float64 oracle: 746
// cells of generated cases besides the hand-written ones, or as many as ATTENTILE_CELLS says, or
// the one that ATTENTILE_FILTER names.
#include <gtest/gtest.h>

#include <cstdlib>

#include "conformance/crash_report.h"
#include "conformance/runner.h"
#include "cuda/emulator_entry.h"

namespace attentile::cuda::test {
namespace {

using conformance::Summary;

Summary run_table(const std::string& filter, int64_t cells) {
  conformance::Options options;
  options.count = cells;
  options.filter = filter;
  options.entries = {conformance::Entry::kEmulator};
  options.algorithms = {Algorithm::kFlash2};
  options.isas = {Isa::kAuto};
  options.emulator = run_emulator;
  options.forward_only = true;
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
    const bool patterned =
        reason.find("the CUDA kernels have no block patterns") != std::string::npos;
    EXPECT_TRUE(too_wide || patterned) << count << " refused: " << reason;
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
  if (text != nullptr) return std::atoll(text) * 2 / 5;
  return std::getenv("ATTENTILE_FULL") != nullptr ? 3600 : 320;
}

TEST(ForwardTable, BFloat16) {
  conformance::install_crash_report();
  if (const char* filter = std::getenv("ATTENTILE_FILTER")) return report(run_table(filter, 1));
  report(run_table("dtype=bf16", cells_wanted()), cells_wanted() / 2);
}

TEST(ForwardTable, Float32) {
  if (std::getenv("ATTENTILE_FILTER") != nullptr) GTEST_SKIP() << "the other test runs the cell";
  report(run_table("dtype=f32", cells_wanted() / 3), cells_wanted() / 6);
}

TEST(ForwardTable, Float16) {
  if (std::getenv("ATTENTILE_FILTER") != nullptr) GTEST_SKIP() << "the other test runs the cell";
  report(run_table("dtype=f16", cells_wanted()), cells_wanted() / 2);
}

}  // namespace
}  // namespace attentile::cuda::test

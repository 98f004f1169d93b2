// SPDX-License-Identifier: Apache-2.0
// The conformance table through attention_forward and attention_backward on device tensors, with
// the emulated backend in the place of a GPU: the whole way from a public call to kernels.
#include <gtest/gtest.h>

#include <cstdlib>

#include "conformance/crash_report.h"
#include "conformance/runner.h"
#include "device/emulated.h"

namespace attentile::cuda::test {
namespace {

using conformance::Summary;

Summary run_table(const std::string& filter, int64_t cells, bool forward_only) {
  use_emulated_backend();
  conformance::Options options;
  options.count = cells;
  options.filter = filter;
  options.entries = {conformance::Entry::kDevice};
  options.algorithms = {Algorithm::kFlash2};
  options.isas = {Isa::kAuto};
  options.forward_only = forward_only;
  conformance::install_crash_report();
  return conformance::run(options);
}

void report(const Summary& summary, int64_t least) {
  ASSERT_TRUE(summary.status.ok()) << summary.status.message();
  for (const conformance::Failure& failure : summary.failures) {
    ADD_FAILURE() << failure.cell << "\n  " << failure.what << "\n  " << failure.command;
  }
  EXPECT_GE(summary.passed, least);
  for (const auto& [reason, count] : summary.refusals) {
    std::printf("%lld refused: %s\n", static_cast<long long>(count), reason.c_str());
  }
  std::printf("%lld cells, %lld passed\n", static_cast<long long>(summary.cells),
              static_cast<long long>(summary.passed));
}

int64_t cells_wanted(int64_t usual) {
  const char* text = std::getenv("ATTENTILE_CELLS");
  return text != nullptr ? std::atoll(text) : usual;
}

TEST(DeviceTable, ForwardBFloat16) {
  report(run_table("dtype=bf16", cells_wanted(100), true), 70);
}
TEST(DeviceTable, ForwardFloat16) {
  report(run_table("dtype=f16", cells_wanted(100), true), 70);
}

TEST(DeviceTable, ForwardFloat32) {
  report(run_table("dtype=f32", cells_wanted(30), true), 20);
}

TEST(DeviceTable, BothPassesBFloat16) {
  report(run_table("dtype=bf16", cells_wanted(60), false), 40);
}
TEST(DeviceTable, BothPassesFloat16) {
  report(run_table("dtype=f16", cells_wanted(60), false), 40);
}
TEST(DeviceTable, BothPassesFloat32) {
  report(run_table("dtype=f32", cells_wanted(4), false), 2);
}

}  // namespace
}  // namespace attentile::cuda::test

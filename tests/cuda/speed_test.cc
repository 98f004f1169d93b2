// SPDX-License-Identifier: Apache-2.0
// How fast the emulator is on this machine: recorded, not judged.
#include <chrono>
#include <cstdio>

#include "cuda/kernels/gemm.h"
#include "cuda/support.h"

namespace attentile::cuda::test {
namespace {

TEST(Speed, OfALongProduct) {
  constexpr int kDepth = 8192;
  using Kernel = Gemm<BFloat16>;
  Device device;
  Buffer<BFloat16> a(device, 64 * kDepth, {.name = "a", .writable = false});
  Buffer<BFloat16> b(device, 64 * kDepth, {.name = "b", .writable = false});
  Buffer<float> c(device, 64 * 64, {.name = "c", .initialised = false});
  const auto start = std::chrono::steady_clock::now();
  const Report report = device.launch<Kernel>({1, 1, 1}, Kernel::kSharedBytes,
                                              {a.data(), b.data(), c.data(), kDepth});
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  EXPECT_TRUE(report.clean()) << report.text();
  const double switches = static_cast<double>(report.switches) / took.count();
  const double mma = static_cast<double>(report.total.mma) / took.count();
  RecordProperty("switches_per_second", std::to_string(switches));
  RecordProperty("mma_per_second", std::to_string(mma));
  std::printf("%.1f million switches/s, %.3f million mma/s (with their loads and checks)\n",
              switches / 1e6, mma / 1e6);
}

}  // namespace
}  // namespace attentile::cuda::test

// SPDX-License-Identifier: Apache-2.0
// A launch that is watched is the launch that it is unwatched, and ends where the watcher says so.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "cuda/kernels/gemm.h"
#include "cuda/support.h"

namespace attentile::cuda::test {
namespace {

// A product in one block, so that questions come in the midst of it.
struct Watched {
  static constexpr int kDepth = 2048;

  Watched(const Options& options, const std::function<bool(double)>& goes_on)
      : device(options),
        a(device, 64 * kDepth, {.name = "a", .writable = false}),
        b(device, 64 * kDepth, {.name = "b", .writable = false}),
        c(device, 64 * 64, {.name = "c"}) {
    for (size_t i = 0; i < a.size(); ++i) {
      a[i].bits = static_cast<uint16_t>(0x3F80 + i % 97);
      b[i].bits = static_cast<uint16_t>(0x3F80 + i % 89);
    }
    device.watch(goes_on);
    launch();
  }
  void launch() {
    using Kernel = Gemm<BFloat16>;
    report = device.launch<Kernel>({1, 1, 1}, Kernel::kSharedBytes,
                                   {a.data(), b.data(), c.data(), kDepth});
  }

  Device device;
  Buffer<BFloat16> a, b;
  Buffer<float> c;
  Report report;
};

void expect_same(const Report& found, const Report& expected) {
  EXPECT_TRUE(found.clean()) << found.text();
  EXPECT_EQ(found.switches, expected.switches);
  EXPECT_EQ(found.instructions, expected.instructions);
  EXPECT_EQ(found.total.shared_wavefronts, expected.total.shared_wavefronts);
}

TEST(Watch, ChangesNothing) {
  for (const Schedule schedule : kSchedules) {
    const Options options = {.schedule = schedule, .seed = 3};
    Watched plain(options, nullptr);
    std::vector<double> fractions;
    Watched watched(options, [&](double fraction) {
      fractions.push_back(fraction);
      return true;
    });
    EXPECT_GE(fractions.size(), 3u);  // in the midst of the block
    EXPECT_EQ(std::count(fractions.begin(), fractions.end(), 0.0),
              static_cast<std::ptrdiff_t>(fractions.size()));  // which has not ended
    expect_same(watched.report, plain.report);
    EXPECT_EQ(watched.c.values(), plain.c.values());
  }
}

struct Turns {
  int32_t* next;
  int32_t* order;
};
// Every thread writes when it came: after collectives, at which the schedule takes turns.
void take_turns(const Turns& p, SharedAddress) {
  int32_t sum = 0;
  for (int i = 0; i < 3000; ++i) sum += static_cast<int32_t>(shfl_xor(1u, 1u));
  const auto place = static_cast<int64_t>(block_idx().x) * 128 + thread_idx();
  st_global(p.order + place, atomic_add_acq_rel(p.next, 1) + (sum == 3000 ? 0 : 1 << 20));
}

TEST(Watch, LeavesTheOrderOfThreadsAsItIs) {
  using TakeTurns = Kernel<128, Turns, take_turns>;
  for (const Schedule schedule : kSchedules) {
    std::vector<int32_t> order[2];
    for (const bool watch : {false, true}) {
      Device device({.schedule = schedule, .block_order = BlockOrder::kRandom, .seed = 9});
      Buffer<int32_t> next(device, 1, {.name = "next"});
      Buffer<int32_t> places(device, 5 * 128, {.name = "order"});
      int questions = 0;
      if (watch) {
        device.watch([&](double) { return ++questions > 0; });
      }
      const Report report = device.launch<TakeTurns>({5}, 0, {next.data(), places.data()});
      EXPECT_TRUE(report.completed) << report.text();
      EXPECT_EQ(questions > 4, watch);
      order[watch] = places.values();
    }
    EXPECT_EQ(order[0], order[1]);
  }
}

TEST(Watch, EndsALaunchInTheMidstOfABlock) {
  const Options options;
  Watched plain(options, nullptr);
  int questions = 0;
  Watched stopped(options, [&](double) { return ++questions < 2; });
  EXPECT_EQ(questions, 2);
  EXPECT_FALSE(stopped.report.completed);
  EXPECT_TRUE(stopped.report.findings.empty()) << stopped.report.text();
  EXPECT_LT(stopped.report.instructions, plain.report.instructions);
  stopped.device.watch(nullptr);
  stopped.launch();  // the next one is whole
  expect_same(stopped.report, plain.report);
  EXPECT_EQ(stopped.c.values(), plain.c.values());
}

}  // namespace
}  // namespace attentile::cuda::test

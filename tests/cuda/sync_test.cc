// SPDX-License-Identifier: Apache-2.0
// Divergence, barriers, deadlocks and endless loops: a small kernel each, and its mended twin.
#include "cuda/support.h"

namespace attentile::cuda::test {
namespace {

void diverging_shuffles(const Words& p, SharedAddress) {
  uint32_t x = lane_idx();
  if (p.argument == 0 && lane_idx() < 16) {
    x = shfl_xor(x, 1);
  } else {
    x = shfl_xor(x, 1);
  }
  st_global(p.out + lane_idx(), x);
}
TEST(Divergence, LanesAtDifferentLines) {
  const OneBlock<32, diverging_shuffles> wrong({0}, {}, 0);
  const Finding* finding = only(wrong, Fault::kDivergence);
  EXPECT_NE(finding->detail.find("lanes 0-15 at "), std::string::npos) << finding->detail;
  EXPECT_NE(finding->detail.find("lanes 16-31 at "), std::string::npos) << finding->detail;
  EXPECT_FALSE(wrong.report.completed);
  clean(OneBlock<32, diverging_shuffles>({0}, {}, 1));
}

void leaves_early(const Words& p, SharedAddress) {
  if (lane_idx() >= static_cast<uint32_t>(p.argument)) return;
  ballot(true);
}
TEST(Divergence, LanesThatHaveExited) {
  const OneBlock<32, leaves_early> wrong({0}, {}, 30);
  const Finding* finding = only(wrong, Fault::kDivergence);
  EXPECT_NE(finding->detail.find("lanes 30-31 have exited"), std::string::npos) << finding->detail;
  clean(OneBlock<32, leaves_early>({0}, {}, 32));
}

void barrier_in_branches(const Words& p, SharedAddress) {
  if (p.argument == 0 && warp_idx() == 1) {
    bar_sync();
  } else {
    bar_sync();
  }
}
TEST(Barriers, BlockBarrierOnTwoLines) {
  only(OneBlock<64, barrier_in_branches>({0}, {}, 0), Fault::kDivergentBarrier);
  clean(OneBlock<64, barrier_in_branches>({0}, {}, 1));
  clean(OneBlock<64, barrier_in_branches>({0}, {.strict = false}, 0));
}

void warp_misses_barrier(const Words& p, SharedAddress) {
  if (p.argument == 0 && warp_idx() == 1) return;
  bar_sync();
}
TEST(Barriers, DeadlockSaysWhoWaitsForWhom) {
  const OneBlock<96, warp_misses_barrier> wrong({0}, {}, 0);
  const Finding* finding = only(wrong, Fault::kDeadlock);
  const std::string& text = finding->detail;
  EXPECT_NE(text.find("warp 0 of block (0,0,0) waits at barrier 0 at "), std::string::npos) << text;
  EXPECT_NE(text.find("sync_test.cc:" + std::to_string(finding->where.line)), std::string::npos);
  EXPECT_NE(text.find("64 of 96 threads arrived"), std::string::npos) << text;
  EXPECT_NE(text.find("warp 1 of block (0,0,0) has exited"), std::string::npos) << text;
  clean(OneBlock<96, warp_misses_barrier>({0}, {}, 1));
}

// Warp 0 fills, warps 1 and 2 read; argument 1: counts differ, 2: arrives twice, 3: id 16,
// 4: barrier 0, 5: a count that is no multiple of 32.
void producer_and_consumers(const Words& p, SharedAddress arena) {
  const uint32_t full = p.argument == 3 ? 16 : p.argument == 4 ? 0 : 3;
  const uint32_t threads = p.argument == 5 ? 90 : 96;
  if (warp_idx() == 0) {
    st_shared(arena + 4 * lane_idx(), lane_idx());
    bar_arrive(full, threads);
    if (p.argument == 2) bar_arrive(full, threads);
  } else {
    bar_sync(full, p.argument == 1 ? 64 : threads);
    st_global(p.out + thread_idx(), ld_shared<uint32_t>(arena + 4 * (31 - lane_idx())));
  }
}
TEST(Barriers, NamedBarrierHandsOver) {
  for (const Schedule schedule : kSchedules) {
    OneBlock<96, producer_and_consumers> run({0}, {.schedule = schedule}, 0);
    clean(run);
    EXPECT_EQ(run.out[32], 31u);
    EXPECT_EQ(run.out[95], 0u);
  }
}
TEST(Barriers, ThreadCountsThatDiffer) {
  for (const Schedule schedule : kSchedules) {
    const OneBlock<96, producer_and_consumers> wrong({0}, {.schedule = schedule}, 1);
    ASSERT_TRUE(wrong.report.has(Fault::kBarrierMismatch)) << wrong.report.text();
    const std::string& detail = wrong.report.find(Fault::kBarrierMismatch)->detail;
    EXPECT_NE(detail.find("barrier 3: "), std::string::npos) << detail;
  }
}
void arrives_for_nobody(const Words& p, SharedAddress) {
  if (warp_idx() == 0 || p.argument != 0) bar_arrive(5, 64);
}
TEST(Barriers, PhaseThatNobodyEnds) {
  only(OneBlock<64, arrives_for_nobody>({0}, {}, 0), Fault::kBarrierUnfinished);
  clean(OneBlock<64, arrives_for_nobody>({0}, {}, 1));
}
TEST(Barriers, WarpThatArrivesTwice) {
  EXPECT_TRUE((OneBlock<96, producer_and_consumers>({0}, {.schedule = Schedule::kFurthestFirst}, 2)
                   .report.has(Fault::kBarrierReentered)));
}
TEST(Barriers, InvalidOperands) {
  EXPECT_TRUE(
      (OneBlock<96, producer_and_consumers>({0}, {}, 3).report.has(Fault::kInvalidOperand)));
  EXPECT_TRUE(
      (OneBlock<96, producer_and_consumers>({0}, {}, 4).report.has(Fault::kInvalidOperand)));
  EXPECT_TRUE(
      (OneBlock<96, producer_and_consumers>({0}, {}, 5).report.has(Fault::kInvalidOperand)));
}

// Who arrives and does not wait has seen nothing.
void arrives_and_reads(const Words& p, SharedAddress arena) {
  if (warp_idx() == 0) {
    if (p.argument != 0) {
      bar_sync(1, 64);
    } else {
      bar_arrive(1, 64);
      bar_sync(2, 64);
    }
    st_global(p.out + lane_idx(), ld_shared<uint32_t>(arena + 4 * lane_idx()));
  } else {
    if (p.argument == 0) bar_sync(2, 64);
    st_shared(arena + 4 * lane_idx(), 1u);
    bar_sync(1, 64);
  }
}
TEST(Barriers, ArriveSeesNothing) {
  const OneBlock<64, arrives_and_reads> wrong({0}, {}, 0);
  EXPECT_FALSE(wrong.report.clean());
  clean(OneBlock<64, arrives_and_reads>({0}, {}, 1));
}

// --- loops ---------------------------------------------------------------------------------------

void waits_for_nobody(const Words& p, SharedAddress) {
  while (ld_acquire(reinterpret_cast<const int32_t*>(p.in)) != p.argument) {
  }
}
TEST(Loops, PollingForNothingIsADeadlock) {
  for (const Schedule schedule : kSchedules) {
    const OneBlock<64, waits_for_nobody> wrong({0}, {.schedule = schedule}, 1);
    EXPECT_NE(only(wrong, Fault::kDeadlock)->detail.find("polls at "), std::string::npos);
    clean(OneBlock<64, waits_for_nobody>({0}, {.schedule = schedule}, 0));
  }
}

// Block 1 sets what block 0 waits for: with one resident slot it never starts.
void waits_for_later_block(const Words& p, SharedAddress) {
  auto* flag = reinterpret_cast<int32_t*>(p.out + 128);
  if (thread_idx() != 0) return;
  if (block_idx().x == 1) {
    st_release(flag, 1);
  } else {
    while (ld_acquire(flag) == 0) {
    }
  }
}
TEST(Loops, WaitForABlockThatCannotStart) {
  using K = Kernel<32, Words, waits_for_later_block>;
  const Report wrong = run_blocks<K>(2, 0, {.resident_blocks = 1});
  ASSERT_TRUE(wrong.has(Fault::kDeadlock)) << wrong.text();
  EXPECT_NE(wrong.find(Fault::kDeadlock)->detail.find("1 blocks have not started"),
            std::string::npos);
  EXPECT_TRUE(run_blocks<K>(2, 0, {.resident_blocks = 2}).clean());
  EXPECT_TRUE(
      run_blocks<K>(2, 0, {.block_order = BlockOrder::kReverse, .resident_blocks = 1}).clean());
}

void loops_forever(const Words& p, SharedAddress) {
  while (p.argument != 0) ballot(true);
}
TEST(Loops, WatchdogEndsThem) {
  const OneBlock<32, loops_forever> wrong({0}, {.max_instructions = 100000}, 1);
  only(wrong, Fault::kEndlessLoop);
  EXPECT_FALSE(wrong.report.completed);
}

}  // namespace
}  // namespace attentile::cuda::test

// SPDX-License-Identifier: Apache-2.0
// Errors of memory: a small kernel that makes each, and its mended twin that is clean.
#include <cstring>

#include "cuda/support.h"

namespace attentile::cuda::test {
namespace {

// --- memory --------------------------------------------------------------------------------------

void reads_uninitialised(const Words& p, SharedAddress arena) {
  if (p.argument != 0) st_shared(arena + 4 * thread_idx(), 7u);
  st_global(p.out + thread_idx(), ld_shared<uint32_t>(arena + 4 * thread_idx()));
}
TEST(Fault, UninitialisedShared) {
  const OneBlock<32, reads_uninitialised> wrong({0}, {}, 0);
  const Finding* finding = only(wrong, Fault::kUninitialisedRead);
  EXPECT_EQ(finding->space, emulator::Space::kShared);
  EXPECT_EQ(finding->count, 32u);
  clean(OneBlock<32, reads_uninitialised>({0}, {}, 1));
}

void reads_output(const Words& p, SharedAddress) {
  if (p.argument != 0) st_global(p.out + thread_idx(), 1u);
  st_global(p.out + thread_idx(), 1 + ld_global(p.out + thread_idx()));
}
TEST(Fault, UninitialisedGlobal) {
  const OneBlock<32, reads_output> wrong({0}, {}, 0);
  EXPECT_EQ(only(wrong, Fault::kUninitialisedRead)->space, emulator::Space::kGlobal);
  clean(OneBlock<32, reads_output>({0}, {}, 1));
}

void shared_bounds(const Words& p, SharedAddress arena) {
  const auto last = static_cast<uint32_t>(p.argument);
  st_shared(arena + (last - 4 * thread_idx()), 1u);
}
TEST(Fault, SharedOutOfBounds) {
  const OneBlock<32, shared_bounds> wrong({0}, {}, 4096);
  EXPECT_EQ(only(wrong, Fault::kOutOfBounds)->address, 4096u);
  clean(OneBlock<32, shared_bounds>({0}, {}, 4092));
  // Before the arena.
  const OneBlock<32, shared_bounds> early({0}, {}, 0);
  EXPECT_EQ(only(early, Fault::kOutOfBounds)->count, 31u);
}

void global_bounds(const Words& p, SharedAddress) {
  st_global(p.out + thread_idx(), ld_global(p.in + thread_idx() + p.argument));
}
TEST(Fault, GlobalOutOfBounds) {
  const OneBlock<32, global_bounds> wrong(std::vector<uint32_t>(33), {}, 2);
  const Finding* finding = only(wrong, Fault::kOutOfBounds);
  EXPECT_NE(finding->detail.find("4 bytes beyond the end of 'in' (132 bytes)"), std::string::npos)
      << finding->detail;
  EXPECT_EQ(finding->thread.thread, 31u);
  clean(OneBlock<32, global_bounds>(std::vector<uint32_t>(33), {}, 1));
  const OneBlock<32, global_bounds> early(std::vector<uint32_t>(33), {}, -1);
  EXPECT_NE(only(early, Fault::kOutOfBounds)->detail.find("before 'in'"), std::string::npos);
}

void unaligned(const Words& p, SharedAddress arena) {
  struct alignas(8) Two {
    uint32_t word[2];
  };
  const auto offset = static_cast<uint32_t>(p.argument);
  st_shared(arena + 16 * thread_idx() + offset, Two{});
  const auto* from = reinterpret_cast<const char*>(p.in) + offset;
  st_global(p.out + thread_idx(), ld_global(reinterpret_cast<const Two*>(from)).word[0]);
}
TEST(Fault, Misaligned) {
  const OneBlock<32, unaligned> wrong({0, 0, 0, 0}, {}, 4);
  EXPECT_EQ(wrong.report.findings.size(), 2u) << wrong.report.text();
  EXPECT_TRUE(wrong.report.has(Fault::kMisaligned));
  clean(OneBlock<32, unaligned>({0, 0, 0, 0}, {}, 8));
}

void writes_input(const Words& p, SharedAddress) {
  st_global(p.argument != 0 ? const_cast<uint32_t*>(p.in) : p.out, 1u);
}
void writes_output_once(const Words& p, SharedAddress) {
  if (thread_idx() == 0) writes_input(p, {});
}
TEST(Fault, WriteToReadOnly) {
  const OneBlock<32, writes_output_once> wrong({5}, {}, 1);
  EXPECT_EQ(only(wrong, Fault::kReadOnlyWritten)->detail, "'in'");
  clean(OneBlock<32, writes_output_once>({5}, {}, 0));
}

void read_only_load(const Words& p, SharedAddress) {
  st_global(p.out + thread_idx(), 3u);
  const uint32_t x =
      p.argument != 0 ? ld_global_nc(p.out + thread_idx()) : ld_global(p.out + thread_idx());
  st_global(p.out + 64 + thread_idx(), x);
}
TEST(Fault, ReadOnlyLoadOfWhatWasWritten) {
  only(OneBlock<32, read_only_load>({0}, {}, 1), Fault::kReadOnlyLoad);
  clean(OneBlock<32, read_only_load>({0}, {}, 0));
}

// --- races ---------------------------------------------------------------------------------------

void neighbour_in_block(const Words& p, SharedAddress arena) {
  st_shared(arena + 4 * thread_idx(), thread_idx());
  if (p.argument != 0) bar_sync();
  st_global(p.out + thread_idx(), ld_shared<uint32_t>(arena + 4 * ((thread_idx() + 32) % 64)));
}
TEST(Race, ReadAfterWriteAcrossWarps) {
  for (const Schedule schedule : kSchedules) {
    const OneBlock<64, neighbour_in_block> wrong({0}, {.schedule = schedule}, 0);
    EXPECT_TRUE(wrong.report.has(Fault::kReadAfterWrite) ||
                wrong.report.has(Fault::kWriteAfterRead))
        << wrong.report.text();
    clean(OneBlock<64, neighbour_in_block>({0}, {.schedule = schedule}, 1));
  }
}

void neighbour_in_warp(const Words& p, SharedAddress arena) {
  st_shared(arena + 4 * lane_idx(), lane_idx());
  if (p.argument == 1) bar_warp_sync();
  if (p.argument == 2) ballot(true);  // gathers the lanes, orders nothing
  st_global(p.out + lane_idx(), ld_shared<uint32_t>(arena + 4 * (lane_idx() ^ 1)));
}
TEST(Race, ReadAfterWriteWithinAWarp) {
  EXPECT_FALSE((OneBlock<32, neighbour_in_warp>({0}, {}, 0).report.clean()));
  only(OneBlock<32, neighbour_in_warp>({0}, {}, 2), Fault::kReadAfterWrite);
  clean(OneBlock<32, neighbour_in_warp>({0}, {}, 1));
  clean(OneBlock<32, neighbour_in_warp>({0}, {.strict = false}, 2));
}

void overwrites_what_is_read(const Words& p, SharedAddress arena) {
  st_shared(arena + 4 * thread_idx(), thread_idx());
  bar_sync();
  const auto x = ld_shared<uint32_t>(arena + 4 * (63 - thread_idx()));
  if (p.argument != 0) bar_sync();
  st_shared(arena + 4 * thread_idx(), x);
}
TEST(Race, WriteAfterReadAcrossWarps) {
  const OneBlock<64, overwrites_what_is_read> wrong({0}, {}, 0);
  const Finding* finding = wrong.report.find(Fault::kWriteAfterRead);
  ASSERT_NE(finding, nullptr) << wrong.report.text();
  EXPECT_NE(finding->where.line, finding->other.line);
  EXPECT_NE(finding->other.line, 0);
  clean(OneBlock<64, overwrites_what_is_read>({0}, {}, 1));
}

void all_write_one(const Words& p, SharedAddress arena) {
  if (p.argument == 0 || thread_idx() == 0) st_shared(arena, thread_idx());
}
TEST(Race, WriteAfterWrite) {
  only(OneBlock<64, all_write_one>({0}, {}, 0), Fault::kWriteAfterWrite);
  clean(OneBlock<64, all_write_one>({0}, {}, 1));
}

void matrices_after_stores(const Words& p, SharedAddress arena) {
  for (uint32_t i = lane_idx(); i < 128; i += 32) st_shared(arena + 4 * i, i);
  if (p.argument != 0) bar_warp_sync();
  const auto m = ldmatrix<4>(arena + 16 * lane_idx());
  stmatrix<4>(arena + 16 * lane_idx(), m);  // ldmatrix has read in all lanes by now
  if (p.argument != 0) bar_warp_sync();
  st_global(p.out + lane_idx(), ld_shared<uint32_t>(arena + 16 * lane_idx()));
}
TEST(Race, MatricesNeedTheWarpBarrier) {
  const OneBlock<32, matrices_after_stores> wrong({0}, {}, 0);
  EXPECT_TRUE(wrong.report.has(Fault::kReadAfterWrite)) << wrong.report.text();
  clean(OneBlock<32, matrices_after_stores>({0}, {}, 1));
}

void blocks_share_a_word(const Words& p, SharedAddress) {
  if (thread_idx() != 0) return;
  if (p.argument != 0) {
    atomic_add_f32(reinterpret_cast<float*>(p.out), 1.0f);
  } else {
    st_global(p.out, 1u);
  }
}
TEST(Race, BlocksThatWriteOneWord) {
  using K = Kernel<32, Words, blocks_share_a_word>;
  for (const int resident : {1, 4}) {
    const Report wrong = run_blocks<K>(4, 0, {.resident_blocks = resident});
    EXPECT_TRUE(wrong.has(Fault::kWriteAfterWrite)) << wrong.text();
    EXPECT_TRUE(run_blocks<K>(4, 1, {.resident_blocks = resident}).clean());
  }
}

// Block 0 writes, releases; block 1 acquires, reads. argument: 0 right, 1 no release, 2 no barrier
// before the release, 3 no barrier after the acquire.
void hand_over(const Words& p, SharedAddress) {
  auto* flag = reinterpret_cast<int32_t*>(p.out + 128);
  if (block_idx().x == 0) {
    st_global(p.out + thread_idx(), 40 + thread_idx());
    if (p.argument != 2) bar_sync();
    if (thread_idx() == 0 && p.argument != 1) st_release(flag, 1);
    return;
  }
  if (thread_idx() == 0 && p.argument != 1) {
    while (ld_acquire(flag) == 0) {
    }
  }
  if (p.argument != 3) bar_sync();
  st_global(p.out + 64 + thread_idx(), ld_global(p.out + 63 - thread_idx()));
}
TEST(Race, BlocksHandOverByReleaseAndAcquire) {
  using K = Kernel<64, Words, hand_over>;
  for (const Schedule schedule : kSchedules) {
    for (const BlockOrder order : kBlockOrders) {
      const Options options{.schedule = schedule, .block_order = order};
      const Report right = run_blocks<K>(2, 0, options);
      EXPECT_TRUE(right.clean()) << right.text();
      for (const int argument : {1, 2, 3}) {
        const Report wrong = run_blocks<K>(2, argument, options);
        EXPECT_TRUE(wrong.has(Fault::kReadAfterWrite) || wrong.has(Fault::kWriteAfterRead))
            << argument << wrong.text();
      }
    }
  }
}

// The last block to arrive sums what all wrote.
void last_block_sums(const Words& p, SharedAddress) {
  if (thread_idx() != 0) return;
  st_global(p.out + block_idx().x, block_idx().x + 1);
  auto* count = reinterpret_cast<int32_t*>(p.out + 128);
  if (p.argument == 0 && atomic_add_acq_rel(count, 1) + 1 < static_cast<int32_t>(grid_dim().x)) {
    return;
  }
  uint32_t sum = 0;
  for (uint32_t i = 0; i < grid_dim().x; ++i) sum += ld_global(p.out + i);
  if (p.argument == 0) st_global(p.out + 129, sum);
}
TEST(Race, LastBlockByAcquireReleaseAdditions) {
  using K = Kernel<32, Words, last_block_sums>;
  for (const BlockOrder order : kBlockOrders) {
    EXPECT_TRUE(run_blocks<K>(9, 0, {.block_order = order, .resident_blocks = 3}).clean());
    const Report wrong = run_blocks<K>(9, 1, {.block_order = order, .resident_blocks = 3});
    EXPECT_TRUE(wrong.has(Fault::kReadAfterWrite)) << wrong.text();
  }
}

TEST(Race, LaunchesAreOrdered) {
  Device device;
  Buffer<uint32_t> out(device, 256, {.name = "out"});
  using K = Kernel<64, Words, neighbour_in_block>;
  for (int i = 0; i < 2; ++i) {
    const Report report = device.launch<K>({}, 1024, {out.data(), nullptr, 1});
    EXPECT_TRUE(report.clean()) << report.text();
  }
}

// --- cp.async ------------------------------------------------------------------------------------

// argument: 0 right, 1 no wait, 2 no commit, 3 overwritten while in flight.
void copies(const Words& p, SharedAddress arena) {
  const SharedAddress at = arena + 16 * thread_idx();
  cp_async<16>(at, p.in + 4 * thread_idx());
  if (p.argument != 2) cp_async_commit_group();
  if (p.argument == 3) st_shared(at, 1u);
  if (p.argument != 1) cp_async_wait_group<0>();
  st_global(p.out + thread_idx(), ld_shared<uint32_t>(at));
}
TEST(AsyncCopyFault, InFlightAndNeverWaited) {
  const std::vector<uint32_t> in(128, 5);
  for (const Completion completion : kCompletions) {
    const Options options{.completion = completion};
    OneBlock<32, copies> right(in, options, 0);
    clean(right);
    EXPECT_EQ(right.out[3], 5u);
    const OneBlock<32, copies> no_wait(in, options, 1);
    EXPECT_TRUE(no_wait.report.has(Fault::kInFlight));
    EXPECT_TRUE(no_wait.report.has(Fault::kNeverWaited));
    const OneBlock<32, copies> no_commit(in, options, 2);
    EXPECT_TRUE(no_commit.report.has(Fault::kInFlight));
    only(OneBlock<32, copies>(in, options, 3), Fault::kInFlight);
  }
  OneBlock<32, copies> late(in, {.completion = Completion::kLatest}, 1);
  EXPECT_EQ(late.out[3], 0xFFFFFFFFu);  // poison
  OneBlock<32, copies> early(in, {.completion = Completion::kAtOnce}, 1);
  EXPECT_EQ(early.out[3], 5u);
}

void copies_too_much(const Words& p, SharedAddress arena) {
  cp_async<4>(arena + 4 * thread_idx(), p.in, p.argument);
  cp_async_commit_group();
  cp_async_wait_group<0>();
}
TEST(AsyncCopyFault, SourceLargerThanDestination) {
  only(OneBlock<32, copies_too_much>({0, 0}, {}, 5), Fault::kInvalidOperand);
  clean(OneBlock<32, copies_too_much>({0, 0}, {}, 4));
}

// --- reports ------------------------------------------------------------------------------------

TEST(Reports, ReadLikeSentences) {
  const OneBlock<64, overwrites_what_is_read> wrong({0}, {}, 0);
  const std::string text = wrong.report.text();
  EXPECT_NE(text.find("========= Race (write after read) in shared memory at "), std::string::npos);
  EXPECT_NE(text.find("by thread "), std::string::npos);
  EXPECT_NE(text.find("not ordered after the read at "), std::string::npos);
  EXPECT_NE(text.find(" times\n"), std::string::npos);
  EXPECT_NE(text.find("========= 2 findings, 64 occurrences"), std::string::npos);
}

}  // namespace
}  // namespace attentile::cuda::test

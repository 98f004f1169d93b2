// SPDX-License-Identifier: Apache-2.0
// Aligned buffers and the hook that makes an allocation fail.
#include "memory.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

namespace attentile {
namespace {

TEST(Memory, AlignmentSizesAndMoves) {
  for (const int64_t size : {int64_t{0}, int64_t{1}, int64_t{65}, kHugePageBytes - 1}) {
    const AlignedBuffer buffer(size);
    ASSERT_TRUE(buffer.ok());
    EXPECT_EQ(buffer.size(), size);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % kCacheLineBytes, 0u);
  }
  AlignedBuffer large(kHugePageBytes + 1);
  ASSERT_TRUE(large.ok());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(large.data()) % kHugePageBytes, 0u);
  AlignedBuffer moved(std::move(large));
  EXPECT_TRUE(moved.ok());
  AlignedBuffer target(10);
  target = std::move(moved);
  EXPECT_EQ(target.size(), kHugePageBytes + 1);
  EXPECT_FALSE(AlignedBuffer().ok());
  EXPECT_FALSE(AlignedBuffer(-1).ok());
  EXPECT_FALSE(AlignedBuffer(INT64_MAX).ok());
  EXPECT_EQ(AlignedBuffer(INT64_MAX).size(), 0);
}

// Where a buffer of this size lies, which is given back at once.
const char* place_of(int64_t size) {
  const AlignedBuffer buffer(size);
  return buffer.data();
}

TEST(Memory, AWorkspaceIsKeptForTheNextCall) {
  if (!kKeepsWorkspaces) GTEST_SKIP() << "an address sanitizer sees every allocation";
  constexpr int64_t kSize = int64_t{3} << 20;
  constexpr int64_t kOther = int64_t{200} << 10;
  const int64_t live = internal::live_allocation_count();
  const char* const first = place_of(kSize);
  EXPECT_EQ(internal::live_allocation_count(), live);
  const char* const other = place_of(kOther);
  for (int round = 0; round < 3; ++round) {  // a block for each, whoever asks first
    EXPECT_EQ(place_of(kSize), first);
    EXPECT_EQ(place_of(kOther), other);
  }
  EXPECT_EQ(place_of(kSize - 100), first);  // of which it is one of as many bytes from now on
  {
    const AlignedBuffer larger(kSize);
    EXPECT_NE(larger.data(), first);  // too small
    EXPECT_EQ(reinterpret_cast<uintptr_t>(larger.data()) % kHugePageBytes, 0u);
    const AlignedBuffer own(kOther);
    const AlignedBuffer beside(kOther);
    EXPECT_NE(own.data(), beside.data());
    for (const AlignedBuffer* buffer : {&larger, &own, &beside}) {
      std::memset(buffer->data(), 0xFF, static_cast<size_t>(buffer->size()));
    }
  }
  EXPECT_EQ(internal::live_allocation_count(), live);
  internal::fail_allocation_after(0);  // also where a block is kept
  EXPECT_FALSE(AlignedBuffer(kOther).ok());
}

TEST(Memory, ThreadsShareWhatIsKept) {
  const int64_t live = internal::live_allocation_count();
  std::vector<std::jthread> threads;
  std::atomic<int> torn{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&torn, t] {
      for (int round = 0; round < 500; ++round) {
        const AlignedBuffer buffer((int64_t{64} << 10) << ((round + t) % 4));
        const int value = 1 + t;
        std::memset(buffer.data(), value, static_cast<size_t>(buffer.size()));
        for (int64_t i = 0; i < buffer.size(); i += 4096) torn += buffer.data()[i] != value;
      }
    });
  }
  threads.clear();
  EXPECT_EQ(torn.load(), 0);
  EXPECT_EQ(internal::live_allocation_count(), live);
}

TEST(Memory, TheHookFailsOneAllocation) {
  internal::fail_allocation_after(1);
  EXPECT_TRUE(AlignedBuffer(8).ok());
  EXPECT_FALSE(AlignedBuffer(8).ok());
  EXPECT_TRUE(AlignedBuffer(8).ok());
  internal::fail_allocation_after(0);
  const int64_t live = internal::live_allocation_count();
  EXPECT_FALSE(AlignedBuffer(640).ok());
  EXPECT_EQ(internal::live_allocation_count(), live);
  const Status status = out_of_memory("workspace", 640);
  EXPECT_EQ(status.code(), StatusCode::kOutOfMemory);
  EXPECT_EQ(status.message(), "workspace: 640 bytes could not be allocated");
  internal::fail_allocation_after(0);
  internal::fail_allocation_after(-1);
  EXPECT_TRUE(AlignedBuffer(8).ok());
}

}  // namespace
}  // namespace attentile

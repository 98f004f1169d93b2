// SPDX-License-Identifier: Apache-2.0
// Aligned buffers and the hook that makes an allocation fail.
#include "memory.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <utility>

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

// SPDX-License-Identifier: Apache-2.0
// cp.async: copies from global to shared memory that go on while the thread computes. A thread's
// copies since its last commit form a group; cp_async_wait_group<n> waits until at most the n
// youngest groups of this thread are unfinished. Only the thread that waited then sees the bytes:
// others need a barrier after the wait.
#pragma once

#include "cuda/device/shared_memory.h"

namespace attentile::cuda {

// cp.async.cg (16 bytes, past L1) or cp.async.ca (4, 8). The first `source_bytes` of kBytes are
// read, the rest of the destination is zeroed; with 0 nothing is read and `source` may be anything.
template <int kBytes>
ATTENTILE_DEVICE void cp_async(SharedAddress destination, const void* source,
                               uint32_t source_bytes = kBytes,
                               [[maybe_unused]] Site site = Site::here()) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
#if ATTENTILE_PTX
  const uint64_t global = __cvta_generic_to_global(source);
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination.byte),
                 "l"(global), "r"(source_bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(destination.byte),
                 "l"(global), "n"(kBytes), "r"(source_bytes)
                 : "memory");
  }
#else
  emulator::cp_async(destination.byte, source, {kBytes, source_bytes}, site);
#endif
}

// cp.async.cg of 16 bytes, or 16 zeros where there is nothing to read: `source` may then be
// anything. One instruction, where a count of bytes that only run time knows takes ten.
ATTENTILE_DEVICE void cp_async_if(SharedAddress destination, const void* source, bool present,
                                  [[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  asm volatile(
      "{.reg .pred absent; setp.eq.u32 absent, %2, 0;"
      " cp.async.cg.shared.global [%0], [%1], 16, absent;}" ::"r"(destination.byte),
      "l"(__cvta_generic_to_global(source)), "r"(static_cast<uint32_t>(present))
      : "memory");
#else
  emulator::cp_async(destination.byte, source, {16, present ? 16u : 0u}, site);
#endif
}

// cp.async.commit_group
ATTENTILE_DEVICE void cp_async_commit_group([[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emulator::cp_async_commit_group(site);
#endif
}

// cp.async.wait_group kPending
template <int kPending>
ATTENTILE_DEVICE void cp_async_wait_group([[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#else
  emulator::cp_async_wait_group(kPending, site);
#endif
}

}  // namespace attentile::cuda

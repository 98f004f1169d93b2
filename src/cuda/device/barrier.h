// SPDX-License-Identifier: Apache-2.0
// Barriers of a block. Each is executed by whole warps. What the participants wrote before a
// barrier is seen by those that wait at it; bar_arrive publishes and does not wait, so it sees
// nothing. Barrier 0 belongs to bar_sync(); named barriers are 1..15 and their thread counts
// (multiples of 32) are the same at every participant.
#pragma once

#include "cuda/device/config.h"

namespace attentile::cuda {

inline constexpr uint32_t kMaxBarriers = 16;

// bar.sync 0: all threads of the block.
ATTENTILE_DEVICE void bar_sync([[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  __syncthreads();
#else
  emulator::bar_sync_block(site);
#endif
}

// bar.sync id, threads: waits until `threads` threads have arrived or waited at barrier `id`.
ATTENTILE_DEVICE void bar_sync(uint32_t id, uint32_t threads,
                               [[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  emulator::bar_sync(id, threads, site);
#endif
}

// bar.arrive id, threads: counts this warp at barrier `id` and goes on.
ATTENTILE_DEVICE void bar_arrive(uint32_t id, uint32_t threads,
                                 [[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  emulator::bar_arrive(id, threads, site);
#endif
}

}  // namespace attentile::cuda

// SPDX-License-Identifier: Apache-2.0
// Where a thread stands: its place in the block (CTA), the block's place in the grid, its lane and
// warp. Blocks are one-dimensional; grids have up to three dimensions.
#pragma once

#include "cuda/device/config.h"

namespace attentile::cuda {

// Number of this thread in its block, in [0, block_threads()).
ATTENTILE_DEVICE uint32_t thread_idx() {
#if ATTENTILE_PTX
  return threadIdx.x;
#else
  return emulator::thread_idx();
#endif
}

ATTENTILE_DEVICE uint32_t block_threads() {
#if ATTENTILE_PTX
  return blockDim.x;
#else
  return emulator::block_threads();
#endif
}

ATTENTILE_DEVICE Dim3 block_idx() {
#if ATTENTILE_PTX
  return {blockIdx.x, blockIdx.y, blockIdx.z};
#else
  return emulator::block_idx();
#endif
}

ATTENTILE_DEVICE Dim3 grid_dim() {
#if ATTENTILE_PTX
  return {gridDim.x, gridDim.y, gridDim.z};
#else
  return emulator::grid_dim();
#endif
}

ATTENTILE_DEVICE uint32_t lane_idx() {
  return thread_idx() % kWarpSize;
}

// Number of this warp in its block: a collective, as one lane's value is broadcast, which tells the
// compiler that branches on it do not diverge.
ATTENTILE_DEVICE uint32_t warp_idx([[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  return __shfl_sync(0xFFFFFFFFu, threadIdx.x / kWarpSize, 0);
#else
  return emulator::shfl(emulator::Shuffle::kIdx, emulator::thread_idx() / kWarpSize, 0, site);
#endif
}

// The same value, but the compiler knows nothing of it: what a loop computes from it, it computes
// in every iteration, instead of keeping it in registers all along.
ATTENTILE_DEVICE uint32_t opaque(uint32_t value) {
#if ATTENTILE_PTX
  asm volatile("" : "+r"(value));
#endif
  return value;
}
ATTENTILE_DEVICE int32_t opaque(int32_t value) {
  return static_cast<int32_t>(opaque(static_cast<uint32_t>(value)));
}
// lane_idx(), the same way; known to be below 32, so that its quotients are shifts.
ATTENTILE_DEVICE int opaque_lane() {
  return static_cast<int>(opaque(lane_idx()) % kWarpSize);
}

}  // namespace attentile::cuda

// SPDX-License-Identifier: Apache-2.0
// What a kernel is and how it is started. A kernel is a type:
//
//   template <class T>
//   struct Scale {
//     static constexpr int kThreads = 128;        // of a block
//     static constexpr int kMinBlocksPerSm = 1;   // occupancy the registers are budgeted for
//     struct Params { ... };                      // plain data, global pointers among them
//     ATTENTILE_DEVICE static void run(const Params& params, SharedAddress arena);
//   };
//
// launch<Scale<Float16>>(...) starts it on a GPU, emulator::Device::launch<Scale<Float16>>(...) on
// the host. The arena begins at a multiple of kArenaAlignment.
#pragma once

#include "cuda/device/shared_memory.h"

#if ATTENTILE_PTX
#include <cuda_runtime.h>
#endif

namespace attentile::cuda {

inline constexpr uint32_t kArenaAlignment = 1024;

#if ATTENTILE_PTX

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kMinBlocksPerSm)
    kernel_entry(const __grid_constant__ typename Kernel::Params params) {
  extern __shared__ __align__(kArenaAlignment) unsigned char arena[];
  Kernel::run(params, SharedAddress{static_cast<uint32_t>(__cvta_generic_to_shared(arena))});
}

template <class Kernel>
cudaError_t launch(Dim3 grid, uint32_t shared_bytes, const typename Kernel::Params& params,
                   cudaStream_t stream) {
  // Beyond 48 KiB a kernel has to ask.
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel_entry<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  // Unlike <<<>>> it tells of this launch alone, not of what went wrong before.
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid.x, grid.y, grid.z);
  config.blockDim = dim3(Kernel::kThreads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel_entry<Kernel>, params);
}

#endif

}  // namespace attentile::cuda

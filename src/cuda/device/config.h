// SPDX-License-Identifier: Apache-2.0
// The one place that knows which machine a kernel is compiled for. nvcc sees PTX; every other
// compiler sees calls into the emulator, which runs the same source on the host. Kernels use
// neither `__device__` nor `#ifdef`: they use the functions of this folder.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define ATTENTILE_PTX 1
#define ATTENTILE_DEVICE __device__ __forceinline__
#define ATTENTILE_UNROLL _Pragma("unroll")
#define ATTENTILE_ROLL _Pragma("unroll 1")
#else
#define ATTENTILE_PTX 0
#define ATTENTILE_DEVICE inline
#define ATTENTILE_UNROLL
#define ATTENTILE_ROLL
#endif

namespace attentile::cuda {

inline constexpr int kWarpSize = 32;

// Extents and positions of a grid; CUDA's dim3 without CUDA.
struct Dim3 {
  uint32_t x = 1;
  uint32_t y = 1;
  uint32_t z = 1;
};

// The line of a kernel that called a wrapper. Every wrapper takes it as a defaulted last parameter;
// it names the line in the emulator's reports and is empty, and free, on the device.
struct Site {
#if ATTENTILE_PTX
  __device__ static constexpr Site here() { return {}; }
#else
  const char* file = "";
  int line = 0;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
#endif
};

}  // namespace attentile::cuda

#if !ATTENTILE_PTX
#include "cuda/emulator/instructions.h"
#endif

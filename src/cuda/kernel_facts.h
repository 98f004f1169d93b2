// SPDX-License-Identifier: Apache-2.0
// What ptxas and the disassembler say of each kernel, as compiled by nvcc 13.0 (kernel_facts.inc,
// written by tools/cuda_facts.py).
#pragma once

#include <cstdint>
#include <string_view>

#include "cuda/device_limits.h"

namespace attentile::cuda {

// Instructions that a warp executes for one full tile of the inner loop: nothing masked, no special
// values, no option. All 0 for kernels without such a loop.
struct TileInstructions {
  int32_t mma;         // HMMA m16n8k16
  int32_t ldmatrix;    // LDSM, 512 bytes of shared memory each
  int32_t copy;        // LDGSTS (cp.async), 512 bytes each
  int32_t exp;         // MUFU
  int32_t arithmetic;  // float32: add, multiply, compare, convert
  int32_t memory;      // other loads and stores
  int32_t shuffle;
  int32_t control;
  int32_t index;  // integers and addresses

  int32_t total() const {
    return mma + ldmatrix + copy + exp + arithmetic + memory + shuffle + control + index;
  }
};

struct KernelFacts {
  std::string_view kernel;  // as LaunchPlan::kernel
  int32_t architecture;     // 80 or 90
  int32_t registers;        // of a thread
  TileInstructions tile;
};

// Null for a kernel or an architecture that the table does not have.
const KernelFacts* find_kernel_facts(std::string_view kernel, int32_t architecture);

// Blocks that fit an SM by their registers.
int32_t blocks_by_registers(int32_t registers, int32_t threads);

// Cycles of an SM that the warps of a block take of each unit for one full tile, at its peak rate.
struct TileCycles {
  double tensor;  // products
  double issue;   // one instruction a cycle in each quarter of an SM
  double shared;  // 128 bytes a cycle, of fragments and copies
  double exp;     // 16 a cycle
  double arithmetic;
  double index;
};
TileCycles tile_cycles(const KernelFacts& facts, int32_t threads);

}  // namespace attentile::cuda

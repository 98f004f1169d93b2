// SPDX-License-Identifier: Apache-2.0
// What ptxas and the disassembler say of each kernel, as compiled by nvcc 13.0 (kernel_facts.inc),
// and what the emulator counts of its inner loop (tile_counts.inc); both are written by
// tools/cuda_facts.py.
#pragma once

#include <cstdint>
#include <string_view>

#include "cuda/device_limits.h"

namespace attentile::cuda {

// Instructions that a warp executes for one full tile of the inner loop (where warps differ, the
// mean of the busiest quarter of an SM): nothing masked, no special values, no option (but
// BiasGradient's bias), no new maximum. All 0 for kernels without such a loop.
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
  int32_t wavefronts;  // of shared memory, of a block for that tile, without bank conflicts
};

// What the emulator counts of a block for one full tile. It runs the source: what the compiler
// leaves out of loads from shared memory is counted here too.
struct TileCounts {
  std::string_view kernel;
  int32_t mma;                // of warps
  int32_t ex2;                // of threads
  int32_t copies;             // cp.async, of threads
  int32_t shared_wavefronts;  // of 128 bytes, copies' among them
  int32_t bank_conflicts;     // of these wavefronts, those beyond the fewest possible
  int32_t read_bytes;         // global memory, as threads ask for it
  int32_t read_sectors;       // distinct ones of 32 bytes per instruction of a warp
  int32_t written_bytes;
  int32_t written_sectors;

  friend bool operator==(const TileCounts&, const TileCounts&) = default;
};

// Null for a kernel or an architecture that the tables do not have; kernels without an inner loop
// have no counts.
const KernelFacts* find_kernel_facts(std::string_view kernel, int32_t architecture);
const TileCounts* find_tile_counts(std::string_view kernel);

// Blocks that fit an SM by their registers.
int32_t blocks_by_registers(int32_t registers, int32_t threads);

// Cycles of an SM that the warps of a block take of each unit for one full tile, at its peak rate.
// Instructions, and lanes of arithmetic, belong to quarters of an SM, of which few warps leave some
// without work.
struct TileCycles {
  double tensor;  // products
  double issue;   // one instruction a cycle in each quarter of an SM
  double shared;  // one wavefront a cycle, those of bank conflicts among them
  double exp;     // 16 a cycle
  double arithmetic;
  double index;
};
TileCycles tile_cycles(const KernelFacts& facts, const TileCounts& counts, int32_t threads,
                       int32_t blocks_per_sm);

}  // namespace attentile::cuda

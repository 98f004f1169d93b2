// SPDX-License-Identifier: Apache-2.0
// The CPU planner: Problem x machine -> CpuPlan. Pure; every heuristic of the CPU backend is here.
// What decides bits (panel width of the backward pass, keys of a tile, tiles of flash1) depends
// only on the sequence's own lengths, head dimensions, dtype, options and machine; what depends on
// batch, heads or threads (queries of a task, number of tasks) changes no bit.
#pragma once

#include <cstdint>

#include "cpu/kernel.h"
#include "problem.h"

namespace attentile::cpu {

struct Machine {
  Isa isa = Isa::kScalar;
  int lanes = 4;  // of the kernels for this problem's accumulation type
  int64_t l2_bytes = 1 << 20;
};

CpuPlan make_plan(const Problem& problem, const Machine& machine, int workers);

// Whether this problem accumulates in double.
inline bool is_wide(const Problem& problem) {
  return problem.dtype == DType::kFloat64;
}

// Bytes that the forward pass of plan.algorithm moves between slow and fast memory: what its tile
// loads and stores will count.
Traffic predict_forward_traffic(const Problem& problem, const CpuPlan& plan);

// Pairs (query, key) that band and lengths leave visible, over all query heads. Closed form.
int64_t count_visible_pairs(const Problem& problem);

}  // namespace attentile::cpu

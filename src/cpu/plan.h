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

// Parts of a matrix unit's operands (matrix_unit.h), 0 where it has nothing to do. float32 takes
// three parts and six products, which narrow heads do not pay for (decision 8). A sink may leave
// gradients that are all subnormal, which the unit takes for 0; both passes multiply alike, since
// the backward pass recomputes the weights of the forward pass.
int matrix_parts(const Problem& problem);

CpuPlan make_plan(const Problem& problem, const Machine& machine, int workers);

// Tasks of one head of a sequence, by blocks of queries and by blocks (or pieces) of keys.
int64_t count_query_blocks(const CpuPlan& plan, const Sequence& s);
int64_t count_key_blocks(const CpuPlan& plan, const Sequence& s);

// Whether this problem accumulates in double.
inline bool is_wide(const Problem& problem) {
  return problem.dtype == DType::kFloat64;
}

// Whether all batch entries are alike, as they are without index arrays.
inline bool has_equal_sequences(const Problem& problem) {
  return problem.cu_seqlens_q.data == nullptr && problem.cu_seqlens_k.data == nullptr &&
         problem.seqused_k.data == nullptr && problem.leftpad_k.data == nullptr;
}

// Calls f(sequence, times) for the batch entries; once for all of them where they are alike.
template <class F>
void for_sequences(const Problem& problem, F f) {
  const bool equal = has_equal_sequences(problem);
  const int64_t distinct = equal ? min64(problem.batch, 1) : problem.batch;
  for (int64_t b = 0; b < distinct; ++b) f(problem.sequence(b), equal ? problem.batch : int64_t{1});
}

// No row of any head: out, lse and dq are empty, all else is 0. Such a call has no phases, and its
// batch may be larger than any array over it could be.
inline bool has_nothing_to_compute(const Problem& problem) {
  return problem.batch == 0 || problem.num_heads_q == 0 || problem.max_seqlen_q == 0;
}

}  // namespace attentile::cpu

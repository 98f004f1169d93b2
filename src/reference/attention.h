// SPDX-License-Identifier: Apache-2.0
// The definition of attention, forward and backward: O(seqlen_q * seqlen_k) time, no tiling, no
// online softmax, float64 arithmetic on the stored inputs. It runs as Algorithm::kReference, where
// results are rounded once when they are stored, and it is the oracle of every test, where they
// stay float64 and come with their condition numbers. It recomputes everything from q, k and v: the
// caller's out and lse are never read.
#pragma once

#include <cstdint>
#include <vector>

#include "attentile/attention.h"
#include "problem.h"

namespace attentile::reference {

// Write the problem's outputs. kOutOfMemory, kCancelled (outputs then undefined).
Status run_forward(const Problem& problem, const ExecutionContext& context);
Status run_backward(const Problem& problem, const ExecutionContext& context);

// Bytes they allocate for the call: per thread the keys, values and gradients of one KV head in
// float64, a row of scores, and the part of dbias that a task owns.
int64_t workspace_bytes(const Problem& problem, const ExecutionContext& context);

// One result, row-major over the four axes that Array4 has for it:
//     out      [batch][seqlen_q][num_heads_q][head_dim_v]     varlen: [1][total_q][...][...]
//     lse      [batch][num_heads_q][seqlen_q][1]              varlen: [1][num_heads_q][total_q][1]
//     dq dk dv like q, k, v: [batch][rows][heads][columns]    varlen: [1][total][...][...]
//     dbias    dbias_shape (1 where the axis is summed)
//     dsink    [num_heads_q][1][1][1]
struct ExactArray {
  bool present = false;
  int64_t shape[4] = {};
  std::vector<double> value = {};
  // The sum that makes the value, taken over absolute values (contract section 6). NaN where the
  // element may be NaN: in gradients, everything that a row with a NaN or infinity may reach.
  std::vector<double> condition = {};

  int64_t size() const { return shape[0] * shape[1] * shape[2] * shape[3]; }
  int64_t index(int64_t a, int64_t b, int64_t c, int64_t d) const {
    return ((a * shape[1] + b) * shape[2] + c) * shape[3] + d;
  }
  double at(int64_t a, int64_t b, int64_t c, int64_t d) const {
    return value[static_cast<size_t>(index(a, b, c, d))];
  }
};

struct ExactResult {
  ExactArray out, lse;                  // always
  ExactArray dq, dk, dv, dbias, dsink;  // when problem.backward, the last two if it has them
};

// Computes the result without rounding, and the conditions. The problem's outputs are not touched.
Status compute_exact(const Problem& problem, const ExecutionContext& context, ExactResult* result);

// Where the passes write: arrays of any floating type; those not present are not written.
struct Results {
  Array4 out, lse, dq, dk, dv, dbias, dsink;
};

// Sets the shapes of everything that the problem computes, with values 0 and no conditions.
void shape_result(const Problem& problem, ExactResult* result);

// float64 arrays over the values of a shaped result.
Results value_arrays(ExactResult* result);

}  // namespace attentile::reference

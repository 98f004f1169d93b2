// SPDX-License-Identifier: Apache-2.0
// The one place that checks what users pass: views and options in, a Problem or the sentence that
// says what is wrong out. Pure: nothing is written, no tensor element is read except the index
// arrays (cu_seqlens, seqused_k, block_table, cache_batch_idx, leftpad_k) of a call on the CPU, and
// a call that is right allocates nothing. Every backend and every entry point relies on it; below
// it nothing is checked.
//
// A sentence reads `argument: what it was, what was expected`, with the numbers. When several
// things are wrong, the first found is told, in this order: options, each view by itself and
// whether all are on one device, q k v, index arrays, bias mask sink slopes block_mask, outputs and
// gradients, shared memory.
//
// Codes: kInvalidArgument, except kUnsupported for a correct request that this backend does not
// serve: states to merge on a GPU; block_table, cache_batch_idx or leftpad_k (forward only) in
// the backward pass.
//
// What is refused beyond the contract's page, because no machine could serve it:
//   a view whose elements, counted without its dimensions of size 0, would need 2^63 bytes or more;
//   a view that spans 2^63 bytes or more, or that leaves the address space;
//   more than 2^58 (query, key, head) scores in one call.
#pragma once

#include <vector>

#include "attentile/attention.h"
#include "attentile/status.h"
#include "problem.h"

namespace attentile {

enum class Check {
  kCall,  // everything
  kPlan,  // not the data pointers (null is fine), nor shared memory; on the CPU index arrays are
          // read
};

// outputs.out is needed, lse and keep are optional.
Result<Problem> validate_forward(const AttentionInputs& inputs, const AttentionOutputs& outputs,
                                 const AttentionOptions& options, Check check);

// outputs.out, outputs.lse (both read), dout, dq, dk and dv are needed; keep is not looked at.
Result<Problem> validate_backward(const AttentionInputs& inputs, const AttentionOutputs& outputs,
                                  const AttentionGradients& gradients,
                                  const AttentionOptions& options, Check check);

// All states have one shape and dtype: out [batch, seqlen_q, num_heads_q, head_dim_v] with lse
// [batch, num_heads_q, seqlen_q], or packed [total_q, num_heads_q, head_dim_v] with [num_heads_q,
// total_q]. No parts at all are fine: their union is the neutral state. The result's out may be a
// part's out (same address and strides) and its lse a part's lse; it shares no other memory.
Status validate_merge(const std::vector<PartialState>& parts, const PartialState& result);

// Thread counts, executor and workspace; whether the workspace is large enough is the plan's to
// say.
Status validate_context(const ExecutionContext& context);

// The caller's workspace, all of its workspace_bytes, shares no memory with a tensor of the call,
// which was validated. gradients is null for the forward pass.
Status validate_workspace(const AttentionInputs& inputs, const AttentionOutputs& outputs,
                          const AttentionGradients* gradients, const ExecutionContext& context);

}  // namespace attentile

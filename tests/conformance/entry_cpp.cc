// SPDX-License-Identifier: Apache-2.0
// Entry point C++: attention_forward and attention_backward on guarded, strided tensors, every
// third time in a workspace of exactly the size that the plan states, full of NaN.
#include <cstring>
#include <optional>

#include "conformance/call.h"
#include "conformance/entry.h"

namespace attentile::conformance {
namespace {

using testing::GuardedBuffer;

// A dirty workspace of this many bytes, fenced on both sides, at any alignment.
GuardedBuffer dirty_workspace(int64_t bytes) {
  GuardedBuffer buffer(bytes);
  if (bytes > 0) std::memset(buffer.data(), 0xFF, static_cast<size_t>(bytes));
  return buffer;
}

void set_workspace(const Result<Plan>& plan, GuardedBuffer& buffer, ExecutionContext& context) {
  if (!plan.ok()) return;
  buffer = dirty_workspace(plan->workspace_bytes);
  context.workspace = buffer.data();
  context.workspace_bytes = plan->workspace_bytes;
}

}  // namespace

EntryResult run_cpp(const Case& c, const Oracle& oracle, const Cell& cell, uint64_t layout_seed) {
  PlacedCall call(c, oracle.given, oracle.slots, layout_seed);
  AttentionOptions options = options_of(c);
  options.algorithm = cell.algorithm;
  options.isa = cell.isa;
  options.atomic_dq = cell.atomic_dq;
  ExecutionContext context;
  context.num_threads = c.num_threads;
  const bool own_workspace = layout_seed % 3 == 0;
  GuardedBuffer workspace;
  EntryResult result;
  if (own_workspace) {
    set_workspace(plan_forward(call.inputs(), call.outputs(), options, context), workspace,
                  context);
  }
  result.status = attention_forward(call.inputs(), call.outputs(), options, context);
  if (!result.status.ok()) return result;
  result.damage = call.damage();
  if (c.backward) {
    call.freeze_outputs();
    if (own_workspace) {
      set_workspace(
          plan_backward(call.inputs(), call.outputs(), call.gradients(), options, context),
          workspace, context);
    }
    result.status =
        attention_backward(call.inputs(), call.outputs(), call.gradients(), options, context);
    if (!result.status.ok()) return result;
    result.damage += call.damage();
  }
  result.results = call.results();
  return result;
}

}  // namespace attentile::conformance

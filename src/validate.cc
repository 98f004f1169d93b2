// SPDX-License-Identifier: Apache-2.0
// The steps of validation in their order; each lives in a file of its own (see validate_call.h).
#include "validate.h"

#include <utility>

#include "validate_call.h"
#include "validate_text.h"

namespace attentile {
namespace validation {

ArgumentList arguments_of(const Call& call) {
  const AttentionInputs& in = call.inputs;
  ArgumentList list;
  list.add("q", in.q, Use::kRead);
  list.add("k", in.k, Use::kRead);
  list.add("v", in.v, Use::kRead);
  list.add("bias", in.bias, Use::kRead);
  list.add("mask", in.mask, Use::kRead);
  list.add("sink", in.sink, Use::kRead);
  list.add("alibi_slopes", in.alibi_slopes, Use::kRead);
  list.add("block_mask", in.block_mask, Use::kRead);
  list.add("cu_seqlens_q", in.cu_seqlens_q, Use::kIndices);
  list.add("cu_seqlens_k", in.cu_seqlens_k, Use::kIndices);
  list.add("seqused_k", in.seqused_k, Use::kIndices);
  list.add("block_table", in.block_table, Use::kIndices);
  list.add("cache_batch_idx", in.cache_batch_idx, Use::kIndices);
  list.add("leftpad_k", in.leftpad_k, Use::kIndices);
  const Use results = call.backward() ? Use::kRead : Use::kWritten;
  list.add("out", call.outputs.out, results);
  list.add("lse", call.outputs.lse, results);
  if (!call.backward()) {
    list.add("keep", call.outputs.keep, Use::kWritten);
    return list;
  }
  const AttentionGradients& gradients = *call.gradients;
  list.add("dout", gradients.dout, Use::kRead);
  list.add("dlse", gradients.dlse, Use::kRead);
  list.add("dq", gradients.dq, Use::kWritten);
  list.add("dk", gradients.dk, Use::kWritten);
  list.add("dv", gradients.dv, Use::kWritten);
  list.add("dbias", gradients.dbias, Use::kWritten);
  list.add("dsink", gradients.dsink, Use::kWritten);
  return list;
}

Status check_views(Call* call) {
  const Argument* first = nullptr;  // the others are where it is
  for (const Argument& argument : arguments_of(*call)) {
    if (argument.absent()) continue;
    if (Status status = check_view(argument, call->check); !status.ok()) return status;
    if (first == nullptr) {
      first = &argument;
      call->problem.device = argument.view->device;
    } else if (argument.view->device != first->view->device) {
      return invalid("{}: device is {}, but {} is on {}", argument.name,
                     to_string(argument.view->device), first->name, to_string(first->view->device));
    }
  }
  return {};
}

namespace {

Result<Problem> run_steps(Call call) {
  using Step = Status (*)(Call*);
  constexpr Step kSteps[] = {check_options, check_views,   check_tokens, check_lengths,
                             check_terms,   check_results, check_sharing};
  for (Step step : kSteps) {
    if (Status status = step(&call); !status.ok()) return status;
  }
  return call.problem;
}

}  // namespace
}  // namespace validation

Result<Problem> validate_forward(const AttentionInputs& inputs, const AttentionOutputs& outputs,
                                 const AttentionOptions& options, Check check) {
  return validation::run_steps({inputs, outputs, nullptr, options, check, {}});
}

Result<Problem> validate_backward(const AttentionInputs& inputs, const AttentionOutputs& outputs,
                                  const AttentionGradients& gradients,
                                  const AttentionOptions& options, Check check) {
  return validation::run_steps({inputs, outputs, &gradients, options, check, {}});
}

}  // namespace attentile

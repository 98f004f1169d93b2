// SPDX-License-Identifier: Apache-2.0
// One call on its way from views to a Problem: the steps of validation, in the order in which they
// run. Each relies on those before it, checks its arguments and fills in its fields of the problem.
#pragma once

#include "attentile/attention.h"
#include "attentile/status.h"
#include "problem.h"
#include "validate.h"
#include "validate_view.h"

namespace attentile::validation {

struct Call {
  const AttentionInputs& inputs;
  const AttentionOutputs& outputs;
  const AttentionGradients* gradients;  // null: the forward pass
  const AttentionOptions& options;
  Check check;
  Problem problem;

  bool backward() const { return gradients != nullptr; }
  bool packed_q() const { return inputs.cu_seqlens_q.present(); }
  bool packed_k() const { return inputs.cu_seqlens_k.present(); }
  bool paged() const { return inputs.block_table.present(); }
  // Index arrays lie in device memory: nobody reads them, kernels clamp what they hold.
  bool on_device() const { return problem.device == Device::kCuda; }
};

// Every argument that the call looks at, absent ones too.
inline constexpr int kMaxArguments = 23;
struct ArgumentList {
  Argument item[kMaxArguments];
  int count = 0;

  void add(const char* name, const TensorView& view, Use use) {
    item[count++] = {name, &view, use};
  }
  const Argument* begin() const { return item; }
  const Argument* end() const { return item + count; }
};
ArgumentList arguments_of(const Call& call);

Status check_options(Call* call);
Status check_views(Call* call);
Status check_tokens(Call* call);   // q, k, v and which of the index arrays go together
Status check_lengths(Call* call);  // the index arrays, hence the longest sequences
Status check_terms(Call* call);    // bias, mask, sink, alibi_slopes, block_mask; dropout's heads
Status check_results(Call* call);  // out, lse, keep and the gradients
Status check_sharing(Call* call);  // outputs against themselves, each other and every input

}  // namespace attentile::validation

// SPDX-License-Identifier: Apache-2.0
// See validate_sharing.h.
#include "validate_sharing.h"

#include <cstdint>

#include "overlap.h"
#include "validate_call.h"
#include "validate_text.h"

namespace attentile::validation {

ByteRange byte_range_of(const TensorView& view) {
  const auto address = reinterpret_cast<uintptr_t>(view.data);
  if (is_empty(view)) return {address, address};
  const int64_t itemsize = size_of(view.dtype);
  ByteRange range = {address, address + static_cast<uintptr_t>(itemsize)};
  for (int i = 0; i < view.rank; ++i) {
    if (view.shape[i] == 1) continue;
    const int64_t reach = (view.shape[i] - 1) * view.stride[i] * itemsize;
    (reach < 0 ? range.begin : range.end) += static_cast<uintptr_t>(reach);
  }
  return range;
}

Status check_distinct(const Argument& output) {
  const TensorView& view = *output.view;
  if (!self_overlaps(view)) return {};
  return invalid(
      "{}: strides are {} with shape {}, but no two elements of an output may share "
      "memory",
      output.name, strides_of(view), shape_of(view));
}

Status check_disjoint(const Argument& output, const Argument& other) {
  if (!overlaps(*output.view, *other.view)) return {};
  const auto address = reinterpret_cast<uintptr_t>(output.view->data);
  const auto other_address = reinterpret_cast<uintptr_t>(other.view->data);
  const bool before = address < other_address;
  return invalid("{}: data is {} bytes {} that of {}, but an output must not share memory with {}",
                 output.name, before ? other_address - address : address - other_address,
                 before ? "before" : "past", other.name,
                 other.use == Use::kWritten ? "another" : "an input");
}

Status check_sharing(Call* call) {
  if (call->check == Check::kPlan) return {};
  const ArgumentList arguments = arguments_of(*call);
  ByteRange ranges[kMaxArguments];
  for (int i = 0; i < arguments.count; ++i) {
    if (!arguments.item[i].absent()) ranges[i] = byte_range_of(*arguments.item[i].view);
  }
  for (int i = 0; i < arguments.count; ++i) {
    const Argument& output = arguments.item[i];
    if (output.use != Use::kWritten || ranges[i].begin == ranges[i].end) continue;
    if (Status status = check_distinct(output); !status.ok()) return status;
    for (int j = 0; j < arguments.count; ++j) {
      const Argument& other = arguments.item[j];
      // Two outputs are compared once.
      if (j == i || (other.use == Use::kWritten && j > i) || !ranges[i].meets(ranges[j])) continue;
      if (Status status = check_disjoint(output, other); !status.ok()) return status;
    }
  }
  return {};
}

}  // namespace attentile::validation

namespace attentile {

Status validate_workspace(const AttentionInputs& inputs, const AttentionOutputs& outputs,
                          const AttentionGradients* gradients, const ExecutionContext& context) {
  using namespace validation;  // NOLINT(google-build-using-namespace)
  if (context.workspace == nullptr || context.workspace_bytes <= 0) return {};
  const TensorView bytes =
      contiguous_view(context.workspace, DType::kUInt8, {context.workspace_bytes});
  const auto begin = reinterpret_cast<uintptr_t>(context.workspace);
  const auto size = static_cast<uintptr_t>(context.workspace_bytes);
  const uintptr_t end = size > UINTPTR_MAX - begin ? UINTPTR_MAX : begin + size;
  const AttentionOptions options;
  const Call call = {inputs, outputs, gradients, options, Check::kCall, {}};
  for (const Argument& argument : arguments_of(call)) {
    if (argument.absent() || !byte_range_of(*argument.view).meets({begin, end})) continue;
    if (!overlaps(*argument.view, bytes)) continue;
    const auto data = reinterpret_cast<uintptr_t>(argument.view->data);
    return invalid(
        "workspace: its {} bytes begin {} {} the data of {}, but they must not share memory with "
        "a tensor",
        context.workspace_bytes, begin < data ? data - begin : begin - data,
        begin < data ? "before" : "past", argument.name);
  }
  return {};
}

}  // namespace attentile

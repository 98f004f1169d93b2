// SPDX-License-Identifier: Apache-2.0
// Entry point C: the same guarded tensors through the structs of c_api.h, every other time in a
// workspace of the size that attentile_workspace_size tells.
#include <algorithm>
#include <cstring>
#include <deque>

#include "attentile/c_api.h"
#include "conformance/call.h"
#include "conformance/entry.h"

namespace attentile::conformance {
namespace {

// Owns the C views that the structs point to.
class CViews {
 public:
  const attentile_tensor* add(const TensorView& view) {
    if (!view.present()) return nullptr;
    attentile_tensor tensor = ATTENTILE_TENSOR_INIT;
    tensor.data = view.data;
    tensor.dtype = static_cast<int32_t>(view.dtype);
    tensor.device = static_cast<int32_t>(view.device);
    tensor.rank = view.rank;
    std::copy(view.shape, view.shape + kMaxRank, tensor.shape);
    std::copy(view.stride, view.stride + kMaxRank, tensor.stride);
    tensors_.push_back(tensor);
    return &tensors_.back();
  }

 private:
  std::deque<attentile_tensor> tensors_;  // addresses stay
};

attentile_attention_inputs c_inputs(const AttentionInputs& inputs, CViews& views) {
  attentile_attention_inputs c = ATTENTILE_INPUTS_INIT;
  c.q = views.add(inputs.q);
  c.k = views.add(inputs.k);
  c.v = views.add(inputs.v);
  c.bias = views.add(inputs.bias);
  c.mask = views.add(inputs.mask);
  c.sink = views.add(inputs.sink);
  c.alibi_slopes = views.add(inputs.alibi_slopes);
  c.cu_seqlens_q = views.add(inputs.cu_seqlens_q);
  c.cu_seqlens_k = views.add(inputs.cu_seqlens_k);
  c.seqused_k = views.add(inputs.seqused_k);
  c.block_table = views.add(inputs.block_table);
  c.cache_batch_idx = views.add(inputs.cache_batch_idx);
  c.leftpad_k = views.add(inputs.leftpad_k);
  c.block_mask = views.add(inputs.block_mask);
  return c;
}

attentile_attention_outputs c_outputs(const AttentionOutputs& outputs, CViews& views) {
  attentile_attention_outputs c = ATTENTILE_OUTPUTS_INIT;
  c.out = views.add(outputs.out);
  c.lse = views.add(outputs.lse);
  c.keep = views.add(outputs.keep);
  return c;
}

attentile_attention_gradients c_gradients(const AttentionGradients& gradients, CViews& views) {
  attentile_attention_gradients c = ATTENTILE_GRADIENTS_INIT;
  c.dout = views.add(gradients.dout);
  c.dlse = views.add(gradients.dlse);
  c.dq = views.add(gradients.dq);
  c.dk = views.add(gradients.dk);
  c.dv = views.add(gradients.dv);
  c.dbias = views.add(gradients.dbias);
  c.dsink = views.add(gradients.dsink);
  return c;
}

attentile_options c_options(const Case& c, const Cell& cell) {
  attentile_options options = ATTENTILE_OPTIONS_INIT;
  options.has_softmax_scale = c.softmax_scale.has_value();
  options.softmax_scale = c.softmax_scale.value_or(0.0);
  options.has_position_offset = c.position_offset.has_value();
  options.position_offset = c.position_offset.value_or(0);
  options.causal = c.causal;
  options.alignment = static_cast<int32_t>(c.alignment);
  options.window_left = c.window_left;
  options.window_right = c.window_right;
  options.softcap = c.softcap;
  options.dropout_p = c.dropout_p;
  options.dropout_seed = c.dropout_seed;
  options.dropout_offset = c.dropout_offset;
  options.query_base = c.query_base;
  options.key_base = c.key_base;
  options.head_base = c.head_base;
  options.batch_base = c.batch_base;
  options.dropout_num_heads_q = c.dropout_num_heads_q;
  options.block_size_q = c.block_size_q;
  options.block_size_k = c.block_size_k;
  options.algorithm = static_cast<int32_t>(cell.algorithm);
  options.isa = static_cast<int32_t>(cell.isa);
  options.fast_memory_bytes = c.fast_memory_bytes;
  options.atomic_dq = cell.atomic_dq;
  return options;
}

Status status_of(int32_t code) {
  if (code == ATTENTILE_OK) return {};
  return {static_cast<StatusCode>(code), attentile_last_error()};
}

}  // namespace

EntryResult run_c(const Case& c, const Oracle& oracle, const Cell& cell, uint64_t layout_seed) {
  PlacedCall call(c, oracle.given, oracle.slots, layout_seed);
  CViews views;
  const attentile_attention_inputs inputs = c_inputs(call.inputs(), views);
  const attentile_attention_outputs outputs = c_outputs(call.outputs(), views);
  const attentile_attention_gradients gradients = c_gradients(call.gradients(), views);
  const attentile_options options = c_options(c, cell);
  attentile_context context = ATTENTILE_CONTEXT_INIT;
  context.num_threads = c.num_threads;
  testing::GuardedBuffer workspace;
  EntryResult result;
  for (int pass = 0; pass < (c.backward ? 2 : 1); ++pass) {
    const attentile_attention_gradients* incoming = pass == 1 ? &gradients : nullptr;
    if (layout_seed % 2 == 0) {
      int64_t bytes = 0;
      result.status = status_of(
          attentile_workspace_size(&inputs, &outputs, incoming, &options, &context, &bytes));
      if (!result.status.ok()) return result;
      workspace = testing::GuardedBuffer(bytes);
      if (bytes > 0) std::memset(workspace.data(), 0xFF, static_cast<size_t>(bytes));
      context.workspace = workspace.data();
      context.workspace_bytes = bytes;
    }
    if (pass == 1) call.freeze_outputs();
    result.status =
        status_of(pass == 0 ? attentile_attention_forward(&inputs, &outputs, &options, &context)
                            : attentile_attention_backward(&inputs, &outputs, &gradients, &options,
                                                           &context));
    if (!result.status.ok()) return result;
    result.damage += call.damage();
  }
  result.results = call.results();
  return result;
}

}  // namespace attentile::conformance

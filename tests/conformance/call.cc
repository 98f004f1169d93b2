// SPDX-License-Identifier: Apache-2.0
// Placement of a case's tensors.
#include "conformance/call.h"

#include <cstring>

namespace attentile::conformance {

using testing::GuardedBuffer;
using testing::PlacedTensor;
using testing::Role;

AttentionInputs inputs_of(const Values& values) {
  AttentionInputs inputs;
  inputs.q = values.q.view();
  inputs.k = values.k.view();
  inputs.v = values.v.view();
  inputs.bias = values.bias.view();
  inputs.mask = values.mask.view();
  inputs.sink = values.sink.view();
  inputs.alibi_slopes = values.alibi_slopes.view();
  inputs.cu_seqlens_q = values.cu_seqlens_q.view();
  inputs.cu_seqlens_k = values.cu_seqlens_k.view();
  inputs.seqused_k = values.seqused_k.view();
  inputs.block_table = values.block_table.view();
  inputs.cache_batch_idx = values.cache_batch_idx.view();
  inputs.leftpad_k = values.leftpad_k.view();
  inputs.block_mask = values.block_mask.view();
  return inputs;
}

AttentionOutputs outputs_of(const Results& results) {
  AttentionOutputs outputs;
  outputs.out = results.out.view();
  outputs.lse = results.lse.view();
  outputs.keep = results.keep.view();
  return outputs;
}

AttentionGradients gradients_of(const Values& values, const Results& results) {
  AttentionGradients gradients;
  gradients.dout = values.dout.view();
  gradients.dlse = values.dlse.view();
  gradients.dq = results.dq.view();
  gradients.dk = results.dk.view();
  gradients.dv = results.dv.view();
  gradients.dbias = results.dbias.view();
  gradients.dsink = results.dsink.view();
  return gradients;
}

PlacedCall::PlacedCall(const Case& c, const Values& values, const Results& shapes,
                       uint64_t layout_seed, Placement placement)
    : random_(testing::mix_seed(layout_seed, 2)), placement_(placement) {
  tensors_.reserve(32);
  inputs_.q = place("q", values.q, Role::kInput, c.zero_stride_q);
  inputs_.k = place("k", values.k, Role::kInput, c.zero_stride_k);
  inputs_.v = place("v", values.v, Role::kInput, c.zero_stride_v);
  inputs_.bias = place("bias", values.bias, Role::kInput);
  inputs_.mask = place("mask", values.mask, Role::kInput);
  inputs_.sink = place("sink", values.sink, Role::kInput);
  inputs_.alibi_slopes = place("alibi_slopes", values.alibi_slopes, Role::kInput);
  inputs_.cu_seqlens_q = place("cu_seqlens_q", values.cu_seqlens_q, Role::kInput);
  inputs_.cu_seqlens_k = place("cu_seqlens_k", values.cu_seqlens_k, Role::kInput);
  inputs_.seqused_k = place("seqused_k", values.seqused_k, Role::kInput);
  inputs_.block_table = place("block_table", values.block_table, Role::kInput);
  inputs_.cache_batch_idx = place("cache_batch_idx", values.cache_batch_idx, Role::kInput);
  inputs_.leftpad_k = place("leftpad_k", values.leftpad_k, Role::kInput);
  inputs_.block_mask = place("block_mask", values.block_mask, Role::kInput);
  outputs_.out = place("out", shapes.out, Role::kOutput);
  outputs_.lse = place("lse", shapes.lse, Role::kOutput);
  outputs_.keep = place("keep", shapes.keep, Role::kOutput);
  if (!c.backward) return;
  gradients_.dout = place("dout", values.dout, Role::kInput, c.zero_stride_dout);
  gradients_.dlse = place("dlse", values.dlse, Role::kInput);
  gradients_.dq = place("dq", shapes.dq, Role::kOutput);
  gradients_.dk = place("dk", shapes.dk, Role::kOutput);
  gradients_.dv = place("dv", shapes.dv, Role::kOutput);
  gradients_.dbias = place("dbias", shapes.dbias, Role::kOutput);
  gradients_.dsink = place("dsink", shapes.dsink, Role::kOutput);
}

TensorView PlacedCall::place(const char* name, const DenseTensor& dense, Role role,
                             uint32_t zero_stride) {
  if (!dense.present) return {};
  const testing::Layout layout = placement_ == Placement::kContiguous
                                     ? testing::contiguous_layout(dense.shape)
                                     : testing::random_layout(dense.shape, random_, zero_stride);
  const auto flush =
      random_.chance(0.5) ? GuardedBuffer::Flush::kAfter : GuardedBuffer::Flush::kBefore;
  tensors_.push_back({name, PlacedTensor(dense, layout, role, flush)});
  return tensors_.back().tensor.view();
}

const PlacedTensor* PlacedCall::find(const char* name) const {
  for (const Named& named : tensors_) {
    if (std::strcmp(named.name, name) == 0) return &named.tensor;
  }
  return nullptr;
}

void PlacedCall::freeze_outputs() {
  for (Named& named : tensors_) {
    if (std::strcmp(named.name, "out") == 0 || std::strcmp(named.name, "lse") == 0) {
      named.tensor.freeze();
    }
  }
}

Results PlacedCall::results() const {
  const auto read = [&](const char* name) {
    const PlacedTensor* tensor = find(name);
    return tensor == nullptr ? DenseTensor() : tensor->read();
  };
  return {.out = read("out"),
          .lse = read("lse"),
          .keep = read("keep"),
          .dq = read("dq"),
          .dk = read("dk"),
          .dv = read("dv"),
          .dbias = read("dbias"),
          .dsink = read("dsink")};
}

std::string PlacedCall::damage() const {
  std::string text;
  for (const Named& named : tensors_) {
    const auto problem = named.tensor.check();
    if (problem) text += (text.empty() ? "" : "; ") + std::string(named.name) + ": " + *problem;
  }
  return text;
}

}  // namespace attentile::conformance

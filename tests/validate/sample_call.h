// SPDX-License-Identifier: Apache-2.0
// A small call that is right, written in C structs with memory of its own, for a test to spoil in
// one place. The same call can be made through the C++ functions and through the C ABI, and whether
// anything was written can be told afterwards.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "attentile/attention.h"
#include "attentile/c_api.h"

namespace attentile::test {

// batch 2, 4 query heads over 2 KV heads, head_dim 8, head_dim_v 4, float32.
enum class Base {
  kDense,           // seqlen_q 3, seqlen_k 5
  kDenseBackward,   // likewise
  kPacked,          // queries of 2 and 3 rows, keys of 4 and 3
  kPackedBackward,  // likewise
  kPaged,           // seqlen_q 3, 6 pages of 4 keys, of which sequences use 7 and 3 keys
};

struct SampleCall {
  explicit SampleCall(Base kind);
  SampleCall(const SampleCall&) = delete;
  SampleCall& operator=(const SampleCall&) = delete;

  // Every tensor is prepared for the base; those that the base needs are given as well.
  attentile_tensor q, k, v, bias, mask, sink, alibi_slopes, cu_seqlens_q, cu_seqlens_k, seqused_k,
      block_table, cache_batch_idx, leftpad_k, block_mask;
  attentile_tensor out, lse, keep;
  attentile_tensor dout, dlse, dq, dk, dv, dbias, dsink;
  attentile_attention_inputs inputs = ATTENTILE_INPUTS_INIT;
  attentile_attention_outputs outputs = ATTENTILE_OUTPUTS_INIT;
  attentile_attention_gradients gradients = ATTENTILE_GRADIENTS_INIT;
  attentile_options options = ATTENTILE_OPTIONS_INIT;  // block_size_q and _k are 2
  attentile_context context = ATTENTILE_CONTEXT_INIT;
  attentile_executor executor = ATTENTILE_EXECUTOR_INIT;  // not given
  attentile_traffic traffic = ATTENTILE_TRAFFIC_INIT;     // not given

  // A tensor by its name, and the struct field that gives it to the call.
  struct Slot {
    const char* name;
    attentile_tensor* tensor;
    const attentile_tensor** given;
  };
  std::vector<Slot> slots();

  void give(const char* name);

  // A contiguous tensor over zeros (outputs: poison) of the arena.
  attentile_tensor make_tensor(int32_t dtype, std::initializer_list<int64_t> shape);
  // The same over given integers.
  attentile_tensor make_indices(std::initializer_list<int32_t> values);

  static int32_t* integers(const attentile_tensor& tensor) {
    return static_cast<int32_t*>(tensor.data);
  }

  bool backward() const { return base == Base::kDenseBackward || base == Base::kPackedBackward; }

  // The call through the C ABI.
  int32_t call_c() const;
  // The call in C++ structs.
  AttentionInputs cpp_inputs() const;
  AttentionOutputs cpp_outputs() const;
  AttentionGradients cpp_gradients() const;
  AttentionOptions cpp_options() const;
  // executor is where the context's executor lives.
  ExecutionContext cpp_context(Executor* cpp_executor) const;

  const Base base;
  std::vector<unsigned char> arena;  // never grows: tensors point into it
  size_t used = 0;
};

TensorView view_of(const attentile_tensor* tensor);

}  // namespace attentile::test

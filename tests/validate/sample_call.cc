// SPDX-License-Identifier: Apache-2.0
// See sample_call.h.
#include "validate/sample_call.h"

#include <algorithm>
#include <cstring>

namespace attentile::test {
namespace {

constexpr size_t kArenaBytes = size_t{1} << 17;
constexpr size_t kTensorAlignment = 64;
constexpr size_t kGap = 1024;  // between tensors, so that one moved a little meets no other
constexpr unsigned char kPoison = 0xA5;

void poison(const attentile_tensor& tensor, size_t bytes) {
  std::memset(tensor.data, kPoison, bytes);
}

}  // namespace

SampleCall::SampleCall(Base kind) : base(kind), arena(kArenaBytes) {
  const bool packed = base == Base::kPacked || base == Base::kPackedBackward;
  const int64_t keys = packed ? 4 : (base == Base::kPaged ? 7 : 5);  // the longest sequence
  const auto tokens = [&](int64_t batch, int64_t rows, int64_t total, int64_t heads,
                          int64_t columns) {
    return packed ? make_tensor(ATTENTILE_FLOAT32, {total, heads, columns})
                  : make_tensor(ATTENTILE_FLOAT32, {batch, rows, heads, columns});
  };
  const auto queries = [&](int64_t columns) { return tokens(2, 3, 5, 4, columns); };
  const auto keys_of = [&](int64_t columns) {
    return base == Base::kPaged ? tokens(6, 4, 0, 2, columns) : tokens(2, 5, 7, 2, columns);
  };
  const auto rows = [&] {
    return packed ? make_tensor(ATTENTILE_FLOAT32, {4, 5})
                  : make_tensor(ATTENTILE_FLOAT32, {2, 4, 3});
  };
  q = queries(8);
  k = keys_of(8);
  v = keys_of(4);
  bias = make_tensor(ATTENTILE_FLOAT32, {2, 4, 3, keys});
  mask = make_tensor(ATTENTILE_UINT8, {3, keys});
  sink = make_tensor(ATTENTILE_FLOAT32, {4});
  alibi_slopes = make_tensor(ATTENTILE_FLOAT32, {2, 4});
  cu_seqlens_q = make_indices({0, 2, 5});
  cu_seqlens_k = make_indices({0, 4, 7});
  seqused_k = base == Base::kPaged ? make_indices({7, 3}) : make_indices({4, 2});
  block_table = make_indices({5, 0, 3, 1});
  block_table.rank = 2;
  block_table.shape[0] = block_table.shape[1] = 2;
  block_table.stride[0] = 2;
  block_table.stride[1] = 1;
  cache_batch_idx = make_indices({1, 0});
  leftpad_k = make_indices({1, 0});
  block_mask = make_tensor(ATTENTILE_BOOL, {4, 2, (keys + 1) / 2});
  dout = queries(4);
  dlse = rows();
  out = queries(4);
  lse = rows();
  keep = make_tensor(ATTENTILE_UINT8, {2, 4, 3, keys});
  dq = queries(8);
  dk = keys_of(8);
  dv = keys_of(4);
  dbias = make_tensor(ATTENTILE_FLOAT32, {2, 4, 3, keys});
  dsink = make_tensor(ATTENTILE_FLOAT32, {4});
  poison(out, used - static_cast<size_t>(static_cast<unsigned char*>(out.data) - arena.data()));

  options.block_size_q = options.block_size_k = 2;
  for (const char* name : {"q", "k", "v", "out", "lse"}) give(name);
  if (packed) {
    for (const char* name : {"cu_seqlens_q", "cu_seqlens_k"}) give(name);
  }
  if (base == Base::kPaged) {
    for (const char* name : {"block_table", "seqused_k"}) give(name);
  }
  if (backward()) {
    for (const char* name : {"dout", "dq", "dk", "dv"}) give(name);
  }
}

std::vector<SampleCall::Slot> SampleCall::slots() {
  return {
      {"q", &q, &inputs.q},
      {"k", &k, &inputs.k},
      {"v", &v, &inputs.v},
      {"bias", &bias, &inputs.bias},
      {"mask", &mask, &inputs.mask},
      {"sink", &sink, &inputs.sink},
      {"alibi_slopes", &alibi_slopes, &inputs.alibi_slopes},
      {"cu_seqlens_q", &cu_seqlens_q, &inputs.cu_seqlens_q},
      {"cu_seqlens_k", &cu_seqlens_k, &inputs.cu_seqlens_k},
      {"seqused_k", &seqused_k, &inputs.seqused_k},
      {"block_table", &block_table, &inputs.block_table},
      {"cache_batch_idx", &cache_batch_idx, &inputs.cache_batch_idx},
      {"leftpad_k", &leftpad_k, &inputs.leftpad_k},
      {"block_mask", &block_mask, &inputs.block_mask},
      {"out", &out, &outputs.out},
      {"lse", &lse, &outputs.lse},
      {"keep", &keep, &outputs.keep},
      {"dout", &dout, &gradients.dout},
      {"dlse", &dlse, &gradients.dlse},
      {"dq", &dq, &gradients.dq},
      {"dk", &dk, &gradients.dk},
      {"dv", &dv, &gradients.dv},
      {"dbias", &dbias, &gradients.dbias},
      {"dsink", &dsink, &gradients.dsink},
  };
}

void SampleCall::give(const char* name) {
  for (const Slot& slot : slots()) {
    if (std::strcmp(slot.name, name) == 0) *slot.given = slot.tensor;
  }
}

attentile_tensor SampleCall::make_tensor(int32_t dtype, std::initializer_list<int64_t> shape) {
  attentile_tensor tensor = ATTENTILE_TENSOR_INIT;
  const auto address = reinterpret_cast<uintptr_t>(arena.data() + used);
  used += (kTensorAlignment - address % kTensorAlignment) % kTensorAlignment;
  tensor.data = arena.data() + used;
  tensor.dtype = dtype;
  tensor.rank = static_cast<int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), tensor.shape);
  int64_t elements = 1;
  for (int axis = tensor.rank - 1; axis >= 0; --axis) {
    tensor.stride[axis] = elements;
    elements *= tensor.shape[axis];
  }
  used += static_cast<size_t>(elements * size_of(static_cast<DType>(dtype))) + kGap;
  return tensor;
}

attentile_tensor SampleCall::make_indices(std::initializer_list<int32_t> values) {
  attentile_tensor tensor = make_tensor(ATTENTILE_INT32, {static_cast<int64_t>(values.size())});
  std::copy(values.begin(), values.end(), integers(tensor));
  return tensor;
}

int32_t SampleCall::call_c() const {
  return backward()
             ? attentile_attention_backward(&inputs, &outputs, &gradients, &options, &context)
             : attentile_attention_forward(&inputs, &outputs, &options, &context);
}

TensorView view_of(const attentile_tensor* tensor) {
  TensorView view;
  if (tensor == nullptr) return view;
  view.data = tensor->data;
  view.dtype = static_cast<DType>(tensor->dtype);
  view.device = static_cast<Device>(tensor->device);
  view.rank = tensor->rank;
  std::copy_n(tensor->shape, kMaxRank, view.shape);
  std::copy_n(tensor->stride, kMaxRank, view.stride);
  return view;
}

AttentionInputs SampleCall::cpp_inputs() const {
  return {.q = view_of(inputs.q),
          .k = view_of(inputs.k),
          .v = view_of(inputs.v),
          .bias = view_of(inputs.bias),
          .mask = view_of(inputs.mask),
          .sink = view_of(inputs.sink),
          .alibi_slopes = view_of(inputs.alibi_slopes),
          .cu_seqlens_q = view_of(inputs.cu_seqlens_q),
          .cu_seqlens_k = view_of(inputs.cu_seqlens_k),
          .seqused_k = view_of(inputs.seqused_k),
          .block_table = view_of(inputs.block_table),
          .cache_batch_idx = view_of(inputs.cache_batch_idx),
          .leftpad_k = view_of(inputs.leftpad_k),
          .block_mask = view_of(inputs.block_mask)};
}

AttentionOutputs SampleCall::cpp_outputs() const {
  return {.out = view_of(outputs.out), .lse = view_of(outputs.lse), .keep = view_of(outputs.keep)};
}

AttentionGradients SampleCall::cpp_gradients() const {
  return {.dout = view_of(gradients.dout),
          .dlse = view_of(gradients.dlse),
          .dq = view_of(gradients.dq),
          .dk = view_of(gradients.dk),
          .dv = view_of(gradients.dv),
          .dbias = view_of(gradients.dbias),
          .dsink = view_of(gradients.dsink)};
}

AttentionOptions SampleCall::cpp_options() const {
  AttentionOptions result;
  if (options.has_softmax_scale != 0) result.softmax_scale = options.softmax_scale;
  if (options.has_position_offset != 0) result.position_offset = options.position_offset;
  result.causal = options.causal != 0;
  result.alignment = static_cast<Alignment>(options.alignment);
  result.window_left = options.window_left;
  result.window_right = options.window_right;
  result.softcap = options.softcap;
  result.dropout_p = options.dropout_p;
  result.dropout_seed = options.dropout_seed;
  result.dropout_offset = options.dropout_offset;
  result.query_base = options.query_base;
  result.key_base = options.key_base;
  result.head_base = options.head_base;
  result.batch_base = options.batch_base;
  result.dropout_num_heads_q = options.dropout_num_heads_q;
  result.block_size_q = options.block_size_q;
  result.block_size_k = options.block_size_k;
  result.algorithm = static_cast<Algorithm>(options.algorithm);
  result.isa = static_cast<Isa>(options.isa);
  result.fast_memory_bytes = options.fast_memory_bytes;
  result.max_seqlen_q = options.max_seqlen_q;
  result.max_seqlen_k = options.max_seqlen_k;
  result.atomic_dq = options.atomic_dq != 0;
  return result;
}

ExecutionContext SampleCall::cpp_context(Executor* cpp_executor) const {
  ExecutionContext result;
  result.num_threads = context.num_threads;
  result.workspace = context.workspace;
  result.workspace_bytes = context.workspace_bytes;
  if (context.executor != nullptr) {
    *cpp_executor = {.context = context.executor->context,
                     .num_threads = context.executor->num_threads,
                     .submit = context.executor->submit};
    result.executor = cpp_executor;
  }
  return result;
}

}  // namespace attentile::test

// SPDX-License-Identifier: Apache-2.0
// Builds the views of a synthetic call; memory comes second, so that plans need none.
#include "cli/synthetic_call.h"

#include <algorithm>

#include "cli/error.h"
#include "cli/random_fill.h"

namespace attentile::cli {
namespace {

struct Part {
  const char* name;
  TensorView* view;
  std::vector<int64_t> shape;  // batch, seqlen, heads, dim; varlen without batch; lse as it is
  DType dtype;
  bool swapped;
};

int64_t total_length(const SyntheticCall& synthetic) {
  int64_t total = 0;
  for (int64_t length : synthetic.seqlens) total += length;
  return total;
}

std::vector<Part> parts_of(const SyntheticCall& synthetic, CallTensors& call) {
  const Shape& s = synthetic.shape;
  const bool varlen = !synthetic.seqlens.empty();
  const int64_t total = total_length(synthetic);
  const auto tokens = [&](int64_t seqlen, int64_t heads, int64_t dim) -> std::vector<int64_t> {
    if (varlen) return {total, heads, dim};
    return {s.batch, seqlen, heads, dim};
  };
  const DType dtype = synthetic.dtype;
  const DType lse = dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  const auto q = tokens(s.seqlen_q, s.num_heads_q, s.head_dim);
  const auto k = tokens(s.seqlen_k, s.num_heads_kv, s.head_dim);
  const auto v = tokens(s.seqlen_k, s.num_heads_kv, s.head_dim_v);
  const auto out = tokens(s.seqlen_q, s.num_heads_q, s.head_dim_v);
  std::vector<int64_t> lse_shape = {s.batch, s.num_heads_q, s.seqlen_q};
  if (varlen) lse_shape = {s.num_heads_q, total};
  AttentionInputs& in = call.inputs;
  std::vector<Part> parts = {{"q", &in.q, q, dtype, true},
                             {"k", &in.k, k, dtype, true},
                             {"v", &in.v, v, dtype, true},
                             {"out", &call.outputs.out, out, dtype, true},
                             {"lse", &call.outputs.lse, lse_shape, lse, false}};
  if (synthetic.backward) {
    AttentionGradients& gradients = call.gradients;
    parts.push_back({"dout", &gradients.dout, out, dtype, true});
    parts.push_back({"dq", &gradients.dq, q, dtype, true});
    parts.push_back({"dk", &gradients.dk, k, dtype, true});
    parts.push_back({"dv", &gradients.dv, v, dtype, true});
  }
  for (Part& part : parts) {
    if (synthetic.layout == Layout::kBhsd && part.swapped && !varlen) {
      std::swap(part.shape[1], part.shape[2]);
    } else {
      part.swapped = false;
    }
  }
  return parts;
}

TensorView view_of(const Part& part, void* data) {
  TensorView view;
  view.data = data;
  view.dtype = part.dtype;
  view.rank = static_cast<int32_t>(part.shape.size());
  int64_t stride = 1;
  for (int i = view.rank - 1; i >= 0; --i) {
    view.shape[i] = part.shape[static_cast<size_t>(i)];
    view.stride[i] = stride;
    if (__builtin_mul_overflow(stride, std::max<int64_t>(view.shape[i], 1), &stride)) {
      wrong_request("--shape: {} holds more elements than 63 bits count", part.name);
    }
  }
  if (part.swapped) {
    std::swap(view.shape[1], view.shape[2]);
    std::swap(view.stride[1], view.stride[2]);
  }
  return view;
}

void add_cu_seqlens(const SyntheticCall& synthetic, CallTensors& call) {
  const auto entries = static_cast<int64_t>(synthetic.seqlens.size()) + 1;
  io::Tensor tensor = take(io::make_tensor(DType::kInt32, {entries}, "cu_seqlens_q"));
  auto* values = reinterpret_cast<int32_t*>(tensor.buffer.data());
  int64_t total = 0;
  for (int64_t i = 0; i < entries; ++i) {
    if (total > INT32_MAX)
      wrong_request("--seqlens: {} tokens, expected at most {}", total, INT32_MAX);
    values[i] = static_cast<int32_t>(total);
    if (i + 1 < entries) total += synthetic.seqlens[static_cast<size_t>(i)];
  }
  call.inputs.cu_seqlens_q = call.inputs.cu_seqlens_k = take(tensor.view("cu_seqlens_q"));
  call.owned.emplace("cu_seqlens_q", std::move(tensor));
}

}  // namespace

CallTensors describe_call(const SyntheticCall& synthetic) {
  CallTensors call;
  for (const Part& part : parts_of(synthetic, call)) *part.view = view_of(part, nullptr);
  if (!synthetic.seqlens.empty()) add_cu_seqlens(synthetic, call);
  return call;
}

CallTensors make_call(const SyntheticCall& synthetic, uint64_t fill_seed) {
  CallTensors call;
  for (const Part& part : parts_of(synthetic, call)) {
    io::Tensor tensor = take(io::make_tensor(part.dtype, part.shape, part.name));
    *part.view = view_of(part, tensor.buffer.data());
    const std::string name = part.name;
    if (name == "q" || name == "k" || name == "v" || name == "dout") {
      fill_normal({.data = tensor.buffer.data(),
                   .dtype = part.dtype,
                   .num_elements = tensor.num_elements()},
                  fill_seed, name);
    }
    call.owned.emplace(name, std::move(tensor));
  }
  if (!synthetic.seqlens.empty()) add_cu_seqlens(synthetic, call);
  return call;
}

double call_bytes(const SyntheticCall& synthetic) {
  CallTensors call;
  double total = 0;
  for (const Part& part : parts_of(synthetic, call)) {
    double bytes = static_cast<double>(size_of(part.dtype));
    for (int64_t size : part.shape) bytes *= static_cast<double>(size);
    total += bytes;
  }
  return total;
}

}  // namespace attentile::cli

// SPDX-License-Identifier: Apache-2.0
// From stored tensors to the views of a call. --dtype converts whole tensors; --layout and
// --max-heads only change shapes and strides, so nothing is copied for them.
#include "cli/tensors.h"

#include <algorithm>

#include "cli/error.h"
#include "cli/numbers.h"
#include "cli/tensor_source.h"
#include "dtype.h"
#include "io/text.h"
#include "mask.h"

namespace attentile::cli {
namespace {

bool is_floating(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kFloat64 || dtype == DType::kFloat16 ||
         dtype == DType::kBFloat16;
}

io::Tensor converted(const io::Tensor& from, DType dtype, std::string_view name) {
  io::Tensor to = take(io::make_tensor(dtype, from.shape, name));
  const int64_t count = from.num_elements();
  for (int64_t i = 0; i < count; ++i) {
    store_from_double(to.buffer.data(), dtype, i,
                      load_as_double(from.buffer.data(), from.dtype, i));
  }
  return to;
}

// q, k, v, dout and a bias in q's dtype take the new dtype; a float32 bias beside 16-bit q stays.
// dlse takes the dtype of lse.
void convert_inputs(io::TensorMap& tensors, DType dtype) {
  const DType stored = tensors.at("q").dtype;
  const DType lse = dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  for (auto& [name, tensor] : tensors) {
    const bool follows = name == "q" || name == "k" || name == "v" || name == "dout" ||
                         (name == "bias" && tensor.dtype == stored);
    if (!is_floating(tensor.dtype) || (!follows && name != "dlse")) continue;
    const DType target = name == "dlse" ? lse : dtype;
    if (tensor.dtype != target) tensor = converted(tensor, target, name);
  }
}

bool in_tokens_layout(std::string_view name) {
  return name == "q" || name == "k" || name == "v" || name == "dout";
}

void swap_axes(TensorView& view, int a, int b) {
  std::swap(view.shape[a], view.shape[b]);
  std::swap(view.stride[a], view.stride[b]);
}

// The axis of `name` that counts query heads (or KV heads, for k and v), or -1.
int head_axis(std::string_view name, const TensorView& view) {
  if (in_tokens_layout(name)) return view.rank - 2;
  if (name == "bias" || name == "mask" || name == "block_mask") return view.rank - 3;
  if (name == "sink" || name == "alibi_slopes") return view.rank - 1;
  if (name == "dlse") return view.rank - 2;
  return -1;
}

void check_ranks(const CallTensors& call) {
  const AttentionInputs& in = call.inputs;
  const int rank = in.cu_seqlens_q.present() ? 3 : 4;
  // Only one side may be packed; pages are not.
  const int rank_k = in.cu_seqlens_k.present() && !in.block_table.present() ? 3 : 4;
  const auto check = [](const char* name, const TensorView& view, int expected) {
    if (view.rank != expected) {
      wrong_request("{}: has {} dimensions, expected {}", name, view.rank, expected);
    }
  };
  check("q", in.q, rank);
  check("k", in.k, rank_k);
  check("v", in.v, rank_k);
  if (call.gradients.dout.present()) check("dout", call.gradients.dout, rank);
}

void keep_heads(CallTensors& call, int64_t max_heads) {
  const int64_t heads_q = call.inputs.q.shape[call.inputs.q.rank - 2];
  const int64_t heads_kv = call.inputs.k.shape[call.inputs.k.rank - 2];
  if (max_heads >= heads_q) return;
  if (heads_kv == 0 || heads_q % heads_kv != 0) {
    wrong_request("--max-heads: q has {} heads and k has {}, expected a multiple", heads_q,
                  heads_kv);
  }
  const int64_t group = heads_q / heads_kv;
  if (max_heads > group && max_heads % group != 0) {
    wrong_request(
        "--max-heads: {}, expected below {} or a multiple of it, the heads that share "
        "a KV head",
        max_heads, group);
  }
  const int64_t kept_kv = ceil_div(max_heads, group);
  for (const std::string& name : input_names()) {
    TensorView& view = *input_slot(call, name);
    const int axis = view.present() ? head_axis(name, view) : -1;
    if (axis < 0) continue;
    const bool kv = name == "k" || name == "v";
    const int64_t all = kv ? heads_kv : heads_q;
    if (view.shape[axis] == all) view.shape[axis] = kv ? kept_kv : max_heads;
  }
}

// A contiguous view of no memory yet.
TensorView shaped(DType dtype, const std::vector<int64_t>& shape) {
  TensorView view;
  view.dtype = dtype;
  view.rank = static_cast<int32_t>(shape.size());
  int64_t stride = 1;
  for (int i = view.rank - 1; i >= 0; --i) {
    view.shape[i] = shape[static_cast<size_t>(i)];
    view.stride[i] = stride;
    if (__builtin_mul_overflow(stride, std::max<int64_t>(view.shape[i], 1), &stride)) {
      environment_failed("results: {} hold more elements than 63 bits count",
                         io::shape_text(shape));
    }
  }
  return view;
}

std::vector<int64_t> shape_of(const TensorView& view) {
  return {view.shape, view.shape + view.rank};
}

void shape_gradients(CallTensors& call) {
  const AttentionInputs& in = call.inputs;
  call.gradients.dq = shaped(in.q.dtype, shape_of(in.q));
  call.gradients.dk = shaped(in.k.dtype, shape_of(in.k));
  call.gradients.dv = shaped(in.v.dtype, shape_of(in.v));
  if (in.bias.present()) call.gradients.dbias = shaped(in.bias.dtype, shape_of(in.bias));
  if (in.sink.present()) call.gradients.dsink = shaped(in.sink.dtype, shape_of(in.sink));
}

// How many keys the keep mask is wide: with pages, the longest sequence. What is wrong with
// seqused_k is for validation to say.
int64_t keep_width(const AttentionInputs& in) {
  if (!in.block_table.present()) return in.k.shape[1];
  int64_t longest = 0;
  if (in.seqused_k.rank != 1 || in.seqused_k.dtype != DType::kInt32) return longest;
  for (int64_t b = 0; b < in.seqused_k.shape[0]; ++b) {
    const double used =
        load_as_double(in.seqused_k.data, DType::kInt32, b * in.seqused_k.stride[0]);
    longest = std::max(longest, static_cast<int64_t>(used));
  }
  return longest;
}

void shape_results(CallTensors& call, const TensorRequest& request) {
  const AttentionInputs& in = call.inputs;
  std::vector<int64_t> out = shape_of(in.q);
  out.back() = in.v.shape[in.v.rank - 1];
  call.outputs.out = shaped(in.q.dtype, out);
  const DType lse = in.q.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  const bool varlen = in.q.rank == 3;
  call.outputs.lse = varlen ? shaped(lse, {out[1], out[0]}) : shaped(lse, {out[0], out[2], out[1]});
  if (request.keep) {
    if (varlen) wrong_request("--keep-mask: given with cu_seqlens_q, expected batched sequences");
    call.outputs.keep = shaped(DType::kUInt8, {out[0], out[2], out[1], keep_width(in)});
  }
  if (request.backward) shape_gradients(call);
}

struct NamedResult {
  const char* name;
  TensorView* view;
  bool swapped;  // by --layout bhsd
};

std::vector<NamedResult> result_views(CallTensors& call) {
  std::vector<NamedResult> all = {
      {"out", &call.outputs.out, true},        {"lse", &call.outputs.lse, false},
      {"keep", &call.outputs.keep, false},     {"dq", &call.gradients.dq, true},
      {"dk", &call.gradients.dk, true},        {"dv", &call.gradients.dv, true},
      {"dbias", &call.gradients.dbias, false}, {"dsink", &call.gradients.dsink, false}};
  std::erase_if(all, [](const NamedResult& result) { return !result.view->present(); });
  return all;
}

}  // namespace

const std::vector<std::string>& input_names() {
  static const std::vector<std::string> kNames = {"q",
                                                  "k",
                                                  "v",
                                                  "dout",
                                                  "dlse",
                                                  "bias",
                                                  "mask",
                                                  "sink",
                                                  "alibi_slopes",
                                                  "cu_seqlens_q",
                                                  "cu_seqlens_k",
                                                  "seqused_k",
                                                  "block_table",
                                                  "cache_batch_idx",
                                                  "leftpad_k",
                                                  "block_mask"};
  return kNames;
}

std::vector<std::string> input_paths(const TensorRequest& request) {
  std::vector<std::string> paths;
  if (request.safetensors) paths.push_back(*request.safetensors);
  for (const auto& [name, path] : request.npy) paths.push_back(path);
  return paths;
}

TensorView* input_slot(CallTensors& call, std::string_view name) {
  AttentionInputs& in = call.inputs;
  const std::pair<std::string_view, TensorView*> slots[] = {
      {"q", &in.q},
      {"k", &in.k},
      {"v", &in.v},
      {"dout", &call.gradients.dout},
      {"dlse", &call.gradients.dlse},
      {"bias", &in.bias},
      {"mask", &in.mask},
      {"sink", &in.sink},
      {"alibi_slopes", &in.alibi_slopes},
      {"cu_seqlens_q", &in.cu_seqlens_q},
      {"cu_seqlens_k", &in.cu_seqlens_k},
      {"seqused_k", &in.seqused_k},
      {"block_table", &in.block_table},
      {"cache_batch_idx", &in.cache_batch_idx},
      {"leftpad_k", &in.leftpad_k},
      {"block_mask", &in.block_mask},
  };
  for (const auto& [word, slot] : slots) {
    if (word == name) return slot;
  }
  return nullptr;
}

CallTensors load_call(const TensorRequest& request) {
  CallTensors call;
  call.owned = read_inputs(request);
  if (request.layout == Layout::kBhsd &&
      (call.owned.count("cu_seqlens_q") != 0 || call.owned.count("cu_seqlens_k") != 0)) {
    wrong_request("--layout: bhsd with cu_seqlens, expected bshd for packed sequences");
  }
  if (request.dtype) convert_inputs(call.owned, *request.dtype);
  for (auto& [name, tensor] : call.owned) {
    TensorView view = take(tensor.view(name));
    if (request.layout == Layout::kBhsd && in_tokens_layout(name) && view.rank == 4) {
      swap_axes(view, 1, 2);
    }
    *input_slot(call, name) = view;
  }
  check_ranks(call);
  if (request.max_heads) keep_heads(call, *request.max_heads);
  shape_results(call, request);
  return call;
}

void check_block_size(const CallTensors& call, const AttentionOptions& options) {
  if (options.block_size_q != 0 && !call.inputs.block_mask.present()) {
    wrong_request("--block-size: {},{} was given without block_mask, expected both",
                  options.block_size_q, options.block_size_k);
  }
}

int64_t result_bytes(const CallTensors& call) {
  CallTensors copy;
  copy.outputs = call.outputs;
  copy.gradients = call.gradients;
  int64_t total = 0;
  for (const NamedResult& result : result_views(copy)) {
    const auto bits = io::checked_num_bits(shape_of(*result.view),
                                           static_cast<uint64_t>(8 * size_of(result.view->dtype)));
    if (!bits || __builtin_add_overflow(total, static_cast<int64_t>(*bits / 8), &total)) {
      environment_failed("{}: more bytes than 63 bits count", result.name);
    }
  }
  return total;
}

void allocate_results(CallTensors& call, Layout layout) {
  for (const NamedResult& result : result_views(call)) {
    TensorView& view = *result.view;
    const bool swapped = result.swapped && layout == Layout::kBhsd && view.rank == 4;
    if (swapped) swap_axes(view, 1, 2);
    io::Tensor tensor = take(io::make_tensor(view.dtype, shape_of(view), result.name));
    view = take(tensor.view(result.name));
    if (swapped) swap_axes(view, 1, 2);
    call.results.emplace(result.name, std::move(tensor));
  }
}

}  // namespace attentile::cli

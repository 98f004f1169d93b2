// SPDX-License-Identifier: Apache-2.0
// The handlers of attentile_forward and attentile_backward. attentile/jax.py checks shapes and
// dtypes while a function is traced; here values are checked, and no Python runs.
#include "jax.h"

#include <cstdint>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "attentile/attention.h"
#include "xla/ffi/api/ffi.h"

namespace attentile::python {
namespace {

namespace ffi = xla::ffi;
namespace nb = nanobind;

// Bits of the attribute `given`, one for each optional operand, in the order that operands have.
enum Given : int64_t { kBias = 1, kMask = 2, kQueryLengths = 4, kKeyLengths = 8, kDlse = 16 };

struct Call {
  AttentionInputs inputs;
  AttentionOutputs outputs;
  AttentionGradients gradients;
  AttentionOptions options;
  TensorView query_lengths, key_lengths;
  std::vector<int32_t> starts_q, starts_k, used;
};

DType to_dtype(ffi::DataType type) {
  switch (type) {
    case ffi::DataType::F32: return DType::kFloat32;
    case ffi::DataType::F16: return DType::kFloat16;
    case ffi::DataType::BF16: return DType::kBFloat16;
    case ffi::DataType::F64: return DType::kFloat64;
    case ffi::DataType::S32: return DType::kInt32;
    case ffi::DataType::U8: return DType::kUInt8;
    case ffi::DataType::PRED: return DType::kBool;
    default: return static_cast<DType>(-1);  // the library refuses it
  }
}

TensorView view_of(const ffi::AnyBuffer& buffer) {
  TensorView view = contiguous_view(buffer.untyped_data(), to_dtype(buffer.element_type()), {});
  const auto sizes = buffer.dimensions();
  view.rank = static_cast<int32_t>(sizes.size());
  int64_t stride = 1;
  for (int i = (view.rank < kMaxRank ? view.rank : kMaxRank) - 1; i >= 0; --i) {
    view.shape[i] = sizes[static_cast<size_t>(i)];
    view.stride[i] = stride;
    stride *= view.shape[i] > 0 ? view.shape[i] : 1;
  }
  return view;
}

// [batch, seqlen_q, num_heads_q] of JAX told as [batch, num_heads_q, seqlen_q].
TensorView lse_view(const ffi::AnyBuffer& buffer) {
  TensorView view = view_of(buffer);
  const int64_t rows = view.shape[1], heads = view.shape[2];
  view.shape[1] = heads;
  view.stride[1] = 1;
  view.shape[2] = rows;
  view.stride[2] = heads;
  return view;
}

// One entry for the whole batch, as vmap leaves what it does not map over.
void spread(TensorView& view, int64_t batch) {
  if (view.rank != 4 || view.shape[0] != 1 || batch == 1) return;
  view.shape[0] = batch;
  view.stride[0] = 0;
}

ffi::Error to_error(const Status& status) {
  switch (status.code()) {
    case StatusCode::kOk: return ffi::Error::Success();
    case StatusCode::kInvalidArgument: return ffi::Error::InvalidArgument(status.message());
    case StatusCode::kUnsupported: return {ffi::ErrorCode::kUnimplemented, status.message()};
    case StatusCode::kOutOfMemory: return {ffi::ErrorCode::kResourceExhausted, status.message()};
    case StatusCode::kCancelled: return {ffi::ErrorCode::kCancelled, status.message()};
    case StatusCode::kUnavailable: return {ffi::ErrorCode::kUnavailable, status.message()};
    default: return ffi::Error::Internal(status.message());
  }
}

// The optional operands that `given` names.
ffi::Error read_optional(const ffi::RemainingArgs& rest, int64_t given, Call& call) {
  size_t next = 0;
  std::optional<ffi::Error> failed;
  const auto read = [&](int64_t bit, TensorView& view, TensorView (*make)(const ffi::AnyBuffer&)) {
    if ((given & bit) == 0 || failed) return;
    const ffi::ErrorOr<ffi::AnyBuffer> buffer = rest.get<ffi::AnyBuffer>(next++);
    if (buffer.has_error()) {
      failed = buffer.error();
    } else {
      view = make(buffer.value());
    }
  };
  read(kBias, call.inputs.bias, view_of);
  read(kMask, call.inputs.mask, view_of);
  read(kQueryLengths, call.query_lengths, view_of);
  read(kKeyLengths, call.key_lengths, view_of);
  read(kDlse, call.gradients.dlse, lse_view);
  return failed.value_or(ffi::Error::Success());
}

const int32_t* lengths_of(const TensorView& view) {
  return view.present() ? static_cast<const int32_t*>(view.data) : nullptr;
}

Status check_lengths(const char* name, const TensorView& lengths, int64_t most) {
  const int32_t* values = lengths_of(lengths);
  for (int64_t b = 0; values != nullptr && b < lengths.shape[0]; ++b) {
    if (values[b] < 0 || values[b] > most) {
      return {StatusCode::kInvalidArgument, std::string(name) + ": entry " + std::to_string(b) +
                                                " was " + std::to_string(values[b]) +
                                                ", expected 0 to " + std::to_string(most)};
    }
  }
  return {};
}

// [batch, seqlen, heads, dim] told as [batch * seqlen, heads, dim].
void pack_rows(TensorView& view) {
  if (!view.present()) return;
  view = contiguous_view(view.data, view.dtype,
                         {view.shape[0] * view.shape[1], view.shape[2], view.shape[3]});
}

// [batch, num_heads_q, seqlen_q] told as [num_heads_q, batch * seqlen_q].
void pack_lse(TensorView& view) {
  if (!view.present()) return;
  const int64_t heads = view.shape[1], rows = view.shape[0] * view.shape[2];
  view = contiguous_view(view.data, view.dtype, {heads, rows});
  view.stride[0] = 1;
  view.stride[1] = heads;
}

// Queries of different lengths: every batch entry becomes two packed sequences, its rows and then
// its padding, which sees no key and so costs nothing.
void pack(Call& call) {
  const int64_t batch = call.inputs.q.shape[0], rows = call.inputs.q.shape[1];
  const int64_t keys = call.inputs.k.shape[1];
  const int32_t* q_lengths = lengths_of(call.query_lengths);
  const int32_t* k_lengths = lengths_of(call.key_lengths);
  call.starts_q.push_back(0);
  call.starts_k.push_back(0);
  for (int64_t b = 0; b < batch; ++b) {
    call.starts_q.push_back(static_cast<int32_t>(b * rows + q_lengths[b]));
    call.starts_q.push_back(static_cast<int32_t>((b + 1) * rows));
    call.starts_k.insert(call.starts_k.end(), 2, static_cast<int32_t>((b + 1) * keys));
    call.used.push_back(k_lengths == nullptr ? static_cast<int32_t>(keys) : k_lengths[b]);
    call.used.push_back(0);
  }
  for (TensorView* view :
       {&call.inputs.q, &call.inputs.k, &call.inputs.v, &call.outputs.out, &call.gradients.dout,
        &call.gradients.dq, &call.gradients.dk, &call.gradients.dv}) {
    pack_rows(*view);
  }
  pack_lse(call.outputs.lse);
  pack_lse(call.gradients.dlse);
  call.inputs.cu_seqlens_q = contiguous_view(call.starts_q.data(), DType::kInt32, {2 * batch + 1});
  call.inputs.cu_seqlens_k = contiguous_view(call.starts_k.data(), DType::kInt32, {2 * batch + 1});
  call.inputs.seqused_k = contiguous_view(call.used.data(), DType::kInt32, {2 * batch});
}

// Lengths checked and told in the library's terms. Beside a bias or a mask the queries' lengths are
// part of the mask already.
Status apply_lengths(Call& call) {
  Status status = check_lengths("query_seq_lengths", call.query_lengths, call.inputs.q.shape[1]);
  if (!status.ok()) return status;
  status = check_lengths("key_value_seq_lengths", call.key_lengths, call.inputs.k.shape[1]);
  if (!status.ok()) return status;
  if (call.query_lengths.present() && !call.inputs.bias.present() && !call.inputs.mask.present()) {
    pack(call);
  } else {
    call.inputs.seqused_k = call.key_lengths;
  }
  return {};
}

// Nothing is thrown into XLA, which catches nothing.
template <class Body>
ffi::Error run(Call& call, Body body) {
  try {
    const Status status = apply_lengths(call);
    return to_error(status.ok() ? body() : status);
  } catch (const std::bad_alloc&) {
    return {ffi::ErrorCode::kResourceExhausted, "no memory for the lengths of a batch"};
  }
}

AttentionOptions make_options(double scale, bool causal, int64_t window_left,
                              int64_t window_right) {
  AttentionOptions options;
  options.softmax_scale = scale;
  options.causal = causal;
  options.alignment = Alignment::kTopLeft;
  options.window_left = window_left;
  options.window_right = window_right;
  return options;
}

// signature of an XLA FFI handler: its operands
ffi::Error forward(double scale, bool causal, int64_t window_left, int64_t window_right,
                   int64_t given, ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v,
                   ffi::RemainingArgs rest, ffi::Result<ffi::AnyBuffer> out,
                   ffi::Result<ffi::AnyBuffer> lse) {
  Call call;
  call.options = make_options(scale, causal, window_left, window_right);
  call.inputs.q = view_of(q);
  call.inputs.k = view_of(k);
  call.inputs.v = view_of(v);
  call.outputs.out = view_of(*out);
  call.outputs.lse = lse_view(*lse);
  ffi::Error error = read_optional(rest, given, call);
  if (error.failure()) return error;
  spread(call.inputs.k, call.inputs.q.shape[0]);
  spread(call.inputs.v, call.inputs.q.shape[0]);
  return run(call, [&] { return attention_forward(call.inputs, call.outputs, call.options); });
}

// signature of an XLA FFI handler: its operands
ffi::Error backward(double scale, bool causal, int64_t window_left, int64_t window_right,
                    int64_t given, ffi::AnyBuffer dout, ffi::AnyBuffer q, ffi::AnyBuffer k,
                    ffi::AnyBuffer v, ffi::AnyBuffer out, ffi::AnyBuffer lse,
                    ffi::RemainingArgs rest, ffi::Result<ffi::AnyBuffer> dq,
                    ffi::Result<ffi::AnyBuffer> dk, ffi::Result<ffi::AnyBuffer> dv,
                    ffi::RemainingRets dbias) {
  Call call;
  call.options = make_options(scale, causal, window_left, window_right);
  call.inputs.q = view_of(q);
  call.inputs.k = view_of(k);
  call.inputs.v = view_of(v);
  call.outputs.out = view_of(out);
  call.outputs.lse = lse_view(lse);
  call.gradients.dout = view_of(dout);
  call.gradients.dq = view_of(*dq);
  call.gradients.dk = view_of(*dk);
  call.gradients.dv = view_of(*dv);
  ffi::Error error = read_optional(rest, given, call);
  if (error.failure()) return error;
  if (dbias.size() > 0) {
    ffi::ErrorOr<ffi::Result<ffi::AnyBuffer>> written = dbias.get<ffi::AnyBuffer>(0);
    if (written.has_error()) return written.error();
    call.gradients.dbias = view_of(*written.value());
    spread(call.inputs.bias, call.gradients.dbias.shape[0]);
  }
  return run(call, [&] {
    return attention_backward(call.inputs, call.outputs, call.gradients, call.options);
  });
}

auto attributes() {
  return ffi::Ffi::Bind()
      .Attr<double>("scale")
      .Attr<bool>("causal")
      .Attr<int64_t>("window_left")
      .Attr<int64_t>("window_right")
      .Attr<int64_t>("given");
}

XLA_FFI_DEFINE_HANDLER(kForward, forward,
                       attributes()
                           .Arg<ffi::AnyBuffer>()  // q
                           .Arg<ffi::AnyBuffer>()  // k
                           .Arg<ffi::AnyBuffer>()  // v
                           .RemainingArgs()
                           .Ret<ffi::AnyBuffer>()  // out
                           .Ret<ffi::AnyBuffer>()  // lse
);
XLA_FFI_DEFINE_HANDLER(kBackward, backward,
                       attributes()
                           .Arg<ffi::AnyBuffer>()  // dout
                           .Arg<ffi::AnyBuffer>()  // q
                           .Arg<ffi::AnyBuffer>()  // k
                           .Arg<ffi::AnyBuffer>()  // v
                           .Arg<ffi::AnyBuffer>()  // out
                           .Arg<ffi::AnyBuffer>()  // lse
                           .RemainingArgs()
                           .Ret<ffi::AnyBuffer>()  // dq
                           .Ret<ffi::AnyBuffer>()  // dk
                           .Ret<ffi::AnyBuffer>()  // dv
                           .RemainingRets());

nb::dict jax_handlers() {
  nb::dict handlers;
  handlers["attentile_forward"] = nb::capsule(reinterpret_cast<void*>(kForward));
  handlers["attentile_backward"] = nb::capsule(reinterpret_cast<void*>(kBackward));
  return handlers;
}

}  // namespace

void bind_jax(nb::module_& module) {
  module.def("jax_handlers", jax_handlers);
}

}  // namespace attentile::python

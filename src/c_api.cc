// SPDX-License-Identifier: Apache-2.0
// The C ABI: unwrap structs, call the C++ function, translate its Status. What is checked here is
// only what the C++ side cannot see: struct sizes and pointers to structs.
#include "attentile/c_api.h"

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "attentile/attention.h"
#include "attentile/version.h"
#include "validate_text.h"

namespace attentile {
namespace {

using validation::invalid;

constexpr size_t kMaxStructSize = 4096;
constexpr int64_t kMaxParts = int64_t{1} << 32;
constexpr size_t kFirstOptionsSize = offsetof(attentile_options, max_seqlen_q);
constexpr size_t kFirstPlanSize = offsetof(attentile_plan_info, device);

thread_local char last_error[1024] = "";
thread_local std::string plan_notes;
thread_local std::string plan_kernel;

// Runs body, which returns a Status, and leaves its sentence for attentile_last_error.
template <class Body>
int32_t guarded(Body body) noexcept {
  StatusCode code = StatusCode::kOk;
  const char* sentence = "";
  try {
    const Status status = body();
    code = status.code();
    // Also on success: the body may have called poll, and poll a function that failed.
    std::snprintf(last_error, sizeof last_error, "%s", status.message().c_str());
    return static_cast<int32_t>(code);
  } catch (const std::bad_alloc&) {
    code = StatusCode::kOutOfMemory;
    sentence = "memory: an allocation failed";
  } catch (const std::length_error&) {
    code = StatusCode::kOutOfMemory;
    sentence = "memory: more than any machine has was asked for";
  } catch (...) {
    code = StatusCode::kInternal;
    sentence = "internal: an exception reached the C interface";
  }
  std::snprintf(last_error, sizeof last_error, "%s", sentence);
  return static_cast<int32_t>(code);
}

// The caller's struct as this library knows it: `defaults` where the caller's version has no field.
// first_size is the size of the struct's first version.
template <class Struct>
Status read_struct(const Struct* given, const char* name, Struct* known,
                   size_t first_size = sizeof(Struct)) {
  if (given == nullptr) return invalid("{}: is null, but it must be given", name);
  size_t size = 0;
  std::memcpy(&size, given, sizeof size);
  if (size < first_size || size > kMaxStructSize) {
    return invalid("{}: struct_size is {}, but it must be in [{}, {}]", name, size, first_size,
                   kMaxStructSize);
  }
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  for (size_t i = sizeof(Struct); i < size; ++i) {
    if (bytes[i] == 0) continue;
    return invalid("{}: struct_size is {} with byte {} not 0, but this version knows only {} bytes",
                   name, size, i, sizeof(Struct));
  }
  std::memcpy(known, given, std::min(size, sizeof(Struct)));
  return {};
}

Status check_reserved(const char* name, int32_t reserved) {
  if (reserved == 0) return {};
  return invalid("{}: reserved is {}, but it must be 0", name, reserved);
}

// A tensor that may be absent (null).
struct NamedTensor {
  const char* name;
  const attentile_tensor* given;
  TensorView* view;
};

Status unwrap_tensor(const NamedTensor& tensor) {
  if (tensor.given == nullptr) return {};
  attentile_tensor t = ATTENTILE_TENSOR_INIT;
  if (Status s = read_struct(tensor.given, tensor.name, &t); !s.ok()) return s;
  if (Status s = check_reserved(tensor.name, t.reserved); !s.ok()) return s;
  if (t.rank == -1) {  // absent in C++; in C, absent is null
    return invalid("{}: rank is -1, but it must be in [0, {}]", tensor.name, kMaxRank);
  }
  tensor.view->data = t.data;
  tensor.view->dtype = static_cast<DType>(t.dtype);
  tensor.view->device = static_cast<Device>(t.device);
  tensor.view->rank = t.rank;
  std::copy_n(t.shape, kMaxRank, tensor.view->shape);
  std::copy_n(t.stride, kMaxRank, tensor.view->stride);
  return {};
}

Status unwrap_tensors(std::initializer_list<NamedTensor> tensors) {
  for (const NamedTensor& tensor : tensors) {
    if (Status s = unwrap_tensor(tensor); !s.ok()) return s;
  }
  return {};
}

Status unwrap(const attentile_attention_inputs* given, AttentionInputs* inputs) {
  attentile_attention_inputs c = ATTENTILE_INPUTS_INIT;
  if (Status s = read_struct(given, "inputs", &c); !s.ok()) return s;
  return unwrap_tensors({{"q", c.q, &inputs->q},
                         {"k", c.k, &inputs->k},
                         {"v", c.v, &inputs->v},
                         {"bias", c.bias, &inputs->bias},
                         {"mask", c.mask, &inputs->mask},
                         {"sink", c.sink, &inputs->sink},
                         {"alibi_slopes", c.alibi_slopes, &inputs->alibi_slopes},
                         {"cu_seqlens_q", c.cu_seqlens_q, &inputs->cu_seqlens_q},
                         {"cu_seqlens_k", c.cu_seqlens_k, &inputs->cu_seqlens_k},
                         {"seqused_k", c.seqused_k, &inputs->seqused_k},
                         {"block_table", c.block_table, &inputs->block_table},
                         {"cache_batch_idx", c.cache_batch_idx, &inputs->cache_batch_idx},
                         {"leftpad_k", c.leftpad_k, &inputs->leftpad_k},
                         {"block_mask", c.block_mask, &inputs->block_mask}});
}

Status unwrap(const attentile_attention_outputs* given, AttentionOutputs* outputs) {
  attentile_attention_outputs c = ATTENTILE_OUTPUTS_INIT;
  if (Status s = read_struct(given, "outputs", &c); !s.ok()) return s;
  return unwrap_tensors({{"out", c.out, &outputs->out},
                         {"lse", c.lse, &outputs->lse},
                         {"keep", c.keep, &outputs->keep}});
}

Status unwrap(const attentile_attention_gradients* given, AttentionGradients* gradients) {
  attentile_attention_gradients c = ATTENTILE_GRADIENTS_INIT;
  if (Status s = read_struct(given, "gradients", &c); !s.ok()) return s;
  return unwrap_tensors({{"dout", c.dout, &gradients->dout},
                         {"dlse", c.dlse, &gradients->dlse},
                         {"dq", c.dq, &gradients->dq},
                         {"dk", c.dk, &gradients->dk},
                         {"dv", c.dv, &gradients->dv},
                         {"dbias", c.dbias, &gradients->dbias},
                         {"dsink", c.dsink, &gradients->dsink}});
}

Status unwrap(const attentile_options* given, AttentionOptions* options) {
  if (given == nullptr) return {};
  attentile_options c = ATTENTILE_OPTIONS_INIT;
  if (Status s = read_struct(given, "options", &c, kFirstOptionsSize); !s.ok()) return s;
  if (Status s = check_reserved("options", c.reserved); !s.ok()) return s;
  if (c.has_softmax_scale != 0) options->softmax_scale = c.softmax_scale;
  if (c.has_position_offset != 0) options->position_offset = c.position_offset;
  options->causal = c.causal != 0;
  options->alignment = static_cast<Alignment>(c.alignment);
  options->window_left = c.window_left;
  options->window_right = c.window_right;
  options->softcap = c.softcap;
  options->dropout_p = c.dropout_p;
  options->dropout_seed = c.dropout_seed;
  options->dropout_offset = c.dropout_offset;
  options->query_base = c.query_base;
  options->key_base = c.key_base;
  options->head_base = c.head_base;
  options->batch_base = c.batch_base;
  options->dropout_num_heads_q = c.dropout_num_heads_q;
  options->block_size_q = c.block_size_q;
  options->block_size_k = c.block_size_k;
  options->algorithm = static_cast<Algorithm>(c.algorithm);
  options->isa = static_cast<Isa>(c.isa);
  options->fast_memory_bytes = c.fast_memory_bytes;
  options->max_seqlen_q = c.max_seqlen_q;
  options->max_seqlen_k = c.max_seqlen_k;
  options->atomic_dq = c.atomic_dq != 0;
  return {};
}

// An execution context and what it points to.
struct Context {
  ExecutionContext context;
  Executor executor;
  Traffic traffic;
  attentile_traffic* given_traffic = nullptr;

  Context() = default;
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  void return_traffic() const {
    if (given_traffic == nullptr) return;
    given_traffic->bytes_read = traffic.bytes_read;
    given_traffic->bytes_written = traffic.bytes_written;
  }
};

Status unwrap_executor(const attentile_executor* given, Context* result) {
  if (given == nullptr) return {};
  attentile_executor c = ATTENTILE_EXECUTOR_INIT;
  if (Status s = read_struct(given, "executor", &c); !s.ok()) return s;
  if (Status s = check_reserved("executor", c.reserved); !s.ok()) return s;
  result->executor = {.context = c.context,
                      .num_threads = c.num_threads,
                      .submit = c.submit,
                      .parallel = c.parallel};
  result->context.executor = &result->executor;
  return {};
}

Status unwrap(const attentile_context* given, Context* result) {
  if (given == nullptr) return {};
  attentile_context c = ATTENTILE_CONTEXT_INIT;
  if (Status s = read_struct(given, "context", &c); !s.ok()) return s;
  if (Status s = check_reserved("context", c.reserved); !s.ok()) return s;
  if (Status s = unwrap_executor(c.executor, result); !s.ok()) return s;
  if (c.traffic != nullptr) {
    attentile_traffic traffic = ATTENTILE_TRAFFIC_INIT;
    if (Status s = read_struct(c.traffic, "traffic", &traffic); !s.ok()) return s;
    result->given_traffic = c.traffic;
    result->context.traffic = &result->traffic;
  }
  result->context.num_threads = c.num_threads;
  result->context.poll = c.poll;
  result->context.poll_data = c.poll_data;
  result->context.workspace = c.workspace;
  result->context.workspace_bytes = c.workspace_bytes;
  result->context.stream = c.stream;
  return {};
}

// The arguments of an attention call, in C and in C++.
struct GivenCall {
  const attentile_attention_inputs* inputs;
  const attentile_attention_outputs* outputs;
  const attentile_attention_gradients* gradients;  // null: the forward pass
  const attentile_options* options;
  const attentile_context* context;
};

struct Call {
  AttentionInputs inputs;
  AttentionOutputs outputs;
  AttentionGradients gradients;
  AttentionOptions options;
  Context context;
};

Status unwrap(const GivenCall& given, Call* call) {
  Status status = unwrap(given.inputs, &call->inputs);
  if (status.ok()) status = unwrap(given.outputs, &call->outputs);
  if (status.ok() && given.gradients != nullptr) status = unwrap(given.gradients, &call->gradients);
  if (status.ok()) status = unwrap(given.options, &call->options);
  if (status.ok()) status = unwrap(given.context, &call->context);
  return status;
}

Status run_forward(const GivenCall& given) {
  Call call;
  Status status = unwrap(given, &call);
  if (!status.ok()) return status;
  status = attention_forward(call.inputs, call.outputs, call.options, call.context.context);
  if (status.ok()) call.context.return_traffic();
  return status;
}

Status run_backward(const GivenCall& given) {
  if (given.gradients == nullptr) return invalid("gradients: is null, but it must be given");
  Call call;
  Status status = unwrap(given, &call);
  if (!status.ok()) return status;
  status = attention_backward(call.inputs, call.outputs, call.gradients, call.options,
                              call.context.context);
  if (status.ok()) call.context.return_traffic();
  return status;
}

Result<Plan> make_plan(const GivenCall& given) {
  Call call;
  if (Status status = unwrap(given, &call); !status.ok()) return status;
  if (given.gradients == nullptr) {
    return plan_forward(call.inputs, call.outputs, call.options, call.context.context);
  }
  return plan_backward(call.inputs, call.outputs, call.gradients, call.options,
                       call.context.context);
}

Status run_plan(const GivenCall& given, attentile_plan_info* result) {
  attentile_plan_info c = ATTENTILE_PLAN_INFO_INIT;
  if (Status s = read_struct(result, "plan", &c, kFirstPlanSize); !s.ok()) return s;
  const size_t given_size = c.struct_size;
  const Result<Plan> plan = make_plan(given);
  if (!plan.ok()) return plan.status();
  std::string notes;
  for (const std::string& note : plan->notes) notes += note + "\n";
  plan_notes.swap(notes);
  c.backward = plan->backward ? 1 : 0;
  c.algorithm = static_cast<int32_t>(plan->algorithm);
  c.isa = static_cast<int32_t>(plan->isa);
  c.threads = plan->threads;
  c.tile_m = plan->tile_m;
  c.tile_n = plan->tile_n;
  c.num_tasks = plan->num_tasks;
  c.workspace_bytes = plan->workspace_bytes;
  c.fast_memory_bytes = plan->fast_memory_bytes;
  c.visible_pairs = plan->visible_pairs;
  c.flops = plan->flops;
  c.standard_bytes_read = plan->traffic_standard.bytes_read;
  c.standard_bytes_written = plan->traffic_standard.bytes_written;
  c.flash1_bytes_read = plan->traffic_flash1.bytes_read;
  c.flash1_bytes_written = plan->traffic_flash1.bytes_written;
  c.flash2_bytes_read = plan->traffic_flash2.bytes_read;
  c.flash2_bytes_written = plan->traffic_flash2.bytes_written;
  c.notes = plan_notes.c_str();
  plan_kernel = plan->kernel;
  c.device = static_cast<int32_t>(plan->device);
  c.kernel = plan_kernel.c_str();
  std::memcpy(result, &c, std::min(given_size, sizeof c));
  return {};
}

Status unwrap_state(const attentile_partial_state* given, const char* name, PartialState* state) {
  attentile_partial_state c = ATTENTILE_PARTIAL_STATE_INIT;
  if (Status s = read_struct(given, name, &c); !s.ok()) return s;
  const std::string out = std::string(name) + ".out";
  const std::string lse = std::string(name) + ".lse";
  return unwrap_tensors({{out.c_str(), c.out, &state->out}, {lse.c_str(), c.lse, &state->lse}});
}

Status run_merge(const attentile_partial_state* const* parts, int64_t num_parts,
                 const attentile_partial_state* result, const attentile_context* context) {
  if (num_parts < 0 || num_parts > kMaxParts) {
    return invalid("num_parts: is {}, but it must be in [0, {}]", num_parts, kMaxParts);
  }
  if (parts == nullptr && num_parts > 0) {
    return invalid("parts: is null, but num_parts is {}", num_parts);
  }
  PartialState whole;
  if (Status s = unwrap_state(result, "result", &whole); !s.ok()) return s;
  std::vector<PartialState> states;
  for (int64_t i = 0; i < num_parts; ++i) {
    const std::string name = "parts[" + std::to_string(i) + "]";
    PartialState state;
    if (Status s = unwrap_state(parts[i], name.c_str(), &state); !s.ok()) return s;
    states.push_back(state);
  }
  Context unwrapped;
  if (Status s = unwrap(context, &unwrapped); !s.ok()) return s;
  return merge(states, whole, unwrapped.context);
}

// Defaults for the fields that the caller's struct of `size` bytes has, zeros for those that only a
// later version knows.
template <class Struct>
void initialise(Struct* target, size_t size, const Struct& defaults) {
  if (target == nullptr || size < sizeof size) return;
  std::memset(static_cast<void*>(target), 0, size);
  std::memcpy(static_cast<void*>(target), &defaults, std::min(size, sizeof defaults));
  std::memcpy(static_cast<void*>(target), &size, sizeof size);
}

}  // namespace
}  // namespace attentile

extern "C" {

void attentile_tensor_init(attentile_tensor* tensor, size_t struct_size) {
  attentile::initialise(tensor, struct_size, ATTENTILE_TENSOR_INIT);
}
void attentile_inputs_init(attentile_attention_inputs* inputs, size_t struct_size) {
  attentile::initialise(inputs, struct_size, ATTENTILE_INPUTS_INIT);
}
void attentile_outputs_init(attentile_attention_outputs* outputs, size_t struct_size) {
  attentile::initialise(outputs, struct_size, ATTENTILE_OUTPUTS_INIT);
}
void attentile_gradients_init(attentile_attention_gradients* gradients, size_t struct_size) {
  attentile::initialise(gradients, struct_size, ATTENTILE_GRADIENTS_INIT);
}
void attentile_options_init(attentile_options* options, size_t struct_size) {
  attentile::initialise(options, struct_size, ATTENTILE_OPTIONS_INIT);
}
void attentile_executor_init(attentile_executor* executor, size_t struct_size) {
  attentile::initialise(executor, struct_size, ATTENTILE_EXECUTOR_INIT);
}
void attentile_traffic_init(attentile_traffic* traffic, size_t struct_size) {
  attentile::initialise(traffic, struct_size, ATTENTILE_TRAFFIC_INIT);
}
void attentile_context_init(attentile_context* context, size_t struct_size) {
  attentile::initialise(context, struct_size, ATTENTILE_CONTEXT_INIT);
}
void attentile_plan_info_init(attentile_plan_info* plan, size_t struct_size) {
  attentile::initialise(plan, struct_size, ATTENTILE_PLAN_INFO_INIT);
}
void attentile_partial_state_init(attentile_partial_state* state, size_t struct_size) {
  attentile::initialise(state, struct_size, ATTENTILE_PARTIAL_STATE_INIT);
}

int32_t attentile_attention_forward(const attentile_attention_inputs* inputs,
                                    const attentile_attention_outputs* outputs,
                                    const attentile_options* options,
                                    const attentile_context* context) {
  return attentile::guarded(
      [&] { return attentile::run_forward({inputs, outputs, nullptr, options, context}); });
}

int32_t attentile_attention_backward(const attentile_attention_inputs* inputs,
                                     const attentile_attention_outputs* outputs,
                                     const attentile_attention_gradients* gradients,
                                     const attentile_options* options,
                                     const attentile_context* context) {
  return attentile::guarded(
      [&] { return attentile::run_backward({inputs, outputs, gradients, options, context}); });
}

int32_t attentile_merge(const attentile_partial_state* const* parts, int64_t num_parts,
                        const attentile_partial_state* result, const attentile_context* context) {
  return attentile::guarded(
      [&] { return attentile::run_merge(parts, num_parts, result, context); });
}

int32_t attentile_workspace_size(const attentile_attention_inputs* inputs,
                                 const attentile_attention_outputs* outputs,
                                 const attentile_attention_gradients* gradients,
                                 const attentile_options* options, const attentile_context* context,
                                 int64_t* bytes) {
  return attentile::guarded([&]() -> attentile::Status {
    if (bytes == nullptr) return attentile::invalid("bytes: is null, but it must be given");
    const auto plan = attentile::make_plan({inputs, outputs, gradients, options, context});
    if (plan.ok()) *bytes = plan->workspace_bytes;
    return plan.status();
  });
}

int32_t attentile_plan(const attentile_attention_inputs* inputs,
                       const attentile_attention_outputs* outputs,
                       const attentile_attention_gradients* gradients,
                       const attentile_options* options, const attentile_context* context,
                       attentile_plan_info* plan) {
  return attentile::guarded(
      [&] { return attentile::run_plan({inputs, outputs, gradients, options, context}, plan); });
}

int32_t attentile_available_isas(int32_t* isas, int32_t capacity) {
  const std::vector<attentile::Isa> available = attentile::available_isas();
  const auto count = static_cast<int32_t>(available.size());
  for (int32_t i = 0; isas != nullptr && i < count && i < capacity; ++i) {
    isas[i] = static_cast<int32_t>(available[static_cast<size_t>(i)]);
  }
  return count;
}

const char* attentile_last_error(void) {
  return attentile::last_error;
}

const char* attentile_status_name(int32_t status) {
  return attentile::to_string(static_cast<attentile::StatusCode>(status));
}

const char* attentile_version(void) {
  return ATTENTILE_VERSION;
}

}  // extern "C"

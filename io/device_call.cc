// SPDX-License-Identifier: Apache-2.0
#include "io/device_call.h"

#include <cstring>

namespace attentile::io {
namespace {

constexpr int64_t kMargin = 512;
constexpr int64_t kAlignment = 256;
constexpr char kPoison = '\xFF';  // NaN in every floating type

}  // namespace

Status DeviceCall::check(int32_t code, const cuda::Sentence& sentence) const {
  return code == 0 ? Status() : Status(static_cast<StatusCode>(code), sentence.text);
}

void set_device(AttentionInputs& inputs, AttentionOutputs& outputs, AttentionGradients& gradients,
                Device device) {
  for (TensorView* view : {&inputs.q,
                           &inputs.k,
                           &inputs.v,
                           &inputs.bias,
                           &inputs.mask,
                           &inputs.sink,
                           &inputs.alibi_slopes,
                           &inputs.cu_seqlens_q,
                           &inputs.cu_seqlens_k,
                           &inputs.seqused_k,
                           &inputs.block_table,
                           &inputs.cache_batch_idx,
                           &inputs.leftpad_k,
                           &inputs.block_mask,
                           &outputs.out,
                           &outputs.lse,
                           &outputs.keep,
                           &gradients.dout,
                           &gradients.dlse,
                           &gradients.dq,
                           &gradients.dk,
                           &gradients.dv,
                           &gradients.dbias,
                           &gradients.dsink}) {
    view->device = device;
  }
}

DeviceCall::DeviceCall(const cuda::BackendTable& table, const AttentionInputs& inputs,
                       const AttentionOutputs& outputs, const AttentionGradients& gradients,
                       Surroundings surroundings)
    : table_(table),
      surroundings_(surroundings),
      inputs_(inputs),
      outputs_(outputs),
      gradients_(gradients) {
  mirror("q", Role::kInput, inputs_.q);
  mirror("k", Role::kInput, inputs_.k);
  mirror("v", Role::kInput, inputs_.v);
  mirror("bias", Role::kInput, inputs_.bias);
  mirror("mask", Role::kInput, inputs_.mask);
  mirror("sink", Role::kInput, inputs_.sink);
  mirror("alibi_slopes", Role::kInput, inputs_.alibi_slopes);
  mirror("cu_seqlens_q", Role::kInput, inputs_.cu_seqlens_q);
  mirror("cu_seqlens_k", Role::kInput, inputs_.cu_seqlens_k);
  mirror("seqused_k", Role::kInput, inputs_.seqused_k);
  mirror("block_table", Role::kInput, inputs_.block_table);
  mirror("cache_batch_idx", Role::kInput, inputs_.cache_batch_idx);
  mirror("leftpad_k", Role::kInput, inputs_.leftpad_k);
  mirror("block_mask", Role::kInput, inputs_.block_mask);
  mirror("out", Role::kOutput, outputs_.out);
  mirror("lse", Role::kOutput, outputs_.lse);
  mirror("keep", Role::kOutput, outputs_.keep);
  mirror("dout", Role::kInput, gradients_.dout);
  mirror("dlse", Role::kInput, gradients_.dlse);
  mirror("dq", Role::kGradient, gradients_.dq);
  mirror("dk", Role::kGradient, gradients_.dk);
  mirror("dv", Role::kGradient, gradients_.dv);
  mirror("dbias", Role::kGradient, gradients_.dbias);
  mirror("dsink", Role::kGradient, gradients_.dsink);
}

DeviceCall::~DeviceCall() {
  cuda::Sentence sentence;
  for (const Mirror& m : mirrors_) (void)table_.release(m.memory, &sentence);
  (void)table_.release(context_.workspace, &sentence);
}

void DeviceCall::mirror(const char* name, Role role, TensorView& view) {
  if (!view.present()) return;
  view.device = Device::kCuda;
  int64_t first = 0;
  int64_t last = 0;
  for (int axis = 0; axis < view.rank; ++axis) {
    if (view.shape[axis] == 0) return;
    if (view.shape[axis] == 1) continue;
    const int64_t span = (view.shape[axis] - 1) * view.stride[axis];
    (span < 0 ? first : last) += span;
  }
  const int64_t width = size_of(view.dtype);
  char* host = static_cast<char*>(view.data) + first * width;
  const int64_t bytes = (last - first + 1) * width;
  const bool poison = surroundings_ == Surroundings::kPoison;
  const int64_t after = poison ? kMargin : 0;
  const int64_t margin = poison ? kMargin + static_cast<int64_t>(reinterpret_cast<uintptr_t>(host) %
                                                                 static_cast<uintptr_t>(kAlignment))
                                : 0;
  Mirror m = {name, role, host, bytes, nullptr, margin, margin + bytes + after, {}};
  if (poison || role == Role::kInput) {
    m.image.assign(static_cast<size_t>(m.total), kPoison);
    std::memcpy(m.image.data() + margin, host, static_cast<size_t>(bytes));
  }
  cuda::Sentence sentence;
  void* memory = nullptr;
  Status status = check(table_.allocate(m.total, &memory, &sentence), sentence);
  if (status.ok()) {
    m.memory = static_cast<char*>(memory);
    const int64_t given = static_cast<int64_t>(m.image.size());
    if (given > 0) {
      status = check(table_.copy_to_device(memory, m.image.data(), given, &sentence), sentence);
    }
  }
  if (status_.ok()) status_ = status;
  view.data = m.memory == nullptr ? nullptr : m.memory + margin - first * width;
  mirrors_.push_back(std::move(m));
}

void DeviceCall::set_poll(const ExecutionContext& asked) {
  context_.poll = asked.poll;
  context_.poll_data = asked.poll_data;
}

Status DeviceCall::use_workspace(const AttentionOptions& options, bool backward) {
  const Result<Plan> plan = backward
                                ? plan_backward(inputs_, outputs_, gradients_, options, context_)
                                : plan_forward(inputs_, outputs_, options, context_);
  if (!plan.ok()) return plan.status();
  cuda::Sentence sentence;
  (void)table_.release(context_.workspace, &sentence);
  context_.workspace = nullptr;
  context_.workspace_bytes = plan->workspace_bytes;
  if (plan->workspace_bytes == 0) return Status();
  Status status =
      check(table_.allocate(plan->workspace_bytes, &context_.workspace, &sentence), sentence);
  if (!status.ok()) return status;
  const std::vector<char> poison(static_cast<size_t>(plan->workspace_bytes), kPoison);
  return check(
      table_.copy_to_device(context_.workspace, poison.data(), plan->workspace_bytes, &sentence),
      sentence);
}

Status DeviceCall::start(const AttentionOptions& options, bool backward) {
  if (!status_.ok()) return status_;
  return backward ? attention_backward(inputs_, outputs_, gradients_, options, context_)
                  : attention_forward(inputs_, outputs_, options, context_);
}

Status DeviceCall::synchronise() {
  cuda::Sentence sentence;
  return check(table_.synchronise(context_.stream, &sentence), sentence);
}

Status DeviceCall::run(const AttentionOptions& options, bool backward, bool own_workspace) {
  Status status = own_workspace ? use_workspace(options, backward) : Status();
  if (status.ok()) status = start(options, backward);
  if (status.ok()) status = synchronise();
  return status.ok() ? download(backward) : status;
}
Status DeviceCall::run_forward(const AttentionOptions& options, bool own_workspace) {
  return run(options, false, own_workspace);
}
Status DeviceCall::run_backward(const AttentionOptions& options, bool own_workspace) {
  return run(options, true, own_workspace);
}

Status DeviceCall::download(bool backward) {
  damage_.clear();
  cuda::Sentence sentence;
  for (Mirror& m : mirrors_) {
    const bool written = m.role == (backward ? Role::kGradient : Role::kOutput);
    if (!written && m.image.empty()) continue;
    std::vector<char> found(static_cast<size_t>(m.total));
    const Status status =
        check(table_.copy_to_host(found.data(), m.memory, m.total, &sentence), sentence);
    if (!status.ok()) return status;
    const size_t margin = static_cast<size_t>(m.margin);
    const size_t end = margin + static_cast<size_t>(m.bytes);
    const bool around =
        !m.image.empty() &&
        (std::memcmp(found.data(), m.image.data(), margin) != 0 ||
         std::memcmp(found.data() + end, m.image.data() + end, found.size() - end) != 0);
    const bool inside = !written && found != m.image;
    if (around || inside) damage_ += std::string(m.name) + ": was written on the device; ";
    if (!written) continue;
    std::memcpy(m.host, found.data() + margin, static_cast<size_t>(m.bytes));
    m.image = std::move(found);
  }
  return Status();
}

Status DeviceCall::poison_results(bool backward) {
  cuda::Sentence sentence;
  for (const Mirror& m : mirrors_) {
    if (m.role != (backward ? Role::kGradient : Role::kOutput)) continue;
    const std::vector<char> poison(static_cast<size_t>(m.bytes), kPoison);
    const Status status = check(
        table_.copy_to_device(m.memory + m.margin, poison.data(), m.bytes, &sentence), sentence);
    if (!status.ok()) return status;
  }
  return Status();
}

}  // namespace attentile::io

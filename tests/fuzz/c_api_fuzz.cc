// SPDX-License-Identifier: Apache-2.0
// Fuzz target: any bytes as a call of the C ABI. The bytes first choose a small call that is right
// (pass, layout, dtype, sizes, optional tensors), then spoil fields of its structs one by one.
// Calls whose tensors lie within the arenas are really made; the others are made with a context
// that is refused after everything else was looked at, so no kernel follows a stray view. Expected:
// a known status, a sentence exactly when it is not OK, inputs untouched, no crash.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "attentile/c_api.h"
#include "fuzz/hostile_call.h"

namespace {

using attentile::fuzz::Bytes;
using attentile::fuzz::g_inputs;
using attentile::fuzz::g_outputs;
using attentile::fuzz::g_structs;
using attentile::fuzz::HostileCall;
using attentile::fuzz::kArenaBytes;
using attentile::fuzz::kFirstIndexArray;
using attentile::fuzz::kNumIndexArrays;
using attentile::fuzz::kNumInputs;
using attentile::fuzz::require;
using attentile::fuzz::size_of_dtype;
using attentile::fuzz::Structs;

constexpr int64_t kMaxElements = 1 << 16;

unsigned char g_inputs_before[kArenaBytes];

// Whether every byte of the tensor lies in one arena, and it has few enough elements.
bool is_ours(const attentile_tensor& tensor, bool output) {
  if (tensor.rank < 0 || tensor.rank > 4) return true;  // refused before it is read
  const auto* begin = static_cast<const unsigned char*>(tensor.data);
  const bool in_inputs = !output && begin >= g_inputs && begin < g_inputs + kArenaBytes;
  const bool in_outputs = begin >= g_outputs && begin < g_outputs + kArenaBytes;
  if (begin != nullptr && !in_inputs && !in_outputs) return false;
  int64_t low = in_inputs ? begin - g_inputs : (in_outputs ? begin - g_outputs : 0);
  int64_t high = low + size_of_dtype(tensor.dtype);
  int64_t elements = 1;
  for (int i = 0; i < tensor.rank; ++i) {
    constexpr int64_t kFar = 1 << 20;
    if (tensor.shape[i] > kMaxElements || tensor.shape[i] < 0) return false;
    elements *= std::max<int64_t>(tensor.shape[i], 1);
    if (elements > kMaxElements) return false;
    if (tensor.shape[i] <= 1) continue;
    if (tensor.stride[i] > kFar || tensor.stride[i] < -kFar) return false;
    const int64_t reach = (tensor.shape[i] - 1) * tensor.stride[i] * size_of_dtype(tensor.dtype);
    (reach < 0 ? low : high) += reach;
  }
  return low >= 0 && high <= static_cast<int64_t>(kArenaBytes);
}

bool are_ours(const attentile_tensor* const* tensors, int count, bool outputs) {
  return std::all_of(tensors, tensors + count, [&](const attentile_tensor* tensor) {
    return tensor == nullptr || is_ours(*tensor, outputs);
  });
}

// Memory that is ours, and sizes that a kernel finishes in little time.
bool may_run(bool backward) {
  return are_ours(&g_structs.inputs.value.q, kNumInputs, false) &&
         are_ours(&g_structs.outputs.value.out, 3, !backward) &&
         (!backward || (are_ours(&g_structs.gradients.value.dout, 2, false) &&
                        are_ours(&g_structs.gradients.value.dq, 5, true)));
}

// Validation follows the index arrays: they must be ours even if nothing runs.
bool may_validate() {
  return are_ours(&g_structs.inputs.value.q + kFirstIndexArray, kNumIndexArrays, false);
}

void check_status(int32_t status) {
  require(status >= ATTENTILE_OK && status < ATTENTILE_INTERNAL);
  const char* sentence = attentile_last_error();
  require((status == ATTENTILE_OK) == (sentence[0] == '\0'));
  require(std::strchr(sentence, '\n') == nullptr);
}

void run(const HostileCall& call) {
  Structs& s = g_structs;
  const bool real = may_run(call.backward());
  if (!real) s.context.value.num_threads = -1;  // refused, but after all else
  const auto* gradients = call.backward() ? &s.gradients.value : nullptr;
  std::memcpy(g_inputs_before, g_inputs, kArenaBytes);
  if (real) {
    int64_t bytes = 0;
    check_status(attentile_workspace_size(&s.inputs.value, &s.outputs.value, gradients,
                                          &s.options.value, &s.context.value, &bytes));
    require(bytes >= 0);
  }
  const int32_t status =
      call.backward() ? attentile_attention_backward(&s.inputs.value, &s.outputs.value, gradients,
                                                     &s.options.value, &s.context.value)
                      : attentile_attention_forward(&s.inputs.value, &s.outputs.value,
                                                    &s.options.value, &s.context.value);
  check_status(status);
  if (!call.spoilt() && s.context.value.poll == nullptr) require(status == ATTENTILE_OK);
  if (!real) require(status != ATTENTILE_OK);
  require(std::memcmp(g_inputs_before, g_inputs, kArenaBytes) == 0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  HostileCall call(bytes);
  call.spoil();
  if (may_validate()) run(call);
  return 0;
}

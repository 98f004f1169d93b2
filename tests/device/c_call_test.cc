// SPDX-License-Identifier: Apache-2.0
// Device pointers through the C interface, on the emulated backend: plan, workspace, call, and the
// bits of the C++ call.
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "attentile/c_api.h"
#include "cuda/backend.h"
#include "device/device_array.h"
#include "device/emulated.h"

namespace attentile::cuda::test {
namespace {

attentile_tensor tensor_of(const DeviceArray& array, int32_t dtype,
                           std::initializer_list<int64_t> shape) {
  attentile_tensor t = ATTENTILE_TENSOR_INIT;
  const TensorView view = contiguous_view(array.memory(), DType::kFloat16, shape);
  t.data = array.memory();
  t.dtype = dtype;
  t.device = ATTENTILE_CUDA;
  t.rank = view.rank;
  std::memcpy(t.shape, view.shape, sizeof t.shape);
  std::memcpy(t.stride, view.stride, sizeof t.stride);
  return t;
}

TensorView view_of(const attentile_tensor& t) {
  TensorView view;
  view.data = t.data;
  view.dtype = static_cast<DType>(t.dtype);
  view.device = Device::kCuda;
  view.rank = t.rank;
  std::memcpy(view.shape, t.shape, sizeof t.shape);
  std::memcpy(view.stride, t.stride, sizeof t.stride);
  return view;
}

TEST(DeviceCCall, EqualsTheCppCallBitForBit) {
  use_emulated_backend();
  ASSERT_TRUE(backend().ok()) << backend().status().message();
  constexpr int64_t kQ = 2 * 40 * 4 * 64;
  constexpr int64_t kK = 2 * 33 * 2 * 64;
  DeviceArray q(2 * kQ), k(2 * kK), v(2 * kK), out(2 * kQ), expected(2 * kQ);
  q.fill(1);
  k.fill(2);
  v.fill(3);
  const attentile_tensor tq = tensor_of(q, ATTENTILE_FLOAT16, {2, 40, 4, 64});
  const attentile_tensor tk = tensor_of(k, ATTENTILE_FLOAT16, {2, 33, 2, 64});
  const attentile_tensor tv = tensor_of(v, ATTENTILE_FLOAT16, {2, 33, 2, 64});
  const attentile_tensor tout = tensor_of(out, ATTENTILE_FLOAT16, {2, 40, 4, 64});
  attentile_attention_inputs inputs = ATTENTILE_INPUTS_INIT;
  inputs.q = &tq;
  inputs.k = &tk;
  inputs.v = &tv;
  attentile_attention_outputs outputs = ATTENTILE_OUTPUTS_INIT;
  outputs.out = &tout;
  attentile_options options = ATTENTILE_OPTIONS_INIT;
  options.causal = 1;
  int64_t bytes = -1;
  ASSERT_EQ(attentile_workspace_size(&inputs, &outputs, nullptr, &options, nullptr, &bytes), 0)
      << attentile_last_error();
  DeviceArray workspace(bytes + 1);
  attentile_context context = ATTENTILE_CONTEXT_INIT;
  context.workspace = workspace.memory();
  context.workspace_bytes = bytes;
  if (bytes == 0) context.workspace = nullptr;
  ASSERT_EQ(attentile_attention_forward(&inputs, &outputs, &options, &context), 0)
      << attentile_last_error();

  attentile_tensor texpected = tout;
  texpected.data = expected.memory();
  const AttentionInputs cpp = {.q = view_of(tq), .k = view_of(tk), .v = view_of(tv)};
  const AttentionOutputs results = {.out = view_of(texpected)};
  const Status status = attention_forward(cpp, results, {.causal = true});
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(out.bytes(), expected.bytes());

  attentile_plan_info plan = ATTENTILE_PLAN_INFO_INIT;
  ASSERT_EQ(attentile_plan(&inputs, &outputs, nullptr, &options, nullptr, &plan), 0);
  EXPECT_EQ(plan.tile_m, 128);
  EXPECT_EQ(plan.device, ATTENTILE_CUDA);
  EXPECT_EQ(std::string(plan.kernel).rfind("Forward<Float16, 64", 0), 0u) << plan.kernel;
  EXPECT_NE(std::string(plan.notes).find("Forward<Float16, 64, true"), std::string::npos)
      << plan.notes;
}

TEST(DeviceCCall, MemoryThatTheDeviceDoesNotKnowIsFound) {
  use_emulated_backend();
  std::vector<uint16_t> host(2 * 4 * 32);
  TensorView view = contiguous_view(host.data(), DType::kFloat16, {1, 4, 1, 32});
  view.device = Device::kCuda;
  TensorView out = contiguous_view(host.data() + 128, DType::kFloat16, {1, 4, 1, 32});
  out.device = Device::kCuda;
  const AttentionInputs inputs = {.q = view, .k = view, .v = view};
  const AttentionOutputs outputs = {.out = out};
  const Status status = attention_forward(inputs, outputs);
  EXPECT_EQ(status.code(), StatusCode::kInternal);
  EXPECT_NE(status.message().find("the launch was not clean"), std::string::npos);
}

}  // namespace
}  // namespace attentile::cuda::test

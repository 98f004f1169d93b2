// SPDX-License-Identifier: Apache-2.0
// Threads of a program that call the device at once, the first calls of the process included.
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "attentile/attention.h"
#include "device/device_array.h"
#include "device/emulated.h"

namespace attentile::cuda::test {
namespace {

using Bytes = std::vector<std::vector<char>>;

// Both passes of a call of its own, `seed` being the values'. Of an even one the few queries see
// many keys, which are split: the forward pass takes a workspace.
Bytes results_of(int seed) {
  const int64_t seqlen_q = seed % 2 == 0 ? 3 : 40;
  const int64_t seqlen_k = seed % 2 == 0 ? 600 : 70;
  constexpr int64_t kHeadDim = 32;
  const auto view = [&](const DeviceArray& array, int64_t seqlen) {
    TensorView tensor = contiguous_view(array.memory(), DType::kFloat16, {1, seqlen, 2, kHeadDim});
    tensor.device = Device::kCuda;
    return tensor;
  };
  const int64_t rows = seqlen_q * 2 * kHeadDim * 2;
  const int64_t keys = seqlen_k * 2 * kHeadDim * 2;
  DeviceArray q(rows), k(keys), v(keys), out(rows), dout(rows), dq(rows), dk(keys), dv(keys);
  DeviceArray lse(seqlen_q * 2 * 4);
  int value = seed;
  for (DeviceArray* input : {&q, &k, &v, &dout}) input->fill(value++);
  const AttentionInputs inputs = {
      .q = view(q, seqlen_q), .k = view(k, seqlen_k), .v = view(v, seqlen_k)};
  AttentionOutputs outputs = {.out = view(out, seqlen_q)};
  outputs.lse = contiguous_view(lse.memory(), DType::kFloat32, {1, 2, seqlen_q});
  outputs.lse.device = Device::kCuda;
  const AttentionGradients gradients = {.dout = view(dout, seqlen_q),
                                        .dq = view(dq, seqlen_q),
                                        .dk = view(dk, seqlen_k),
                                        .dv = view(dv, seqlen_k)};
  Status status = attention_forward(inputs, outputs, {.causal = true});
  EXPECT_TRUE(status.ok()) << status.message();
  status = attention_backward(inputs, outputs, gradients, {.causal = true});
  EXPECT_TRUE(status.ok()) << status.message();
  Bytes found;
  for (const DeviceArray* array : {&out, &lse, &dq, &dk, &dv}) found.push_back(array->bytes());
  return found;
}

TEST(DeviceThreads, CallAtOnce) {
  use_emulated_backend();
  constexpr int kThreads = 4;
  std::vector<Bytes> at_once(kThreads);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] { at_once[static_cast<size_t>(i)] = results_of(i); });
  }
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < kThreads; ++i) {
    EXPECT_EQ(at_once[static_cast<size_t>(i)], results_of(i)) << "thread " << i;
  }
}

}  // namespace
}  // namespace attentile::cuda::test

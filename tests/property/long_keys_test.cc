// SPDX-License-Identifier: Apache-2.0
// More keys than float32 can number: a tile of flash1 as long as the sequence must hide the right
// ones, and sum as exactly as any other.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "attentile/attention.h"

namespace attentile::testing {
namespace {

constexpr int64_t kKeys = (int64_t{1} << 24) + 3;

struct TwoQueries {
  std::vector<float> q = {1, 1}, k, v, out, lse;
  AttentionOptions options;

  TwoQueries() : k(kKeys), v(kKeys), out(2), lse(2) {
    options.causal = true;
    options.softmax_scale = 1.0;
    options.fast_memory_bytes = int64_t{1} << 30;
  }
  Status run(Algorithm algorithm) {
    options.algorithm = algorithm;
    AttentionInputs inputs;
    inputs.q = contiguous_view(q.data(), DType::kFloat32, {1, 2, 1, 1});
    inputs.k = contiguous_view(k.data(), DType::kFloat32, {1, kKeys, 1, 1});
    inputs.v = contiguous_view(v.data(), DType::kFloat32, {1, kKeys, 1, 1});
    AttentionOutputs outputs;
    outputs.out = contiguous_view(out.data(), DType::kFloat32, {1, 2, 1, 1});
    outputs.lse = contiguous_view(lse.data(), DType::kFloat32, {1, 1, 2});
    return attention_forward(inputs, outputs, options);
  }
};

class LongKeys : public ::testing::TestWithParam<Algorithm> {};

TEST_P(LongKeys, TheLastVisibleOneIsSeen) {
  TwoQueries call;
  call.k[kKeys - 2] = 1000;  // the last key that query 0 sees
  call.v[kKeys - 2] = 1;
  call.k[kKeys - 1] = 2000;  // seen by query 1 alone
  call.v[kKeys - 1] = 2;
  const Status status = call.run(GetParam());
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(call.lse[0], 1000);
  EXPECT_EQ(call.out[0], 1);
  EXPECT_EQ(call.lse[1], 2000);
  EXPECT_EQ(call.out[1], 2);
}

TEST_P(LongKeys, AreSummedInBlocks) {
  TwoQueries call;
  for (int64_t j = 0; j < kKeys; ++j) call.v[j] = static_cast<float>(1 + j % 7);
  const Status status = call.run(GetParam());
  ASSERT_TRUE(status.ok()) << status.message();
  double sum = 0;
  for (int64_t j = 0; j < kKeys; ++j) sum += call.v[j];
  const double mean = sum / static_cast<double>(kKeys);
  const double roundings = static_cast<double>(kKeys) / 64 + 64;  // of docs/numerics.md
  EXPECT_NEAR(call.out[1], mean, mean * roundings * 0x1p-24);
  EXPECT_NEAR(call.lse[1], std::log(static_cast<double>(kKeys)), 1e-5);
}

INSTANTIATE_TEST_SUITE_P(Property, LongKeys,
                         ::testing::Values(Algorithm::kFlash1, Algorithm::kFlash2),
                         [](const auto& parameter) {
                           return std::string(to_string(parameter.param));
                         });

}  // namespace
}  // namespace attentile::testing

// SPDX-License-Identifier: Apache-2.0
// The caller's poll through the C ABI, on a call that is long enough to be polled: the definition
// over a few million scores on one thread.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "attentile/c_api.h"

namespace {

constexpr int64_t kKeys = 2048, kDim = 64;

attentile_tensor tokens(float* data, int64_t rows) {
  attentile_tensor t = ATTENTILE_TENSOR_INIT;
  t.data = data;
  t.rank = 4;
  t.shape[0] = t.shape[2] = t.stride[3] = 1;
  t.shape[1] = rows;
  t.shape[3] = t.stride[0] = t.stride[1] = t.stride[2] = kDim;
  return t;
}

int32_t run_long_call(int64_t rows, int (*poll)(void*, double), void* poll_data) {
  std::vector<float> q_data(static_cast<size_t>(rows * kDim), 0.5f);
  std::vector<float> k_data(static_cast<size_t>(kKeys * kDim), 0.25f);
  std::vector<float> out_data(q_data.size());
  const attentile_tensor q = tokens(q_data.data(), rows);
  const attentile_tensor k = tokens(k_data.data(), kKeys);
  const attentile_tensor out = tokens(out_data.data(), rows);
  attentile_attention_inputs inputs = ATTENTILE_INPUTS_INIT;
  inputs.q = &q;
  inputs.k = inputs.v = &k;
  attentile_attention_outputs outputs = ATTENTILE_OUTPUTS_INIT;
  outputs.out = &out;
  attentile_options options = ATTENTILE_OPTIONS_INIT;
  options.algorithm = ATTENTILE_REFERENCE;
  attentile_context context = ATTENTILE_CONTEXT_INIT;
  context.num_threads = 1;
  context.poll = poll;
  context.poll_data = poll_data;
  return attentile_attention_forward(&inputs, &outputs, &options, &context);
}

struct Polls {
  int count = 0;
  double fraction = -1;
};

TEST(CApiPoll, StopsTheCallAndGetsItsData) {
  Polls polls;
  const auto stop = [](void* data, double fraction) {
    Polls* seen = static_cast<Polls*>(data);
    ++seen->count;
    seen->fraction = fraction;
    return 1;
  };
  EXPECT_EQ(run_long_call(2048, stop, &polls), ATTENTILE_CANCELLED);
  EXPECT_EQ(polls.count, 1);
  EXPECT_GE(polls.fraction, 0);
  EXPECT_LT(polls.fraction, 1);
  EXPECT_EQ(std::string(attentile_last_error()).rfind("poll: returned 1, so", 0), 0u)
      << attentile_last_error();
}

// A poll that makes a call of its own, one that fails: the outer call succeeds, and so says
// attentile_last_error.
TEST(CApiPoll, AFailedCallInsideLeavesNoError) {
  Polls polls;
  const auto fail_inside = [](void* data, double) {
    ++static_cast<Polls*>(data)->count;
    EXPECT_EQ(attentile_attention_forward(nullptr, nullptr, nullptr, nullptr),
              ATTENTILE_INVALID_ARGUMENT);
    EXPECT_STRNE(attentile_last_error(), "");
    return 0;
  };
  EXPECT_EQ(run_long_call(1024, fail_inside, &polls), ATTENTILE_OK);
  EXPECT_GE(polls.count, 1);
  EXPECT_STREQ(attentile_last_error(), "");
}

}  // namespace

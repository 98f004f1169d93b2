// SPDX-License-Identifier: Apache-2.0
// Calls without a single row to compute succeed on every target, however large their other sizes:
// what is empty stays so, what is not becomes 0.
#include "conformance/call_testing.h"

namespace attentile::property {
namespace {

using conformance::base_case;
using conformance::Case;
using conformance::for_each_target;
using conformance::Results;
using conformance::Target;
using conformance::Values;

struct EmptyCall {
  TensorView q, k, v, out;
};

void expect_success(const EmptyCall& call, const Target& target, bool backward) {
  AttentionInputs inputs;
  inputs.q = call.q;
  inputs.k = call.k;
  inputs.v = call.v;
  AttentionOutputs outputs;
  outputs.out = call.out;
  AttentionOptions options;
  options.algorithm = target.algorithm;
  options.isa = target.isa;
  Traffic traffic = {1, 1};
  ExecutionContext context;
  context.num_threads = 2;
  context.traffic = &traffic;
  const Result<Plan> plan = plan_forward(inputs, outputs, options, context);
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  EXPECT_EQ(plan->workspace_bytes, 0);
  EXPECT_EQ(plan->visible_pairs, 0);
  Status status = attention_forward(inputs, outputs, options, context);
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(traffic.bytes_read + traffic.bytes_written, 0);
  if (!backward) return;
  outputs.lse = contiguous_view(nullptr, DType::kFloat32,
                                {call.q.shape[0], call.q.shape[2], call.q.shape[1]});
  AttentionGradients gradients;
  gradients.dout = call.out;
  gradients.dq = call.q;
  gradients.dk = call.k;
  gradients.dv = call.v;
  status = attention_backward(inputs, outputs, gradients, options, context);
  EXPECT_TRUE(status.ok()) << status.message();
  const Result<Plan> back = plan_backward(inputs, outputs, gradients, options, context);
  ASSERT_TRUE(back.ok()) << back.status().message();
  EXPECT_EQ(back->workspace_bytes, 0);
}

TEST(EmptyCalls, OfABatchThatNoArrayCouldHold) {
  for (const int power : {60, 61}) {
    EmptyCall call;
    call.q = contiguous_view(nullptr, DType::kFloat16, {int64_t{1} << power, 0, 0, 1});
    call.k = call.v = call.out = call.q;
    // 2^61 lse of the backward pass are more than are served.
    for_each_target([&](const Target& target) { expect_success(call, target, power == 60); });
  }
}

TEST(EmptyCalls, WithoutQueriesOrWithoutHeads) {
  const int64_t batch = int64_t{1} << 33;
  EmptyCall no_queries;  // keys there are, all of them the same
  float key[8] = {};
  no_queries.q = contiguous_view(nullptr, DType::kFloat32, {batch, 0, 4, 8});
  no_queries.out = no_queries.q;
  no_queries.k = contiguous_view(key, DType::kFloat32, {batch, 5, 2, 8});
  for (int axis = 0; axis < 3; ++axis) no_queries.k.stride[axis] = 0;
  no_queries.v = no_queries.k;
  EmptyCall no_heads;
  no_heads.q = contiguous_view(nullptr, DType::kFloat32, {batch, 3, 0, 8});
  no_heads.k = contiguous_view(nullptr, DType::kFloat32, {batch, 5, 0, 8});
  no_heads.v = no_heads.k;
  no_heads.out = no_heads.q;
  for_each_target([&](const Target& target) {
    expect_success(no_queries, target, false);
    expect_success(no_heads, target, true);
  });
}

bool all_zero_bits(const testing::DenseTensor& tensor) {
  for (char byte : tensor.bytes) {
    if (byte != 0) return false;
  }
  return true;
}

// Whatever is written about is 0 afterwards, in every layout.
void expect_zeros(const Case& c, const Target& target) {
  const Values values = conformance::make_values(c);
  const Results results = conformance::run_call(c, values, target);
  for (const testing::DenseTensor* tensor :
       {&results.dk, &results.dv, &results.dbias, &results.dsink}) {
    EXPECT_TRUE(all_zero_bits(*tensor));
  }
}

TEST(EmptyCalls, WriteZerosWhereTheyAreNotEmpty) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat64}) {
    Case c = base_case(dtype);
    c.sink = c.dsink = c.dbias = true;
    c.bias = {.present = true, .dtype = dtype, .shape = {1, 1, 1, c.seqlen_k}};
    Case no_queries = c;
    no_queries.seqlen_q = 0;
    Case no_heads = c;
    no_heads.num_heads_q = 0;
    Case no_batch = c;
    no_batch.batch = 0;
    for_each_target([&](const Target& target) {
      expect_zeros(no_queries, target);
      expect_zeros(no_heads, target);
      expect_zeros(no_batch, target);
    });
  }
}

}  // namespace
}  // namespace attentile::property

// SPDX-License-Identifier: Apache-2.0
// Plans: what a backward plan counts, and the C struct against the C++ one, field by field.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <tuple>

#include "attentile/attention.h"
#include "attentile/c_api.h"
#include "cpu/backend.h"
#include "validate.h"

namespace attentile {
namespace {

constexpr int64_t kBatch = 2, kQueries = 96, kKeys = 160, kHeads = 4, kHeadsKv = 2;
constexpr int64_t kDim = 24, kDimV = 40;

// A call without data, as a plan takes it; head_dim_v is not head_dim.
struct PlannedCall {
  PlannedCall() {
    const auto tokens = [](int64_t rows, int64_t heads, int64_t columns) {
      return contiguous_view(nullptr, DType::kFloat32, {kBatch, rows, heads, columns});
    };
    inputs.q = tokens(kQueries, kHeads, kDim);
    inputs.k = tokens(kKeys, kHeadsKv, kDim);
    inputs.v = tokens(kKeys, kHeadsKv, kDimV);
    outputs.out = tokens(kQueries, kHeads, kDimV);
    outputs.lse = contiguous_view(nullptr, DType::kFloat32, {kBatch, kHeads, kQueries});
    gradients.dout = outputs.out;
    gradients.dq = inputs.q;
    gradients.dk = inputs.k;
    gradients.dv = inputs.v;
    options.causal = true;
    options.fast_memory_bytes = 16384;
    context.num_threads = 3;
  }
  Plan forward() const {
    const Result<Plan> plan = plan_forward(inputs, outputs, options, context);
    EXPECT_TRUE(plan.ok()) << plan.status().message();
    return plan.ok() ? *plan : Plan{};
  }
  Plan backward() const {
    const Result<Plan> plan = plan_backward(inputs, outputs, gradients, options, context);
    EXPECT_TRUE(plan.ok()) << plan.status().message();
    return plan.ok() ? *plan : Plan{};
  }

  AttentionInputs inputs;
  AttentionOutputs outputs;
  AttentionGradients gradients;
  AttentionOptions options;
  ExecutionContext context;
};

// bottom_right: query i sees keys 0 to i + kKeys - kQueries.
constexpr int64_t kPairs =
    kBatch * kHeads * (kQueries * (kKeys - kQueries) + kQueries * (kQueries + 1) / 2);

std::tuple<int64_t, int64_t> both(const Traffic& traffic) {
  return {traffic.bytes_read, traffic.bytes_written};
}

TEST(Plan, BackwardCounts) {
  for (Algorithm algorithm : {Algorithm::kFlash2, Algorithm::kFlash1, Algorithm::kStandard}) {
    SCOPED_TRACE(to_string(algorithm));
    PlannedCall call;
    call.options.algorithm = algorithm;
    const Plan forward = call.forward();
    const Plan backward = call.backward();
    EXPECT_FALSE(forward.backward);
    EXPECT_TRUE(backward.backward);
    EXPECT_EQ(forward.visible_pairs, kPairs);
    EXPECT_EQ(backward.visible_pairs, kPairs);
    EXPECT_DOUBLE_EQ(forward.flops, 2.0 * (kDim + kDimV) * kPairs);
    EXPECT_DOUBLE_EQ(backward.flops, 2.0 * (3 * kDim + 2 * kDimV) * kPairs);
    // The traffic of the forward pass, whichever pass is planned.
    EXPECT_EQ(both(backward.traffic_standard), both(forward.traffic_standard));
    EXPECT_EQ(both(backward.traffic_flash1), both(forward.traffic_flash1));
    EXPECT_EQ(both(backward.traffic_flash2), both(forward.traffic_flash2));
    EXPECT_GT(backward.traffic_standard.bytes_read, backward.traffic_flash1.bytes_read);
    EXPECT_GT(backward.traffic_flash1.bytes_read, backward.traffic_flash2.bytes_read);
    EXPECT_GE(backward.traffic_flash2.bytes_written, kBatch * kQueries * kHeads * kDimV * 4);
    EXPECT_EQ(backward.threads, 3);
    EXPECT_EQ(backward.fast_memory_bytes, 16384);
    EXPECT_GT(backward.workspace_bytes, 0);
    EXPECT_GT(backward.tile_m, 0);
    EXPECT_GT(backward.tile_n, 0);
  }
}

// All tasks of all phases, as the executor will be given them.
TEST(Plan, CountsTheTasksOfEveryPhase) {
  for (Algorithm algorithm : {Algorithm::kFlash2, Algorithm::kFlash1, Algorithm::kStandard}) {
    PlannedCall call;
    call.options.algorithm = algorithm;
    const Result<Problem> problem =
        validate_backward(call.inputs, call.outputs, call.gradients, call.options, Check::kPlan);
    ASSERT_TRUE(problem.ok());
    const Result<cpu::CpuPlan> cpu_plan = cpu::plan_call(*problem, call.context);
    ASSERT_TRUE(cpu_plan.ok());
    ASSERT_GE(cpu_plan->num_phases, 2);
    int64_t tasks = 0;
    for (int n = 0; n < cpu_plan->num_phases; ++n) tasks += cpu_plan->phases[n].num_tasks;
    EXPECT_EQ(call.backward().num_tasks, tasks) << to_string(algorithm);
  }
}

attentile_tensor to_c(const TensorView& view) {
  attentile_tensor t = ATTENTILE_TENSOR_INIT;
  t.data = view.data;
  t.dtype = static_cast<int32_t>(view.dtype);
  t.rank = view.rank;
  for (int axis = 0; axis < view.rank; ++axis) {
    t.shape[axis] = view.shape[axis];
    t.stride[axis] = view.stride[axis];
  }
  return t;
}

attentile_plan_info plan_in_c(const PlannedCall& call, bool backward) {
  const attentile_tensor q = to_c(call.inputs.q), k = to_c(call.inputs.k), v = to_c(call.inputs.v);
  const attentile_tensor out = to_c(call.outputs.out), lse = to_c(call.outputs.lse);
  attentile_attention_inputs inputs = ATTENTILE_INPUTS_INIT;
  inputs.q = &q;
  inputs.k = &k;
  inputs.v = &v;
  attentile_attention_outputs outputs = ATTENTILE_OUTPUTS_INIT;
  outputs.out = &out;
  outputs.lse = &lse;
  attentile_attention_gradients gradients = ATTENTILE_GRADIENTS_INIT;
  gradients.dout = &out;
  gradients.dq = &q;
  gradients.dk = &k;
  gradients.dv = &v;
  attentile_options options = ATTENTILE_OPTIONS_INIT;
  options.causal = 1;
  options.fast_memory_bytes = call.options.fast_memory_bytes;
  options.algorithm = static_cast<int32_t>(call.options.algorithm);
  attentile_context context = ATTENTILE_CONTEXT_INIT;
  context.num_threads = call.context.num_threads;
  attentile_plan_info plan = ATTENTILE_PLAN_INFO_INIT;
  EXPECT_EQ(
      attentile_plan(&inputs, &outputs, backward ? &gradients : nullptr, &options, &context, &plan),
      ATTENTILE_OK)
      << attentile_last_error();
  return plan;
}

TEST(Plan, InCEqualsThatOfCppFieldByField) {
  for (bool backward : {false, true}) {
    for (Algorithm algorithm :
         {Algorithm::kFlash2, Algorithm::kFlash1, Algorithm::kStandard, Algorithm::kReference}) {
      SCOPED_TRACE(to_string(algorithm));
      PlannedCall call;
      call.options.algorithm = algorithm;
      const Plan cpp = backward ? call.backward() : call.forward();
      const attentile_plan_info c = plan_in_c(call, backward);
      EXPECT_EQ(c.backward, backward ? 1 : 0);
      EXPECT_EQ(c.algorithm, static_cast<int32_t>(cpp.algorithm));
      EXPECT_EQ(c.isa, static_cast<int32_t>(cpp.isa));
      EXPECT_EQ(c.threads, cpp.threads);
      EXPECT_EQ(c.tile_m, cpp.tile_m);
      EXPECT_EQ(c.tile_n, cpp.tile_n);
      EXPECT_EQ(c.num_tasks, cpp.num_tasks);
      EXPECT_EQ(c.workspace_bytes, cpp.workspace_bytes);
      EXPECT_EQ(c.fast_memory_bytes, cpp.fast_memory_bytes);
      EXPECT_EQ(c.visible_pairs, cpp.visible_pairs);
      EXPECT_EQ(c.flops, cpp.flops);
      EXPECT_EQ(c.standard_bytes_read, cpp.traffic_standard.bytes_read);
      EXPECT_EQ(c.standard_bytes_written, cpp.traffic_standard.bytes_written);
      EXPECT_EQ(c.flash1_bytes_read, cpp.traffic_flash1.bytes_read);
      EXPECT_EQ(c.flash1_bytes_written, cpp.traffic_flash1.bytes_written);
      EXPECT_EQ(c.flash2_bytes_read, cpp.traffic_flash2.bytes_read);
      EXPECT_EQ(c.flash2_bytes_written, cpp.traffic_flash2.bytes_written);
      std::string notes;
      for (const std::string& note : cpp.notes) notes += note + "\n";
      EXPECT_EQ(c.notes, notes);
      EXPECT_EQ(c.device, ATTENTILE_CPU);
      EXPECT_STREQ(c.kernel, "");
    }
  }
}

}  // namespace
}  // namespace attentile

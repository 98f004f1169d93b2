// SPDX-License-Identifier: Apache-2.0
// A call that has come to its end is at 1: what a band or a block pattern hides counts as done.
#include "conformance/call_testing.h"
#include "cpu/backend.h"
#include "cpu/traffic.h"
#include "validate.h"

namespace attentile::property {
namespace {

using conformance::Case;
using conformance::Results;
using conformance::Target;
using conformance::Values;

// The fraction at which a problem ends.
double last_fraction(const Result<Problem>& problem) {
  EXPECT_TRUE(problem.ok()) << problem.status().message();
  if (!problem.ok()) return -1.0;
  ExecutionContext context;
  context.num_threads = 2;
  const Result<cpu::CpuPlan> plan = cpu::plan_call(*problem, context);
  EXPECT_TRUE(plan.ok()) << plan.status().message();
  if (!plan.ok()) return -1.0;
  cpu::Progress progress(context, cpu::count_work(*problem, *plan));
  const Status status = cpu::run(*problem, *plan, context, progress);
  EXPECT_TRUE(status.ok()) << status.message();
  return progress.fraction();
}

void expect_one(const Case& c, const Target& target) {
  const Values values = conformance::make_values(c);
  Results results = conformance::empty_results(c, values);
  AttentionOptions options = conformance::options_of(c);
  options.algorithm = target.algorithm;
  options.isa = target.isa;
  const AttentionInputs inputs = conformance::inputs_of(values);
  const AttentionOutputs outputs = conformance::outputs_of(results);
  const AttentionGradients gradients = conformance::gradients_of(values, results);
  EXPECT_EQ(last_fraction(validate_forward(inputs, outputs, options, Check::kCall)), 1.0)
      << "forward";
  EXPECT_EQ(last_fraction(validate_backward(inputs, outputs, gradients, options, Check::kCall)),
            1.0)
      << "backward";
}

TEST(Progress, EndsAtOne) {
  for (const Target& target : conformance::targets()) {
    if (target.algorithm == Algorithm::kReference) continue;
    SCOPED_TRACE(conformance::name_of(target));
    Case c = conformance::base_case(DType::kFloat32);
    c.seqlen_q = 300;
    c.seqlen_k = 270;
    expect_one(c, target);
    Case causal = c;
    causal.causal = true;
    expect_one(causal, target);
    Case window = c;
    window.window_left = 20;
    window.window_right = 70;
    expect_one(window, target);
    Case sparse = c;
    sparse.block_mask_heads = 4;
    sparse.block_size_q = 20;
    sparse.block_size_k = 48;
    SCOPED_TRACE("block pattern");
    expect_one(sparse, target);
    sparse.causal = true;
    expect_one(sparse, target);
  }
}

}  // namespace
}  // namespace attentile::property

// SPDX-License-Identifier: Apache-2.0
// Memory beyond inputs and outputs: told before the call, O(seqlen) for flash1 and flash2, and
// enough. (That a call with a workspace of exactly that size, full of NaN and fenced by guard
// pages, is right, every third C++ cell and every second C cell of the conformance table shows.)
// With ATTENTILE_FULL, 131,072 tokens forward and backward, spot-checked against the definition.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "conformance/call_testing.h"
#include "support/guarded_buffer.h"
#include "support/random.h"

namespace attentile::property {
namespace {

using conformance::Case;
using conformance::for_each_target;
using conformance::Results;
using conformance::Target;
using conformance::Values;
using testing::DenseTensor;
using testing::GuardedBuffer;

struct Planned {
  int64_t forward = 0;
  int64_t backward = 0;
};

// Data pointers are not needed to plan.
Planned plan_bytes(int64_t n, int64_t d, const Target& target, int64_t fast_memory_bytes = 65536,
                   int num_threads = 2) {
  AttentionInputs inputs;
  inputs.q = inputs.k = inputs.v = contiguous_view(nullptr, DType::kFloat32, {1, n, 1, d});
  AttentionOutputs outputs;
  outputs.out = inputs.q;
  outputs.lse = contiguous_view(nullptr, DType::kFloat32, {1, 1, n});
  AttentionGradients gradients;
  gradients.dout = gradients.dq = gradients.dk = gradients.dv = inputs.q;
  AttentionOptions options;
  options.algorithm = target.algorithm;
  options.isa = target.isa;
  options.fast_memory_bytes = fast_memory_bytes;
  ExecutionContext context;
  context.num_threads = num_threads;
  const Result<Plan> forward = plan_forward(inputs, outputs, options, context);
  const Result<Plan> backward = plan_backward(inputs, outputs, gradients, options, context);
  EXPECT_TRUE(forward.ok()) << forward.status().message();
  EXPECT_TRUE(backward.ok()) << backward.status().message();
  if (!forward.ok() || !backward.ok()) return {};
  return {forward->workspace_bytes, backward->workspace_bytes};
}

TEST(Workspace, GrowsLinearly) {
  for_each_target([&](const Target& target) {
    if (target.algorithm == Algorithm::kStandard || target.algorithm == Algorithm::kReference)
      return;
    const Planned small = plan_bytes(16384, 64, target);
    const Planned large = plan_bytes(131072, 64, target);
    const Planned huge = plan_bytes(1048576, 64, target);
    for (const auto& [a, b, c] : {std::tuple{small.forward, large.forward, huge.forward},
                                  std::tuple{small.backward, large.backward, huge.backward}}) {
      EXPECT_LE(b, 8 * a + (1 << 20));
      EXPECT_LE(c, 8 * b + (1 << 20));
      // Less than the inputs: three arrays of N x d floats.
      EXPECT_LE(c, int64_t{3} * 1048576 * 64 * 4);
    }
  });
}

// However large flash1's tile of keys, its scores are computed a short step at a time: beside it
// are O, m and l, backward dK, dV and dQ.
TEST(Workspace, OfFlash1HoldsATileOfKeysButNotOfScores) {
  constexpr int64_t kLength = 65536;
  constexpr int64_t kDim = 64;
  const auto arrays = [](int64_t columns) { return columns * kLength * 4; };
  for_each_target([&](const Target& target) {
    if (target.algorithm != Algorithm::kFlash1) return;
    const Planned planned = plan_bytes(kLength, kDim, target, int64_t{1} << 30, 1);
    // The matrix unit takes float32 in 6 bytes: K and V^T; backward K, V and K^T.
    const int64_t packed = target.isa == Isa::kAmx ? arrays(kDim) * 6 / 4 : 0;
    EXPECT_LE(planned.forward, arrays(2 * kDim) + arrays(kDim + 2) + 2 * packed + (1 << 20));
    EXPECT_LE(planned.backward, arrays(4 * kDim) + arrays(kDim + 3) + 3 * packed + (1 << 20));
  });
}

TEST(Workspace, OneByteTooSmallIsRefusedAndNothingIsWritten) {
  const Case c = conformance::base_case(DType::kFloat32);
  const Values values = conformance::make_values(c);
  for_each_target([&](const Target& target) {
    if (target.algorithm == Algorithm::kReference) return;
    Results results = conformance::empty_results(c, values);
    results.out.fill(42.0);
    const AttentionInputs inputs = conformance::inputs_of(values);
    const AttentionOutputs outputs = conformance::outputs_of(results);
    AttentionOptions options = conformance::options_of(c);
    options.algorithm = target.algorithm;
    options.isa = target.isa;
    ExecutionContext context;
    context.num_threads = 2;
    const Result<Plan> plan = plan_forward(inputs, outputs, options, context);
    ASSERT_TRUE(plan.ok()) << plan.status().message();
    GuardedBuffer workspace(plan->workspace_bytes);
    context.workspace = workspace.data();
    context.workspace_bytes = plan->workspace_bytes - 1;
    Status status = attention_forward(inputs, outputs, options, context);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status.message();
    for (int64_t i = 0; i < results.out.count(); ++i) ASSERT_EQ(results.out.get(i), 42.0);
    context.workspace_bytes = plan->workspace_bytes;
    status = attention_forward(inputs, outputs, options, context);
    EXPECT_TRUE(status.ok()) << status.message();
  });
}

TEST(Workspace, AnyAlignmentIsServed) {
  const Case c = conformance::base_case(DType::kFloat64);
  const Values values = conformance::make_values(c);
  for_each_target([&](const Target& target) {
    AttentionOptions options = conformance::options_of(c);
    options.algorithm = target.algorithm;
    options.isa = target.isa;
    ExecutionContext context;
    context.num_threads = 2;
    Results expected;
    for (int64_t shift : {0, 1, 7, 32, 63}) {
      Results results = conformance::empty_results(c, values);
      const AttentionInputs inputs = conformance::inputs_of(values);
      const AttentionOutputs outputs = conformance::outputs_of(results);
      const Result<Plan> plan = plan_forward(inputs, outputs, options, context);
      ASSERT_TRUE(plan.ok());
      std::vector<char> memory(static_cast<size_t>(plan->workspace_bytes + 64),
                               static_cast<char>(0xFF));
      ExecutionContext with = context;
      with.workspace = memory.data() + shift;
      with.workspace_bytes = plan->workspace_bytes;
      const Status status = attention_forward(inputs, outputs, options, with);
      ASSERT_TRUE(status.ok()) << status.message();
      if (shift == 0) {
        expected = results;
      } else {
        EXPECT_EQ(expected.out.bytes, results.out.bytes) << shift;
      }
    }
  });
}

// --- 131,072 tokens ------------------------------------------------------------------------------

struct LongRun {
  static constexpr int64_t kLength = 131072;
  static constexpr int64_t kDim = 32;
  DenseTensor q{DType::kFloat32, {1, kLength, 1, kDim}}, k = q, v = q, dout = q;
  DenseTensor out = q, dq = q, dk = q, dv = q;
  DenseTensor lse{DType::kFloat32, {1, 1, kLength}};

  double dot(const DenseTensor& a, int64_t i, const DenseTensor& b, int64_t j) const {
    double sum = 0.0;
    for (int64_t d = 0; d < kDim; ++d) sum += a.get(i * kDim + d) * b.get(j * kDim + d);
    return sum;
  }
};

void expect_query(const LongRun& run, int64_t i) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(LongRun::kDim));
  std::vector<double> weight(static_cast<size_t>(i + 1));
  double sum = 0.0;
  for (int64_t j = 0; j <= i; ++j) {
    weight[static_cast<size_t>(j)] = std::exp(scale * run.dot(run.q, i, run.k, j));
    sum += weight[static_cast<size_t>(j)];
  }
  EXPECT_NEAR(run.lse.get(i), std::log(sum), 1e-5) << i;
  const double delta = run.dot(run.dout, i, run.out, i);
  std::vector<double> out(LongRun::kDim), dq(LongRun::kDim);
  for (int64_t j = 0; j <= i; ++j) {
    const double p = weight[static_cast<size_t>(j)] / sum;
    const double ds = p * (run.dot(run.dout, i, run.v, j) - delta);
    for (int64_t d = 0; d < LongRun::kDim; ++d) {
      out[static_cast<size_t>(d)] += p * run.v.get(j * LongRun::kDim + d);
      dq[static_cast<size_t>(d)] += scale * ds * run.k.get(j * LongRun::kDim + d);
    }
  }
  for (int64_t d = 0; d < LongRun::kDim; ++d) {
    EXPECT_NEAR(run.out.get(i * LongRun::kDim + d), out[static_cast<size_t>(d)], 1e-5);
    EXPECT_NEAR(run.dq.get(i * LongRun::kDim + d), dq[static_cast<size_t>(d)], 1e-5);
  }
}

void expect_key(const LongRun& run, int64_t j) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(LongRun::kDim));
  std::vector<double> dk(LongRun::kDim), dv(LongRun::kDim);
  for (int64_t i = j; i < LongRun::kLength; ++i) {
    const double p = std::exp(scale * run.dot(run.q, i, run.k, j) - run.lse.get(i));
    const double ds = p * (run.dot(run.dout, i, run.v, j) - run.dot(run.dout, i, run.out, i));
    for (int64_t d = 0; d < LongRun::kDim; ++d) {
      dk[static_cast<size_t>(d)] += scale * ds * run.q.get(i * LongRun::kDim + d);
      dv[static_cast<size_t>(d)] += p * run.dout.get(i * LongRun::kDim + d);
    }
  }
  for (int64_t d = 0; d < LongRun::kDim; ++d) {
    EXPECT_NEAR(run.dk.get(j * LongRun::kDim + d), dk[static_cast<size_t>(d)], 2e-5) << j;
    EXPECT_NEAR(run.dv.get(j * LongRun::kDim + d), dv[static_cast<size_t>(d)], 2e-5) << j;
  }
}

TEST(Workspace, LongSequenceForwardAndBackward) {
  if (std::getenv("ATTENTILE_FULL") == nullptr) GTEST_SKIP() << "only with ATTENTILE_FULL";
  LongRun run;
  testing::Random random(31);
  for (DenseTensor* tensor : {&run.q, &run.k, &run.v, &run.dout}) {
    for (int64_t i = 0; i < tensor->count(); ++i) tensor->set(i, random.normal());
  }
  AttentionInputs inputs;
  inputs.q = run.q.view();
  inputs.k = run.k.view();
  inputs.v = run.v.view();
  AttentionOutputs outputs;
  outputs.out = run.out.view();
  outputs.lse = run.lse.view();
  AttentionGradients gradients;
  gradients.dout = run.dout.view();
  gradients.dq = run.dq.view();
  gradients.dk = run.dk.view();
  gradients.dv = run.dv.view();
  AttentionOptions options;
  options.causal = true;
  Status status = attention_forward(inputs, outputs, options);
  ASSERT_TRUE(status.ok()) << status.message();
  status = attention_backward(inputs, outputs, gradients, options);
  ASSERT_TRUE(status.ok()) << status.message();
  for (int64_t at : {int64_t{0}, int64_t{1}, int64_t{65535}, LongRun::kLength - 1}) {
    expect_query(run, at);
    expect_key(run, at);
  }
}

}  // namespace
}  // namespace attentile::property

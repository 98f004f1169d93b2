// SPDX-License-Identifier: Apache-2.0
// What algorithm reference takes from the machine: the memory that its plan tells, none that cannot
// be had, and no long stretch without a poll.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "attentile/attention.h"
#include "reference/passes.h"
#include "reference/random_problem.h"

namespace attentile::reference {
namespace {

constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

template <class... Lists>
int64_t bytes_of(const Lists&... lists) {
  return (0 + ... + static_cast<int64_t>(lists.capacity() * sizeof(lists[0])));
}

int64_t bytes_of_row(const AttentionRow<double>& row) {
  return bytes_of(row.k, row.v, row.finite_key, row.q, row.keys, row.tanh_term, row.weight,
                  row.kept, row.out, row.magnitude, row.out_condition);
}

ExecutionContext with_threads(int num_threads) {
  ExecutionContext context;
  context.num_threads = num_threads;
  return context;
}

TEST(Workspace, OfThePlanIsWhatIsAllocated) {
  TestProblem test({2, 200, 300, 4, 2, 24, 16});
  Random random(3);
  test.fill(&random);
  for (int num_threads : {1, 4}) {
    Problem p = test.problem;
    const ExecutionContext context = with_threads(num_threads);
    p.backward = false;
    const PassSettings settings;
    const ForwardJob<double> forward(p, settings, forward_workers(p, context));
    ASSERT_EQ(forward.rows.size(), static_cast<size_t>(num_threads));
    int64_t bytes = bytes_of(forward.first_task);
    for (const AttentionRow<double>& row : forward.rows) bytes += bytes_of_row(row);
    EXPECT_EQ(workspace_bytes(p, context), bytes) << num_threads;

    p.backward = true;
    const BackwardJob<double> plain(p, settings, backward_workers(p, context));
    ASSERT_EQ(plain.rows.size(), static_cast<size_t>(num_threads));
    bytes = bytes_of(plain.dsink, plain.dsink_condition);
    for (const GradientRow<double>& row : plain.rows) {
      bytes += bytes_of_row(row.row);
      bytes += bytes_of(row.dout, row.dq, row.dk, row.dv, row.ds, row.dq_condition,
                        row.dk_condition, row.dv_condition, row.ds_condition);
    }
    EXPECT_EQ(workspace_bytes(p, context), bytes) << num_threads;

    p.dsink.present = true;
    const BackwardJob<double> with_sink(p, settings, 1);
    bytes += bytes_of(with_sink.dsink, with_sink.dsink_condition);
    EXPECT_EQ(workspace_bytes(p, context), bytes) << num_threads;

    // Each thread has the planes of a group's heads, or one plane for all heads.
    for (int64_t heads : {4, 1}) {
      p.dbias.present = true;
      const int64_t shape[4] = {2, heads, 200, 300};
      for (int axis = 0; axis < 4; ++axis) p.dbias_shape[axis] = shape[axis];
      const int64_t planes = heads == 1 ? 1 : 2;
      EXPECT_EQ(workspace_bytes(p, context), bytes + num_threads * planes * 200 * 300 * 8);
    }
  }
}

TEST(Workspace, Saturates) {
  TestProblem test({1, 1, int64_t{1} << 58, 1, 1, 512, 512});
  const int64_t forward = workspace_bytes(test.problem, with_threads(4096));
  EXPECT_EQ(forward, kMax / 4);
  test.problem.dbias.present = true;
  const int64_t shape[4] = {1, 1, int64_t{1} << 40, int64_t{1} << 40};
  for (int axis = 0; axis < 4; ++axis) test.problem.dbias_shape[axis] = shape[axis];
  EXPECT_EQ(workspace_bytes(test.problem, with_threads(1)), kMax / 4);
}

// 2^51 keys in one place, which no list of decoded keys can hold.
TEST(Memory, KeysThatNoListHoldsAreOutOfMemory) {
  float element = 1;
  TensorView k = contiguous_view(&element, DType::kFloat32, {1, int64_t{1} << 51, 1, 512});
  for (int64_t& stride : k.stride) stride = 0;
  std::vector<float> rows(512, 0.5f);
  std::vector<float> out_rows(512, 0.5f);
  AttentionInputs inputs;
  inputs.q = contiguous_view(rows.data(), DType::kFloat32, {1, 1, 1, 512});
  inputs.k = inputs.v = k;
  AttentionOutputs outputs;
  outputs.out = contiguous_view(out_rows.data(), DType::kFloat32, {1, 1, 1, 512});
  AttentionOptions options;
  options.algorithm = Algorithm::kReference;
  const Status status = attention_forward(inputs, outputs, options);
  EXPECT_EQ(status.code(), StatusCode::kOutOfMemory);
  EXPECT_EQ(status.message(), "workspace: memory for algorithm reference could not be allocated");
  // Without queries nothing is decoded, so nothing is missing.
  inputs.q.shape[1] = outputs.out.shape[1] = 0;
  EXPECT_TRUE(attention_forward(inputs, outputs, options).ok());
}

TEST(Memory, GradientsThatNoListHoldsAreOutOfMemory) {
  TestProblem test({1, 1, int64_t{1} << 58, 1, 1, 512, 512});
  EXPECT_EQ(run_backward(test.problem, {}).code(), StatusCode::kOutOfMemory);
  ExactResult result;
  test.problem.max_seqlen_q = 0;
  test.problem.backward = false;
  EXPECT_TRUE(compute_exact(test.problem, {}, &result).ok());
}

// A poll that stops the call at once, or as soon as a number is written that was NaN.
struct Stopper {
  const double* written = nullptr;
  int calls = 0;
  double fraction = -1;

  ExecutionContext context() {
    ExecutionContext result = with_threads(1);
    result.poll_data = this;
    result.poll = [](void* data, double fraction) {
      Stopper* self = static_cast<Stopper*>(data);
      ++self->calls;
      self->fraction = fraction;
      return self->written == nullptr || !std::isnan(*self->written) ? 1 : 0;
    };
    return result;
  }
};

// dbias of 3072 x 3072 where no query sees a key: the rows cost nothing, the slab takes long.
struct HiddenBias : TestProblem {
  static constexpr int64_t kSide = 3072;

  HiddenBias() : TestProblem({1, kSide, kSide, 1, 1, 1, 1}) {
    Random random(1);
    fill(&random);
    problem.has_position_offset = true;
    problem.position_offset = -2 * kSide;
    problem.window_right = 0;
    problem.dbias = array4(row_ends.data(), DType::kFloat64, 0, 0, 1, 0);  // one cell per row
    problem.dbias_shape[0] = problem.dbias_shape[1] = 1;
    problem.dbias_shape[2] = problem.dbias_shape[3] = kSide;
    problem.dq = array4(gradients.data(), DType::kFloat64, kSide, 1, 1, 1);
    problem.dk = array4(gradients.data() + kSide, DType::kFloat64, kSide, 1, 1, 1);
    problem.dv = array4(gradients.data() + 2 * kSide, DType::kFloat64, kSide, 1, 1, 1);
  }

  std::vector<double> row_ends = std::vector<double>(kSide, NAN);
  std::vector<double> gradients = std::vector<double>(3 * kSide);
};

TEST(Poll, StopsStoringDbias) {
  HiddenBias test;
  Stopper stopper{.written = test.row_ends.data()};
  EXPECT_EQ(run_backward(test.problem, stopper.context()).code(), StatusCode::kCancelled);
  EXPECT_TRUE(std::isnan(test.row_ends.back()));  // the last row was not reached
  EXPECT_TRUE(run_backward(test.problem, with_threads(1)).ok());
  EXPECT_EQ(test.row_ends.back(), 0);
}

// Rows without a key do little each, but there may be many.
TEST(Poll, StopsBetweenRowsWithoutKeys) {
  constexpr int64_t kRows = 1 << 16, kDim = 256;
  TestProblem test({1, kRows, 0, 1, 1, kDim, 1});
  std::vector<double> row(kDim);
  Problem& p = test.problem;
  p.q = p.k = p.v = p.dout = p.dq = p.dk = p.dv = array4(row.data(), DType::kFloat64, 0, 0, 0, 1);
  Stopper stopper;
  EXPECT_EQ(run_backward(p, stopper.context()).code(), StatusCode::kCancelled);
  EXPECT_LT(stopper.fraction, 1);
}

// Without a KV head no task runs, and dbias is cleared by the caller's thread.
TEST(Poll, StopsClearingDbiasOfNothing) {
  HiddenBias test;
  test.problem.num_heads_q = test.problem.num_heads_kv = test.problem.group_size = 0;
  Stopper stopper;
  EXPECT_EQ(run_backward(test.problem, stopper.context()).code(), StatusCode::kCancelled);
  EXPECT_TRUE(std::isnan(test.row_ends.back()));
}

TEST(Poll, StopsClearingALongList) {
  Stopper stopper;
  const ExecutionContext context = stopper.context();
  cpu::Progress progress(context, 1);
  DenseBias<double> slab;
  const int64_t shape[4] = {1, 1, 2048, 2048};
  slab.resize({1, 1, 2, 3}, 1, true, {&progress, 0});
  EXPECT_EQ(std::vector<double>(slab.value.begin(), slab.value.end()), std::vector<double>(6, 0.0));
  EXPECT_EQ(slab.condition.size(), 6u);
  bool cleared = true;
  for (int n = 0; n < 100000 && cleared; ++n) {  // 32 MiB each time
    cleared = slab.resize(shape, 1, false, {&progress, 0});
  }
  EXPECT_FALSE(cleared);
  EXPECT_EQ(stopper.calls, 1);
}

}  // namespace
}  // namespace attentile::reference

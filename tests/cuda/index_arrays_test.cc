// SPDX-License-Identifier: Apache-2.0
// Nobody checks index arrays in device memory: whatever they hold, no access of any kernel leaves
// its tensor, and every launch ends.
#include <algorithm>

#include "conformance/call.h"
#include "conformance/call_testing.h"
#include "cuda/backward_entry.h"
#include "cuda/emulator/backward.h"
#include "cuda/emulator/forward.h"
#include "cuda/emulator_entry.h"
#include "cuda/make_params.h"
#include "cuda/support.h"
#include "validate.h"

namespace attentile::cuda::test {
namespace {

using conformance::Case;
using conformance::PlacedCall;
using conformance::Values;

constexpr TensorView AttentionInputs::* kArrays[] = {
    &AttentionInputs::cu_seqlens_q, &AttentionInputs::cu_seqlens_k,
    &AttentionInputs::seqused_k,    &AttentionInputs::block_table,
    &AttentionInputs::leftpad_k,    &AttentionInputs::cache_batch_idx};
constexpr int32_t kLies[] = {-5, 3, 1 << 30, -(1 << 30), 200};

Case small_case() {
  Case c = conformance::base_case(DType::kFloat16);
  c.batch = 3;
  c.num_heads_q = c.num_heads_kv = 1;
  c.seqlen_q = 20;
  c.seqlen_k = 90;
  c.head_dim = c.head_dim_v = 32;
  c.causal = true;
  return c;
}

// Queries and keys packed.
Case packed_case() {
  Case c = small_case();
  c.varlen = true;
  c.lengths_q = {20, 3, 11};
  c.lengths_k = {90, 70, 33};
  c.seqused_k = {80, 70, 20};
  return c;
}

// A cache in pages.
Case paged_case() {
  Case c = small_case();
  c.backward = false;
  c.varlen = true;
  c.lengths_q = {20, 3, 1};
  c.page_size = 16;
  c.max_pages = 6;
  c.num_pages = 20;
  for (int32_t i = 0; i < 18; ++i) c.block_table.push_back(19 - i);
  c.seqused_k = {90, 70, 33};
  return c;
}

// Rows of a cache, padded on the left.
Case cache_case() {
  Case c = small_case();
  c.backward = false;
  c.cache_rows = 4;
  c.cache_batch_idx = {3, 0, 2};
  c.seqused_k = {90, 70, 60};
  c.leftpad_k = {0, 5, 40};
  return c;
}

// launch() with every array of the call wrong in one element after another.
template <class Launch>
void lie_about_each(PlacedCall& call, Launch launch) {
  for (TensorView AttentionInputs::* const array : kArrays) {
    const TensorView& view = call.inputs().*array;
    if (view.data == nullptr) continue;
    auto* data = static_cast<int32_t*>(view.data);
    int64_t count = 1;
    for (int axis = 0; axis < view.rank; ++axis) count *= view.shape[axis];
    for (const int32_t lie : kLies) {
      for (const int64_t at : {int64_t{0}, int64_t{1}, count - 1}) {
        const int32_t truth = data[at];
        data[at] = lie;
        const Report report = launch();
        EXPECT_TRUE(report.completed) << lie << " at " << at;
        EXPECT_FALSE(report.has(Fault::kOutOfBounds)) << lie << " at " << at << report.text();
        data[at] = truth;
      }
    }
  }
}

TEST(Forward, LyingIndexArraysStayInside) {
  for (const Case& c : {packed_case(), paged_case(), cache_case()}) {
    const Values values = make_values(c);
    PlacedCall call(c, values, empty_results(c, values), 1);
    const Result<Problem> problem =
        validate_forward(call.inputs(), call.outputs(), options_of(c), Check::kCall);
    ASSERT_TRUE(problem.ok()) << problem.status().message();
    Device device;
    register_call(device, call.inputs(), call.outputs());
    for (const ChangeParams& change :
         {ChangeParams(one_head), ChangeParams(packed), split_by(64)}) {
      lie_about_each(call, [&] {
        ForwardParams params = make_forward_params(*problem);
        change(params);
        return emulator::run_forward(device, problem->dtype, params);
      });
    }
  }
}

TEST(Backward, LyingIndexArraysStayInside) {
  for (const bool atomic_dq : {false, true}) {
    const Case c = packed_case();
    const Values values = make_values(c);
    PlacedCall call(c, values, empty_results(c, values), 1);
    AttentionOptions options = options_of(c);
    options.atomic_dq = atomic_dq;
    ASSERT_TRUE(emulate_forward(call.inputs(), call.outputs(), options, {}).ok());
    const Result<Problem> problem =
        validate_backward(call.inputs(), call.outputs(), call.gradients(), options, Check::kCall);
    ASSERT_TRUE(problem.ok()) << problem.status().message();
    Device device;
    register_call(device, call.inputs(), call.outputs());
    for (TensorView AttentionGradients::* const array :
         {&AttentionGradients::dout, &AttentionGradients::dq, &AttentionGradients::dk,
          &AttentionGradients::dv}) {
      register_view(device, call.gradients().*array, {.name = "gradient"});
    }
    lie_about_each(call, [&] {
      Report report;
      static_cast<void>(emulator::run_backward(device, *problem, &report));
      return report;
    });
  }
}

}  // namespace
}  // namespace attentile::cuda::test

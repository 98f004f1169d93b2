// SPDX-License-Identifier: Apache-2.0
// What validation makes of calls that are right: the fields of Problem, and what is accepted at the
// edges.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "validate.h"
#include "validate/sample_call.h"

namespace attentile::test {
namespace {

constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
constexpr int64_t kMin = std::numeric_limits<int64_t>::min();

Result<Problem> validate(const SampleCall& call, Check check = Check::kCall) {
  return call.backward()
             ? validate_backward(call.cpp_inputs(), call.cpp_outputs(), call.cpp_gradients(),
                                 call.cpp_options(), check)
             : validate_forward(call.cpp_inputs(), call.cpp_outputs(), call.cpp_options(), check);
}

Problem problem_of(const SampleCall& call) {
  const Result<Problem> problem = validate(call);
  EXPECT_TRUE(problem.ok()) << problem.status().message();
  return problem.ok() ? *problem : Problem{};
}

void expect_strides(const Array4& array, int64_t a, int64_t b, int64_t c, int64_t d) {
  EXPECT_TRUE(array.present);
  EXPECT_EQ(array.stride[0], a);
  EXPECT_EQ(array.stride[1], b);
  EXPECT_EQ(array.stride[2], c);
  EXPECT_EQ(array.stride[3], d);
}

TEST(Problem, DenseForward) {
  SampleCall call(Base::kDense);
  const Problem p = problem_of(call);
  EXPECT_FALSE(p.backward);
  EXPECT_FALSE(p.varlen);
  EXPECT_FALSE(p.paged());
  EXPECT_EQ(p.dtype, DType::kFloat32);
  EXPECT_EQ(p.batch, 2);
  EXPECT_EQ(p.num_heads_q, 4);
  EXPECT_EQ(p.num_heads_kv, 2);
  EXPECT_EQ(p.group_size, 2);
  EXPECT_EQ(p.head_dim, 8);
  EXPECT_EQ(p.head_dim_v, 4);
  EXPECT_EQ(p.total_q, 6);
  EXPECT_EQ(p.total_k, 10);
  EXPECT_EQ(p.max_seqlen_q, 3);
  EXPECT_EQ(p.max_seqlen_k, 5);
  expect_strides(p.q, 96, 32, 8, 1);
  expect_strides(p.k, 80, 16, 8, 1);
  expect_strides(p.v, 40, 8, 4, 1);
  expect_strides(p.out, 48, 16, 4, 1);
  expect_strides(p.lse, 12, 3, 1, 0);
  EXPECT_EQ(p.q.data, call.q.data);
  EXPECT_FALSE(p.bias.present);
  EXPECT_FALSE(p.dq.present);
  EXPECT_DOUBLE_EQ(p.softmax_scale, 1 / std::sqrt(8.0));
  EXPECT_EQ(p.algorithm, Algorithm::kFlash2);
  EXPECT_EQ(p.isa, Isa::kAuto);
  EXPECT_EQ(p.window_left, kUnbounded);
  EXPECT_EQ(p.window_right, kUnbounded);
  EXPECT_FALSE(p.dropout.enabled);
  EXPECT_EQ(p.sequence(1).seqlen_k, 5);
  EXPECT_EQ(p.sequence(1).band.offset, 2);
}

TEST(Problem, PackedBackward) {
  SampleCall call(Base::kPackedBackward);
  for (const char* name : {"bias", "dbias", "sink", "dsink", "dlse", "seqused_k"}) call.give(name);
  const Problem p = problem_of(call);
  EXPECT_TRUE(p.backward);
  EXPECT_TRUE(p.varlen);
  EXPECT_EQ(p.batch, 2);
  EXPECT_EQ(p.total_q, 5);
  EXPECT_EQ(p.total_k, 7);
  EXPECT_EQ(p.max_seqlen_q, 3);
  EXPECT_EQ(p.max_seqlen_k, 4);
  expect_strides(p.q, 0, 32, 8, 1);
  expect_strides(p.dv, 0, 8, 4, 1);
  expect_strides(p.lse, 0, 5, 1, 0);
  expect_strides(p.dlse, 0, 5, 1, 0);
  expect_strides(p.dsink, 1, 0, 0, 0);
  EXPECT_EQ(p.sequence(1).row_q, 2);
  EXPECT_EQ(p.sequence(1).seqlen_q, 3);
  EXPECT_EQ(p.sequence(1).row_k, 4);
  EXPECT_EQ(p.sequence(1).seqlen_k, 2);
  EXPECT_EQ(p.sequence(1).seqlen_k_given, 3);
}

TEST(Problem, AtomicDq) {
  for (const Base base : {Base::kDense, Base::kPackedBackward}) {
    SampleCall call(base);
    EXPECT_FALSE(problem_of(call).atomic_dq);
    call.options.atomic_dq = 1;
    EXPECT_TRUE(problem_of(call).atomic_dq);
  }
}

TEST(Problem, PagedWithPackedQueries) {
  SampleCall call(Base::kPaged);
  call.q = call.make_tensor(ATTENTILE_FLOAT32, {5, 4, 8});
  call.out = call.make_tensor(ATTENTILE_FLOAT32, {5, 4, 4});
  call.lse = call.make_tensor(ATTENTILE_FLOAT32, {4, 5});
  call.give("cu_seqlens_q");
  call.give("leftpad_k");
  const Problem p = problem_of(call);
  EXPECT_TRUE(p.paged());
  EXPECT_EQ(p.page_size, 4);
  EXPECT_EQ(p.max_seqlen_k, 7);
  EXPECT_EQ(p.total_k, 10);
  EXPECT_EQ(p.block_table_stride[0], 2);
  EXPECT_EQ(p.sequence(0).seqlen_k, 6);
  EXPECT_EQ(p.key_row(p.k, p.sequence(0), 0, 1, 3),
            static_cast<const char*>(call.k.data) + (0 * 64 + 0 * 16 + 8) * 4);
}

// An entry that no used key needs may hold anything.
TEST(Problem, UnusedPagesAreNotLookedAt) {
  SampleCall call(Base::kPaged);
  call.integers(call.block_table)[3] = -2147483647;
  problem_of(call);
  call.integers(call.seqused_k)[0] = 4;
  call.integers(call.block_table)[1] = 99;
  problem_of(call);
}

TEST(Problem, CacheRowsAndMixedPacking) {
  SampleCall call(Base::kDense);
  call.k = call.make_tensor(ATTENTILE_FLOAT32, {3, 5, 2, 8});
  call.v = call.make_tensor(ATTENTILE_FLOAT32, {3, 5, 2, 4});
  call.cache_batch_idx = call.make_indices({2, 2});
  call.give("cache_batch_idx");
  EXPECT_EQ(problem_of(call).sequence(0).batch_k, 2);
  // Packed queries against keys with a batch axis.
  SampleCall mixed(Base::kPacked);
  mixed.inputs.cu_seqlens_k = nullptr;
  mixed.k = mixed.make_tensor(ATTENTILE_FLOAT32, {2, 6, 2, 8});
  mixed.v = mixed.make_tensor(ATTENTILE_FLOAT32, {2, 6, 2, 4});
  const Problem p = problem_of(mixed);
  EXPECT_TRUE(p.varlen);
  EXPECT_EQ(p.sequence(1).batch_k, 1);
  EXPECT_EQ(p.sequence(1).seqlen_k, 6);
  EXPECT_EQ(p.total_k, 12);
}

TEST(Problem, BiasAndMaskBroadcast) {
  SampleCall call(Base::kDenseBackward);
  call.bias = call.make_tensor(ATTENTILE_FLOAT32, {4, 1, 5});
  call.dbias = call.make_tensor(ATTENTILE_FLOAT32, {4, 1, 5});
  for (const char* name : {"bias", "dbias", "mask", "alibi_slopes", "block_mask"}) call.give(name);
  const Problem p = problem_of(call);
  expect_strides(p.bias, 0, 5, 0, 1);
  expect_strides(p.dbias, 0, 5, 0, 1);
  EXPECT_EQ(p.dbias_shape[0], 1);
  EXPECT_EQ(p.dbias_shape[1], 4);
  EXPECT_EQ(p.dbias_shape[2], 1);
  EXPECT_EQ(p.dbias_shape[3], 5);
  expect_strides(p.mask, 0, 0, 5, 1);
  expect_strides(p.alibi_slopes, 4, 1, 0, 0);
  expect_strides(p.block_mask, 6, 3, 1, 0);
  EXPECT_EQ(p.block_size_q, 2);

  SampleCall scalar(Base::kDense);
  scalar.bias = scalar.make_tensor(ATTENTILE_FLOAT32, {});
  scalar.mask = scalar.make_tensor(ATTENTILE_BOOL, {1});
  scalar.alibi_slopes = scalar.make_tensor(ATTENTILE_FLOAT32, {4});
  scalar.block_mask = scalar.make_tensor(ATTENTILE_UINT8, {1, 1, 1});
  scalar.options.block_size_q = scalar.options.block_size_k = kMax;
  for (const char* name : {"bias", "mask", "alibi_slopes", "block_mask"}) scalar.give(name);
  const Problem s = problem_of(scalar);
  expect_strides(s.bias, 0, 0, 0, 0);
  expect_strides(s.mask, 0, 0, 0, 0);
  expect_strides(s.alibi_slopes, 0, 1, 0, 0);
  expect_strides(s.block_mask, 0, 0, 0, 0);
  EXPECT_EQ(s.block_size_q, 3);  // a tile longer than the sequence is the sequence
  EXPECT_EQ(s.block_size_k, 5);
}

TEST(Problem, Options) {
  SampleCall call(Base::kDense);
  call.options.has_softmax_scale = 1;
  call.options.softmax_scale = 0.0;
  call.options.causal = 1;
  call.options.window_left = kMax;
  call.options.window_right = 7;
  call.options.has_position_offset = 1;
  call.options.position_offset = kMin;
  call.options.dropout_p = 1.0;
  call.options.head_base = 3;
  call.options.dropout_num_heads_q = 7;
  call.options.algorithm = ATTENTILE_REFERENCE;
  const Problem p = problem_of(call);
  EXPECT_EQ(p.softmax_scale, 0.0);
  EXPECT_EQ(p.window_left, kMax);
  EXPECT_EQ(p.window_right, 0);  // causal
  EXPECT_EQ(p.sequence(0).band.offset, kMin);
  EXPECT_EQ(p.sequence(0).band.hi(2), 0);
  EXPECT_EQ(p.dropout.threshold, 65536u);
  EXPECT_EQ(p.dropout.num_heads_q, 7);
  EXPECT_EQ(p.algorithm, Algorithm::kReference);
  call.options.causal = 0;
  call.options.position_offset = kMax;
  EXPECT_EQ(problem_of(call).sequence(0).band.lo(2), 2);
  EXPECT_EQ(problem_of(call).window_right, 7);
}

// Empty in every way, with hostile strides and pointers that are then never used.
TEST(Problem, EmptyCallsSucceed) {
  const auto make_empty = [](SampleCall& call, int axis,
                             const std::vector<attentile_tensor*>& all) {
    for (attentile_tensor* t : all) {
      t->shape[axis] = 0;
      t->data = nullptr;
      for (int64_t& stride : t->stride) stride = kMin;
    }
    (void)call;
  };
  SampleCall batch(Base::kDense);
  make_empty(batch, 0, {&batch.q, &batch.k, &batch.v, &batch.out, &batch.lse});
  expect_strides(problem_of(batch).q, 0, 0, 0, 0);
  SampleCall rows(Base::kDense);
  make_empty(rows, 1, {&rows.q, &rows.out});
  make_empty(rows, 2, {&rows.lse});
  EXPECT_EQ(problem_of(rows).max_seqlen_q, 0);
  SampleCall keys(Base::kDense);
  make_empty(keys, 1, {&keys.k, &keys.v});
  EXPECT_EQ(problem_of(keys).max_seqlen_k, 0);
  SampleCall heads(Base::kDense);
  make_empty(heads, 2, {&heads.q, &heads.k, &heads.v, &heads.out});
  make_empty(heads, 1, {&heads.lse});
  EXPECT_EQ(problem_of(heads).group_size, 0);
  SampleCall packed(Base::kPacked);
  packed.cu_seqlens_q = packed.make_indices({0});
  packed.cu_seqlens_k = packed.make_indices({0});
  make_empty(packed, 0, {&packed.q, &packed.k, &packed.v, &packed.out});
  make_empty(packed, 1, {&packed.lse});
  EXPECT_EQ(problem_of(packed).batch, 0);
  SampleCall pages(Base::kPaged);
  pages.integers(pages.seqused_k)[0] = pages.integers(pages.seqused_k)[1] = 0;
  make_empty(pages, 0, {&pages.k, &pages.v});
  make_empty(pages, 1, {&pages.block_table});
  pages.block_table.shape[1] = 0;
  EXPECT_EQ(problem_of(pages).max_seqlen_k, 0);
}

TEST(Problem, InputsMayHaveAnyStrides) {
  SampleCall call(Base::kDense);
  for (int64_t& stride : call.k.stride) stride = 0;
  call.v.data = static_cast<float*>(call.v.data) + 79;
  for (int64_t& stride : call.v.stride) stride = -stride;
  call.inputs.k = call.inputs.q;  // also k itself: the same memory twice
  call.inputs.k = &call.k;
  const Problem p = problem_of(call);
  expect_strides(p.k, 0, 0, 0, 0);
  expect_strides(p.v, -40, -8, -4, -1);
}

// dq, dk and dv interleaved in one buffer [batch, seqlen, 3, heads, dim], beside q, k and v.
TEST(Problem, PackedGradientsAreAccepted) {
  SampleCall call(Base::kDenseBackward);
  const attentile_tensor inputs = call.make_tensor(ATTENTILE_FLOAT32, {2, 5, 3, 32});
  const attentile_tensor gradients = call.make_tensor(ATTENTILE_FLOAT32, {2, 5, 3, 32});
  attentile_tensor* const parts[2][3] = {{&call.q, &call.k, &call.v},
                                         {&call.dq, &call.dk, &call.dv}};
  for (int group = 0; group < 2; ++group) {
    for (int which = 0; which < 3; ++which) {
      attentile_tensor& part = *parts[group][which];
      float* buffer = static_cast<float*>(group == 0 ? inputs.data : gradients.data);
      part = call.make_tensor(ATTENTILE_FLOAT32, {2, 5, 4, 8});
      part.data = buffer + which * 32;
      part.stride[0] = 5 * 96;
      part.stride[1] = 96;
    }
  }
  for (attentile_tensor* t : {&call.out, &call.dout}) {
    *t = call.make_tensor(ATTENTILE_FLOAT32, {2, 5, 4, 8});
  }
  call.lse = call.make_tensor(ATTENTILE_FLOAT32, {2, 4, 5});
  problem_of(call);
  // One row lower, dv is the next row's dk.
  call.dv.data = static_cast<float*>(call.dk.data) + 96;
  const Status status = validate(call).status();
  EXPECT_EQ(status.message(),
            "dv: data is 384 bytes past that of dk, but an output must not share memory with "
            "another");
}

TEST(Problem, PlansNeedNoData) {
  SampleCall call(Base::kPackedBackward);
  for (const SampleCall::Slot& slot : call.slots()) {
    if (slot.tensor != &call.cu_seqlens_q && slot.tensor != &call.cu_seqlens_k) {
      slot.tensor->data = nullptr;
    }
  }
  EXPECT_FALSE(validate(call).ok());
  const Result<Problem> problem = validate(call, Check::kPlan);
  ASSERT_TRUE(problem.ok()) << problem.status().message();
  EXPECT_EQ(problem->max_seqlen_k, 4);
}

TEST(Problem, KeepIsNotLookedAtInBackward) {
  SampleCall call(Base::kDenseBackward);
  call.give("keep");
  call.keep.dtype = 77;
  EXPECT_FALSE(problem_of(call).keep.present);
}

// A workspace may lie in the gaps of a strided tensor, and right beside one.
TEST(Problem, WorkspaceBetweenTheRowsOfATensor) {
  SampleCall call(Base::kDense);
  std::vector<float> wide(2 * 3 * 4 * 1024);
  call.q.data = wide.data();
  call.q.stride[2] = 1024;
  call.q.stride[1] = 4 * 1024;
  call.q.stride[0] = 3 * 4 * 1024;
  ASSERT_TRUE(validate(call).ok());
  ExecutionContext context;
  const auto check = [&](int64_t from, int64_t to) {
    context.workspace = wide.data() + from;
    context.workspace_bytes = (to - from) * 4;
    return validate_workspace(call.cpp_inputs(), call.cpp_outputs(), nullptr, context);
  };
  EXPECT_TRUE(check(8, 1024).ok());
  EXPECT_FALSE(check(7, 1024).ok());
  EXPECT_FALSE(check(8, 1025).ok());
  EXPECT_TRUE(check(23 * 1024 + 8, 24 * 1024).ok());
  context.workspace_bytes = 0;
  context.workspace = call.out.data;
  EXPECT_TRUE(validate_workspace(call.cpp_inputs(), call.cpp_outputs(), nullptr, context).ok());
}

// Sizes whose product no int64 holds: the helper computes no stride that it cannot, and the call
// refuses the view.
TEST(ContiguousView, StridesSaturate) {
  const int64_t n = int64_t{1} << 40;
  const TensorView view = contiguous_view(nullptr, DType::kFloat32, {4, n, n, 4});
  EXPECT_EQ(view.stride[3], 1);
  EXPECT_EQ(view.stride[2], 4);
  EXPECT_EQ(view.stride[1], 4 * n);
  EXPECT_EQ(view.stride[0], kMax);
  SampleCall call(Base::kDense);
  AttentionInputs inputs = call.cpp_inputs();
  inputs.q = view;
  const Status status =
      validate_forward(inputs, call.cpp_outputs(), call.cpp_options(), Check::kPlan).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(),
            "q: shape is [4, 1099511627776, 1099511627776, 4] of float32, but the elements must be "
            "fewer than 2^63 bytes");
  EXPECT_EQ(contiguous_view(nullptr, DType::kFloat32, {n, 0, n, n}).stride[0], kMax);
}

}  // namespace
}  // namespace attentile::test

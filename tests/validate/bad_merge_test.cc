// SPDX-License-Identifier: Apache-2.0
// Bad merges: two parts of a dense state, spoilt in one place, through C++ and C.
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "validate.h"
#include "validate/sample_call.h"

namespace attentile::test {
namespace {

// The tensors of a sample call, used as states.
struct SampleMerge : SampleCall {
  SampleMerge() : SampleCall(Base::kDense) {
    for (int i = 0; i < 2; ++i) {
      part_out[i] = make_tensor(ATTENTILE_FLOAT32, {2, 3, 4, 4});
      part_lse[i] = make_tensor(ATTENTILE_FLOAT32, {2, 4, 3});
      states[i].out = &part_out[i];
      states[i].lse = &part_lse[i];
    }
    result.out = &out;
    result.lse = &lse;
  }

  int32_t merge_c() const {
    const attentile_partial_state* const list[] = {&states[0], &states[1]};
    return attentile_merge(list, 2, &result, nullptr);
  }
  std::vector<PartialState> cpp_parts() const {
    return {{view_of(states[0].out), view_of(states[0].lse)},
            {view_of(states[1].out), view_of(states[1].lse)}};
  }
  PartialState cpp_result() const { return {view_of(result.out), view_of(result.lse)}; }

  attentile_tensor part_out[2], part_lse[2];
  attentile_partial_state states[2] = {ATTENTILE_PARTIAL_STATE_INIT, ATTENTILE_PARTIAL_STATE_INIT};
  attentile_partial_state result = ATTENTILE_PARTIAL_STATE_INIT;
};

struct BadMerge {
  std::string name;
  std::function<void(SampleMerge&)> spoil;
  std::string sentence;
};

void PrintTo(const BadMerge& bad, std::ostream* stream) {
  *stream << bad.name;
}

void* past(const attentile_tensor& t, int64_t bytes) {
  return static_cast<unsigned char*>(t.data) + bytes;
}

std::vector<BadMerge> bad_merges() {
  return {
      {"result_out_missing", [](SampleMerge& m) { m.result.out = nullptr; },
       "result.out: is missing, but it must be given"},
      {"result_lse_missing", [](SampleMerge& m) { m.result.lse = nullptr; },
       "result.lse: is missing, but it must be given"},
      {"result_out_null", [](SampleMerge& m) { m.out.data = nullptr; },
       "result.out: data is null, but shape [2, 3, 4, 4] has elements"},
      {"result_out_dtype", [](SampleMerge& m) { m.out.dtype = ATTENTILE_INT32; },
       "result.out: dtype is int32, but it must be float32, float16, bfloat16 or float64"},
      {"result_lse_dtype", [](SampleMerge& m) { m.lse.dtype = ATTENTILE_FLOAT16; },
       "result.lse: dtype is float16, but it must be float32"},
      {"result_out_rank", [](SampleMerge& m) { m.out.rank = 2; },
       "result.out: rank is 2, but it must be 4: [batch, seqlen_q, num_heads_q, head_dim_v], or 3: "
       "[total_q, num_heads_q, head_dim_v]"},
      {"result_lse_rank", [](SampleMerge& m) { m.lse.rank = 2; },
       "result.lse: rank is 2, but it must be 3: [batch, num_heads_q, seqlen_q]"},
      {"result_lse_of_packed", [](SampleMerge& m) { m.out.rank = 3; },
       "result.lse: rank is 3, but it must be 2: [num_heads_q, total_q]"},
      {"result_lse_shape", [](SampleMerge& m) { m.lse.shape[2] = 2; },
       "result.lse: seqlen_q is 2, but result.out has seqlen_q 3"},
      {"result_head_dim", [](SampleMerge& m) { m.out.shape[3] = 0; },
       "result.out: head_dim_v is 0, but it must be in [1, 512]"},
      {"result_head_dim_too_large", [](SampleMerge& m) { m.out.shape[3] = 513; },
       "result.out: head_dim_v is 513, but it must be in [1, 512]"},
      {"part_out_missing", [](SampleMerge& m) { m.states[0].out = nullptr; },
       "parts[0].out: is missing, but it must be given"},
      {"part_lse_missing", [](SampleMerge& m) { m.states[1].lse = nullptr; },
       "parts[1].lse: is missing, but it must be given"},
      {"part_out_dtype", [](SampleMerge& m) { m.part_out[1].dtype = ATTENTILE_FLOAT16; },
       "parts[1].out: dtype is float16, but result.out has dtype float32"},
      {"part_lse_dtype", [](SampleMerge& m) { m.part_lse[0].dtype = ATTENTILE_INT32; },
       "parts[0].lse: dtype is int32, but result.lse has dtype float32"},
      {"part_out_shape", [](SampleMerge& m) { m.part_out[0].shape[1] = 2; },
       "parts[0].out: shape is [2, 2, 4, 4], but result.out has shape [2, 3, 4, 4]"},
      {"part_lse_shape", [](SampleMerge& m) { m.part_lse[1].shape[0] = 1; },
       "parts[1].lse: shape is [1, 4, 3], but result.lse has shape [2, 4, 3]"},
      {"part_rank", [](SampleMerge& m) { m.part_out[0].rank = 9; },
       "parts[0].out: rank is 9, but it must be in [0, 4]"},
      {"part_misaligned", [](SampleMerge& m) { m.part_lse[0].data = past(m.part_lse[0], 1); },
       "parts[0].lse: data is 1 bytes past a multiple of 4, but float32 must be aligned to 4 "
       "bytes"},
      {"result_in_part", [](SampleMerge& m) { m.out.data = past(m.part_out[1], 4); },
       "result.out: data is 4 bytes past that of parts[1].out, but an output must not share memory "
       "with an input"},
      {"result_is_part_transposed",
       [](SampleMerge& m) {
         m.out.data = m.part_out[0].data;
         m.out.stride[1] = 4;
         m.out.stride[2] = 12;
       },
       "result.out: data is 0 bytes past that of parts[0].out, but an output must not share memory "
       "with an input"},
      {"result_lse_in_part_out", [](SampleMerge& m) { m.lse.data = m.part_out[0].data; },
       "result.lse: data is 0 bytes past that of parts[0].out, but an output must not share memory "
       "with an input"},
      {"result_out_in_part_lse", [](SampleMerge& m) { m.out.data = past(m.part_lse[1], -8); },
       "result.out: data is 8 bytes before that of parts[1].lse, but an output must not share "
       "memory with an input"},
      {"result_overlaps_itself", [](SampleMerge& m) { m.out.stride[0] = 0; },
       "result.out: strides are [0, 16, 4, 1] with shape [2, 3, 4, 4], but no two elements of an "
       "output may share memory"},
      {"result_lse_in_out", [](SampleMerge& m) { m.lse.data = past(m.out, 8); },
       "result.lse: data is 8 bytes past that of result.out, but an output must not share memory "
       "with another"},
  };
}

class BadMergeTest : public testing::TestWithParam<BadMerge> {};

TEST_P(BadMergeTest, IsRefusedWithItsSentence) {
  SampleMerge call;
  GetParam().spoil(call);
  const std::vector<unsigned char> before = call.arena;
  for (const Status& status : {validate_merge(call.cpp_parts(), call.cpp_result()),
                               merge(call.cpp_parts(), call.cpp_result())}) {
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message(), GetParam().sentence);
  }
  EXPECT_EQ(call.merge_c(), ATTENTILE_INVALID_ARGUMENT);
  EXPECT_STREQ(attentile_last_error(), GetParam().sentence.c_str());
  EXPECT_TRUE(call.arena == before) << "memory was written";
}

INSTANTIATE_TEST_SUITE_P(Table, BadMergeTest, testing::ValuesIn(bad_merges()),
                         [](const auto& tested) { return tested.param.name; });

TEST(ValidateMerge, AcceptsInPlacePackedAndNoParts) {
  SampleMerge call;
  EXPECT_EQ(call.merge_c(), ATTENTILE_OK) << attentile_last_error();
  call.result = call.states[1];
  EXPECT_EQ(call.merge_c(), ATTENTILE_OK) << attentile_last_error();
  EXPECT_EQ(attentile_merge(nullptr, 0, &call.result, nullptr), ATTENTILE_OK);
  for (attentile_tensor* t : {&call.part_out[0], &call.part_out[1], &call.out}) {
    t->rank = 3;
    t->shape[0] = 6;
    t->stride[0] = 16;
    t->shape[1] = t->shape[2] = t->stride[1] = 4;
    t->stride[2] = 1;
  }
  for (attentile_tensor* t : {&call.part_lse[0], &call.part_lse[1], &call.lse}) {
    t->rank = 2;
    t->shape[0] = 4;
    t->shape[1] = t->stride[0] = 6;
    t->stride[1] = 1;
  }
  call.result.out = &call.out;
  call.result.lse = &call.lse;
  EXPECT_EQ(call.merge_c(), ATTENTILE_OK) << attentile_last_error();
}

// Strides of dimensions of size 1 say nothing about where the elements are.
TEST(ValidateMerge, AcceptsInPlaceWhateverTheStridesOfSizeOne) {
  SampleMerge call;
  for (attentile_tensor* t :
       {&call.part_out[0], &call.part_out[1], &call.part_lse[0], &call.part_lse[1]}) {
    t->shape[0] = 1;
  }
  call.out = call.part_out[0];
  call.lse = call.part_lse[0];
  call.out.stride[0] = 7;
  call.lse.stride[0] = -1;
  EXPECT_EQ(call.merge_c(), ATTENTILE_OK) << attentile_last_error();
}

TEST(ValidateMerge, BadStructs) {
  SampleMerge call;
  const attentile_partial_state* const list[] = {&call.states[0], nullptr};
  const auto expect = [&](int32_t code, const char* sentence) {
    EXPECT_EQ(code, ATTENTILE_INVALID_ARGUMENT);
    EXPECT_STREQ(attentile_last_error(), sentence);
  };
  expect(attentile_merge(list, 2, &call.result, nullptr),
         "parts[1]: is null, but it must be given");
  expect(attentile_merge(nullptr, 1, &call.result, nullptr), "parts: is null, but num_parts is 1");
  expect(attentile_merge(list, -1, &call.result, nullptr),
         "num_parts: is -1, but it must be in [0, 4294967296]");
  expect(attentile_merge(list, 1, nullptr, nullptr), "result: is null, but it must be given");
  call.states[0].struct_size = 8;
  expect(attentile_merge(list, 1, &call.result, nullptr),
         "parts[0]: struct_size is 8, but it must be in [24, 4096]");
}

}  // namespace
}  // namespace attentile::test

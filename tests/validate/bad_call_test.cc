// SPDX-License-Identifier: Apache-2.0
// Every bad call of the table, through validation, through the C++ functions and through the C ABI:
// the same code, the exact sentence, and not a byte written.
#include "validate/bad_call.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "validate.h"

namespace attentile::test {
namespace {

std::vector<BadCall> all_bad_calls() {
  std::vector<BadCall> all;
  for (auto* part : {bad_views, bad_tokens, bad_terms, bad_lengths, bad_options, bad_sharing,
                     bad_workspaces, bad_structs, two_mistakes}) {
    for (BadCall& bad : part()) all.push_back(std::move(bad));
  }
  return all;
}

Status validate(const SampleCall& call, Check check) {
  Executor executor;
  const Result<Problem> problem =
      call.backward()
          ? validate_backward(call.cpp_inputs(), call.cpp_outputs(), call.cpp_gradients(),
                              call.cpp_options(), check)
          : validate_forward(call.cpp_inputs(), call.cpp_outputs(), call.cpp_options(), check);
  if (!problem.ok()) return problem.status();
  const ExecutionContext context = call.cpp_context(&executor);
  const Status status = validate_context(context);
  if (!status.ok() || check == Check::kPlan) return status;
  const AttentionGradients gradients = call.cpp_gradients();
  return validate_workspace(call.cpp_inputs(), call.cpp_outputs(),
                            call.backward() ? &gradients : nullptr, context);
}

Status call_cpp(const SampleCall& call) {
  Executor executor;
  const ExecutionContext context = call.cpp_context(&executor);
  return call.backward() ? attention_backward(call.cpp_inputs(), call.cpp_outputs(),
                                              call.cpp_gradients(), call.cpp_options(), context)
                         : attention_forward(call.cpp_inputs(), call.cpp_outputs(),
                                             call.cpp_options(), context);
}

class BadCallTest : public testing::TestWithParam<BadCall> {};

TEST_P(BadCallTest, IsRefusedWithItsSentence) {
  const BadCall& bad = GetParam();
  SampleCall call(bad.base);
  bad.spoil(call);
  const std::vector<unsigned char> before = call.arena;
  if (bad.surface == Surface::kBoth) {
    for (const Status& status : {validate(call, Check::kCall), call_cpp(call)}) {
      EXPECT_EQ(static_cast<int32_t>(status.code()), bad.code);
      EXPECT_EQ(status.message(), bad.sentence);
    }
    // A plan looks at less, but what it finds is the same.
    const Status plan = validate(call, Check::kPlan);
    if (!plan.ok()) {
      EXPECT_EQ(plan.message(), bad.sentence);
    }
  }
  EXPECT_EQ(call.call_c(), bad.code);
  EXPECT_STREQ(attentile_last_error(), bad.sentence.c_str());
  EXPECT_TRUE(call.arena == before) << "memory was written";
}

INSTANTIATE_TEST_SUITE_P(Table, BadCallTest, testing::ValuesIn(all_bad_calls()),
                         [](const auto& tested) { return tested.param.name; });

TEST(BadCalls, AreManyAndNamedOnce) {
  std::set<std::string> names;
  const std::vector<BadCall> all = all_bad_calls();
  for (const BadCall& bad : all) EXPECT_TRUE(names.insert(bad.name).second) << bad.name;
  EXPECT_GE(all.size(), 500u);
}

// The sentences stay one line, without a trailing period.
TEST(BadCalls, SentencesFollowTheHouseStyle) {
  for (const BadCall& bad : all_bad_calls()) {
    EXPECT_EQ(bad.sentence.find('\n'), std::string::npos);
    EXPECT_NE(bad.sentence.back(), '.') << bad.sentence;
    EXPECT_NE(bad.sentence.find(": "), std::string::npos) << bad.sentence;
    EXPECT_NE(bad.sentence.find(", but "), std::string::npos) << bad.sentence;
  }
}

// Unspoilt, each base runs through both interfaces; so a case fails for its own reason.
TEST(BadCalls, BasesAreRight) {
  for (Base base :
       {Base::kDense, Base::kDenseBackward, Base::kPacked, Base::kPackedBackward, Base::kPaged}) {
    SampleCall call(base);
    EXPECT_TRUE(validate(call, Check::kPlan).ok());
    const Status status = call_cpp(call);
    EXPECT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(call.call_c(), ATTENTILE_OK) << attentile_last_error();
    EXPECT_STREQ(attentile_last_error(), "");
  }
}

}  // namespace
}  // namespace attentile::test

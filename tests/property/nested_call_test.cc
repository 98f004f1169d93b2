// SPDX-License-Identifier: Apache-2.0
// A poll may call the library again, on the very thread that is in the midst of a call. What state
// of the processor a call sets up (the tile registers of a matrix unit) is there when it goes on.
#include <gtest/gtest.h>

#include <vector>

#include "conformance/call_testing.h"
#include "support/dense_tensor.h"

namespace attentile::property {
namespace {

using conformance::for_each_target;
using conformance::Target;
using testing::DenseTensor;

struct Call {
  DenseTensor q, out;
  AttentionInputs inputs;
  AttentionOutputs outputs;
  AttentionOptions options;

  Call(int64_t seqlen, const Target& target)
      : q(DType::kBFloat16, {1, seqlen, 2, 64}), out(DType::kBFloat16, {1, seqlen, 2, 64}) {
    for (int64_t i = 0; i < q.count(); ++i) q.set(i, static_cast<double>(i % 5) - 2.0);
    inputs.q = inputs.k = inputs.v = q.view();
    outputs.out = out.view();
    options.algorithm = target.algorithm;
    options.isa = target.isa;
  }
};

struct Poll {
  Call* inner;
  int calls = 0;
  static int run(void* self, double) {
    Poll& poll = *static_cast<Poll*>(self);
    ++poll.calls;
    const Status status =
        attention_forward(poll.inner->inputs, poll.inner->outputs, poll.inner->options);
    EXPECT_TRUE(status.ok()) << status.message();
    return 0;
  }
};

TEST(NestedCall, FromAPollLeavesTheOuterCallAsItWas) {
  for_each_target([](const Target& target) {
    if (target.algorithm != Algorithm::kFlash2) return;
    const bool fast = target.isa == Isa::kAmx || target.isa == Isa::kAvx512;
    const int64_t seqlen = fast ? 8000 : 3000;  // long enough for a poll
    Call alone(seqlen, target), outer(seqlen, target), inner(16, target);
    ExecutionContext context;
    context.num_threads = 1;
    ASSERT_TRUE(attention_forward(alone.inputs, alone.outputs, alone.options, context).ok());
    Poll poll{&inner};
    context.poll = &Poll::run;
    context.poll_data = &poll;
    const Status status = attention_forward(outer.inputs, outer.outputs, outer.options, context);
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_GT(poll.calls, 0);
    for (int64_t i = 0; i < outer.out.count(); ++i) {
      ASSERT_EQ(outer.out.get(i), alone.out.get(i)) << i;
    }
  });
}

}  // namespace
}  // namespace attentile::property

// SPDX-License-Identifier: Apache-2.0
// Determinism (contract, section 5): the same bits from run to run, for any number of threads,
// strides, executor and rest of the batch, for heads among others, and for a sequence packed or
// alone.
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "conformance/call_testing.h"
#include "property/slices.h"

namespace attentile::property {
namespace {

using conformance::for_each_target;
using conformance::same_bits;
using conformance::Target;

constexpr int kCases = 16;
const DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64};

struct CallOptions {
  int num_threads = 1;
  uint64_t layout_seed = 1;
  conformance::Placement placement = conformance::Placement::kRandom;
  const Executor* executor = nullptr;
};

Results call(const Case& c, const Values& values, const Target& target, const CallOptions& how) {
  const Results shapes = conformance::empty_results(c, values);
  conformance::PlacedCall placed(c, values, shapes, how.layout_seed, how.placement);
  AttentionOptions options = conformance::options_of(c);
  options.algorithm = target.algorithm;
  options.isa = target.isa;
  ExecutionContext context;
  context.num_threads = how.num_threads;
  context.executor = how.executor;
  Status status = attention_forward(placed.inputs(), placed.outputs(), options, context);
  EXPECT_TRUE(status.ok()) << status.message();
  if (c.backward && status.ok()) {
    status =
        attention_backward(placed.inputs(), placed.outputs(), placed.gradients(), options, context);
    EXPECT_TRUE(status.ok()) << status.message();
  }
  EXPECT_EQ(placed.damage(), "");
  return placed.results();
}

// A thread per submitted task, joined at the end.
class ThreadPerTask {
 public:
  explicit ThreadPerTask(int num_threads) : executor_{this, num_threads, submit} {}
  ~ThreadPerTask() {
    for (std::thread& thread : threads_) thread.join();
  }
  const Executor* get() const { return &executor_; }

 private:
  static int submit(void* context, void (*task)(void*), void* argument) {
    auto* self = static_cast<ThreadPerTask*>(context);
    const std::lock_guard<std::mutex> lock(self->mutex_);
    self->threads_.emplace_back(task, argument);
    return 0;
  }
  std::mutex mutex_;
  std::vector<std::thread> threads_;
  Executor executor_;
};

// Never starts anything: the calling thread does all the work.
const Executor kRefusing = {nullptr, 8, [](void*, void (*)(void*), void*) { return 1; }};

class Bitwise : public ::testing::TestWithParam<int> {
 protected:
  // A case of this seed in a dtype that goes round; the last ones are of few queries.
  Case seeded_case() const {
    const int seed = GetParam();
    const bool few_queries = seed > kCases;
    return feature_case(static_cast<uint64_t>(seed), kDTypes[seed % (few_queries ? 3 : 4)],
                        few_queries);
  }
};

TEST_P(Bitwise, RunToRunThreadsLayoutsAndExecutors) {
  const Case c = seeded_case();
  SCOPED_TRACE(describe(c));
  const Values values = conformance::make_values(c);
  for_each_target([&](const Target& target) {
    const CallOptions plain{1, 1, conformance::Placement::kContiguous, nullptr};
    const Results expected = call(c, values, target, plain);
    EXPECT_TRUE(same_bits(expected, call(c, values, target, plain))) << "run to run";
    for (int threads : {2, 3, 4, 7, 16}) {
      EXPECT_TRUE(same_bits(expected, call(c, values, target, {.num_threads = threads})))
          << threads << " threads";
    }
    for (uint64_t layout = 2; layout < 6; ++layout) {
      EXPECT_TRUE(
          same_bits(expected, call(c, values, target, {.num_threads = 2, .layout_seed = layout})))
          << "layout " << layout;
    }
    ThreadPerTask own(5);
    EXPECT_TRUE(
        same_bits(expected, call(c, values, target, {.num_threads = 5, .executor = own.get()})))
        << "the caller's threads";
    EXPECT_TRUE(
        same_bits(expected, call(c, values, target, {.num_threads = 8, .executor = &kRefusing})))
        << "an executor that refuses";
  });
}

// Every block of keys adds its share of dq in its turn: with several blocks, and threads that have
// to wait, no share is lost and none comes early.
TEST(Bitwise, SharesOfDqAreAddedInTurn) {
  Case c = conformance::base_case(DType::kFloat32);
  c.batch = 1;
  c.seqlen_q = 40;
  c.seqlen_k = 1100;
  c.num_heads_q = c.num_heads_kv = 6;
  const Values values = conformance::make_values(c);
  for_each_target([&](const Target& target) {
    if (target.algorithm != Algorithm::kFlash2) return;
    const CallOptions plain{1, 1, conformance::Placement::kContiguous, nullptr};
    const Results expected = call(c, values, target, plain);
    for (int round = 0; round < 10; ++round) {
      for (int threads : {2, 3, 4, 8, 16}) {
        ASSERT_TRUE(same_bits(expected, call(c, values, target, {.num_threads = threads})))
            << threads << " threads, round " << round;
      }
    }
  });
}

TEST_P(Bitwise, BatchGrownAroundAnEntry) {
  const Case c = seeded_case();
  SCOPED_TRACE(describe(c));
  const Values values = conformance::make_values(c);
  for_each_target([&](const Target& target) {
    const Results whole = call(c, values, target, {.num_threads = 2});
    for (int64_t count : {1, 2}) {
      const Part part = batch_part(c, values, 1, count);
      Results expected = call(part.c, part.values, target, {.num_threads = 1});
      const Results got = batch_results(c, whole, 1, count);
      expected.dsink = {};
      EXPECT_TRUE(same_bits(expected, got)) << count << " entries";
    }
  });
}

TEST_P(Bitwise, HeadsAdded) {
  const Case c = seeded_case();
  SCOPED_TRACE(describe(c));
  const Values values = conformance::make_values(c);
  for_each_target([&](const Target& target) {
    const Results whole = call(c, values, target, {.num_threads = 3});
    for (int64_t head = 0; head < c.num_heads_kv; ++head) {
      const Part part = head_part(c, values, head, 1);
      const Results expected = call(part.c, part.values, target, {.num_threads = 1});
      EXPECT_TRUE(same_bits(expected, head_results(c, whole, head, 1))) << "head " << head;
    }
  });
}

TEST_P(Bitwise, PackedSequencesAndEachAlone) {
  Case c = seeded_case();
  c.varlen = true;
  c.lengths_q = {static_cast<int32_t>(c.seqlen_q), 0, 1,
                 static_cast<int32_t>((c.seqlen_q + 1) / 2)};
  c.lengths_k = {static_cast<int32_t>(c.seqlen_k), 17, static_cast<int32_t>(c.seqlen_k / 2), 0};
  for (size_t b = 0; b < c.seqused_k.size(); ++b) {
    c.seqused_k[b] = std::min(c.seqused_k[b], c.lengths_k[b]);
  }
  SCOPED_TRACE(describe(c));
  const Values values = conformance::make_values(c);
  for_each_target([&](const Target& target) {
    const Results whole = call(c, values, target, {.num_threads = 2});
    for (int64_t b = 0; b < c.batch; ++b) {
      const Part part = sequence_part(c, values, b);
      Results expected = call(part.c, part.values, target, {.num_threads = 1});
      expected.dsink = {};
      EXPECT_TRUE(same_bits(expected, sequence_results(c, whole, b))) << "sequence " << b;
    }
  });
}

// The backward pass cuts the keys of a long sequence into larger blocks, and those of a short one
// beside it as if it were alone.
TEST(Bitwise, ShortSequenceBesideALongOne) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    Case c = conformance::base_case(dtype);
    c.batch = 2;
    c.varlen = true;
    c.num_heads_q = c.num_heads_kv = 1;
    c.head_dim = c.head_dim_v = 16;
    c.lengths_q = {17, 40};
    c.lengths_k = {8200, 1100};
    c.seqlen_q = 40;
    c.seqlen_k = 8200;
    const Values values = conformance::make_values(c);
    for_each_target([&](const Target& target) {
      if (target.algorithm != Algorithm::kFlash2) return;
      const Results whole = call(c, values, target, {.num_threads = 2});
      for (int64_t b = 0; b < c.batch; ++b) {
        const Part part = sequence_part(c, values, b);
        const Results expected = call(part.c, part.values, target, {.num_threads = 1});
        EXPECT_TRUE(same_bits(expected, sequence_results(c, whole, b))) << "sequence " << b;
      }
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Property, Bitwise, ::testing::Range(1, kCases + 7));

TEST(Bitwise, PackedQkvViewsGiveTheBitsOfSeparateTensors) {
  Case c = conformance::base_case(DType::kFloat32);
  c.seqlen_k = c.seqlen_q;
  c.num_heads_kv = c.num_heads_q;
  c.head_dim_v = c.head_dim;
  c.causal = true;
  const Values values = conformance::make_values(c);
  // One buffer [batch, seqlen, 3, heads, head_dim] for q, k, v, one for dq, dk, dv.
  const int64_t rows = c.batch * c.seqlen_q;
  const int64_t width = c.num_heads_q * c.head_dim;
  std::vector<float> packed(static_cast<size_t>(rows * 3 * width));
  std::vector<float> gradients(packed.size());
  const DenseTensor* parts[3] = {&values.q, &values.k, &values.v};
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t n = 0; n < 3; ++n) {
      for (int64_t at = 0; at < width; ++at) {
        packed[static_cast<size_t>((row * 3 + n) * width + at)] =
            static_cast<float>(parts[n]->get(row * width + at));
      }
    }
  }
  const auto view = [&](std::vector<float>& buffer, int64_t n) {
    TensorView v = values.q.view();
    v.data = buffer.data() + n * width;
    v.stride[0] = c.seqlen_q * 3 * width;
    v.stride[1] = 3 * width;
    return v;
  };
  for_each_target([&](const Target& target) {
    const Results expected = call(c, values, target, {});
    Results slots = conformance::empty_results(c, values);
    AttentionInputs inputs = conformance::inputs_of(values);
    inputs.q = view(packed, 0);
    inputs.k = view(packed, 1);
    inputs.v = view(packed, 2);
    AttentionGradients grads = conformance::gradients_of(values, slots);
    grads.dq = view(gradients, 0);
    grads.dk = view(gradients, 1);
    grads.dv = view(gradients, 2);
    AttentionOptions options = conformance::options_of(c);
    options.algorithm = target.algorithm;
    options.isa = target.isa;
    const AttentionOutputs outputs = conformance::outputs_of(slots);
    ASSERT_TRUE(attention_forward(inputs, outputs, options).ok());
    const Status status = attention_backward(inputs, outputs, grads, options);
    ASSERT_TRUE(status.ok()) << status.message();
    DenseTensor* written[3] = {&slots.dq, &slots.dk, &slots.dv};
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t n = 0; n < 3; ++n) {
        for (int64_t at = 0; at < width; ++at) {
          written[n]->set(row * width + at,
                          gradients[static_cast<size_t>((row * 3 + n) * width + at)]);
        }
      }
    }
    EXPECT_TRUE(same_bits(expected, slots));
  });
}

}  // namespace
}  // namespace attentile::property

// SPDX-License-Identifier: Apache-2.0
// Whole calls through the public API while something fails: an allocation, a thread, the executor,
// the workspace, the caller's patience; around fork(), and from 64 threads at once. A call may
// report kOutOfMemory or kCancelled; when it says ok its results are the undisturbed ones, bit for
// bit; its inputs never change; the next call works; nothing is left allocated.
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "faults/attention_call.h"
#include "faults/injection.h"
#include "memory.h"
#include "support/guarded_buffer.h"
#include "validate.h"

namespace attentile::testing {
namespace {

struct Variant {
  Algorithm algorithm = Algorithm::kFlash2;
  DType dtype = DType::kFloat32;
};

// Every algorithm, and bfloat16 where the broadcast dbias needs memory of its own.
const std::vector<Variant>& variants() {
  static const std::vector<Variant> all = {{Algorithm::kReference, DType::kFloat32},
                                           {Algorithm::kStandard, DType::kBFloat16},
                                           {Algorithm::kFlash1, DType::kFloat32},
                                           {Algorithm::kFlash2, DType::kFloat64},
                                           {Algorithm::kFlash2, DType::kBFloat16}};
  return all;
}

std::string name_of(const Variant& variant) {
  return std::string(to_string(variant.algorithm)) + " " + to_string(variant.dtype);
}

// clang tells by a feature, gcc by a macro.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kAddressSanitizer = true;
#elif defined(__has_feature)
constexpr bool kAddressSanitizer = __has_feature(address_sanitizer);
#else
constexpr bool kAddressSanitizer = false;
#endif

// The results of an undisturbed run; empty when that fails.
std::string expected_results(const Variant& variant) {
  AttentionCall call(variant.algorithm, variant.dtype);
  const Status status = call.run();
  EXPECT_TRUE(status.ok()) << name_of(variant) << ": " << status.message();
  return status.ok() ? call.results() : std::string();
}

ExecutionContext with_threads(int num_threads) {
  ExecutionContext context;
  context.num_threads = num_threads;
  return context;
}

// Whether a disturbed call ended as it may, and its memory is as before.
void expect_sane(const Variant& variant, AttentionCall& call, const Status& status,
                 const std::string& inputs, const std::string& expected) {
  EXPECT_TRUE(status.ok() || status.code() == StatusCode::kOutOfMemory)
      << name_of(variant) << ": " << status.message();
  EXPECT_EQ(status.message().find('\n'), std::string::npos);
  EXPECT_TRUE(!status.ok() || call.results() == expected) << name_of(variant);
  EXPECT_TRUE(call.input_bytes() == inputs) << name_of(variant) << ": inputs were written";
}

// Helpers give back their last reference a moment after the call returned.
void expect_live_allocations(int64_t expected) {
  for (int wait = 0; wait < 2000 && internal::live_allocation_count() > expected; ++wait) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_LE(internal::live_allocation_count(), expected);
}

// --- memory --------------------------------------------------------------------------------------

TEST(AllocationFails, EachOneOfTheLibrarysHook) {
  for (const Variant& variant : variants()) {
    const std::string expected = expected_results(variant);
    for (const int threads : {1, 4}) {
      AttentionCall call(variant.algorithm, variant.dtype);
      const std::string inputs = call.input_bytes();
      const ExecutionContext context = with_threads(threads);
      ASSERT_TRUE(call.run(context).ok());  // the pool has its threads now
      const int64_t live = internal::live_allocation_count();
      const int64_t before = internal::allocation_count();
      ASSERT_TRUE(call.run(context).ok());
      const int64_t allocations = internal::allocation_count() - before;
      for (int64_t k = 0; k < allocations; ++k) {
        call.spoil_results();
        internal::fail_allocation_after(k);
        const Status status = call.run(context);
        internal::fail_allocation_after(-1);
        expect_sane(variant, call, status, inputs, expected);
      }
      const Status status = call.run(context);
      EXPECT_TRUE(status.ok()) << status.message();
      EXPECT_TRUE(call.results() == expected) << name_of(variant);
      expect_live_allocations(live);
    }
  }
}

TEST(AllocationFails, ValidationNeedsNone) {
  if (!can_fail_new()) GTEST_SKIP() << "this sanitizer's operator new cannot be replaced";
  AttentionCall call(Algorithm::kFlash2);
  const CallShape shape;
  const DenseTensor mask(DType::kUInt8, {shape.batch, 1, shape.seqlen_q, shape.seqlen_k});
  const DenseTensor slopes(DType::kFloat32, {shape.batch, shape.num_heads_q});
  const DenseTensor pattern(DType::kUInt8, {1, 7, 3});  // tiles of 10 x 32
  const DenseTensor used(DType::kInt32, {shape.batch});
  call.options.block_size_q = 10;
  call.options.block_size_k = 32;
  AttentionInputs inputs = call.inputs();
  inputs.mask = mask.view();
  inputs.alibi_slopes = slopes.view();
  inputs.block_mask = pattern.view();
  inputs.seqused_k = used.view();
  const AttentionOutputs outputs = call.outputs();
  const AttentionGradients gradients = call.gradients();
  Status forward, backward;
  bool needed = false;
  {
    const NewFailure failure(0);
    forward = validate_forward(inputs, outputs, call.options, Check::kCall).status();
    backward = validate_backward(inputs, outputs, gradients, call.options, Check::kCall).status();
    needed = NewFailure::happened();
  }
  EXPECT_FALSE(needed);
  EXPECT_TRUE(forward.ok()) << forward.message();
  EXPECT_TRUE(backward.ok()) << backward.message();
}

TEST(AllocationFails, EachOneOfOperatorNew) {
  if (!can_fail_new()) GTEST_SKIP() << "this sanitizer's operator new cannot be replaced";
  int64_t failures = 0;
  for (const Variant& variant : variants()) {
    const std::string expected = expected_results(variant);
    for (const int threads : {1, 4}) {
      AttentionCall call(variant.algorithm, variant.dtype);
      const std::string inputs = call.input_bytes();
      const ExecutionContext context = with_threads(threads);
      ASSERT_TRUE(call.run(context).ok());
      const int64_t live = live_new_count();
      bool happened = true;
      for (int64_t k = 0; happened; ++k) {
        ASSERT_LT(k, 100000) << "allocations grow with every call";
        call.spoil_results();
        Status status;
        {
          const NewFailure failure(k);
          status = call.run(context);
          happened = NewFailure::happened();
        }
        failures += happened ? 1 : 0;
        expect_sane(variant, call, status, inputs, expected);
        EXPECT_TRUE(happened || status.ok());
      }
      EXPECT_EQ(live_new_count(), live) << name_of(variant);
    }
  }
  RecordProperty("injected", std::to_string(failures));
}

TEST(AllocationFails, OfPlansMergesAndRefusals) {
  if (!can_fail_new()) GTEST_SKIP() << "this sanitizer's operator new cannot be replaced";
  AttentionCall call(Algorithm::kFlash2);
  ASSERT_TRUE(call.forward().ok());
  AttentionCall merged(Algorithm::kFlash2);
  const std::vector<PartialState> parts(3, {.out = call.out.view(), .lse = call.lse.view()});
  AttentionCall wrong(Algorithm::kFlash2);
  wrong.options.softcap = -1.0;
  bool happened = true;
  for (int64_t k = 0; happened; ++k) {
    ASSERT_LT(k, 100000);
    happened = false;
    for (const bool backward : {false, true}) {
      const NewFailure failure(k);
      const Result<Plan> plan = call.plan(backward);
      happened = happened || NewFailure::happened();
      ASSERT_TRUE(plan.ok() || plan.status().code() == StatusCode::kOutOfMemory);
    }
    {
      const NewFailure failure(k);
      const Status status =
          merge(parts, {.out = merged.out.view(), .lse = merged.lse.view()}, with_threads(4));
      happened = happened || NewFailure::happened();
      ASSERT_TRUE(status.ok() || status.code() == StatusCode::kOutOfMemory) << status.message();
    }
    {
      const NewFailure failure(k);
      const Status status = wrong.run();
      happened = happened || NewFailure::happened();
      ASSERT_TRUE(status.code() == StatusCode::kInvalidArgument ||
                  status.code() == StatusCode::kOutOfMemory);
    }
  }
}

// --- threads -------------------------------------------------------------------------------------

TEST(ThreadsFail, EachCreation) {
  for (const Variant& variant : variants()) {
    const std::string expected = expected_results(variant);
    for (int first = 0; first < 4; ++first) {
      for (const int count : {1, 1 << 20}) {
        const ChildResult child = run_in_child([&] {  // a child begins without a pool
          const ThreadFailure failure(first, count);
          AttentionCall call(variant.algorithm, variant.dtype);
          if (!call.run(with_threads(4)).ok()) return 1;
          return call.results() == expected ? 0 : 2;
        });
        EXPECT_TRUE(child.ended);
        EXPECT_EQ(child.exit_status, 0) << name_of(variant) << ", creation " << first;
      }
    }
  }
}

TEST(ThreadsFail, TheCallersExecutorRefuses) {
  Executor refusing;
  refusing.num_threads = 8;
  refusing.submit = [](void*, void (*)(void*), void*) { return 1; };
  ExecutionContext context;
  context.executor = &refusing;
  for (const Variant& variant : variants()) {
    AttentionCall call(variant.algorithm, variant.dtype);
    EXPECT_TRUE(call.run(context).ok());
    EXPECT_TRUE(call.results() == expected_results(variant)) << name_of(variant);
  }
}

TEST(ManyCallers, SixtyFourAtOnceGetTheSameBits) {
  for (const Variant& variant : variants()) {
    const std::string expected = expected_results(variant);
    std::atomic<int> right{0};
    std::vector<std::thread> callers;
    callers.reserve(64);
    for (int c = 0; c < 64; ++c) {
      callers.emplace_back([&, c] {
        AttentionCall call(variant.algorithm, variant.dtype);
        if (call.run(with_threads(1 + c % 8)).ok() && call.results() == expected)
          right.fetch_add(1);
      });
    }
    for (std::thread& caller : callers) caller.join();
    EXPECT_EQ(right, 64) << name_of(variant);
  }
}

// --- fork ----------------------------------------------------------------------------------------

TEST(Fork, BeforeAndAfterFirstUseAndWhileOthersCompute) {
  const Variant variant{Algorithm::kFlash2, DType::kFloat32};
  const std::string expected = expected_results(variant);  // serial or not, the pool may exist now
  const auto child_body = [&] {
    AttentionCall call(variant.algorithm, variant.dtype);
    return call.run(with_threads(4)).ok() && call.results() == expected ? 0 : 1;
  };
  for (int round = 0; round < 10; ++round) {
    const ChildResult child = run_in_child(child_body);
    ASSERT_TRUE(child.ended);
    ASSERT_EQ(child.exit_status, 0);
    ASSERT_EQ(child_body(), 0);
  }
  // A child of a process whose other threads were allocating has hung once under AddressSanitizer
  // alone; the rest of this test runs in every other build.
  if (kAddressSanitizer) return;
  std::atomic<bool> stop{false};
  std::atomic<bool> wrong{false};
  std::vector<std::thread> others;
  others.reserve(3);
  for (int i = 0; i < 3; ++i) {
    others.emplace_back([&] {
      while (!stop) {
        if (child_body() != 0) wrong = true;
      }
    });
  }
  for (int round = 0; round < 20; ++round) {
    const ChildResult child = run_in_child(child_body);
    EXPECT_TRUE(child.ended);
    EXPECT_EQ(child.exit_status, 0) << "round " << round;
  }
  stop = true;
  for (std::thread& other : others) other.join();
  EXPECT_FALSE(wrong);
}

// --- cancellation --------------------------------------------------------------------------------

struct CancelAt {
  int call = 1;
  int calls = 0;
  double last = 0.0;
  bool falls = false;
  ExecutionContext context(int num_threads) {
    ExecutionContext context = with_threads(num_threads);
    context.poll_data = this;
    context.poll = [](void* data, double fraction) {
      auto& self = *static_cast<CancelAt*>(data);
      self.falls = self.falls || fraction < self.last || !(fraction >= 0.0 && fraction <= 1.0);
      self.last = fraction;
      return ++self.calls == self.call ? 1 : 0;
    };
    return context;
  }
};

TEST(Cancel, MidwayInEitherPass) {
  // A second of work or more (standard, for its memory: some 100 ms), of which the first 10 ms to
  // 40 ms run.
  const CallShape large = {.batch = 1,
                           .seqlen_q = 4096,
                           .seqlen_k = 4096,
                           .num_heads_q = 8,
                           .num_heads_kv = 2,
                           .head_dim = 64,
                           .head_dim_v = 64};
  for (const Algorithm algorithm : kAlgorithms) {
    CallShape shape = large;
    if (algorithm == Algorithm::kStandard) shape.seqlen_q = shape.seqlen_k = 1024;
    AttentionCall call(algorithm, DType::kFloat32, shape);
    call.options.isa = Isa::kScalar;
    call.out.fill(0.5);  // any forward results will do for the backward pass
    call.lse.fill(20.0);
    const std::string inputs = call.input_bytes();
    for (const int threads : {1, 2, 4}) {
      for (const bool backward : {false, true}) {
        const int64_t live = internal::live_allocation_count();
        CancelAt cancel{.call = algorithm == Algorithm::kStandard ? 1 : threads};
        const ExecutionContext context = cancel.context(threads);
        const Status status = backward ? call.backward(context) : call.forward(context);
        EXPECT_EQ(status.code(), StatusCode::kCancelled)
            << to_string(algorithm) << (backward ? " backward, " : " forward, ") << threads
            << " threads: " << status.message();
        EXPECT_EQ(status.message().rfind("poll: ", 0), 0u) << status.message();
        EXPECT_EQ(cancel.calls, cancel.call);
        EXPECT_FALSE(cancel.falls);
        expect_live_allocations(live + (threads - 1));  // the pool may have grown
      }
    }
    EXPECT_TRUE(call.input_bytes() == inputs);
  }
}

// One head, so one task of flash1: only the kernel itself can notice that it should stop.
TEST(Cancel, InTheMiddleOfTheOnlyTask) {
  const CallShape one_head = {.batch = 1,
                              .seqlen_q = 2048,
                              .seqlen_k = 2048,
                              .num_heads_q = 1,
                              .num_heads_kv = 1,
                              .head_dim = 64,
                              .head_dim_v = 64};
  for (const bool backward : {false, true}) {
    AttentionCall call(Algorithm::kFlash1, DType::kFloat32, one_head);
    call.options.isa = Isa::kScalar;
    call.options.causal = false;
    call.options.fast_memory_bytes = 64 << 10;
    if (backward) call.out.fill(0.5);
    if (backward) call.lse.fill(20.0);
    const std::string before = call.results();
    CancelAt cancel{.call = 1};
    const ExecutionContext context = cancel.context(1);
    const Status status = backward ? call.backward(context) : call.forward(context);
    EXPECT_EQ(status.code(), StatusCode::kCancelled) << status.message();
    EXPECT_EQ(cancel.calls, 1);
    EXPECT_LT(cancel.last, 1.0) << "the head was computed to its end before anyone asked";
    // What is written last is not written: out and lse, or dq.
    if (!backward) {
      EXPECT_TRUE(call.results() == before);
    }
    if (backward) {
      EXPECT_EQ(call.dq.bytes.back(), '\x5a');
    }
  }
}

// --- workspace -----------------------------------------------------------------------------------

TEST(WorkspaceOfTheCaller, ExactlyEnoughAtAnyAlignmentAndNotAByteLess) {
  for (const Variant& variant : variants()) {
    AttentionCall call(variant.algorithm, variant.dtype);
    const std::string expected = expected_results(variant);
    for (const bool backward : {false, true}) {
      ExecutionContext context = with_threads(4);
      const Result<Plan> plan = call.plan(backward, context);
      ASSERT_TRUE(plan.ok()) << plan.status().message();
      const int64_t bytes = plan->workspace_bytes;
      const auto run = [&] { return backward ? call.backward(context) : call.forward(context); };
      for (const int64_t shift : {0, 1, 8, 63}) {
        // An unreadable page begins at the workspace's end.
        const GuardedBuffer memory(bytes + shift, GuardedBuffer::Flush::kAfter);
        ASSERT_TRUE(memory.valid());
        context.workspace = memory.data() + memory.size() - bytes;
        context.workspace_bytes = bytes;
        const Status status = run();
        EXPECT_TRUE(status.ok()) << name_of(variant) << ": " << status.message();
      }
      if (variant.algorithm == Algorithm::kReference) continue;  // its workspace is its own
      ASSERT_GT(bytes, 0);
      const std::string before = call.results();
      std::vector<char> small(static_cast<size_t>(bytes - 1));
      context.workspace = small.data();
      for (const int64_t given : {int64_t{0}, int64_t{1}, bytes / 2, bytes - 1}) {
        context.workspace_bytes = given;
        const Status status = run();
        EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << name_of(variant);
        EXPECT_EQ(status.message().rfind("workspace", 0), 0u) << status.message();
      }
      EXPECT_TRUE(call.results() == before) << name_of(variant) << ": a refused call wrote";
    }
    EXPECT_TRUE(call.results() == expected) << name_of(variant);
  }
}

TEST(WorkspaceOfTheCaller, TheCallThenAllocatesNothingLarge) {
  AttentionCall call(Algorithm::kFlash2);
  ExecutionContext context = with_threads(1);
  const Result<Plan> plan = call.plan(false, context);
  ASSERT_TRUE(plan.ok());
  std::vector<char> memory(static_cast<size_t>(plan->workspace_bytes));
  context.workspace = memory.data();
  context.workspace_bytes = plan->workspace_bytes;
  const int64_t before = internal::allocation_count();
  EXPECT_TRUE(call.forward(context).ok());
  EXPECT_EQ(internal::allocation_count(), before);
}

}  // namespace
}  // namespace attentile::testing

// SPDX-License-Identifier: Apache-2.0
// The caller's own executor in good and bad moods: helping, refusing, late, calling from inside
// itself, running tasks inside submit or inside poll, throwing.
#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <thread>

#include "cpu/executor_test_util.h"
#include "memory.h"

namespace attentile::cpu {
namespace {

TEST(CallersExecutor, ItsThreadsHelpAndNoOthers) {
  QueueExecutor queue;
  queue.start(3);
  std::atomic<int> arrived{0};
  EXPECT_TRUE(run(queue.context(), 4, 4, [&](int64_t, int, Progress&) {
                arrived.fetch_add(1);
                while (arrived < 4) std::this_thread::yield();
              }).ok());
  for (int round = 0; round < 200; ++round) {
    ASSERT_EQ(parallel_sum(queue.context(), 1 + round % 8, 100), 5050);
  }
}

TEST(CallersExecutor, RefusingIsNoError) {
  for (int accept = 0; accept < 5; ++accept) {
    QueueExecutor queue(accept);
    queue.start(1);
    EXPECT_EQ(parallel_sum(queue.context(), 8, 1000), 500500);
  }
  ExecutionContext context;
  const Executor none{.context = nullptr, .num_threads = 4, .submit = nullptr};
  context.executor = &none;
  EXPECT_EQ(parallel_sum(context, 4, 100), 5050);
}

TEST(CallersExecutor, RefusingLeavesNothingAllocated) {
  Executor refusing;
  refusing.num_threads = 4;
  refusing.submit = [](void*, void (*)(void*), void*) { return 1; };
  ExecutionContext context;
  context.executor = &refusing;
  const int64_t live = internal::live_allocation_count();
  for (int round = 0; round < 100; ++round) EXPECT_EQ(parallel_sum(context, 4, 100), 5050);
  EXPECT_LE(internal::live_allocation_count(), live);  // less: helpers of other tests let go
}

TEST(CallersExecutor, TasksMayRunLongAfterTheCall) {
  QueueExecutor queue;  // no thread: nothing runs until the test says so
  for (int round = 0; round < 5; ++round) EXPECT_EQ(parallel_sum(queue.context(), 4, 100), 5050);
  EXPECT_EQ(queue.queued(), 15u);
  while (queue.run_one()) {  // each returns at once; the calls' stacks are gone
  }
}

TEST(CallersExecutor, ASingleThreadMayCallFromInsideItself) {
  QueueExecutor queue;
  queue.start(1);
  struct Call {
    QueueExecutor* queue;
    std::atomic<int64_t> sum{0};
  } call{.queue = &queue};
  ASSERT_TRUE(queue.push(
      [](void* data) {
        Call& c = *static_cast<Call*>(data);
        c.sum = parallel_sum(c.queue->context(), 8, 100);
      },
      &call));
  while (call.sum == 0) std::this_thread::yield();
  EXPECT_EQ(call.sum, 5050);
}

TEST(CallersExecutor, SubmitMayRunTheTaskAtOnce) {
  Executor inline_executor;
  inline_executor.num_threads = 4;
  inline_executor.submit = [](void*, void (*task)(void*), void* argument) {
    task(argument);
    return 0;
  };
  PollLog log;
  ExecutionContext context = log.context();
  context.executor = &inline_executor;
  std::atomic<int> tasks{0};
  EXPECT_TRUE(run(context, 4, 50, [&](int64_t, int worker, Progress& progress) {
                EXPECT_EQ(worker, 0);
                tasks.fetch_add(1);
                busy_wait(milliseconds(1));
                progress.keep_going(worker);
              }).ok());
  EXPECT_EQ(tasks, 50);
  EXPECT_GE(log.calls, 1);
}

TEST(CallersExecutor, PollMayRunItsQueue) {
  // As a user interface does that pumps its events: a helper on the calling thread must not take a
  // ticket while the task below it on the stack holds an earlier one.
  QueueExecutor queue;
  ExecutionContext context = queue.context();
  context.poll_data = &queue;
  context.poll = [](void* data, double) {
    while (static_cast<QueueExecutor*>(data)->run_one()) {
    }
    return 0;
  };
  std::atomic<int32_t> turn{0};
  EXPECT_TRUE(run(context, 4, 40, [&](int64_t task, int worker, Progress& progress) {
                busy_wait(milliseconds(1));
                const auto mine = static_cast<int32_t>(task);
                if (!progress.keep_going(worker)) return;
                if (wait_for_turn(turn, mine, progress, worker)) pass_turn(turn, mine);
              }).ok());
  EXPECT_EQ(turn, 40);
}

TEST(CallersExecutor, AThrowingSubmitIsNoError) {
  // What it queued before it threw nobody knows, so the job's record stays allocated; here the
  // submitted task is kept and run later, which lets go of it.
  struct Kept {
    void (*task)(void*) = nullptr;
    void* argument = nullptr;
  } kept;
  Executor throwing;
  throwing.context = &kept;
  throwing.num_threads = 4;
  throwing.submit = [](void* data, void (*task)(void*), void* argument) -> int {
    *static_cast<Kept*>(data) = {task, argument};
    throw std::runtime_error("submit");
  };
  ExecutionContext context;
  context.executor = &throwing;
  EXPECT_EQ(parallel_sum(context, 4, 100), 5050);
  kept.task(kept.argument);
}

}  // namespace
}  // namespace attentile::cpu

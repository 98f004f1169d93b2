// SPDX-License-Identifier: Apache-2.0
// The caller's own executor in good and bad moods: helping, refusing, late, calling from inside
// itself, running tasks inside submit or inside poll, throwing; of a queue and of fork and join.
#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

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

// As OpenMP would: the calling thread and new ones, joined before it returns.
void fork_and_join(void* threads, int num_threads, void (*task)(void*), void* argument) {
  auto* extra = static_cast<int*>(threads);
  std::vector<std::thread> others;
  for (int n = 1; n < num_threads + *extra; ++n) others.emplace_back(task, argument);
  task(argument);
  for (std::thread& other : others) other.join();
}

TEST(ForkJoinExecutor, ItsThreadsHelp) {
  for (int extra : {0, 5, -3}) {  // a runtime may bring more threads than it was asked for, or none
    Executor executor{.context = &extra, .num_threads = 4, .parallel = fork_and_join};
    ExecutionContext context;
    context.executor = &executor;
    std::atomic<int64_t> sum{0};
    std::atomic<int> most{0};
    const auto caller = std::this_thread::get_id();
    EXPECT_TRUE(run(context, worker_count(context), 40, [&](int64_t task, int worker, Progress&) {
                  EXPECT_EQ(worker == 0, std::this_thread::get_id() == caller);
                  if (worker > most) most = worker;
                  busy_wait(milliseconds(1));
                  sum += task + 1;
                }).ok());
    EXPECT_EQ(sum, 820);
    EXPECT_LE(most, 3);
  }
}

TEST(ForkJoinExecutor, GoesBeforeSubmit) {
  int extra = 0;
  Executor executor{.context = &extra, .num_threads = 3, .parallel = fork_and_join};
  executor.submit = [](void*, void (*)(void*), void*) -> int {
    ADD_FAILURE() << "submit was called";
    return 1;
  };
  ExecutionContext context;
  context.executor = &executor;
  EXPECT_EQ(parallel_sum(context, 3, 100), 5050);
}

TEST(ForkJoinExecutor, MayRunNobodyOrThrow) {
  Executor executor{.num_threads = 4};
  ExecutionContext context;
  context.executor = &executor;
  executor.parallel = [](void*, int, void (*)(void*), void*) {};
  EXPECT_EQ(parallel_sum(context, 4, 100), 5050);
  executor.parallel = [](void*, int, void (*)(void*), void*) {
    throw std::runtime_error("parallel");
  };
  EXPECT_EQ(parallel_sum(context, 4, 100), 5050);
}

TEST(ForkJoinExecutor, MayBeEnteredFromItsOwnThreads) {
  int extra = 0;
  Executor executor{.context = &extra, .num_threads = 3, .parallel = fork_and_join};
  ExecutionContext context;
  context.executor = &executor;
  std::atomic<int64_t> sum{0};
  EXPECT_TRUE(run(context, 3, 8, [&](int64_t, int, Progress&) {
                sum += parallel_sum(context, 3, 100);
              }).ok());
  EXPECT_EQ(sum, 8 * 5050);
}

TEST(ForkJoinExecutor, PollRunsOnTheCallingThreadAndCancels) {
  int extra = 0;
  Executor executor{.context = &extra, .num_threads = 3, .parallel = fork_and_join};
  struct Polled {
    std::thread::id caller = std::this_thread::get_id();
    int calls = 0;
  } polled;
  ExecutionContext context;
  context.executor = &executor;
  context.poll_data = &polled;
  context.poll = [](void* data, double) {
    Polled& seen = *static_cast<Polled*>(data);
    EXPECT_EQ(seen.caller, std::this_thread::get_id());
    return ++seen.calls == 3 ? 7 : 0;
  };
  std::atomic<int> tasks{0};
  const Status status = run(context, 3, 100000, [&](int64_t, int worker, Progress& progress) {
    ++tasks;
    busy_wait(milliseconds(1));
    progress.keep_going(worker);
  });
  EXPECT_EQ(status.code(), StatusCode::kCancelled);
  EXPECT_EQ(polled.calls, 3);
  EXPECT_LT(tasks, 10000);
}

TEST(ForkJoinExecutor, PollsWhileAHelperIsStillAtWork) {
  int extra = 0;
  Executor executor{.context = &extra, .num_threads = 2, .parallel = fork_and_join};
  PollLog log;
  ExecutionContext context = log.context();
  context.executor = &executor;
  std::atomic<bool> helping{false};
  EXPECT_TRUE(run(context, 2, 2, [&](int64_t, int worker, Progress&) {
                if (worker != 0) {
                  helping = true;
                  busy_wait(milliseconds(300));
                }
                while (!helping) std::this_thread::yield();
              }).ok());
  EXPECT_GE(log.calls, 6);  // one about every 10 ms
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

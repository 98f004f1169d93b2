// SPDX-License-Identifier: Apache-2.0
// parallel_for: every ticket once and in order, cancellation, polling, nesting, many callers at
// once. The caller's own executor: callers_executor_test.cc; failing threads and forks: faults/.
#include "cpu/executor.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <chrono>
#include <limits>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

#include "cpu/executor_test_util.h"
#include "memory.h"

namespace attentile::cpu {
namespace {

// --- tickets -------------------------------------------------------------------------------------

TEST(ParallelFor, EveryTaskOnceAndOneTaskPerWorkerAtATime) {
  for (int workers = 1; workers <= 16; ++workers) {
    for (int64_t tasks = 0; tasks <= 100; ++tasks) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(tasks));
      std::vector<std::atomic<int>> active(static_cast<size_t>(workers));
      std::atomic<bool> wrong{false};
      const Status status = run({}, workers, tasks, [&](int64_t task, int worker, Progress&) {
        if (worker < 0 || worker >= workers || worker >= tasks || task < 0 || task >= tasks) {
          wrong = true;
          return;
        }
        if (active[static_cast<size_t>(worker)].fetch_add(1) != 0) wrong = true;
        runs[static_cast<size_t>(task)].fetch_add(1);
        active[static_cast<size_t>(worker)].fetch_sub(1);
      });
      ASSERT_TRUE(status.ok()) << status.message();
      ASSERT_FALSE(wrong) << tasks << " tasks, " << workers << " workers";
      for (const auto& count : runs) ASSERT_EQ(count, 1) << tasks << " tasks, " << workers;
    }
  }
}

TEST(ParallelFor, TicketsRise) {
  for (const int workers : {1, 4, 16}) {
    std::vector<std::vector<int64_t>> seen(static_cast<size_t>(workers));
    ASSERT_TRUE(run({}, workers, 1000, [&](int64_t task, int worker, Progress&) {
                  seen[static_cast<size_t>(worker)].push_back(task);
                }).ok());
    size_t total = 0;
    for (const auto& tasks : seen) {
      EXPECT_TRUE(std::is_sorted(tasks.begin(), tasks.end()));
      total += tasks.size();
    }
    EXPECT_EQ(total, 1000u);
  }
}

TEST(ParallelFor, TurnsComeInOrder) {
  for (const int workers : {1, 2, 3, 8, 16}) {
    std::atomic<int32_t> turn{0};
    std::vector<int64_t> order;  // guarded by the turn
    ASSERT_TRUE(run({}, workers, 500, [&](int64_t task, int worker, Progress& progress) {
                  const auto mine = static_cast<int32_t>(task);
                  if (!wait_for_turn(turn, mine, progress, worker)) return;
                  order.push_back(task);
                  pass_turn(turn, mine);
                }).ok());
    ASSERT_EQ(order.size(), 500u);
    for (int64_t i = 0; i < 500; ++i) ASSERT_EQ(order[static_cast<size_t>(i)], i);
  }
}

TEST(ParallelFor, OneWorkerRunsInlineWithoutAllocating) {
  const std::thread::id caller = std::this_thread::get_id();
  const int64_t before = internal::allocation_count();
  for (const int workers : {-5, 0, 1}) {
    EXPECT_TRUE(run({}, workers, 50, [&](int64_t, int worker, Progress&) {
                  EXPECT_EQ(worker, 0);
                  EXPECT_EQ(std::this_thread::get_id(), caller);
                }).ok());
  }
  EXPECT_TRUE(run({}, 8, 1, [&](int64_t, int, Progress&) {
                EXPECT_EQ(std::this_thread::get_id(), caller);
              }).ok());
  EXPECT_EQ(internal::allocation_count(), before);
}

TEST(ParallelFor, OtherThreadsHelp) {
  // Two tasks that need each other can only end if two threads run them.
  std::atomic<int> arrived{0};
  EXPECT_TRUE(run({}, 2, 2, [&](int64_t, int, Progress&) {
                arrived.fetch_add(1);
                while (arrived < 2) std::this_thread::yield();
              }).ok());
}

TEST(ParallelFor, NestedCallsEnd) {
  std::atomic<int64_t> leaves{0};
  EXPECT_TRUE(run({}, 4, 6, [&](int64_t, int, Progress&) {
                EXPECT_TRUE(run({}, 4, 5, [&](int64_t, int, Progress&) {
                              EXPECT_TRUE(run({}, 3, 4, [&](int64_t, int, Progress&) {
                                            leaves.fetch_add(1);
                                          }).ok());
                            }).ok());
              }).ok());
  EXPECT_EQ(leaves, 6 * 5 * 4);
}

TEST(ParallelFor, SixtyFourCallersAtOnce) {
  std::vector<std::thread> callers;
  callers.reserve(64);
  std::atomic<int> right{0};
  for (int c = 0; c < 64; ++c) {
    callers.emplace_back([&right, c] {
      for (int round = 0; round < 10; ++round) {
        if (parallel_sum({}, 1 + c % 9, 100) == 5050) right.fetch_add(1);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(right, 640);
}

// --- cancellation, progress, polling -------------------------------------------------------------

TEST(Cancellation, StopsEveryWorkerSoon) {
  for (const int workers : {1, 2, 8}) {
    auto fastest = Clock::duration::max();
    for (int round = 0; round < 5; ++round) {
      PollLog log;
      log.cancel_at = 2;
      std::atomic<int> late{0};
      const Status status =
          run(log.context(), workers, 1 << 20, [&](int64_t, int worker, Progress& progress) {
            const auto limit = Clock::now() + std::chrono::seconds(60);
            while (progress.keep_going(worker)) {
              if (Clock::now() > limit) late.fetch_add(1);
              if (late > 0) return;
              std::this_thread::yield();
            }
            EXPECT_TRUE(progress.cancelled());
          });
      fastest = std::min(fastest, Clock::now() - log.cancelled_at);
      EXPECT_EQ(status.code(), StatusCode::kCancelled);
      EXPECT_EQ(status.message(), "poll: returned 7, so the call was cancelled at 0.0 %");
      EXPECT_EQ(late, 0);
      EXPECT_EQ(log.calls, 2) << "poll was called again after it had cancelled";
    }
    EXPECT_LT(fastest, milliseconds(60)) << workers << " workers, the best of 5";
  }
}

TEST(Cancellation, EndsWaitsForATurn) {
  PollLog log;
  log.cancel_at = 1;
  std::atomic<int32_t> turn{0};
  std::atomic<int> passed{0};
  const Status status = run(log.context(), 4, 4, [&](int64_t, int worker, Progress& progress) {
    if (wait_for_turn(turn, 1000, progress, worker)) passed.fetch_add(1);  // never comes
  });
  EXPECT_EQ(status.code(), StatusCode::kCancelled);
  EXPECT_EQ(passed, 0);
  EXPECT_FALSE(log.other_thread);
}

TEST(Cancellation, TellsHowFarTheCallHadCome) {
  ExecutionContext context;
  context.poll = [](void*, double fraction) { return fraction >= 0.25 ? 3 : 0; };
  const Status status = run(context, 1, 8, [](int64_t task, int worker, Progress& progress) {
    while (task == 2 && progress.keep_going(worker)) std::this_thread::yield();
    if (!progress.cancelled()) progress.add(1.0);
  });
  EXPECT_EQ(status.message(), "poll: returned 3, so the call was cancelled at 25.0 %");
}

TEST(Cancellation, AStoppedProgressRunsNothingMore) {
  Progress progress({}, 1.0);
  progress.fail(StatusCode::kOk);
  EXPECT_FALSE(progress.cancelled());
  progress.fail(StatusCode::kOutOfMemory);
  progress.fail(StatusCode::kInternal);
  int runs = 0;
  auto count = [&](int64_t, int, Progress&) { ++runs; };
  for (const int workers : {1, 4}) {
    EXPECT_EQ(run({}, workers, 10, progress, count).code(), StatusCode::kOutOfMemory);
  }
  EXPECT_EQ(run({}, 1, 0, progress, count).code(), StatusCode::kOutOfMemory);
  EXPECT_EQ(runs, 0);
}

TEST(Cancellation, ExceptionsOfATaskBecomeAStatus) {
  for (const int workers : {1, 4}) {
    const Status memory = run({}, workers, 20, [](int64_t task, int, Progress&) {
      if (task == 5) throw std::bad_alloc();
    });
    EXPECT_EQ(memory.code(), StatusCode::kOutOfMemory);
    EXPECT_EQ(memory.message(), "workspace: a task of the call could not allocate memory");
    const Status other = run({}, workers, 20, [](int64_t task, int, Progress&) {
      if (task == 5) throw std::runtime_error("five");
    });
    EXPECT_EQ(other.code(), StatusCode::kInternal);
    EXPECT_FALSE(other.message().empty());
  }
}

TEST(Cancellation, AThrowingPollBecomesAStatus) {
  ExecutionContext context;
  context.poll = [](void*, double) -> int { throw std::runtime_error("poll"); };
  const Status status = run(context, 2, 1 << 20, [](int64_t, int worker, Progress& progress) {
    while (progress.keep_going(worker)) std::this_thread::yield();
  });
  EXPECT_EQ(status.code(), StatusCode::kInternal);
}

TEST(Polling, AtLeastEvery50MsOnTheCallingThread) {
  for (const int workers : {1, 2, 8}) {
    PollLog log;
    const auto begin = Clock::now();
    const auto end = begin + milliseconds(500);
    const Status status = run(log.context(), workers, 2000, [&](int64_t, int worker, Progress& p) {
      if (Clock::now() >= end) return;
      for (int piece = 0; piece < 4 && p.keep_going(worker); ++piece) {
        std::this_thread::sleep_for(milliseconds(1));
        p.add(0.25);
      }
    });
    const double elapsed_ms =
        std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
    EXPECT_TRUE(status.ok());
    EXPECT_GE(log.calls, static_cast<int>(elapsed_ms / 50)) << workers << " workers";
    EXPECT_LE(log.calls, static_cast<int>(elapsed_ms / 10) + 1) << workers << " workers";
    EXPECT_FALSE(log.falls || log.outside || log.other_thread);
    EXPECT_GT(log.last, 0.0);
  }
}

TEST(Polling, GoesOnWhileTheCallerWaitsForAHelper) {
  PollLog log;
  const std::thread::id caller = std::this_thread::get_id();
  std::atomic<int> begun{0};
  const Status status = run(log.context(), 2, 2, [&](int64_t, int, Progress&) {
    begun.fetch_add(1);
    while (begun < 2) std::this_thread::yield();
    if (std::this_thread::get_id() != caller) std::this_thread::sleep_for(milliseconds(300));
  });
  EXPECT_TRUE(status.ok());
  EXPECT_GE(log.calls, 6);
}

TEST(Polling, AHelperThatWaitsForItsTurnDoesNotPoll) {
  PollLog log;
  const std::thread::id caller = std::this_thread::get_id();
  std::atomic<int> begun{0};
  std::atomic<int32_t> turn{0};
  const Status status = run(log.context(), 2, 2, [&](int64_t, int worker, Progress& progress) {
    begun.fetch_add(1);
    while (begun < 2) std::this_thread::yield();
    if (std::this_thread::get_id() != caller) {
      EXPECT_TRUE(wait_for_turn(turn, 1, progress, worker));
      return;
    }
    std::this_thread::sleep_for(milliseconds(60));  // long enough for a poll to be due
    pass_turn(turn, 0);
  });
  EXPECT_TRUE(status.ok());
  EXPECT_FALSE(log.other_thread);
}

TEST(Polling, FractionIsClampedAndIgnoresNonsense) {
  Progress progress({}, 10.0);
  EXPECT_EQ(progress.fraction(), 0.0);
  progress.add(-5.0);
  progress.add(std::numeric_limits<double>::quiet_NaN());
  EXPECT_EQ(progress.fraction(), 0.0);
  progress.add(2.5);
  EXPECT_EQ(progress.fraction(), 0.25);
  progress.add(100.0);
  EXPECT_EQ(progress.fraction(), 1.0);
  EXPECT_EQ(Progress({}, 0.0).fraction(), 1.0);
  EXPECT_EQ(Progress({}, std::numeric_limits<double>::quiet_NaN()).fraction(), 1.0);
}

TEST(Polling, ACallFromInsidePollWorks) {
  ExecutionContext context;
  int64_t sum = 0;
  context.poll_data = &sum;
  context.poll = [](void* data, double) {
    *static_cast<int64_t*>(data) = parallel_sum({}, 4, 100);
    return 1;
  };
  const Status status = run(context, 4, 1 << 20, [](int64_t, int worker, Progress& progress) {
    while (progress.keep_going(worker)) std::this_thread::yield();
  });
  EXPECT_EQ(status.code(), StatusCode::kCancelled);
  EXPECT_EQ(sum, 5050);
}

// --- threads of a call ---------------------------------------------------------------------------

TEST(WorkerCount, FollowsTheContext) {
  ExecutionContext context;
  EXPECT_EQ(worker_count(context), usable_cores());
  context.num_threads = 7;
  EXPECT_EQ(worker_count(context), 7);
  context.num_threads = 100000;
  EXPECT_EQ(worker_count(context), kMaxWorkers);
  QueueExecutor queue;
  context.executor = &queue.executor();
  EXPECT_EQ(worker_count(context), 8);
  context.num_threads = 3;
  EXPECT_EQ(worker_count(context), 3);
  context.num_threads = 0;
  queue.executor().num_threads = 1;
  EXPECT_EQ(worker_count(context), 1);
  queue.executor().num_threads = -3;
  EXPECT_EQ(worker_count(context), 1);
}

// Runs body on a thread that is pinned to one core.
template <class Body>
void on_a_pinned_thread(Body body) {
  std::thread([&body] {
    const int core = sched_getcpu();
    cpu_set_t mask;
    CPU_ZERO(&mask);
    CPU_SET(static_cast<size_t>(core), &mask);
    ASSERT_EQ(sched_setaffinity(0, sizeof mask, &mask), 0);
    body();
  }).join();
}

TEST(WorkerCount, APinnedThreadDoesNotStandForTheProcess) {
  const int cores = usable_cores();
  cpu_set_t mask;
  ASSERT_EQ(sched_getaffinity(getpid(), sizeof mask, &mask), 0);
  EXPECT_EQ(cores, CPU_COUNT(&mask));
  on_a_pinned_thread([&] {
    EXPECT_EQ(worker_count({}), cores);
    QueueExecutor queue;
    ExecutionContext context = queue.context();
    EXPECT_EQ(worker_count(context), 8);
    context.num_threads = 5;
    EXPECT_EQ(worker_count(context), 5);
  });
}

TEST(WorkerCount, APinnedFirstThreadDoesNotStandForTheCaller) {
  const int cores = usable_cores();
  std::thread([cores] {
    cpu_set_t before;
    ASSERT_EQ(sched_getaffinity(getpid(), sizeof before, &before), 0);
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(static_cast<size_t>(sched_getcpu()), &one);
    ASSERT_EQ(sched_setaffinity(getpid(), sizeof one, &one), 0);
    EXPECT_EQ(usable_cores(), cores);
    EXPECT_EQ(sched_setaffinity(getpid(), sizeof before, &before), 0);
  }).join();
}

TEST(WorkerCount, ThreadsOfThePoolUseTheCoresOfTheProcess) {
  // More helpers than any call of this program before, so that a pinned thread starts the last.
  constexpr int kWorkers = 40;
  on_a_pinned_thread([] {
    const std::thread::id caller = std::this_thread::get_id();
    std::atomic<int> arrived{0};
    std::atomic<int> few{0};
    EXPECT_TRUE(run({}, kWorkers, kWorkers, [&](int64_t, int, Progress&) {
                  cpu_set_t mask;
                  const bool read = sched_getaffinity(0, sizeof mask, &mask) == 0;
                  const bool helper = std::this_thread::get_id() != caller;
                  if (helper && (!read || CPU_COUNT(&mask) != usable_cores())) few.fetch_add(1);
                  arrived.fetch_add(1);
                  while (arrived < kWorkers) std::this_thread::yield();
                }).ok());
    EXPECT_EQ(few, 0);
  });
}

TEST(Threads, OfThePoolLeaveSignalsToTheCaller) {
  const std::thread::id caller = std::this_thread::get_id();
  std::atomic<int> arrived{0};
  sigset_t blocked;
  sigemptyset(&blocked);
  EXPECT_TRUE(run({}, 2, 2, [&](int64_t, int, Progress&) {
                if (std::this_thread::get_id() != caller) {
                  pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
                }
                arrived.fetch_add(1);
                while (arrived < 2) std::this_thread::yield();
              }).ok());
  for (const int asynchronous : {SIGINT, SIGTERM, SIGUSR1, SIGALRM, SIGCHLD}) {
    EXPECT_EQ(sigismember(&blocked, asynchronous), 1) << asynchronous;
  }
  for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGPROF}) {
    EXPECT_EQ(sigismember(&blocked, fault), 0) << fault;
  }
}

TEST(FloatEnvironment, EveryWorkerHasTheDefaultAndTheCallerGetsItsOwnBack) {
  ASSERT_EQ(std::fesetround(FE_UPWARD), 0);
  std::atomic<int> wrong{0};
  std::atomic<int> arrived{0};
  const Status status = run({}, 2, 2, [&](int64_t, int, Progress&) {
    if (std::fegetround() != FE_TONEAREST) wrong.fetch_add(1);
    volatile double tiny = std::numeric_limits<double>::min();
    if (tiny / 4 == 0.0) wrong.fetch_add(1);  // subnormals flushed
    arrived.fetch_add(1);
    while (arrived < 2) std::this_thread::yield();
  });
  const int after = std::fegetround();
  std::fesetround(FE_TONEAREST);
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(after, FE_UPWARD);
}

#if defined(__SSE2__)
TEST(FloatEnvironment, FlushToZeroOfTheCallerIsNotSeen) {
  const unsigned before = __builtin_ia32_stmxcsr();
  __builtin_ia32_ldmxcsr(before | 0x8040);  // flush to zero, denormals are zero
  bool flushed = true;
  const Status status = run({}, 1, 1, [&](int64_t, int, Progress&) {
    volatile float tiny = std::numeric_limits<float>::min();
    flushed = tiny / 4 == 0.0f;
  });
  const unsigned after = __builtin_ia32_stmxcsr();
  __builtin_ia32_ldmxcsr(before);
  EXPECT_TRUE(status.ok());
  EXPECT_FALSE(flushed);
  EXPECT_EQ(after & 0x8040, 0x8040u);
}
#endif

}  // namespace
}  // namespace attentile::cpu

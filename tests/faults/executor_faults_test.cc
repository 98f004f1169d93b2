// SPDX-License-Identifier: Apache-2.0
// parallel_for when threads or memory fail, around fork(), and at the end of the process. The pool
// is one per process and only grows, so what needs a fresh one runs in a child.
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "cpu/executor.h"
#include "cpu/thread_pool.h"
#include "faults/injection.h"
#include "memory.h"

namespace attentile::cpu {
namespace {

using testing::ChildResult;
using testing::run_in_child;
using testing::start_child;
using testing::ThreadFailure;
using testing::wait_for_child;

constexpr int64_t kTasks = 200;
constexpr int64_t kSum = kTasks * (kTasks + 1) / 2;

int64_t parallel_sum(int workers) {
  std::atomic<int64_t> sum{0};
  Progress progress({}, 1.0);
  const Status status = parallel_for(
      {}, workers, kTasks,
      [](void* job, int64_t task, int, Progress&) {
        static_cast<std::atomic<int64_t>*>(job)->fetch_add(task + 1);
      },
      &sum, progress);
  return status.ok() ? sum.load() : -1;
}

// Threads that call parallel_for without pause, so that a fork meets locked locks.
class BusyCallers {
 public:
  explicit BusyCallers(int num_threads) {
    for (int i = 0; i < num_threads; ++i) {
      threads_.emplace_back([this] {
        while (!stop_) {
          if (parallel_sum(4) != kSum) wrong_ = true;
        }
      });
    }
  }
  ~BusyCallers() {
    stop_ = true;
    for (std::thread& thread : threads_) thread.join();
    EXPECT_FALSE(wrong_);
  }
  BusyCallers(const BusyCallers&) = delete;
  BusyCallers& operator=(const BusyCallers&) = delete;

 private:
  std::atomic<bool> stop_{false};
  std::atomic<bool> wrong_{false};
  std::vector<std::thread> threads_;
};

// The first test of the program, so that no call has come before the fork.
TEST(ExecutorFork, BeforeFirstUse) {
  const ChildResult child = run_in_child([] { return parallel_sum(4) == kSum ? 0 : 1; });
  EXPECT_TRUE(child.ended);
  EXPECT_EQ(child.exit_status, 0);
}

// --- threads and memory --------------------------------------------------------------------------

TEST(ExecutorFaults, EachThreadCreationFails) {
  constexpr int kWorkers = 8;
  for (int first = 0; first < kWorkers; ++first) {
    for (const int count : {1, 1 << 20}) {
      const ChildResult child = run_in_child([first, count] {
        const ThreadFailure failure(first, count);
        if (parallel_sum(kWorkers) != kSum) return 1;
        const int expected_attempts = first < kWorkers - 1 ? first + 1 : kWorkers - 1;
        if (ThreadFailure::attempts() != expected_attempts) return 2;
        const int threads = ThreadPool::instance()->num_threads();
        if (threads != (first < kWorkers - 1 ? first : kWorkers - 1)) return 3;
        return parallel_sum(kWorkers) == kSum ? 0 : 4;  // tries again
      });
      EXPECT_TRUE(child.ended);
      EXPECT_EQ(child.exit_status, 0) << "creation " << first << ", " << count << " times";
    }
  }
}

TEST(ExecutorFaults, AFailedThreadLeavesNothingAllocated) {
  const ChildResult child = run_in_child([] {
    const int64_t live = internal::live_allocation_count();
    const ThreadFailure failure(0);
    for (int round = 0; round < 20; ++round) {
      if (parallel_sum(8) != kSum) return 1;
    }
    if (ThreadFailure::attempts() < 20) return 2;
    return internal::live_allocation_count() <= live ? 0 : 3;
  });
  EXPECT_TRUE(child.ended);
  EXPECT_EQ(child.exit_status, 0);
}

TEST(ExecutorFaults, EachAllocationFails) {
  // The job's record and the record of each thread.
  for (int64_t k = 0; k < 10; ++k) {
    const ChildResult child = run_in_child([k] {
      internal::fail_allocation_after(k);
      if (parallel_sum(8) != kSum) return 1;
      internal::fail_allocation_after(-1);
      const int threads = ThreadPool::instance()->num_threads();
      if (threads != (k == 0 ? 0 : (k < 8 ? k - 1 : 7))) return 2;
      return parallel_sum(8) == kSum ? 0 : 3;
    });
    EXPECT_TRUE(child.ended);
    EXPECT_EQ(child.exit_status, 0) << "allocation " << k;
  }
}

// Waits until `expected` allocations live: a helper that has done its work may still hold its
// reference to the job for a moment.
bool comes_to_live_allocations(int64_t expected) {
  for (int wait = 0; wait < 2000 && internal::live_allocation_count() != expected; ++wait) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return internal::live_allocation_count() == expected;
}

TEST(ExecutorFaults, JobsAreFreed) {
  const ChildResult child = run_in_child([] {
    // The records of the three helpers stay; counted from before the first job, so that no helper
    // still holds one while the count is read.
    const int64_t live = internal::live_allocation_count() + 3;
    if (parallel_sum(4) != kSum) return 1;
    if (!comes_to_live_allocations(live)) return 2;
    const int64_t news = testing::live_new_count();
    for (int round = 0; round < 100; ++round) {
      if (parallel_sum(4) != kSum) return 3;
    }
    if (!comes_to_live_allocations(live)) return 4;
    return testing::live_new_count() == news ? 0 : 5;
  });
  EXPECT_TRUE(child.ended);
  EXPECT_EQ(child.exit_status, 0);
}

// --- fork ----------------------------------------------------------------------------------------

TEST(ExecutorFork, AfterUseTwentyRounds) {
  ASSERT_EQ(parallel_sum(4), kSum);
  for (int round = 0; round < 20; ++round) {
    const ChildResult child = run_in_child([] {
      if (ThreadPool::instance()->num_threads() != 0) return 1;
      if (parallel_sum(4) != kSum) return 2;
      if (ThreadPool::instance()->num_threads() != 3) return 3;
      const ChildResult grandchild = run_in_child([] { return parallel_sum(3) == kSum ? 0 : 1; });
      return grandchild.ended ? grandchild.exit_status : 4;
    });
    ASSERT_TRUE(child.ended);
    ASSERT_EQ(child.exit_status, 0) << "round " << round;
    ASSERT_EQ(parallel_sum(4), kSum);
  }
}

TEST(ExecutorFork, WhileOtherThreadsAreInsideACall) {
  const BusyCallers busy(3);
  for (int round = 0; round < 20; ++round) {
    const ChildResult child = run_in_child([] {
      for (int call = 0; call < 5; ++call) {
        if (parallel_sum(4) != kSum) return 1;
      }
      return 0;
    });
    ASSERT_TRUE(child.ended) << "round " << round;
    ASSERT_EQ(child.exit_status, 0) << "round " << round;
  }
}

// Forks once, in the first poll of a call with its context.
struct ForkInPoll {
  pid_t child = -1;
  int parent = getpid();

  ExecutionContext context() {
    ExecutionContext made;
    made.poll_data = this;
    made.poll = [](void* data, double) {
      auto& self = *static_cast<ForkInPoll*>(data);
      if (self.child == -1) self.child = fork();
      return 0;
    };
    return made;
  }
};

TEST(ExecutorFork, InsidePollTheChildGivesUpAndTheParentGoesOn) {
  ForkInPoll forked;
  const ExecutionContext context = forked.context();
  std::atomic<int> ran{0};
  Progress progress(context, 1.0);
  const Status status = parallel_for(
      context, 4, 200,
      [](void* job, int64_t, int worker, Progress& p) {
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
        if (p.keep_going(worker)) static_cast<std::atomic<int>*>(job)->fetch_add(1);
      },
      &ran, progress);
  if (getpid() != forked.parent) {
    const bool again = parallel_sum(4) == kSum;
    _exit(status.code() == StatusCode::kInternal && again ? 0 : 1);
  }
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(ran, 200);
  const ChildResult child = wait_for_child(forked.child);
  EXPECT_TRUE(child.ended);
  EXPECT_EQ(child.exit_status, 0);
}

TEST(ExecutorFork, InsidePollOfACallWithoutHelpersBothGoOn) {
  ForkInPoll forked;
  const ExecutionContext context = forked.context();
  int ran = 0;
  Progress progress(context, 1.0);
  const Status status = parallel_for(
      context, 1, 20,
      [](void* job, int64_t, int worker, Progress& p) {
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
        if (p.keep_going(worker)) ++*static_cast<int*>(job);
      },
      &ran, progress);
  if (getpid() != forked.parent) _exit(status.ok() && ran == 20 ? 0 : 1);
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(ran, 20);
  const ChildResult child = wait_for_child(forked.child);
  EXPECT_TRUE(child.ended);
  EXPECT_EQ(child.exit_status, 0);
}

// --- the end of the process ----------------------------------------------------------------------

TEST(ExecutorExit, WithAnIdlePool) {
  // exit() runs the destructors and, under a leak checker, the search for leaks.
  const ChildResult child = run_in_child([] {
    if (parallel_sum(6) == kSum) std::exit(7);
    return 1;
  });
  EXPECT_TRUE(child.ended);
  EXPECT_EQ(child.exit_status, 7);
}

// Destroyed by exit() before or after the pool, as chance has it: the call must end either way.
struct CallsAtExit {
  ~CallsAtExit() {
    if (parallel_sum(4) != kSum) _exit(1);
  }
};

TEST(ExecutorExit, ACallFromAStaticDestructor) {
  const ChildResult child = run_in_child([] {
    static const CallsAtExit last;
    if (parallel_sum(4) == kSum) std::exit(7);
    return 2;
  });
  EXPECT_TRUE(child.ended);
  EXPECT_EQ(child.exit_status, 7);
}

TEST(ExecutorExit, FromInsideATask) {
  // On whichever thread the task runs, with the other workers busy: nobody may wait for them.
  for (const int64_t task_of_exit : {0, 1, 5}) {
    const ChildResult child = run_in_child([task_of_exit] {
      int64_t exit_at = task_of_exit;
      Progress progress({}, 1.0);
      const Status status = parallel_for(
          {}, 3, 1 << 20,
          [](void* job, int64_t task, int, Progress&) {
            if (task == *static_cast<int64_t*>(job)) std::exit(7);
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
          },
          &exit_at, progress);
      return status.ok() ? 1 : 2;
    });
    EXPECT_TRUE(child.ended);
    EXPECT_EQ(child.exit_status, 7) << "task " << task_of_exit;
  }
}

}  // namespace
}  // namespace attentile::cpu

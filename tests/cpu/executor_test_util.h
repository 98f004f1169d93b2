// SPDX-License-Identifier: Apache-2.0
// What the tests of parallel_for share: tasks written as lambdas, a poll that keeps a log, an
// executor whose queue the test holds.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "cpu/executor.h"
#include "cpu/turnstile.h"

namespace attentile::cpu {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// parallel_for over a callable (task, worker, progress).
template <class Function>
Status run(const ExecutionContext& context, int workers, int64_t tasks, Progress& progress,
           Function& function) {
  return parallel_for(
      context, workers, tasks,
      [](void* job, int64_t task, int worker, Progress& p) {
        (*static_cast<Function*>(job))(task, worker, p);
      },
      &function, progress);
}

template <class Function>
Status run(const ExecutionContext& context, int workers, int64_t tasks, Function&& function) {
  Progress progress(context, static_cast<double>(tasks));
  return run(context, workers, tasks, progress, function);
}

// Sums 1..tasks in parallel, to see whether a call did its whole work.
inline int64_t parallel_sum(const ExecutionContext& context, int workers, int64_t tasks) {
  std::atomic<int64_t> sum{0};
  const Status status =
      run(context, workers, tasks, [&](int64_t task, int, Progress&) { sum.fetch_add(task + 1); });
  return status.ok() ? sum.load() : -1;
}

inline void busy_wait(milliseconds time) {
  const auto end = Clock::now() + time;
  while (Clock::now() < end) spin_pause();
}

struct PollLog {
  int calls = 0;
  int cancel_at = 0;  // 0: never
  double last = 0.0;
  bool falls = false;
  bool outside = false;
  Clock::time_point cancelled_at = {};
  std::thread::id thread = std::this_thread::get_id();
  bool other_thread = false;

  ExecutionContext context() {
    ExecutionContext context;
    context.poll_data = this;
    context.poll = [](void* data, double fraction) {
      auto& log = *static_cast<PollLog*>(data);
      ++log.calls;
      log.falls = log.falls || fraction < log.last;
      log.outside = log.outside || !(fraction >= 0.0 && fraction <= 1.0);
      log.other_thread = log.other_thread || std::this_thread::get_id() != log.thread;
      log.last = fraction;
      if (log.calls != log.cancel_at) return 0;
      log.cancelled_at = Clock::now();
      return 7;
    };
    return context;
  }
};

// A queue that the test drains whenever it likes, on as many threads as it likes.
class QueueExecutor {
 public:
  explicit QueueExecutor(int accept = 1 << 20) : accept_(accept) {
    executor_.context = this;
    executor_.num_threads = 8;
    executor_.submit = [](void* context, void (*task)(void*), void* argument) {
      return static_cast<QueueExecutor*>(context)->push(task, argument) ? 0 : 1;
    };
  }
  ~QueueExecutor() {
    {
      const std::lock_guard lock(mutex_);
      closing_ = true;
    }
    there_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    while (run_one()) {
    }
  }
  QueueExecutor(const QueueExecutor&) = delete;
  QueueExecutor& operator=(const QueueExecutor&) = delete;

  void start(int num_threads) {
    for (int i = 0; i < num_threads; ++i) {
      threads_.emplace_back([this] {
        while (wait()) run_one();
      });
    }
  }
  // Puts the test's own work in the queue.
  bool push(void (*task)(void*), void* argument) {
    const std::lock_guard lock(mutex_);
    if (accept_ <= 0) return false;
    --accept_;
    queue_.push_back({task, argument});
    there_.notify_one();
    return true;
  }
  bool run_one() {
    Entry entry;
    {
      const std::lock_guard lock(mutex_);
      if (queue_.empty()) return false;
      entry = queue_.front();
      queue_.pop_front();
    }
    entry.task(entry.argument);
    return true;
  }
  size_t queued() {
    const std::lock_guard lock(mutex_);
    return queue_.size();
  }
  ExecutionContext context() const {
    ExecutionContext context;
    context.executor = &executor_;
    return context;
  }
  Executor& executor() { return executor_; }

 private:
  struct Entry {
    void (*task)(void*) = nullptr;
    void* argument = nullptr;
  };
  bool wait() {
    std::unique_lock lock(mutex_);
    there_.wait(lock, [this] { return closing_ || !queue_.empty(); });
    return !queue_.empty();
  }

  Executor executor_;
  std::mutex mutex_;
  std::condition_variable there_;
  std::deque<Entry> queue_;
  int accept_;
  bool closing_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace attentile::cpu

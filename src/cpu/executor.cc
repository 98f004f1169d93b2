// SPDX-License-Identifier: Apache-2.0
// parallel_for: one heap record per call with helpers, TicketJob, counted by reference because an
// executor may run a helper long after the call returned. The calling thread takes tickets until
// none is left, closes the job (a helper that begins later returns at once) and waits for the
// helpers that did begin, polling meanwhile.
#include "cpu/executor.h"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <new>

#include "cpu/float_environment.h"
#include "cpu/thread_pool.h"
#include "cpu/turnstile.h"
#include "memory.h"

namespace attentile::cpu {
namespace {

constexpr std::chrono::milliseconds kPollInterval{10};

int clamp_workers(int64_t workers) {
  if (workers < 1) return 1;
  return workers > kMaxWorkers ? kMaxWorkers : static_cast<int>(workers);
}

// Calls next() for ticket numbers until they run out or the call stops.
template <class NextTicket>
void run_tickets(int64_t num_tasks, TaskFunction function, void* job, int worker,
                 Progress& progress, NextTicket next) {
  const DefaultFloatEnvironment environment;
  try {
    while (progress.keep_going(worker)) {
      const int64_t task = next();
      if (task >= num_tasks) return;
      function(job, task, worker, progress);
    }
  } catch (const std::bad_alloc&) {
    progress.fail(StatusCode::kOutOfMemory);
  } catch (...) {
    progress.fail(StatusCode::kInternal);
  }
}

}  // namespace

// A call with helpers. Lives until the caller and all helpers that were asked for have let go.
class TicketJob {
 public:
  struct Work {
    TaskFunction function = nullptr;
    void* job = nullptr;
    int64_t num_tasks = 0;
    int num_helpers = 0;  // at most
    Progress* progress = nullptr;
  };

  // Null where there is no memory.
  static TicketJob* create(const Work& work) {
    void* memory = allocate_bytes(sizeof(TicketJob));
    return memory != nullptr ? new (memory) TicketJob(work) : nullptr;
  }

  // Asks the executor, or the library's pool, for helpers; whether any may come.
  bool find_helpers(const Executor* executor) {
    if (executor == nullptr) return ask_pool() > 0;
    if (executor->parallel != nullptr) fork_join_ = executor;
    return fork_join_ != nullptr || (executor->submit != nullptr && ask_executor(*executor) > 0);
  }

  // The calling thread's part; returns when no helper runs and none will.
  Status run() {
    Progress& progress = *work_.progress;
    const uint32_t generation = generation_ = fork_generation();
    progress.has_helpers_ = true;
    if (fork_join_ != nullptr) run_members(*fork_join_);
    take_tickets(0);
    if (fork_generation() == generation) {
      if (pool_ != nullptr) release(pool_->withdraw(request_));
      wait_for_helpers(generation);
    }
    progress.has_helpers_ = false;
    if (fork_generation() != generation) {
      // In a forked child the helpers are gone, and with them their tickets. The record is left to
      // itself: its mutex may be locked.
      return make_status(StatusCode::kInternal,
                         "poll: the process was forked inside a call, which cannot go on in the "
                         "child");
    }
    return progress.status();
  }

  void release(int count) {
    if (count == 0) return;
    if (references_.fetch_sub(count, std::memory_order_acq_rel) != count) return;
    this->~TicketJob();
    free_bytes(this);
  }

 private:
  explicit TicketJob(const Work& work) : work_(work), caller_(pthread_self()) {}
  ~TicketJob() = default;

  static void run_helper(void* self) {
    TicketJob& job = *static_cast<TicketJob*>(self);
    job.help();
    job.release(1);
  }

  int ask_pool() {
    ThreadPool* pool = ThreadPool::instance();
    if (pool == nullptr) return 0;
    const int count = work_.num_helpers;
    references_.fetch_add(count, std::memory_order_relaxed);
    request_.task = &run_helper;
    request_.argument = this;
    const int asked = pool->submit(request_, count);
    release(count - asked);
    if (asked > 0) pool_ = pool;
    return asked;
  }

  int ask_executor(const Executor& executor) {
    int asked = 0;
    while (asked < work_.num_helpers && next_.load(std::memory_order_relaxed) < work_.num_tasks) {
      references_.fetch_add(1, std::memory_order_relaxed);
      try {
        if (executor.submit(executor.context, &run_helper, this) != 0) {
          release(1);
          break;
        }
        ++asked;
      } catch (...) {
        return asked + 1;  // nobody knows whether it was queued: the record stays
      }
    }
    return asked;
  }

  // Whatever the executor leaves undone, take_tickets(0) finds.
  void run_members(const Executor& executor) {
    try {
      executor.parallel(executor.context, work_.num_helpers + 1, &run_member, this);
    } catch (...) {
    }
  }

  // The calling thread leaves last, since it can poll here and not in the runtime's own join.
  static void run_member(void* self) {
    TicketJob& job = *static_cast<TicketJob*>(self);
    if (pthread_equal(pthread_self(), job.caller_) == 0) return job.help();
    job.take_tickets(0);
    job.wait_for_helpers(job.generation_);
  }

  void help() {
    const int worker = begin();
    if (worker == 0) return;
    take_tickets(worker);
    end();
  }

  // The worker number of a helper, 0: too late, not wanted, or on the calling thread itself (an
  // executor that runs tasks in submit, or a poll that runs the queue), which works already.
  int begin() {
    if (pthread_equal(pthread_self(), caller_) != 0) return 0;
    const std::lock_guard lock(mutex_);
    if (closed_ || last_worker_ == work_.num_helpers) return 0;
    ++running_;
    return ++last_worker_;
  }

  void end() {
    const std::lock_guard lock(mutex_);
    if (--running_ == 0) helpers_done_.notify_one();
  }

  void take_tickets(int worker) {
    run_tickets(work_.num_tasks, work_.function, work_.job, worker, *work_.progress,
                [this] { return next_.fetch_add(1, std::memory_order_relaxed); });
  }

  void wait_for_helpers(uint32_t generation) {
    look_out_for([this] { return running_.load(std::memory_order_relaxed) == 0; });
    std::unique_lock lock(mutex_);
    closed_ = true;
    while (running_ > 0) {
      helpers_done_.wait_for(lock, kPollInterval);
      if (running_ == 0) return;
      lock.unlock();
      work_.progress->keep_going(0);
      if (fork_generation() != generation) return;
      lock.lock();
    }
  }

  const Work work_;
  const pthread_t caller_;
  std::atomic<int> references_{1};  // the caller's, and one for each helper asked for
  alignas(kCacheLineBytes) std::atomic<int64_t> next_{0};
  alignas(kCacheLineBytes) std::mutex mutex_;  // guards the next three
  bool closed_ = false;
  std::atomic<int> running_{0};
  int last_worker_ = 0;
  std::condition_variable helpers_done_;
  PoolRequest request_;
  ThreadPool* pool_ = nullptr;
  const Executor* fork_join_ = nullptr;
  uint32_t generation_ = 0;  // of the process that called
};

int usable_cores() {
#if defined(__linux__)
  CoreMask mask;
  if (read_core_mask(&mask)) {
    const int cores = CPU_COUNT_S(sizeof mask.cores, mask.cores);
    if (cores > 0) return clamp_workers(cores);
  }
#endif
  return clamp_workers(sysconf(_SC_NPROCESSORS_ONLN));
}

int worker_count(const ExecutionContext& context) {
  const Executor* executor = context.executor;
  const int most = executor != nullptr ? clamp_workers(executor->num_threads) : kMaxWorkers;
  if (context.num_threads > 0) {
    return context.num_threads < most ? clamp_workers(context.num_threads) : most;
  }
  return executor != nullptr ? most : usable_cores();
}

Progress::Progress(const ExecutionContext& context, double total_units)
    : poll_(context.poll),
      poll_data_(context.poll_data),
      total_units_(total_units),
      last_poll_(std::chrono::steady_clock::now()) {}

void Progress::fail(StatusCode code) {
  if (code == StatusCode::kOk) return;
  StatusCode none = StatusCode::kOk;
  code_.compare_exchange_strong(none, code, std::memory_order_relaxed);
  stopped_.store(true, std::memory_order_relaxed);
}

double Progress::fraction() const {
  if (!(total_units_ > 0)) return 1.0;
  const double share = done_units_.load(std::memory_order_relaxed) / total_units_;
  return share < 1.0 ? share : 1.0;
}

void Progress::poll_if_due() {
  if (cancelled()) return;
  const auto now = std::chrono::steady_clock::now();
  if (now - last_poll_ < kPollInterval) return;
  const uint32_t generation = fork_generation();
  try {
    poll_result_ = poll_(poll_data_, fraction());
    if (poll_result_ != 0) fail(StatusCode::kCancelled);
  } catch (...) {
    fail(StatusCode::kInternal);
  }
  if (has_helpers_ && fork_generation() != generation) fail(StatusCode::kInternal);
  last_poll_ = std::chrono::steady_clock::now();
}

Status Progress::status() const {
  const StatusCode code = code_.load(std::memory_order_relaxed);
  switch (code) {
    case StatusCode::kOk: return {};
    case StatusCode::kOutOfMemory:
      return make_status(code, "workspace: a task of the call could not allocate memory");
    case StatusCode::kCancelled: {
      char sentence[96];
      std::snprintf(sentence, sizeof sentence,
                    "poll: returned %d, so the call was cancelled at %.1f %%", poll_result_,
                    100 * fraction());
      return make_status(code, sentence);
    }
    default: return make_status(code, "call: an exception left a task or poll");
  }
}

Status parallel_for(const ExecutionContext& context, int num_workers, int64_t num_tasks,
                    TaskFunction function, void* job, Progress& progress) {
  if (num_tasks <= 0) return progress.status();
  if (num_workers > num_tasks) num_workers = static_cast<int>(num_tasks);
  const int helpers = clamp_workers(num_workers) - 1;
  TicketJob* shared = nullptr;
  if (helpers > 0 && watch_forks()) {
    shared = TicketJob::create({.function = function,
                                .job = job,
                                .num_tasks = num_tasks,
                                .num_helpers = helpers,
                                .progress = &progress});
  }
  Status status;
  if (shared != nullptr && shared->find_helpers(context.executor)) {
    status = shared->run();
  } else {
    int64_t next = 0;
    run_tickets(num_tasks, function, job, 0, progress, [&next] { return next++; });
    status = progress.status();
  }
  if (shared != nullptr) shared->release(1);
  return status;
}

}  // namespace attentile::cpu

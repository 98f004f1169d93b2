// SPDX-License-Identifier: Apache-2.0
// Threads, progress and cancellation of one call. A kernel is a function that does task number t;
// parallel_for hands the numbers out by one atomic ticket in increasing order, so a task may wait
// for a lower-numbered one: whoever holds the lowest unfinished number never waits, and every call
// moves on even if no other thread ever joins it. The calling thread is worker 0 and always works;
// the others come from the caller's executor or from the library's own pool (thread_pool.h).
//
//     Progress progress(context, total_units);
//     Job job{...};
//     Status status = parallel_for(context, worker_count(context), num_tasks, &run_task, &job,
//                                  progress);
//
//     void run_task(void* job, int64_t task, int worker, Progress& progress) {
//       for (each tile) {
//         if (!progress.keep_going(worker)) return;   // leave everything as it is
//         ...
//         progress.add(units of this tile);
//       }
//     }
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

#include "attentile/attention.h"
#include "attentile/status.h"

namespace attentile::cpu {

inline constexpr int kMaxWorkers = 4096;

// Cores that this call may run on, at least 1: those of the process's first thread and of the
// calling thread together, so that neither being pinned to one core makes a call serial. Read on
// every call.
int usable_cores();

// Threads a call may use, the calling one included, in [1, kMaxWorkers]: num_threads, but never
// more than executor->num_threads when there is an executor; when it is 0, executor->num_threads,
// or all usable cores where there is none.
int worker_count(const ExecutionContext& context);

// How far a call has come, and whether it should stop. One object lives on the calling thread's
// stack for the whole call; several parallel_for in a row may share it.
class Progress {
 public:
  // total_units: the work of the whole call in any unit, e.g. visible pairs; 0 counts as done.
  Progress(const ExecutionContext& context, double total_units);
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // To be called every few 100 us of work; false means stop now, leaving outputs half-written.
  // Worker 0 reads the clock and calls poll when 10 ms have passed since it last did; other
  // workers load one flag.
  bool keep_going(int worker) {
    if (worker == 0 && poll_ != nullptr) poll_if_due();
    return !stopped_.load(std::memory_order_relaxed);
  }

  // Adds finished work, from any worker; a negative or NaN value is ignored. Call it per tile or
  // per task, not per element: it is an atomic addition.
  void add(double units) {
    if (units > 0) done_units_.fetch_add(units, std::memory_order_relaxed);
  }

  // Stops all workers and makes the call report this code; the first report wins. For a task that
  // cannot go on, e.g. kOutOfMemory. kOk is ignored.
  void fail(StatusCode code);

  // True once keep_going says false: poll asked for it, or a task failed.
  bool cancelled() const { return stopped_.load(std::memory_order_relaxed); }

  // Finished share of the work, in [0, 1]; never falls.
  double fraction() const;

  // ok while nobody stopped the call; else kCancelled or the code that fail() was given. Calling
  // thread only.
  Status status() const;

 private:
  friend class TicketJob;  // executor.cc
  void poll_if_due();

  int (*const poll_)(void*, double);
  void* const poll_data_;
  const double total_units_;
  std::chrono::steady_clock::time_point last_poll_;  // calling thread only
  bool has_helpers_ = false;                         // calling thread only
  int poll_result_ = 0;                              // calling thread only
  std::atomic<double> done_units_{0.0};
  std::atomic<bool> stopped_{false};
  std::atomic<StatusCode> code_{StatusCode::kOk};
};

// Does task number `task`, in [0, num_tasks). worker is in [0, num_workers) and no two tasks run at
// once under the same worker, so it may index scratch memory.
using TaskFunction = void (*)(void* job, int64_t task, int worker, Progress& progress);

// Runs every task exactly once, unless stopped, and returns when none is running. Uses at most
// min(num_workers, num_tasks) threads and fewer when some cannot be had (no memory, no thread, a
// refusing executor): that is never an error, and one worker runs inline without locking or
// allocating. Everything the caller wrote before is visible to the tasks, and everything they wrote
// is visible after the return. Safe to call from inside a task, a poll or a thread of the executor.
// Each worker runs with the default floating-point environment (round to nearest, subnormals kept,
// nothing trapped), whatever its thread had set, and puts that back.
// Returns kCancelled when poll said so, or the code of Progress::fail; an exception that leaves a
// task becomes kOutOfMemory (std::bad_alloc) or kInternal.
Status parallel_for(const ExecutionContext& context, int num_workers, int64_t num_tasks,
                    TaskFunction function, void* job, Progress& progress);

}  // namespace attentile::cpu

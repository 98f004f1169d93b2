// SPDX-License-Identifier: Apache-2.0
// The library's own threads: none until a call wants help, then as many as the widest call asked
// for. A thread that has nothing to do looks out for the next request for a moment, since calls
// often follow each other (layers, tokens) and to wake it takes longer than a small call does; then
// it sleeps. It does not look out where a call asked for as many helpers as there are cores or
// more.
//
// The end of the process: a static destructor tells the threads to leave and joins those that are
// idle, so exit() and dlclose() leave no thread in unmapped code and a leak checker sees none. A
// thread that is busy then (some other thread is inside a call during exit) is not waited for.
// Calls made later run on their own thread.
// fork(): the child has none of the threads, and a lock may have been held when it was copied. A
// pthread_atfork handler makes the child forget the pool, which stays allocated and reachable and
// is never touched again; the child builds a new one on first use.
#pragma once

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "memory.h"

namespace attentile::cpu {

// A request for helpers: up to `count` threads each run task(argument) once. It lies in the memory
// of who asks and is linked into the pool's queue until its last helper begins or it is withdrawn.
struct PoolRequest {
  void (*task)(void* argument) = nullptr;
  void* argument = nullptr;
  int count = 0;
  PoolRequest* previous = nullptr;
  PoolRequest* next = nullptr;
  bool queued = false;
};

class ThreadPool {
 public:
  // The process's pool, built on first use; null when it cannot be or the process is ending.
  static ThreadPool* instance();

  ThreadPool() = default;
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // Queues a request for `count` helpers, after starting threads so that there are as many; where
  // threads cannot be started, for fewer. Returns how many were asked for, 0: nothing is queued.
  int submit(PoolRequest& request, int count);

  // Takes a request back and returns how many of its helpers did not and will not begin. The
  // others may still be running.
  int withdraw(PoolRequest& request);

  int num_threads();

 private:
  struct Thread {
    ThreadPool* pool = nullptr;
    pthread_t handle = {};
    Thread* next = nullptr;
    bool finished = false;  // will not touch the pool again once the mutex is free
  };
  friend struct PoolLifetime;  // thread_pool.cc

  static void* thread_main(void* thread);
  bool start_thread();
  void work(Thread& thread);
  void unlink(PoolRequest& request);
  void shut_down();

  // A request is queued, or the pool is ending.
  alignas(kCacheLineBytes) std::atomic<bool> wanted_{false};

  alignas(kCacheLineBytes) std::mutex mutex_;  // guards everything below
  std::condition_variable work_there_;
  std::condition_variable thread_left_;
  PoolRequest* first_ = nullptr;
  PoolRequest* last_ = nullptr;
  Thread* threads_ = nullptr;
  int num_threads_ = 0;  // started and not finished
  int num_busy_ = 0;
  int num_asked_ = 0;  // of the last request
  int num_cores_ = 0;  // usable when the last thread was started
  bool ending_ = false;
  ThreadPool* forgotten_ = nullptr;  // the pool of the process that this one was forked from
};

#if defined(__linux__)
// 65,536 cores; the kernel refuses a mask smaller than its own.
struct CoreMask {
  cpu_set_t cores[64];
};

// The cores of the process's first thread, which commands such as taskset set, and those of the
// calling thread: either may be pinned to fewer than the process has. False: the system refuses.
bool read_core_mask(CoreMask* mask);
#endif

// Makes sure that forks are noticed from now on; false when the system refuses.
bool watch_forks();

// How many forks lie between the first call of watch_forks() and this process. A call that sees it
// change runs in a child and has lost its helpers.
uint32_t fork_generation();

}  // namespace attentile::cpu

// SPDX-License-Identifier: Apache-2.0
// The pool's threads, their queue, and what happens to them at fork() and exit(). Threads are made
// with pthread_create because it reports failure by a value and takes no C++ allocation.
#include "cpu/thread_pool.h"

#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <new>

#include "cpu/executor.h"
#include "cpu/turnstile.h"
#include "memory.h"

namespace attentile::cpu {
namespace {

constexpr int kMaxThreads = kMaxWorkers - 1;
constexpr std::chrono::seconds kShutDownLimit{2};  // only reached if threads vanished unseen

std::atomic<ThreadPool*> current{nullptr};
std::atomic<ThreadPool*> forgotten{nullptr};
std::atomic<bool> process_ends{false};
std::atomic<bool> forks_watched{false};
std::atomic<uint32_t> generation{0};

// The first pool lives here, so that nothing stays allocated after dlclose(); it is not destroyed,
// since a thread may still be leaving it.
alignas(ThreadPool) unsigned char first_pool[sizeof(ThreadPool)];
std::atomic<bool> first_pool_taken{false};

void forget_pool_in_child() {
  generation.fetch_add(1, std::memory_order_relaxed);
  ThreadPool* parent_pool = current.exchange(nullptr, std::memory_order_relaxed);
  if (parent_pool != nullptr) forgotten.store(parent_pool, std::memory_order_relaxed);
}

// Pool threads leave the process's asynchronous signals to the caller's threads; those that a fault
// raises stay deliverable.
class BlockSignals {
 public:
  BlockSignals() {
    sigset_t set;
    sigfillset(&set);
    for (int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS, SIGPROF}) {
      sigdelset(&set, fault);
    }
    pthread_sigmask(SIG_SETMASK, &set, &before_);
  }
  BlockSignals(const BlockSignals&) = delete;
  BlockSignals& operator=(const BlockSignals&) = delete;
  ~BlockSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};

#if defined(__linux__)
// A thread inherits the cores of whoever started it, and that one may be pinned to a few while the
// pool serves the whole process.
void use_cores_of_process() {
  CoreMask mask;
  if (read_core_mask(&mask)) sched_setaffinity(0, sizeof mask.cores, mask.cores);
}
#endif

}  // namespace

struct PoolLifetime {
  static ThreadPool* create() {
    if (!watch_forks()) return nullptr;
    const bool heap = first_pool_taken.exchange(true, std::memory_order_acq_rel);
    ThreadPool* pool = heap ? new (std::nothrow) ThreadPool : new (first_pool) ThreadPool;
    if (pool == nullptr) return nullptr;
    pool->forgotten_ = forgotten.load(std::memory_order_relaxed);
    ThreadPool* winner = nullptr;
    if (current.compare_exchange_strong(winner, pool, std::memory_order_acq_rel)) return pool;
    if (heap) delete pool;
    return winner;
  }

  ~PoolLifetime() {
    process_ends.store(true, std::memory_order_release);
    ThreadPool* pool = current.exchange(nullptr, std::memory_order_acq_rel);
    if (pool == nullptr) return;
    forgotten.store(pool, std::memory_order_relaxed);  // keeps it reachable
    pool->shut_down();
  }
};

namespace {
PoolLifetime lifetime;  // its destructor runs at exit() and dlclose()
}  // namespace

#if defined(__linux__)
bool read_core_mask(CoreMask* mask) {
  CoreMask own;
  if (sched_getaffinity(getpid(), sizeof mask->cores, mask->cores) != 0) return false;
  if (sched_getaffinity(0, sizeof own.cores, own.cores) != 0) return false;
  CPU_OR_S(sizeof own.cores, mask->cores, mask->cores, own.cores);
  return true;
}
#endif

bool watch_forks() {
  if (forks_watched.load(std::memory_order_acquire)) return true;
  // Two threads may both register; the handler may run twice.
  if (pthread_atfork(nullptr, nullptr, &forget_pool_in_child) != 0) return false;
  forks_watched.store(true, std::memory_order_release);
  return true;
}

uint32_t fork_generation() {
  return generation.load(std::memory_order_relaxed);
}

ThreadPool* ThreadPool::instance() {
  ThreadPool* pool = current.load(std::memory_order_acquire);
  if (pool != nullptr) return pool;
  if (process_ends.load(std::memory_order_acquire)) return nullptr;
  return PoolLifetime::create();
}

int ThreadPool::submit(PoolRequest& request, int count) {
  std::unique_lock lock(mutex_);
  if (ending_) return 0;
  if (count > kMaxThreads) count = kMaxThreads;
  while (num_threads_ < count && start_thread()) {
  }
  if (count > num_threads_) count = num_threads_;
  if (count <= 0) return 0;
  request.count = num_asked_ = count;
  request.previous = last_;
  request.next = nullptr;
  request.queued = true;
  (last_ != nullptr ? last_->next : first_) = &request;
  last_ = &request;
  wanted_.store(true, std::memory_order_release);
  const bool all = count >= num_threads_ - num_busy_;
  lock.unlock();
  if (all) {
    work_there_.notify_all();
  } else {
    for (int i = 0; i < count; ++i) work_there_.notify_one();
  }
  return count;
}

int ThreadPool::withdraw(PoolRequest& request) {
  const std::lock_guard lock(mutex_);
  if (!request.queued) return 0;
  unlink(request);
  return request.count;
}

int ThreadPool::num_threads() {
  const std::lock_guard lock(mutex_);
  return num_threads_;
}

void ThreadPool::unlink(PoolRequest& request) {
  (request.previous != nullptr ? request.previous->next : first_) = request.next;
  (request.next != nullptr ? request.next->previous : last_) = request.previous;
  request.queued = false;
  wanted_.store(first_ != nullptr || ending_, std::memory_order_release);
}

bool ThreadPool::start_thread() {
  void* memory = allocate_bytes(sizeof(Thread));
  if (memory == nullptr) return false;
  Thread* thread = new (memory) Thread;
  thread->pool = this;
  const BlockSignals block;
  if (pthread_create(&thread->handle, nullptr, &thread_main, thread) != 0) {
    free_bytes(memory);
    return false;
  }
  thread->next = threads_;
  threads_ = thread;
  ++num_threads_;
  num_cores_ = usable_cores();
  return true;
}

void* ThreadPool::thread_main(void* thread_data) {
  Thread* thread = static_cast<Thread*>(thread_data);
#if defined(__linux__)
  pthread_setname_np(pthread_self(), "attentile");
  use_cores_of_process();
#endif
  thread->pool->work(*thread);
  return nullptr;
}

void ThreadPool::work(Thread& thread) {
  std::unique_lock lock(mutex_);
  bool fresh = false;
  while (true) {
    if (fresh && !ending_ && first_ == nullptr && num_asked_ < num_cores_) {
      lock.unlock();
      look_out_for([this] { return wanted_.load(std::memory_order_acquire); });
      lock.lock();
    }
    while (!ending_ && first_ == nullptr) work_there_.wait(lock);
    if (ending_) break;
    PoolRequest& request = *first_;
    void (*const task)(void*) = request.task;
    void* const argument = request.argument;
    if (--request.count == 0) unlink(request);
    ++num_busy_;
    lock.unlock();
    task(argument);  // the request may be gone now
    lock.lock();
    --num_busy_;
    fresh = true;
  }
  --num_threads_;
  thread.finished = true;
  thread_left_.notify_all();
}

void ThreadPool::shut_down() {
  const auto limit = std::chrono::steady_clock::now() + kShutDownLimit;
  Thread* finished = nullptr;
  {
    std::unique_lock lock(mutex_);
    ending_ = true;
    wanted_.store(true, std::memory_order_release);
    work_there_.notify_all();
    thread_left_.wait_until(lock, limit, [this] { return num_threads_ <= num_busy_; });
    Thread* thread = threads_;
    threads_ = nullptr;
    while (thread != nullptr) {
      Thread* const next = thread->next;
      if (!thread->finished) pthread_detach(thread->handle);
      Thread*& list = thread->finished ? finished : threads_;
      thread->next = list;
      list = thread;
      thread = next;
    }
  }
  while (finished != nullptr) {
    Thread* const thread = finished;
    finished = thread->next;
    pthread_join(thread->handle, nullptr);
    free_bytes(thread);
  }
}

}  // namespace attentile::cpu

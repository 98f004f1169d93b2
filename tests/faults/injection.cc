// SPDX-License-Identifier: Apache-2.0
// The replaced functions. A sanitizer has its own pthread_create in front of the system's, under a
// second name that is called here where it exists. ThreadSanitizer's operator new cannot be
// replaced: there the tests that need it are skipped.
#include "faults/injection.h"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <thread>

#include "support/sanitizer.h"

namespace {

std::atomic<int64_t> news_until_failure{-1};
std::atomic<bool> new_failed{false};
std::atomic<int64_t> live_news{0};

std::atomic<int> thread_attempts{0};
std::atomic<int> thread_failures_first{0};
std::atomic<int> thread_failures_count{0};

}  // namespace

#if !defined(ATTENTILE_TEST_TSAN)
namespace {

void* allocate(size_t size, size_t alignment) {
  if (news_until_failure.load(std::memory_order_relaxed) >= 0 &&
      news_until_failure.fetch_sub(1, std::memory_order_relaxed) == 0) {
    new_failed.store(true, std::memory_order_relaxed);
    return nullptr;
  }
  void* address = nullptr;
  if (alignment <= alignof(std::max_align_t)) {
    address = std::malloc(size > 0 ? size : 1);
  } else if (posix_memalign(&address, alignment, size > 0 ? size : 1) != 0) {
    address = nullptr;
  }
  if (address != nullptr) live_news.fetch_add(1, std::memory_order_relaxed);
  return address;
}

void* allocate_or_throw(size_t size, size_t alignment) {
  void* address = allocate(size, alignment);
  if (address == nullptr) throw std::bad_alloc();
  return address;
}

void deallocate(void* address) {
  if (address == nullptr) return;
  live_news.fetch_sub(1, std::memory_order_relaxed);
  std::free(address);
}

}  // namespace

void* operator new(size_t size) {
  return allocate_or_throw(size, 1);
}
void* operator new[](size_t size) {
  return allocate_or_throw(size, 1);
}
void* operator new(size_t size, std::align_val_t alignment) {
  return allocate_or_throw(size, static_cast<size_t>(alignment));
}
void* operator new[](size_t size, std::align_val_t alignment) {
  return allocate_or_throw(size, static_cast<size_t>(alignment));
}
void* operator new(size_t size, const std::nothrow_t&) noexcept {
  return allocate(size, 1);
}
void* operator new[](size_t size, const std::nothrow_t&) noexcept {
  return allocate(size, 1);
}
void operator delete(void* address) noexcept {
  deallocate(address);
}
void operator delete[](void* address) noexcept {
  deallocate(address);
}
void operator delete(void* address, size_t) noexcept {
  deallocate(address);
}
void operator delete[](void* address, size_t) noexcept {
  deallocate(address);
}
void operator delete(void* address, std::align_val_t) noexcept {
  deallocate(address);
}
void operator delete[](void* address, std::align_val_t) noexcept {
  deallocate(address);
}
void operator delete(void* address, size_t, std::align_val_t) noexcept {
  deallocate(address);
}
void operator delete[](void* address, size_t, std::align_val_t) noexcept {
  deallocate(address);
}
void operator delete(void* address, const std::nothrow_t&) noexcept {
  deallocate(address);
}
void operator delete[](void* address, const std::nothrow_t&) noexcept {
  deallocate(address);
}
#endif

using ThreadMain = void* (*)(void*);
extern "C" __attribute__((weak)) int __interceptor_pthread_create(pthread_t*, const pthread_attr_t*,
                                                                  ThreadMain, void*);

extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, ThreadMain main,
                              void* argument) noexcept {
  const int attempt = thread_attempts.fetch_add(1) - thread_failures_first.load();
  if (attempt >= 0 && attempt < thread_failures_count.load()) return EAGAIN;
  using Create = int (*)(pthread_t*, const pthread_attr_t*, ThreadMain, void*);
  static const Create create = &__interceptor_pthread_create != nullptr
                                   ? &__interceptor_pthread_create
                                   : reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
  return create(thread, attributes, main, argument);
}

#if defined(ATTENTILE_TEST_TSAN)
// Its default is to end a child that starts a thread after the fork of a program with threads, and
// to sleep for a second before each child ends.
extern "C" const char* __tsan_default_options() {
  return "die_after_fork=0:atexit_sleep_ms=0";
}
#endif

namespace attentile::testing {

NewFailure::NewFailure(int64_t k) {
  new_failed.store(false);
  news_until_failure.store(k);
}
NewFailure::~NewFailure() {
  news_until_failure.store(-1);
}
bool NewFailure::happened() {
  return new_failed.load();
}

int64_t live_new_count() {
  return live_news.load();
}

ThreadFailure::ThreadFailure(int first, int count) {
  thread_attempts.store(0);
  thread_failures_first.store(first);
  thread_failures_count.store(count);
}
ThreadFailure::~ThreadFailure() {
  thread_failures_count.store(0);
}
int ThreadFailure::attempts() {
  return thread_attempts.load();
}

bool can_fail_new() {
#if defined(ATTENTILE_TEST_TSAN)
  return false;
#else
  return true;
#endif
}

pid_t start_child(const std::function<int()>& body) {
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) _exit(body());
  return child;
}

ChildResult wait_for_child(pid_t child, int limit_s) {
  if (child < 0) return {};
  const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(limit_s);
  int status = 0;
  while (waitpid(child, &status, WNOHANG) == 0) {
    if (std::chrono::steady_clock::now() > limit) {
      kill(child, SIGKILL);
      waitpid(child, &status, 0);
      return {};
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return {.ended = true,
          .exit_status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status)};
}

}  // namespace attentile::testing

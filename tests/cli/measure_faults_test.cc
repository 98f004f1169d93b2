// SPDX-License-Identifier: Apache-2.0
// measure_read_bandwidth where threads do not start. This program's pthread_create fails when told
// to; nothing fails unless a test says so.
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <pthread.h>

#include <atomic>
#include <cerrno>

#include "cli/error.h"
#include "cli/peak.h"

namespace {
std::atomic<int> threads_until_failure{-1};  // negative: none fails
}

using ThreadMain = void* (*)(void*);
// A sanitizer's own version, which stands before the system's.
extern "C" __attribute__((weak)) int __interceptor_pthread_create(pthread_t*, const pthread_attr_t*,
                                                                  ThreadMain, void*);

extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, ThreadMain main,
                              void* argument) noexcept {
  if (threads_until_failure.load() == 0) return EAGAIN;
  if (threads_until_failure.load() > 0) threads_until_failure.fetch_sub(1);
  using Create = int (*)(pthread_t*, const pthread_attr_t*, ThreadMain, void*);
  static const Create create = &__interceptor_pthread_create != nullptr
                                   ? &__interceptor_pthread_create
                                   : reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
  return create(thread, attributes, main, argument);
}

namespace attentile::cli {
namespace {

// While alive, that many threads start and no more.
struct ThreadLimit {
  explicit ThreadLimit(int threads) { threads_until_failure.store(threads); }
  ~ThreadLimit() { threads_until_failure.store(-1); }
  ThreadLimit(const ThreadLimit&) = delete;
  ThreadLimit& operator=(const ThreadLimit&) = delete;
};

TEST(MeasureFaults, ThreadsThatDoNotStartGiveASentence) {
  for (int started : {2, 1, 0}) {
    const ThreadLimit limit(started);
    std::string sentence;
    try {
      measure_read_bandwidth(3);
    } catch (const Error& error) {
      EXPECT_EQ(error.exit(), Exit::kEnvironmentFailed);
      sentence = error.what();
    }
    EXPECT_TRUE(sentence.starts_with("--measure: asked for 3 threads, but the system started " +
                                     std::to_string(started) + ": "))
        << sentence;
  }
}

TEST(MeasureFaults, BandwidthIsPositive) {
  EXPECT_GT(measure_read_bandwidth(2), 0);
}

}  // namespace
}  // namespace attentile::cli

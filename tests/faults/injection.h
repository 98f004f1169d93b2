// SPDX-License-Identifier: Apache-2.0
// Faults on demand for the tests of this folder: this program replaces the global operator new and
// pthread_create by versions that fail when told to. Nothing fails unless armed. Children made by
// fork() report through their exit status.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>

namespace attentile::testing {

// While alive, the k-th operator new from now (0: the next one) throws std::bad_alloc, once.
class NewFailure {
 public:
  explicit NewFailure(int64_t k);
  ~NewFailure();
  NewFailure(const NewFailure&) = delete;
  NewFailure& operator=(const NewFailure&) = delete;
  // Whether it came to pass.
  static bool happened();
};

// Blocks from operator new that were not deleted yet.
int64_t live_new_count();

// While alive, pthread_create fails with EAGAIN for calls first, ..., first + count - 1 from now.
class ThreadFailure {
 public:
  explicit ThreadFailure(int first, int count = 1 << 20);
  ~ThreadFailure();
  ThreadFailure(const ThreadFailure&) = delete;
  ThreadFailure& operator=(const ThreadFailure&) = delete;
  // Calls of pthread_create that were seen since it was made.
  static int attempts();
};

// False under ThreadSanitizer, whose own operator new is in the way: NewFailure then does nothing.
bool can_fail_new();

// What became of a child process.
struct ChildResult {
  bool ended = false;    // within the time limit; else it was killed
  int exit_status = -1;  // 128 + the signal when one ended it
};

// Forks; the child runs body and leaves with its return value by _exit, without destructors.
pid_t start_child(const std::function<int()>& body);
ChildResult wait_for_child(pid_t child, int limit_s = 60);
inline ChildResult run_in_child(const std::function<int()>& body) {
  return wait_for_child(start_child(body));
}

}  // namespace attentile::testing

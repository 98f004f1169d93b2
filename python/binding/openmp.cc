// SPDX-License-Identifier: Apache-2.0
#include "openmp.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdint>

#include "cpu/executor.h"
#include "cpu/thread_pool.h"

namespace attentile::python {
namespace {

// What a compiler calls for `#pragma omp parallel`; num_threads 0: as many as the runtime likes.
using Parallel = void (*)(void (*body)(void*), void* argument, unsigned num_threads,
                          unsigned flags);
using MaxThreads = int (*)();

struct Runtime {
  Parallel parallel = nullptr;
  MaxThreads max_threads = nullptr;
  uint32_t generation = 0;  // of the process it works in
};

Runtime runtime;
std::atomic<bool> present{false};

// The runtime's usual team, of which the call's threads are a part: a smaller one would end the
// threads that are left over, and start them again for the next operator. Who is too many returns
// at once.
void run_team(void* /*context*/, int /*num_threads*/, void (*task)(void*), void* argument) {
  runtime.parallel(task, argument, 0, 0);
}

}  // namespace

bool use_openmp(const char* path) {
  if (*path == '\0' || runtime.parallel != nullptr) return present = *path != '\0';
  void* library = dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return false;
  // Looked up in the library and in all that it is linked with. The handle stays open.
  const auto parallel = reinterpret_cast<Parallel>(dlsym(library, "GOMP_parallel"));
  const auto max_threads = reinterpret_cast<MaxThreads>(dlsym(library, "omp_get_max_threads"));
  if (parallel == nullptr || max_threads == nullptr || !cpu::watch_forks()) {
    dlclose(library);
    return false;
  }
  runtime = {parallel, max_threads, cpu::fork_generation()};
  return present = true;
}

bool openmp_executor(int num_threads, Executor* executor) {
  if (!present || num_threads == 1 || cpu::fork_generation() != runtime.generation) return false;
  const int threads = num_threads == 0 ? cpu::usable_cores() : num_threads;
  if (threads > runtime.max_threads()) return false;
  *executor = {.num_threads = threads, .parallel = run_team};
  return true;
}

}  // namespace attentile::python

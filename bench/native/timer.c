/* SPDX-License-Identifier: Apache-2.0
   Times calls of the C interface from C, so that what is measured is the call and not the
   language that asks for it. */
#include <stdint.h>
#include <time.h>

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef int32_t (*Forward)(const void*, const void*, const void*, const void*);
typedef int32_t (*Backward)(const void*, const void*, const void*, const void*, const void*);

/* Inputs, outputs, gradients (NULL: a forward call), options, context. */
struct Call {
  void* function;
  const void* arguments[5];
};

/* Calls until `seconds` have passed or times[capacity] is full. Returns how often, or minus the
   status of a call that failed. */
int64_t bench_time_calls(const struct Call* call, double seconds, int64_t capacity, double* times) {
  const void* const* a = call->arguments;
  const double begin = now();
  for (int64_t i = 0; i < capacity; ++i) {
    const double start = now();
    const int32_t status = a[2] == 0 ? ((Forward)call->function)(a[0], a[1], a[3], a[4])
                                     : ((Backward)call->function)(a[0], a[1], a[2], a[3], a[4]);
    const double stop = now();
    if (status != 0) return -status;
    times[i] = stop - start;
    if (stop - begin >= seconds) return i + 1;
  }
  return capacity;
}

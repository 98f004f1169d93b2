/* SPDX-License-Identifier: Apache-2.0
   A streaming read: how fast this machine brings given bytes to its registers, from whatever level
   of the memory holds all of them. Decoding is held against it. */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

typedef uint64_t Vector __attribute__((vector_size(64), aligned(64)));

struct Part {
  const void* const* arrays;
  int32_t num_arrays;
  int64_t first; /* byte of each array */
  int64_t bytes; /* of each */
  int64_t passes;
  pthread_barrier_t* barrier;
  double start_s;
  double stop_s;
  uint64_t sum;
};

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static Vector read_once(const Vector* data, int64_t vectors) {
  Vector sums[8] = {{0}};
  int64_t i = 0;
  for (; i + 8 <= vectors; i += 8) {
    for (int j = 0; j < 8; ++j) sums[j] += data[i + j];
    /* The next page's lines: hardware stops at the end of one. */
    __builtin_prefetch((const char*)(data + i) + 8192);
    __builtin_prefetch((const char*)(data + i) + 8192 + 256);
  }
  for (; i < vectors; ++i) sums[0] += data[i];
  for (int j = 1; j < 8; ++j) sums[0] += sums[j];
  return sums[0];
}

static Vector read_arrays(const struct Part* part) {
  Vector sum = {0};
  for (int32_t i = 0; i < part->num_arrays; ++i) {
    sum += read_once((const Vector*)((const char*)part->arrays[i] + part->first), part->bytes / 64);
  }
  return sum;
}

static void* read_part(void* argument) {
  struct Part* part = argument;
  Vector sum = {0};
  pthread_barrier_wait(part->barrier);
  part->start_s = now();
  for (int64_t pass = 0; pass < part->passes; ++pass) {
    sum += read_arrays(part);
    __asm__ volatile("" ::: "memory"); /* each pass reads again */
  }
  part->stop_s = now();
  part->sum = sum[0] ^ sum[7];
  return 0;
}

enum { kMaxThreads = 256 };

/* Seconds that `threads` threads need to read `bytes` from each of the arrays (64-byte aligned),
   one array after the other, the mean of `passes`; below 0 if that is no number of threads. */
double bench_stream(const void* const* arrays, int32_t num_arrays, int64_t bytes, int32_t threads,
                    int64_t passes) {
  static volatile uint64_t sink;
  if (threads < 1 || threads > kMaxThreads) return -1;
  pthread_t ids[kMaxThreads];
  struct Part parts[kMaxThreads];
  pthread_barrier_t barrier;
  pthread_barrier_init(&barrier, 0, (unsigned)threads);
  const int64_t share = bytes / threads / 64 * 64;
  for (int32_t t = 0; t < threads; ++t) {
    parts[t] = (struct Part){.arrays = arrays,
                             .num_arrays = num_arrays,
                             .first = t * share,
                             .bytes = share,
                             .passes = passes,
                             .barrier = &barrier};
  }
  for (int32_t t = 1; t < threads; ++t) {
    /* The others would wait for it, in this frame. */
    if (pthread_create(&ids[t], 0, read_part, &parts[t]) != 0) abort();
  }
  read_part(&parts[0]);
  double start = parts[0].start_s, stop = parts[0].stop_s;
  for (int32_t t = 1; t < threads; ++t) {
    pthread_join(ids[t], 0);
    if (parts[t].start_s < start) start = parts[t].start_s;
    if (parts[t].stop_s > stop) stop = parts[t].stop_s;
  }
  for (int32_t t = 0; t < threads; ++t) sink += parts[t].sum;
  pthread_barrier_destroy(&barrier);
  return (stop - start) / (double)passes;
}

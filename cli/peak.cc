// SPDX-License-Identifier: Apache-2.0
// Read bandwidth: each thread sums its own buffer with eight independent accumulators, which the
// compiler turns into vector loads; the best of five rounds counts.
#include "cli/peak.h"

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "cli/error.h"
#include "cli/numbers.h"

namespace attentile::cli {
namespace {

constexpr size_t kWords = size_t{1} << 24;  // 128 MiB a thread
constexpr int kRounds = 5;
using Clock = std::chrono::steady_clock;
using Buffer = std::unique_ptr<uint64_t[]>;

uint64_t sum_of(const Buffer& buffer) {
  uint64_t sums[8] = {};
  for (size_t i = 0; i + 8 <= kWords; i += 8) {
    for (size_t lane = 0; lane < 8; ++lane) sums[lane] += buffer[i + lane];
  }
  uint64_t total = 0;
  for (uint64_t sum : sums) total += sum;
  return total;
}

// All of them before any thread starts. Nothing is written: each thread touches its own first, so
// that the memory is near it.
std::vector<Buffer> allocate_buffers(int threads) {
  std::vector<Buffer> buffers;
  try {
    for (int t = 0; t < threads; ++t) {
      buffers.push_back(std::make_unique_for_overwrite<uint64_t[]>(kWords));
    }
  } catch (const std::bad_alloc&) {
    environment_failed(
        "--measure: asked for {} of memory, {} for each of {} threads; the system "
        "gave {}",
        bytes_words(static_cast<double>(read_bandwidth_bytes(threads))),
        bytes_words(static_cast<double>(kWords * sizeof(uint64_t))), threads,
        bytes_words(static_cast<double>(buffers.size() * kWords * 8)));
  }
  return buffers;
}

// Runs work(t) on a thread each. If one cannot be started, drop() is called for it and for each
// that is missing; it must let the others come to their end.
template <class Work, class Drop>
void run_threads(int threads, const Work& work, const Drop& drop) {
  std::string reason;
  std::vector<std::jthread> workers;
  workers.reserve(static_cast<size_t>(threads));
  try {
    for (int t = 0; t < threads; ++t) workers.emplace_back([&work, t] { work(t); });
  } catch (const std::exception& error) {
    reason = error.what();
  }
  const size_t started = workers.size();
  for (size_t t = started; t < static_cast<size_t>(threads); ++t) drop();
  workers.clear();  // joins
  if (started == static_cast<size_t>(threads)) return;
  environment_failed("--measure: asked for {} threads, but the system started {}: {}", threads,
                     started, reason);
}

}  // namespace

int64_t read_bandwidth_bytes(int threads) {
  return int64_t{threads} * static_cast<int64_t>(kWords * sizeof(uint64_t));
}

double measure_read_bandwidth(int threads) {
  const std::vector<Buffer> buffers = allocate_buffers(threads);
  double best_s = 0;
  Clock::time_point start;
  int crossed = 0;
  // The completion runs once per crossing: odd ones start a round, even ones end it.
  std::barrier gate(threads, [&]() noexcept {
    if (crossed++ % 2 == 0) {
      start = Clock::now();
      return;
    }
    const double elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    best_s = best_s == 0 ? elapsed : std::min(best_s, elapsed);
  });
  std::vector<uint64_t> sinks(static_cast<size_t>(threads));
  bool missing = false;  // set before the first crossing, read after it
  run_threads(
      threads,
      [&](int t) {
        const Buffer& buffer = buffers[static_cast<size_t>(t)];
        std::fill_n(buffer.get(), kWords, static_cast<uint64_t>(t) + 1);
        for (int round = 0; round < kRounds; ++round) {
          gate.arrive_and_wait();
          if (missing) return;
          const uint64_t sum = sum_of(buffer);
          gate.arrive_and_wait();
          sinks[static_cast<size_t>(t)] += sum;
        }
      },
      [&] {
        missing = true;
        gate.arrive_and_drop();
      });
  volatile uint64_t sink = 0;
  for (uint64_t value : sinks) sink = sink + value;
  return static_cast<double>(read_bandwidth_bytes(threads)) / best_s;
}

}  // namespace attentile::cli

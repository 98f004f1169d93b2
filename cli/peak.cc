// SPDX-License-Identifier: Apache-2.0
// Read bandwidth: each thread sums its own buffer with eight independent accumulators, which the
// compiler turns into vector loads; the best of five rounds counts.
#include "cli/peak.h"

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

namespace attentile::cli {
namespace {

uint64_t sum_of(const std::vector<uint64_t>& buffer) {
  uint64_t sums[8] = {};
  for (size_t i = 0; i + 8 <= buffer.size(); i += 8) {
    for (size_t lane = 0; lane < 8; ++lane) sums[lane] += buffer[i + lane];
  }
  uint64_t total = 0;
  for (uint64_t sum : sums) total += sum;
  return total;
}

}  // namespace

double measure_read_bandwidth(int threads) {
  constexpr size_t kWords = size_t{1} << 24;  // 128 MiB a thread
  constexpr int kRounds = 5;
  using Clock = std::chrono::steady_clock;
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
  {
    std::vector<std::jthread> workers;
    for (int t = 0; t < threads; ++t) {
      workers.emplace_back([&, t] {
        const std::vector<uint64_t> buffer(kWords, static_cast<uint64_t>(t) + 1);
        for (int round = 0; round < kRounds; ++round) {
          gate.arrive_and_wait();
          const uint64_t sum = sum_of(buffer);
          gate.arrive_and_wait();
          sinks[static_cast<size_t>(t)] += sum;
        }
      });
    }
  }
  volatile uint64_t sink = 0;
  for (uint64_t value : sinks) sink = sink + value;
  return static_cast<double>(threads) * kWords * sizeof(uint64_t) / best_s;
}

}  // namespace attentile::cli

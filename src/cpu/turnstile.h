// SPDX-License-Identifier: Apache-2.0
// Ordered accumulation: several tasks add into the same rows, always in the same order, so that the
// sum has the same bits for any number of threads. Each shared row block has a counter that holds
// whose turn it is. Tickets rise (executor.h), so if a turn belongs to a lower-numbered task than
// the one that waits, somebody is working on it and the wait ends.
//
//     if (!wait_for_turn(turns[block], my_turn, progress, worker)) return;   // stopped
//     ... add ...
//     pass_turn(turns[block], my_turn);
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

#include "cpu/executor.h"

namespace attentile::cpu {

// Tells the core that this is a spin loop.
inline void spin_pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits a moment for something that is likely to be true soon, a few times as long as it takes to
// put a thread to sleep and wake it; spins, then yields (whoever it waits for may need this core).
template <class Condition>
inline void look_out_for(Condition is_true) {
  constexpr std::chrono::microseconds kMoment{100};
  constexpr int kSpins = 64;
  const auto limit = std::chrono::steady_clock::now() + kMoment;
  for (int round = 0; !is_true(); ++round) {
    if (round < kSpins) {
      spin_pause();
    } else {
      if (std::chrono::steady_clock::now() > limit) return;
      std::this_thread::yield();
    }
  }
}

// Waits until the counter reaches turn: spins, then yields, then sleeps in short naps (the one it
// waits for may need this core). What earlier turns wrote is visible after true. False: the call
// was stopped, write nothing.
inline bool wait_for_turn(const std::atomic<int32_t>& counter, int32_t turn, Progress& progress,
                          int worker) {
  constexpr int kSpins = 128;
  constexpr int kYields = 1024;
  for (int round = 0; counter.load(std::memory_order_acquire) != turn; ++round) {
    if (round < kSpins) {
      spin_pause();
      continue;
    }
    if (!progress.keep_going(worker)) return false;
    if (round < kYields) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
      round = kYields;
    }
  }
  return true;
}

// Ends this turn: the next one may begin and sees what was written.
inline void pass_turn(std::atomic<int32_t>& counter, int32_t turn) {
  counter.store(turn + 1, std::memory_order_release);
}

}  // namespace attentile::cpu

// SPDX-License-Identifier: Apache-2.0
// Vector clocks: what a warp knows to have happened. Every access is stamped with its thread and
// the thread's epoch; epochs are counted per warp and grow at each point where the warp publishes.
// An access happened before now if it is our own, or if our clock reaches its epoch. Warps of our
// block have a slot each; other blocks, known only through acquires, are in a map, and so are
// single threads that released without their warp.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>

namespace attentile::cuda::emulator {

inline constexpr int kMaxWarps = 32;

struct Clock {
  using Epochs = std::array<uint32_t, kMaxWarps>;

  uint32_t block = 0;  // whose slots `own` are; number in the grid
  Epochs own{};
  std::map<uint32_t, Epochs> foreign;
  std::map<uint32_t, uint32_t> threads;  // by number in the launch

  static void raise(Epochs& epochs, const Epochs& other) {
    for (int w = 0; w < kMaxWarps; ++w) epochs[w] = std::max(epochs[w], other[w]);
  }
  Epochs& of_block(uint32_t number) { return number == block ? own : foreign[number]; }

  void join(const Clock& other) {
    raise(of_block(other.block), other.own);
    for (const auto& [number, epochs] : other.foreign) raise(of_block(number), epochs);
    for (const auto& [thread, epoch] : other.threads) {
      uint32_t& mine = threads[thread];
      mine = std::max(mine, epoch);
    }
  }

  // Whether the access of `thread` (of that block and warp) at `epoch` happened before.
  bool reaches(uint32_t in_block, uint32_t warp, uint32_t thread, uint32_t epoch) const {
    if (in_block == block) {
      if (own[warp] >= epoch) return true;
    } else if (const auto found = foreign.find(in_block);
               found != foreign.end() && found->second[warp] >= epoch) {
      return true;
    }
    if (threads.empty()) return false;
    const auto found = threads.find(thread);
    return found != threads.end() && found->second >= epoch;
  }
};

}  // namespace attentile::cuda::emulator

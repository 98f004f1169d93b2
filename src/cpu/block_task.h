// SPDX-License-Identifier: Apache-2.0
// Which piece of the problem a task is.
#pragma once

#include <cstdint>

namespace attentile::cpu {

// (batch, head, block) of a task, by the prefix sums of blocks per batch entry.
struct BlockTask {
  int64_t b = 0;
  int64_t h = 0;
  int64_t block = 0;
  int64_t blocks = 0;  // of this batch entry
};

template <class Isa>
inline BlockTask find_block(const int64_t* prefix, int64_t batch, int64_t heads, int64_t task) {
  int64_t low = 0;
  int64_t high = batch;  // prefix[low] * heads <= task < prefix[high] * heads
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (prefix[middle] * heads <= task ? low : high) = middle;
  }
  BlockTask found;
  found.b = low;
  found.blocks = prefix[low + 1] - prefix[low];
  const int64_t within = task - prefix[low] * heads;
  found.h = within / found.blocks;
  found.block = within % found.blocks;
  return found;
}

// The same with the heads innermost: block n of every head comes before block n + 1 of any, so that
// tasks which take turns by block seldom run side by side.
template <class Isa>
inline BlockTask find_block_by_turn(const int64_t* prefix, int64_t batch, int64_t heads,
                                    int64_t task) {
  BlockTask found = find_block<Isa>(prefix, batch, heads, task);
  const int64_t within = task - prefix[found.b] * heads;
  found.h = within % heads;
  found.block = within / heads;
  return found;
}

}  // namespace attentile::cpu

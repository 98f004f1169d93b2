// SPDX-License-Identifier: Apache-2.0
// The dropout generator for a vector of queries.
#pragma once

#include "philox.h"

namespace attentile::cpu {

// word[n][i] = philox4x32_10 of `counter` with rows[i] as its second word. Compilers turn the loop
// into vectors; instruction sets may do better.
template <class Isa, int kLanes>
struct PhiloxLanes {
  static void draw(const Philox4& counter, const uint32_t* rows, const Dropout& dropout,
                   uint32_t (*word)[kLanes]) {
    for (int i = 0; i < kLanes; ++i) {
      const Philox4 random =
          philox4x32_10({{counter.word[0], rows[i], counter.word[2], counter.word[3]}},
                        dropout.key0, dropout.key1);
      for (int n = 0; n < 4; ++n) word[n][i] = random.word[n];
    }
  }
};

}  // namespace attentile::cpu

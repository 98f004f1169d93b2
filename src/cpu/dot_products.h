// SPDX-License-Identifier: Apache-2.0
// Dot products of a few queries with keys, the lanes along head_dim: what a sequence of few queries
// is multiplied with, in the forward pass (decode.h) and in the backward pass, which has to find
// the same scores to the last bit.
#pragma once

#include <cstdint>

#include "cpu/simd/vec.h"

namespace attentile::cpu {

// Values as they lie in memory.
struct Float16Bits {
  uint16_t bits;
};
struct BFloat16Bits {
  uint16_t bits;
};

template <class Isa>
[[gnu::always_inline]] inline Vec<Isa, float> load_values(const float* p) {
  return Vec<Isa, float>::load(p);
}
template <class Isa>
[[gnu::always_inline]] inline Vec<Isa, float> load_values(const Float16Bits* p) {
  return Vec<Isa, float>::load_f16(&p->bits);
}
template <class Isa>
[[gnu::always_inline]] inline Vec<Isa, float> load_values(const BFloat16Bits* p) {
  return Vec<Isa, float>::load_bf16(&p->bits);
}

// Sums that one block of dot products forms at once.
template <class Isa>
inline constexpr int kDotSums = Vec<Isa, float>::kLanes < 8 ? 16 : Vec<Isa, float>::kLanes;

// Rows of queries, dim a multiple of the lanes.
struct QueryBlock {
  const float* q = nullptr;  // [rows][ld]
  int64_t ld = 0;
  int64_t dim = 0;
};

// dots[m][n] = q[m] . key[n] for kRows rows and kDotSums / kRows keys. Each is summed in the same
// order, whatever its place.
template <class Isa, class Element, int kRows>
inline void dot_products(const QueryBlock& block, const Element* const* key, float* dots) {
  using V = Vec<Isa, float>;
  constexpr int kSums = kDotSums<Isa>;
  constexpr int kKeys = kSums / kRows;
  V acc[kSums];
  for (int n = 0; n < kSums; ++n) acc[n] = V::set1(0.0f);
  for (int64_t c = 0; c < block.dim; c += V::kLanes) {
    V q[kRows];
    for (int m = 0; m < kRows; ++m) q[m] = V::load(block.q + m * block.ld + c);
    for (int n = 0; n < kKeys; ++n) {
      const V k = load_values<Isa>(key[n] + c);
      for (int m = 0; m < kRows; ++m) acc[m * kKeys + n] = V::fma(q[m], k, acc[m * kKeys + n]);
    }
  }
  for (int n = 0; n < kSums; n += V::kLanes) sum_each(acc + n).store(dots + n);
}

}  // namespace attentile::cpu

// SPDX-License-Identifier: Apache-2.0
// Synthetic tensors: independent N(0, 1) values by Box and Muller from a counter-based generator.
// Element n of tensor `name` depends on (seed, name, n) alone:
//
//     state  = seed + hash(name) + 2 * (n / 2) * golden       golden = 0x9E3779B97F4A7C15
//     u1, u2 = splitmix64's output for state and state + golden, as (bits >> 11 [+ 1]) * 2^-53
//     value  = sqrt(-2 log u1) * (n even ? cos : sin)(2 pi u2), rounded to the dtype
//
// hash is FNV-1a (64 bits). Logarithm and sine are polynomials over IEEE arithmetic here, not the
// C library's, so that every machine makes the same bits.
#pragma once

#include <cstdint>
#include <string_view>

#include "attentile/tensor.h"

namespace attentile::cli {

// Element n of the stream, before rounding.
double normal_value(uint64_t seed, std::string_view name, int64_t n);

// Writes num_elements values of the stream `name` to `data`, rounded to dtype (a floating one).
struct FillTarget {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t num_elements = 0;
};
void fill_normal(const FillTarget& target, uint64_t seed, std::string_view name);

}  // namespace attentile::cli

// SPDX-License-Identifier: Apache-2.0
// A call described by a shape alone: for plan without memory, for bench with synthetic values.
#pragma once

#include <cstdint>
#include <vector>

#include "cli/tensors.h"

namespace attentile::cli {

struct SyntheticCall {
  Shape shape;
  std::vector<int64_t> seqlens;  // not empty: varlen, these lengths in place of batch and seqlens
  DType dtype = DType::kFloat32;
  Layout layout = Layout::kBshd;
  bool backward = false;
};

// Views with the call's shapes. Without memory they serve plan_forward and plan_backward only.
CallTensors describe_call(const SyntheticCall& synthetic);

// The same with memory: inputs filled with N(0,1) values, dout too when backward.
CallTensors make_call(const SyntheticCall& synthetic, uint64_t fill_seed);

// Bytes that make_call allocates.
double call_bytes(const SyntheticCall& synthetic);

}  // namespace attentile::cli

// SPDX-License-Identifier: Apache-2.0
// How a tensor core adds. The fast model multiplies exactly and adds in float32, k ascending. The
// hardware model follows published measurements (MMA-Sim; arXiv 2512.07004): the products of a
// group and the accumulator are aligned to their largest exponent, cut to a number of fraction bits
// (towards zero), added exactly, and the sum is cut to float32.
#pragma once

#include "cuda/emulator/device.h"
#include "cuda/emulator/instructions.h"

namespace attentile::cuda::emulator {

// acc [16, 8] += a [16, depth] b [depth, 8]
struct MmaOperands {
  float a[16][16];
  float b[16][8];
  float acc[16][8];
  int depth;  // 16, or 8 for tf32
};

void multiply_float32(MmaOperands& operands);

struct AccumulationModel {
  int fraction_bits;
  int group;  // products added at once; groups are chained
};
// sm_80: 24 bits, groups of 8 (tf32: 4). sm_90: 25 bits, all at once.
AccumulationModel accumulation_model(int arch, MmaInput input);
void multiply_hardware(MmaOperands& operands, AccumulationModel model);

// One chained step: c + sum of a[i] b[i].
float fused_dot(const float* a, const float* b, int count, float c, int fraction_bits);

}  // namespace attentile::cuda::emulator

// SPDX-License-Identifier: Apache-2.0
// The vectors of one instruction set as plain functions over arrays, so that a test compiled
// without its flags can call them. Each simd_<name>_ops.cc makes one table.
#pragma once

#include <cstdint>

#include "attentile/attention.h"

// Only clang's pragma reaches the operators of a class template: with g++ the vectors of x86 are
// left out here.
#if defined(__x86_64__) && defined(__clang__)
#define ATTENTILE_TEST_X86_VECTORS 1
#endif

namespace attentile::cpu {

// Every array holds `lanes` values.
template <class Real>
struct LaneOps {
  int lanes = 0;
  void (*abs)(const Real* a, Real* r) = nullptr;
  void (*max)(const Real* a, const Real* b, Real* r) = nullptr;
  void (*min)(const Real* a, const Real* b, Real* r) = nullptr;
  void (*select_lt)(const Real* a, const Real* b, Real* r) = nullptr;  // a < b ? 1 : 2
  bool (*any_lt)(const Real* a, const Real* b) = nullptr;
};

struct SimdOps {
  Isa isa = Isa::kScalar;
  LaneOps<float> narrow;
  LaneOps<double> wide;
  void (*round)(const float* a, float* r) = nullptr;
  void (*scale2)(const float* a, const float* n, float* r) = nullptr;
  void (*load_f16)(const uint16_t* a, float* r) = nullptr;
  void (*load_bf16)(const uint16_t* a, float* r) = nullptr;
  void (*store_f16)(const float* a, uint16_t* r) = nullptr;
  void (*store_bf16)(const float* a, uint16_t* r) = nullptr;
};

// To be called only where this processor has the instructions.
const SimdOps& scalar_ops();
const SimdOps& avx2_ops();
const SimdOps& avx512_ops();
const SimdOps& neon_ops();

}  // namespace attentile::cpu

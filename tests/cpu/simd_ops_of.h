// SPDX-License-Identifier: Apache-2.0
// Makes the table of one instruction set. Included by the simd_<name>_ops.cc files only, after the
// header of their vectors and under their flags; every name carries the tag.
#pragma once

#include "cpu/simd_ops.h"

namespace attentile::cpu {

template <class Isa, class Real>
struct LaneOpsOf {
  using V = Vec<Isa, Real>;
  static void abs(const Real* a, Real* r) { V::abs(V::load(a)).store(r); }
  static void max(const Real* a, const Real* b, Real* r) {
    V::max(V::load(a), V::load(b)).store(r);
  }
  static void min(const Real* a, const Real* b, Real* r) {
    V::min(V::load(a), V::load(b)).store(r);
  }
  static void select_lt(const Real* a, const Real* b, Real* r) {
    V::select_lt(V::load(a), V::load(b), V::set1(Real{1}), V::set1(Real{2})).store(r);
  }
  static bool any_lt(const Real* a, const Real* b) { return V::any_lt(V::load(a), V::load(b)); }

  static LaneOps<Real> table() { return {V::kLanes, &abs, &max, &min, &select_lt, &any_lt}; }
};

template <class Isa>
struct SimdOpsOf {
  using V = Vec<Isa, float>;
  static void round(const float* a, float* r) { V::round(V::load(a)).store(r); }
  static void scale2(const float* a, const float* n, float* r) {
    V::scale2(V::load(a), V::load(n)).store(r);
  }
  static void load_f16(const uint16_t* a, float* r) { V::load_f16(a).store(r); }
  static void load_bf16(const uint16_t* a, float* r) { V::load_bf16(a).store(r); }
  static void store_f16(const float* a, uint16_t* r) { V::load(a).store_f16(r); }
  static void store_bf16(const float* a, uint16_t* r) { V::load(a).store_bf16(r); }

  static SimdOps table() {
    return {.isa = Isa::kIsa,
            .narrow = LaneOpsOf<Isa, float>::table(),
            .wide = LaneOpsOf<Isa, double>::table(),
            .round = &round,
            .scale2 = &scale2,
            .load_f16 = &load_f16,
            .load_bf16 = &load_bf16,
            .store_f16 = &store_f16,
            .store_bf16 = &store_bf16};
  }
};

}  // namespace attentile::cpu

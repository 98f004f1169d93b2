// SPDX-License-Identifier: Apache-2.0
// The tile product where its operands may be packed for a matrix unit. Values that have no parts
// (Parts::hard), and faint weights, are packed as 0; what they contribute is computed here by
// multiply-adds, for the rows, lanes or pairs concerned alone, so that no other result changes by a
// bit. Sums that would be subnormal become 0, as they do on the unit: so it does not matter whether
// another tile follows.
#pragma once

#include "cpu/tile_gemm.h"

namespace attentile::cpu {

// C = A B for scores, which the unit has computed: rows of C whose row of A is hard, and lanes
// whose column of B is, are computed anew. spare: [rows][lanes of a vector].
template <class Isa, class Real>
inline void replace_hard_scores(const GemmTile<Real>& t, Real* spare) {
  constexpr int kLanes = Vec<Isa, Real>::kLanes;
  for (int m = 0; t.left.has_hard() && m < t.rows; ++m) {
    if (t.left.hard[m] == 0) continue;
    GemmTile<Real> row = t;
    row.a += m * t.a_row;
    row.c += m * t.c_row;
    row.rows = 1;
    gemm<Isa, Real>(row);
  }
  for (int n = 0; t.right.has_hard() && n < t.cols; n += kLanes) {
    GemmTile<Real> lanes = t;
    lanes.b += n;
    lanes.c = spare;
    lanes.c_row = kLanes;
    lanes.cols = kLanes;
    bool done = false;
    for (int i = 0; i < kLanes; ++i) {
      if (t.right.hard[n + i] == 0) continue;
      if (!done) gemm<Isa, Real>(lanes);
      done = true;
      for (int m = 0; m < t.rows; ++m) t.c[m * t.c_row + n + i] = spare[m * kLanes + i];
    }
  }
}

// C = A B for scores.
template <class Isa, class Real>
inline void multiply_scores(const GemmTile<Real>& t, Real* spare) {
  if (t.right.data == nullptr) return gemm<Isa, Real>(t);
  if constexpr (MatrixUnit<Isa, Real>::kPresent) {
    MatrixUnit<Isa, Real>::multiply(t);
    replace_hard_scores<Isa, Real>(t, spare);
  }
}

// What the hard values of A add to C: A = V^T or K^T, hide [depth][cols] or null.
template <class Isa, class Real>
[[gnu::noinline]] void add_hard_left(const GemmTile<Real>& t, const Real* hide) {
  const SubnormalsAreZero<Isa, Real> zeros;
  using V = Vec<Isa, Real>;
  const V zero = V::set1(Real{0});
  for (int k = 0; k < t.depth; ++k) {
    if (t.left.hard[k] == 0) continue;
    for (int m = 0; m < t.rows; ++m) {
      const V a = V::set1(t.a[m * t.a_row + k * t.a_step]);
      if (!MatrixUnit<Isa, Real>::is_hard(a, t.left.parts)) continue;
      for (int n = 0; n < t.cols; n += V::kLanes) {
        Real* cell = t.c + m * t.c_row + n;
        const V c = V::load(cell);
        const V sum = V::fma(a, V::load(t.b + k * t.b_step + n), c);
        const bool all = hide == nullptr;
        (all ? sum : V::select_lt(V::load(hide + k * t.b_step + n), zero, c, sum)).store(cell);
      }
    }
  }
}

// What the faint weights or dS of B add to C beside the values of A that are not hard. They may be
// subnormal: 2^64 is moved from one factor to the other.
template <class Isa, class Real>
  requires(MatrixUnit<Isa, Real>::kPresent)
[[gnu::noinline]] void add_faint_right(const GemmTile<Real>& t) {
  const SubnormalsAreZero<Isa, Real> zeros;
  using V = Vec<Isa, Real>;
  using Unit = MatrixUnit<Isa, Real>;
  for (int k = 0; k < t.depth; ++k) {
    for (int n = 0; n < t.cols; n += V::kLanes) {
      const V given = V::load(t.b + k * t.b_step + n);
      if (!Unit::any_faint(given)) continue;
      const V weight = Unit::only_faint(given) * V::set1(Real{0x1p64});
      for (int m = 0; m < t.rows; ++m) {
        const V a = V::set1(t.a[m * t.a_row + k * t.a_step]);
        if (t.left.has_hard() && Unit::is_hard(a, t.left.parts)) continue;
        Real* cell = t.c + m * t.c_row + n;
        const V c = V::load(cell);
        const V sum = V::fma(weight, a * V::set1(Real{0x1p-64}), c);
        V::select_lt(V::set1(Real{0}), V::abs(weight), sum, c).store(cell);
      }
    }
  }
}

// C += A B for A = V^T or K^T and B = P^T or dS^T, where A is packed. `pack`: B is not yet. hide:
// as above. False, and nothing is done: A is not packed.
template <class Isa, class Real>
inline bool multiply_weights(GemmTile<Real> t, bool pack, const Real* hide) {
  using Unit = MatrixUnit<Isa, Real>;
  if constexpr (Unit::kPresent) {
    if (t.left.data == nullptr) return false;
    t.right.ld = padded_depth(t.depth);
    const bool faint = pack && Unit::pack_weights({t.b, t.b_step, t.depth, t.cols}, t.right);
    Unit::multiply(t);
    if (t.left.has_hard()) add_hard_left<Isa, Real>(t, hide);
    if (faint) add_faint_right<Isa, Real>(t);
    return true;
  }
  return false;
}

// What the faint weights or dS of A add to C beside the values of B that are not hard.
template <class Isa, class Real>
  requires(MatrixUnit<Isa, Real>::kPresent)
[[gnu::noinline]] void add_faint_left(const GemmTile<Real>& t) {
  const SubnormalsAreZero<Isa, Real> zeros;
  using V = Vec<Isa, Real>;
  using Unit = MatrixUnit<Isa, Real>;
  for (int m = 0; m < t.rows; ++m) {
    for (int k = 0; k < t.depth; ++k) {
      // a_step is 1, and rows are whole vectors.
      if (k % V::kLanes == 0 && !Unit::any_faint(V::load(t.a + m * t.a_row + k))) {
        k += V::kLanes - 1;
        continue;
      }
      const Real given = t.a[m * t.a_row + k];
      if (!Unit::any_faint(V::set1(given))) continue;
      const V weight = V::set1(given * Real{0x1p64});
      for (int n = 0; n < t.cols; n += V::kLanes) {
        Real* cell = t.c + m * t.c_row + n;
        const V b = V::load(t.b + k * t.b_step + n);
        const V c = V::load(cell);
        const V sum = V::fma(weight, b * V::set1(Real{0x1p-64}), c);
        if (t.right.has_hard() && t.right.hard[k] != 0) {
          const V hard = V::abs(Unit::only_hard(b, t.right.parts));
          V::select_lt(V::set1(Real{0}), hard, c, sum).store(cell);
        } else {
          sum.store(cell);
        }
      }
    }
  }
}

// What the hard values of B add to C: B = dO or Q, hide [rows][hide_ld] or null.
template <class Isa, class Real>
[[gnu::noinline]] void add_hard_right(const GemmTile<Real>& t, const Real* hide, int hide_ld) {
  const SubnormalsAreZero<Isa, Real> zeros;
  using V = Vec<Isa, Real>;
  for (int k = 0; k < t.depth; ++k) {
    if (t.right.hard[k] == 0) continue;
    for (int m = 0; m < t.rows; ++m) {
      if (hide != nullptr && hide[m * hide_ld + k] < 0) continue;
      const V a = V::set1(t.a[m * t.a_row + k * t.a_step]);
      for (int n = 0; n < t.cols; n += V::kLanes) {
        Real* cell = t.c + m * t.c_row + n;
        const V b =
            MatrixUnit<Isa, Real>::only_hard(V::load(t.b + k * t.b_step + n), t.right.parts);
        V::fma(a, b, V::load(cell)).store(cell);
      }
    }
  }
}

// What the unit leaves out of C += A B for A = P^T or dS^T. faint: some of A is.
template <class Isa, class Real>
inline void add_without_parts(const GemmTile<Real>& t, bool faint, const Real* hide, int hide_ld) {
  if (t.right.has_hard()) add_hard_right<Isa, Real>(t, hide, hide_ld);
  if constexpr (MatrixUnit<Isa, Real>::kPresent) {
    if (faint) add_faint_left<Isa, Real>(t);
  }
}

}  // namespace attentile::cpu

// SPDX-License-Identifier: Apache-2.0
// The one matrix product of every algorithm:
//
//     C[m][n] (+)= sum_k A(m, k) * B[k][n]        n runs along the SIMD lanes
//
// A is read by scalar broadcast through two strides, so K, V and P are used in the layout they
// have:
//     S^T  = K Q^T      A = K   [key][d]      B = Q^T  [d][query]
//     O^T += V^T P^T    A = V   [key][d]^T    B = P^T  [key][query]
//     dV  += P^T dO     A = P^T [key][query]  B = dO   [query][d]
// Micro tile: tile_rows(n) x n vectors of accumulators in registers, n at most kTileVecs; per step
// of k it loads n vectors and broadcasts tile_rows(n) scalars. Each element is one sequential
// sum over at most kLongestSum steps that starts at zero and is then added to C: its bits depend on
// no tile boundary in m or n, and long sums are summed in blocks.
#pragma once

#include <cstdint>

#include "cpu/matrix_unit.h"
#include "cpu/simd/vec.h"

namespace attentile::cpu {

template <class Real>
struct GemmTile {
  const Real* a = nullptr;
  int64_t a_row = 0;   // stride between rows m of A; it or a_step is 1
  int64_t a_step = 0;  // stride between steps k of A
  const Real* b = nullptr;
  int64_t b_step = 0;  // stride between steps k of B, at least cols
  Real* c = nullptr;
  int64_t c_row = 0;
  int rows = 0;
  int cols = 0;  // a multiple of the lanes
  int depth = 0;
  bool accumulate = false;  // add to C, else overwrite it
  Parts left = {};          // A and B for the matrix unit, if packed
  Parts right = {};
};

// A product that the matrix unit is to do beside other work, step by step, and how far it is.
template <class Real>
struct PendingProduct {
  GemmTile<Real> tile;
  int row = 0;
  int col = 0;
  int depth = 0;
  int part = 0;
  bool waits = false;

  void begin(const GemmTile<Real>& t) { *this = {.tile = t, .waits = true}; }
};

inline constexpr int kMostRowPointers = 8;  // that stay in registers

// One micro tile: kRows rows, kVecs vectors of columns. kAlongSteps: a_step is 1, so each row of A
// has a pointer and all share one index; else a_row is 1 and one pointer serves all rows. What is
// read of t more than once is copied: for all that compilers know, a vector is stored there.
template <class Isa, class Real, int kRows, int kVecs, bool kAlongSteps>
inline void gemm_micro(const GemmTile<Real>& t, int row, int col) {
  using V = Vec<Isa, Real>;
  V acc[kRows][kVecs];
  for (int m = 0; m < kRows; ++m) {
    for (int n = 0; n < kVecs; ++n) acc[m][n] = V::set1(Real{0});
  }
  const Real* a[kRows];
  for (int m = 0; m < kRows; ++m) {
    a[m] = t.a + (row + m) * t.a_row;
    // Else compilers keep the first alone and add up the others, step for step.
    if (kAlongSteps && kRows <= kMostRowPointers) asm("" : "+r"(a[m]));
  }
  const Real* b = t.b + col;
  const int64_t a_step = kAlongSteps ? 1 : t.a_step;
  const int64_t b_step = t.b_step;
  const int64_t depth = t.depth;
  for (int64_t k = 0; k < depth; ++k) {
    V b_vec[kVecs];
    for (int n = 0; n < kVecs; ++n) b_vec[n] = V::load(b + n * V::kLanes);
    for (int m = 0; m < kRows; ++m) {
      const V a_vec = V::set1(kAlongSteps ? a[m][k] : a[0][m]);
      for (int n = 0; n < kVecs; ++n) acc[m][n] = V::fma(a_vec, b_vec[n], acc[m][n]);
    }
    if (!kAlongSteps) a[0] += a_step;
    b += b_step;
  }
  const bool accumulate = t.accumulate;
  const int64_t c_row = t.c_row;
  Real* c = t.c + row * c_row + col;
  for (int m = 0; m < kRows; ++m, c += c_row) {
    for (int n = 0; n < kVecs; ++n) {
      if (accumulate) acc[m][n] = V::load(c + n * V::kLanes) + acc[m][n];
      acc[m][n].store(c + n * V::kLanes);
    }
  }
}

template <class Isa, class Real, int kVecs, bool kAlongSteps>
inline void gemm_columns(const GemmTile<Real>& t, int col) {
  constexpr int kRows = Isa::tile_rows(kVecs);
  int row = 0;
  for (; row + kRows <= t.rows; row += kRows) {
    gemm_micro<Isa, Real, kRows, kVecs, kAlongSteps>(t, row, col);
  }
  if constexpr (kRows > 8) {
    for (; row + 8 <= t.rows; row += 8) {
      gemm_micro<Isa, Real, 8, kVecs, kAlongSteps>(t, row, col);
    }
  }
  if constexpr (kRows > 4) {
    for (; row + 4 <= t.rows; row += 4) {
      gemm_micro<Isa, Real, 4, kVecs, kAlongSteps>(t, row, col);
    }
  }
  for (; row + 2 <= t.rows; row += 2) gemm_micro<Isa, Real, 2, kVecs, kAlongSteps>(t, row, col);
  if (row < t.rows) gemm_micro<Isa, Real, 1, kVecs, kAlongSteps>(t, row, col);
}

template <class Isa, class Real, bool kAlongSteps>
inline void gemm_along(const GemmTile<Real>& t) {
  constexpr int kLanes = Vec<Isa, Real>::kLanes;
  constexpr int kMost = Isa::kTileVecs;
  int col = 0;
  for (; col + kMost * kLanes <= t.cols; col += kMost * kLanes) {
    gemm_columns<Isa, Real, kMost, kAlongSteps>(t, col);
  }
  const int rest = (t.cols - col) / kLanes;
  if constexpr (kMost > 3) {
    if (rest == 3) return gemm_columns<Isa, Real, 3, kAlongSteps>(t, col);
  }
  if constexpr (kMost > 2) {
    if (rest == 2) return gemm_columns<Isa, Real, 2, kAlongSteps>(t, col);
  }
  if (rest == 1) gemm_columns<Isa, Real, 1, kAlongSteps>(t, col);
}

// Longest sum that is accumulated in one go; longer ones are cut and added up, which keeps their
// error that of the short ones. float64 results are judged by their rounding alone.
template <class Real>
inline constexpr int kLongestSum = sizeof(Real) == 8 ? 8 : 64;

template <class Isa, class Real>
inline void gemm(GemmTile<Real> t) {
  const int depth = t.depth;
  for (int k = 0; k == 0 || k < depth; k += kLongestSum<Real>) {
    t.depth = depth - k < kLongestSum<Real> ? depth - k : kLongestSum<Real>;
    t.a_step == 1 ? gemm_along<Isa, Real, true>(t) : gemm_along<Isa, Real, false>(t);
    t.a += t.depth * t.a_step;
    t.b += t.depth * t.b_step;
    t.accumulate = true;
    if (depth - k <= kLongestSum<Real>) break;
  }
}

}  // namespace attentile::cpu

// SPDX-License-Identifier: Apache-2.0
// Makes the kernel set of one instruction set. Included by the isa_*.cc files only, after the
// header of their vectors.
#pragma once

#include "cpu/bias_gradient.h"
#include "cpu/decode.h"
#include "cpu/standard_backward.h"

namespace attentile::cpu {

// Multiply-adds on as many independent accumulators as a micro tile has, none of them in memory.
template <class Isa, class Real>
double peak_probe(int64_t steps) {
  using V = Vec<Isa, Real>;
  constexpr int kAccumulators = Isa::kTileVecs * Isa::tile_rows(Isa::kTileVecs);
  V acc[kAccumulators];
  // From 3 on: 2 is what x / 2 + 1 leaves as it is, and the compiler would leave that one out.
  for (int i = 0; i < kAccumulators; ++i) acc[i] = V::set1(static_cast<Real>(i + 3));
  const V factor = V::set1(Real{0.5});
  const V term = V::set1(Real{1});
  for (int64_t step = 0; step < steps; ++step) {
    for (int i = 0; i < kAccumulators; ++i) acc[i] = V::fma(acc[i], factor, term);
  }
  V sum = acc[0];
  for (int i = 1; i < kAccumulators; ++i) sum = sum + acc[i];
  const bool kept = V::any_lt(sum, V::set1(Real{0}));  // never; keeps the loop alive
  return kept ? 0.0 : 2.0 * kAccumulators * V::kLanes * static_cast<double>(steps);
}

// K Q^T for a tile of keys and a panel of queries, 28 KiB at most, which L1 holds; a step is one of
// a micro tile.
template <class Isa, class Real>
double product_probe(int64_t steps) {
  using V = Vec<Isa, Real>;
  constexpr int64_t kKeys = 24;  // a multiple of every tile_rows()
  constexpr int64_t kDepth = 256 / sizeof(Real);
  constexpr int64_t kColumns = Isa::kTileVecs * V::kLanes;
  constexpr int64_t kRows = Isa::tile_rows(Isa::kTileVecs);
  static_assert(kKeys % kRows == 0);
  alignas(64) Real k[kKeys * kDepth];
  alignas(64) Real q_t[kDepth * kColumns];
  alignas(64) Real s[kKeys * kColumns];
  for (int64_t i = 0; i < kKeys * kDepth; ++i) k[i] = static_cast<Real>(i % 7 + 1);
  for (int64_t i = 0; i < kDepth * kColumns; ++i) q_t[i] = static_cast<Real>(i % 5 + 1);
  const GemmTile<Real> product = {.a = k,
                                  .a_row = kDepth,
                                  .a_step = 1,
                                  .b = q_t,
                                  .b_step = kColumns,
                                  .c = s,
                                  .c_row = kColumns,
                                  .rows = kKeys,
                                  .cols = kColumns,
                                  .depth = kDepth};
  const int64_t products = steps / (kKeys / kRows * kDepth);
  bool lost = false;  // never: all are positive; it keeps the products alive
  for (int64_t n = 0; n < products; ++n) {
    gemm<Isa, Real>(product);
    lost = lost || V::any_lt(V::load(s), V::set1(Real{0}));
  }
  return lost ? 0.0 : static_cast<double>(2 * kKeys * kColumns * kDepth * products);
}

template <class Isa, class Real>
constexpr KernelSet make_kernel_set() {
  KernelSet set;
  set.isa = Isa::kIsa;
  set.lanes = Vec<Isa, Real>::kLanes;
  set.run[kFlash2Forward] = &flash2_forward_task<Isa, Real>;
  if constexpr (sizeof(Real) == 4) set.run[kFlash2Decode] = &flash2_decode_task<Isa>;
  set.run[kFlash1Forward] = &flash1_forward_task<Isa, Real>;
  set.run[kStandardScores] = &standard_scores_task<Isa, Real>;
  set.run[kStandardSoftmax] = &standard_softmax_task<Isa, Real>;
  set.run[kStandardOutput] = &standard_product_task<Isa, Real>;
  set.run[kBackwardRows] = &backward_rows_task<Isa, Real>;
  set.run[kFlash2Backward] = &flash2_backward_task<Isa, Real>;
  set.run[kFlash1Backward] = &flash1_backward_task<Isa, Real>;
  set.run[kStandardProbs] = &standard_probs_task<Isa, Real>;
  set.run[kStandardDkDv] = &standard_dkdv_task<Isa, Real>;
  set.run[kStandardDq] = &standard_product_task<Isa, Real>;
  set.run[kBiasGradient] = &bias_gradient_task<Isa, Real>;
  set.run[kSinkGradient] = &sink_gradient_task<Isa, Real>;
  set.peak_probe = &peak_probe<Isa, Real>;
  set.product_probe = &product_probe<Isa, Real>;
  return set;
}

}  // namespace attentile::cpu

// SPDX-License-Identifier: Apache-2.0
// One panel of queries against one tile of keys in the backward pass: the weights recomputed from
// lse, dS, and the three products that add to dV, dK and dQ. See backward.h for the whole.
#pragma once

#include "cpu/backward_scratch.h"

namespace attentile::cpu {

template <class Real>
struct DpOperands {
  const Real* v = nullptr;  // [keys][ld]
  int64_t ld = 0;
  const Real* dout_t = nullptr;  // [head_dim_v][lanes]
  Parts v_parts = {};
  Parts dout_parts = {};
  bool by_groups = false;  // what the band hides of a partial tile may be left as it was
};

template <class Isa, class Real>
inline DpOperands<Real> dp_operands(const Worker<Isa, Real>& w, const BackwardScratch<Real>& r,
                                    int64_t key_row) {
  const int64_t ld = w.plan.padded_dim_v;
  return {r.v + key_row * ld, ld, r.dout_t, rows_from(r.v_rows, key_row), r.dout_lanes};
}

// dp = V dO^T of one tile.
template <class Isa, class Real>
inline GemmTile<Real> dp_product(const Worker<Isa, Real>& w, const Tile& t,
                                 const DpOperands<Real>& operands, Real* dp) {
  return {.a = operands.v,
          .a_row = operands.ld,
          .a_step = 1,
          .b = operands.dout_t,
          .b_step = t.lanes,
          .c = dp,
          .c_row = t.lanes,
          .rows = t.keys,
          .cols = t.lanes,
          .depth = static_cast<int>(w.problem.head_dim_v),
          .left = operands.v_parts,
          .right = operands.dout_parts};
}

// dp times keep, scaled, where there is dropout; keep receives the keep mask.
template <class Isa, class Real>
inline void drop_dp(const Problem& p, const Tile& t, Real* keep, Real* dp) {
  using V = Vec<Isa, Real>;
  if (!p.dropout.enabled) return;
  fill_keep<Isa, Real>(p, t, keep);
  const V scale = V::set1(static_cast<Real>(p.dropout.scale));
  for (int i = 0; i < t.keys * t.lanes; i += V::kLanes) {
    (V::load(dp + i) * (V::load(keep + i) * scale)).store(dp + i);
  }
}

// dp = dP^T = keep * V dO^T, scaled, of one tile; keep = the keep mask where there is dropout.
template <class Isa, class Real>
inline void dp_tile(Worker<Isa, Real>& w, const Tile& t, const DpOperands<Real>& operands,
                    Real* keep, Real* dp) {
  const Problem& p = w.problem;
  const GemmTile<Real> product = dp_product(w, t, operands, dp);
  const bool partial = operands.by_groups && classify<Isa>(p, t) == TileClass::kPartial;
  for_key_groups<Isa, Real>(t, partial, [&](int k, int keys, VectorRange vectors) {
    const int lane = vectors.begin * Vec<Isa, Real>::kLanes;
    GemmTile<Real> part = product;
    part.a += k * part.a_row;
    part.b += lane;
    part.c += k * t.lanes + lane;
    part.rows = keys;
    part.cols = vectors.end * Vec<Isa, Real>::kLanes - lane;
    multiply_scores<Isa, Real>(part, keep);
  });
  drop_dp<Isa, Real>(p, t, keep, dp);
}

template <class Isa, class Real>
inline RowShift<Vec<Isa, Real>> load_shift(const BackwardScratch<Real>& r, int i) {
  using V = Vec<Isa, Real>;
  return {V::load(r.base + i), V::load(r.whole + i), V::load(r.fraction + i), V::load(r.snap + i)};
}

// r.p = the logits of the tile, r.hide and r.cap where the problem has them. Returns its class.
template <class Isa, class Real>
inline TileClass recompute_logits(Worker<Isa, Real>& w, const Tile& t,
                                  const ScoreScale<Real>& scale, int64_t key_row,
                                  const BackwardScratch<Real>& r) {
  TileClass tile_class = classify<Isa>(w.problem, t);
  if (tile_class == TileClass::kHidden) return tile_class;
  if (t.dead) tile_class = TileClass::kPartial;
  const bool partial = tile_class == TileClass::kPartial;
  tile_logits<Isa, Real>(w, t, partial, scale, score_tile<Isa, Real>(w, t, r, key_row));
  return tile_class;
}

// r.p = P^T of the tile, and what recompute_logits() gives.
template <class Isa, class Real>
inline TileClass recompute_weights(Worker<Isa, Real>& w, const Tile& t,
                                   const ScoreScale<Real>& scale, int64_t key_row,
                                   const BackwardScratch<Real>& r) {
  using V = Vec<Isa, Real>;
  const TileClass tile_class = recompute_logits<Isa, Real>(w, t, scale, key_row, r);
  if (tile_class == TileClass::kHidden) return tile_class;
  const bool partial = tile_class == TileClass::kPartial;
  const V zero = V::set1(Real{0});
  const ShiftedExp<Isa, Real> exp(scale.exponent);
  for (int i = 0; i < t.lanes; i += V::kLanes) {
    const RowShift<V> row = load_shift<Isa>(r, i);
    for (int k_row = 0; k_row < t.keys; ++k_row) {
      Real* cell = r.p + k_row * t.lanes + i;
      V weight = exp(V::load(cell), row);
      if (partial) {  // lse may be NaN, hidden weights are 0
        weight = V::select_lt(V::load(r.hide + k_row * t.lanes + i), zero, zero, weight);
      }
      weight.store(cell);
    }
  }
  if (t.dead) hide_weightless<Isa, Real>(w.problem, t, r.p, r.hide);
  return tile_class;
}

// Adds the tile's P dP and P to r.sums, per row; a pair of weight 0 adds nothing whatever dP is.
template <class Isa, class Real>
inline void add_row_sums(const Tile& t, const BackwardScratch<Real>& r) {
  using V = Vec<Isa, Real>;
  const V zero = V::set1(Real{0});
  for (int i = 0; i < t.lanes; i += V::kLanes) {
    V sum_dp = zero;
    V sum = zero;
    for (int k = 0; k < t.keys; ++k) {
      const V weight = V::load(r.p + k * t.lanes + i);
      const V dp = V::load(r.ds + k * t.lanes + i);
      sum_dp = sum_dp + V::select_lt(zero, weight, weight * dp, weight);
      sum = sum + weight;
    }
    (V::load(r.sums + i) + sum_dp).store(r.sums + i);
    (V::load(r.sums + t.lanes + i) + sum).store(r.sums + t.lanes + i);
  }
}

// r.ds = dS^T, and r.p = keep * P^T, of a tile whose weights are there. capped: dS of the scaled
// dot products, through softcap; else of the logits. A pair of weight 0, hidden or not, has dS = 0
// whatever dP is.
template <class Isa, class Real>
inline void compute_ds(Worker<Isa, Real>& w, const Tile& t, bool capped, int64_t key_row,
                       const BackwardScratch<Real>& r) {
  using V = Vec<Isa, Real>;
  DpOperands<Real> operands = dp_operands<Isa, Real>(w, r, key_row);
  operands.by_groups = operands.dout_parts.data == nullptr;
  dp_tile<Isa, Real>(w, t, operands, r.extra, r.ds);
  if (r.sums != nullptr) add_row_sums<Isa, Real>(t, r);
  const bool dropped = w.problem.dropout.enabled;
  const V zero = V::set1(Real{0});
  const V one = V::set1(Real{1});
  for (int i = 0; i < t.lanes; i += V::kLanes) {
    const V delta = V::load(r.delta + i);
    for (int k = 0; k < t.keys; ++k) {
      const int at = k * t.lanes + i;
      const V weight = V::load(r.p + at);
      V ds = weight * (V::load(r.ds + at) - delta);
      if (dropped) (weight * V::load(r.extra + at)).store(r.p + at);
      if (capped) {
        const V tanh_s = V::load(r.cap + at);
        ds = ds * (one - tanh_s * tanh_s);
      }
      V::select_lt(zero, weight, ds, weight).store(r.ds + at);
    }
  }
}

// C[key][column] += sum_q A[key][q] B[q][column] over visible pairs only: gemm's sums, for panels
// in which a query that some keys do not see holds a NaN or infinity.
template <class Isa, class Real>
[[gnu::noinline]] void accumulate_visible_keys(const GemmTile<Real>& t, const Real* hide,
                                               int lanes) {
  using V = Vec<Isa, Real>;
  for (int m = 0; m < t.rows; ++m) {
    for (int n = 0; n < t.cols; n += V::kLanes) {
      Real* c = t.c + m * t.c_row + n;
      V total = V::load(c);
      V acc = V::set1(Real{0});
      for (int k = 0; k < t.depth; ++k) {
        if (!(hide[m * lanes + k] < 0)) {
          acc = V::fma(V::set1(t.a[m * t.a_row + k]), V::load(t.b + k * t.b_step + n), acc);
        }
        if (k + 1 < t.depth && (k + 1) % kLongestSum<Real> != 0) continue;
        total = total + acc;
        acc = V::set1(Real{0});
      }
      total.store(c);
    }
  }
}

// The products of a tile, for its keys from key_row on:
//   dv += (keep P)^T dO     dk += dS^T Q     dq^T += K^T dS^T
template <class Isa, class Real>
inline GemmTile<Real> dv_product(const Worker<Isa, Real>& w, const Tile& t, int64_t key_row,
                                 const BackwardScratch<Real>& r) {
  const int64_t ld = w.plan.padded_dim_v;
  return {.a = r.p,
          .a_row = t.lanes,
          .a_step = 1,
          .b = r.dout,
          .b_step = ld,
          .c = r.dv + key_row * ld,
          .c_row = ld,
          .rows = t.keys,
          .cols = w.plan.padded_dim_v,
          .depth = t.rows,
          .accumulate = true,
          .left = r.p_rows,
          .right = r.dout_rows};
}
template <class Isa, class Real>
inline GemmTile<Real> dk_product(const Worker<Isa, Real>& w, const Tile& t, int64_t key_row,
                                 const BackwardScratch<Real>& r) {
  const int64_t ld = w.plan.padded_dim;
  return {.a = r.ds,
          .a_row = t.lanes,
          .a_step = 1,
          .b = r.q,
          .b_step = ld,
          .c = r.dk + key_row * ld,
          .c_row = ld,
          .rows = t.keys,
          .cols = w.plan.padded_dim,
          .depth = t.rows,
          .accumulate = true,
          .left = r.ds_rows,
          .right = r.q_rows};
}
template <class Isa, class Real>
inline GemmTile<Real> dq_product(const Worker<Isa, Real>& w, const Tile& t, int64_t key_row,
                                 const BackwardScratch<Real>& r) {
  const int64_t ld = w.plan.padded_dim;
  return {.a = r.k + key_row * ld,
          .a_row = 1,
          .a_step = ld,
          .b = r.ds,
          .b_step = t.lanes,
          .c = r.dq_t,
          .c_row = t.lanes,
          .rows = static_cast<int>(w.problem.head_dim),
          .cols = t.lanes,
          .depth = t.keys,
          .accumulate = true,
          .left = depth_from(r.k_columns, key_row),
          .right = r.ds_lanes};
}

// Which operands of a panel hold a NaN or infinity, and whether the tile is partly visible.
struct Nonfinite {
  bool q = false;
  bool dout = false;
  bool partial = false;
};

// dv and dk. r.hide must hold where an operand is not finite.
template <class Isa, class Real>
inline void accumulate_dk_dv(Worker<Isa, Real>& w, const Tile& t, int64_t key_row,
                             Nonfinite nonfinite, const BackwardScratch<Real>& r) {
  const GemmTile<Real> dv = dv_product(w, t, key_row, r);
  const GemmTile<Real> dk = dk_product(w, t, key_row, r);
  if constexpr (MatrixUnit<Isa, Real>::kPresent) {
    if (r.p_rows.data != nullptr) {
      using Unit = MatrixUnit<Isa, Real>;
      for (const GemmTile<Real>& product : {dv, dk}) {
        const bool faint = Unit::pack_left({product.a, t.lanes, t.keys, t.rows}, product.left);
        Unit::multiply(product);
        add_without_parts<Isa, Real>(product, faint, nonfinite.partial ? r.hide : nullptr, t.lanes);
      }
      return;
    }
  }
  const auto add = [&](const GemmTile<Real>& product, bool visible_only) {
    if (visible_only) return accumulate_visible_keys<Isa, Real>(product, r.hide, t.lanes);
    for_key_groups<Isa, Real>(t, nonfinite.partial, [&](int k, int keys, VectorRange vectors) {
      constexpr int kLanes = Vec<Isa, Real>::kLanes;
      // Sums are cut where those of the whole depth are.
      const int unit = t.rows <= kLongestSum<Real> ? 1 : kLongestSum<Real>;
      const int first = vectors.begin * kLanes / unit * unit;
      GemmTile<Real> part = product;
      part.a += k * part.a_row + first;
      part.b += first * part.b_step;
      part.c += k * part.c_row;
      part.rows = keys;
      part.depth = static_cast<int>(min64(int64_t{vectors.end} * kLanes, t.rows)) - first;
      gemm<Isa, Real>(part);
    });
  };
  add(dv, nonfinite.dout);
  add(dk, nonfinite.q);
}

// One panel against one key tile: adds to dk, dv (rows of this tile) and to r.dq_t. Partial tiles
// alone are looked at for NaN and infinity.
template <class Isa, class Real>
inline TileClass backward_tile(Worker<Isa, Real>& w, const Tile& t, const ScoreScale<Real>& scale,
                               int64_t key_row, const BackwardScratch<Real>& r) {
  const Problem& p = w.problem;
  const TileClass tile_class = recompute_weights<Isa, Real>(w, t, scale, key_row, r);
  if (tile_class == TileClass::kHidden) return tile_class;
  compute_ds<Isa, Real>(w, t, scale.softcap > 0, key_row, r);
  const int dim = static_cast<int>(p.head_dim);
  const int dim_v = static_cast<int>(p.head_dim_v);
  const bool partial = tile_class == TileClass::kPartial;
  const auto nonfinite = [&](const Real* rows, int64_t count, int columns, int stride) {
    return partial && has_nonfinite<Isa, Real>(rows, count, columns, stride);
  };
  const int ld = w.plan.padded_dim;
  accumulate_dk_dv<Isa, Real>(w, t, key_row,
                              {nonfinite(r.q, t.rows, dim, ld),
                               nonfinite(r.dout, t.rows, dim_v, w.plan.padded_dim_v), partial},
                              r);
  const GemmTile<Real> dq = dq_product(w, t, key_row, r);
  const bool visible_only = nonfinite(dq.a, t.keys, dim, ld);
  multiply_by_groups<Isa, Real>(t, partial, dq, visible_only ? r.hide : nullptr);
  return tile_class;
}

}  // namespace attentile::cpu

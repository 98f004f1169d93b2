// SPDX-License-Identifier: Apache-2.0
// One panel of queries against one tile of keys in the backward pass: the weights recomputed from
// lse, dS, and the three products that add to dV, dK and dQ. See backward.h for the whole.
#pragma once

#include "cpu/flash1.h"

namespace attentile::cpu {

template <class Real>
struct BackwardScratch {
  Real* k = nullptr;       // [tile_keys][padded_dim]
  Real* v = nullptr;       // [tile_keys][padded_dim_v]
  Real* dk = nullptr;      // [tile_keys][padded_dim]
  Real* dv = nullptr;      // [tile_keys][padded_dim_v]
  Real* q = nullptr;       // [rows][padded_dim]
  Real* dout = nullptr;    // [rows][padded_dim_v]
  Real* out = nullptr;     // [rows][padded_dim_v]
  Real* q_t = nullptr;     // [head_dim][lanes]
  Real* dout_t = nullptr;  // [head_dim_v][lanes]
  Real* dq_t = nullptr;    // [head_dim][lanes]: this task's share
  Real* base = nullptr;    // [lanes] and likewise: see RowShift
  Real* whole = nullptr;
  Real* fraction = nullptr;
  Real* delta = nullptr;  // [lanes]
  Real* snap = nullptr;   // [lanes], rounding error of the exponent
  // [2][lanes], sum of P dP and of P over this task's keys, or null: see summed_delta.
  Real* sums = nullptr;
  Real* p = nullptr;      // [step_n][lanes]
  Real* ds = nullptr;     // [step_n][lanes]
  Real* hide = nullptr;   // [step_n][lanes]
  Real* extra = nullptr;  // [step_n][lanes], bias, then keep
  Real* cap = nullptr;    // [step_n][lanes], tanh(S / softcap)
  Real* lane = nullptr;   // [2][lanes]
  // The operands of the matrix unit, named by what they are made of and run along.
  Parts k_rows = {}, v_rows = {}, k_columns = {};
  Parts q_lanes = {}, dout_lanes = {}, q_rows = {}, dout_rows = {};
  Parts p_rows = {}, ds_rows = {}, ds_lanes = {};
};

template <class Isa, class Real>
inline void take_backward_parts(Worker<Isa, Real>& w, int64_t lanes, BackwardScratch<Real>& r) {
  const CpuPlan& plan = w.plan;
  const int parts = plan.parts;
  const int64_t keys = plan.tile_keys;
  const int64_t dim = padded_depth(w.problem.head_dim);
  const int64_t dim_v = padded_depth(w.problem.head_dim_v);
  const int64_t queries = padded_depth(lanes);
  const int64_t step = padded_depth(plan.step_n);
  r.k_rows = w.take_parts(left_size(parts, keys + plan.spare_rows(), dim), dim, keys);
  r.v_rows = w.take_parts(left_size(parts, keys + plan.spare_rows(), dim_v), dim_v, keys);
  const int64_t columns = padded_depth(keys) + 32;
  r.k_columns = w.take_parts(left_size(parts, w.problem.head_dim, columns), columns, keys);
  r.q_lanes = w.take_parts(right_size(parts, lanes, dim), dim, lanes);
  r.dout_lanes = w.take_parts(right_size(parts, lanes, dim_v), dim_v, lanes);
  r.q_rows = w.take_parts(right_size(parts, plan.padded_dim, queries), queries, lanes);
  r.dout_rows = w.take_parts(right_size(parts, plan.padded_dim_v, queries), queries, lanes);
  r.p_rows = w.take_parts(left_size(parts, plan.step_n, queries), queries, 0);
  r.ds_rows = w.take_parts(left_size(parts, plan.step_n, queries), queries, 0);
  r.ds_lanes = w.take_parts(right_size(parts, lanes, step), step, 0);
}

template <class Isa, class Real>
inline BackwardScratch<Real> take_backward_scratch(Worker<Isa, Real>& w, int lanes) {
  const Problem& p = w.problem;
  const CpuPlan& plan = w.plan;
  BackwardScratch<Real> r;
  r.k = w.take(plan.tile_keys * plan.padded_dim);
  r.v = w.take(plan.tile_keys * plan.padded_dim_v);
  r.dk = w.take((plan.tile_keys + plan.spare_rows()) * plan.padded_dim);
  r.dv = w.take((plan.tile_keys + plan.spare_rows()) * plan.padded_dim_v);
  r.q = w.take(static_cast<int64_t>(lanes) * plan.padded_dim);
  r.dout = w.take(static_cast<int64_t>(lanes) * plan.padded_dim_v);
  r.out = w.take(static_cast<int64_t>(lanes) * plan.padded_dim_v);
  r.q_t = w.take(p.head_dim * lanes);
  r.dout_t = w.take(p.head_dim_v * lanes);
  r.dq_t = w.take(round_up(p.head_dim, 16) * lanes);
  for (Real** row : {&r.base, &r.whole, &r.fraction, &r.delta, &r.snap}) *row = w.take(lanes);
  for (Real** tile : {&r.p, &r.ds, &r.hide, &r.extra, &r.cap}) *tile = w.take(plan.step_n * lanes);
  r.lane = w.take(2 * lanes);
  r.sums = plan.sum_rows ? w.take(2 * lanes) : nullptr;
  take_backward_parts(w, lanes, r);
  return r;
}

// The score arithmetic's share of the scratch, for keys from row key_row on.
template <class Isa, class Real>
inline ScoreTile<Real> score_tile(const Worker<Isa, Real>& w, const Tile& t,
                                  const BackwardScratch<Real>& r, int64_t key_row) {
  const bool few = t.s->seqlen_q <= w.plan.few_queries;
  return {.k = r.k + key_row * w.plan.padded_dim,
          .k_ld = w.plan.padded_dim,
          .q_t = r.q_t,
          .s = r.p,
          .hide = r.hide,
          .extra = r.extra,
          .lane = r.lane,
          .cap = r.cap,
          .q_rows = few ? r.q : nullptr,
          .k_parts = rows_from(r.k_rows, key_row),
          .q_parts = r.q_lanes};
}

// Where row i of a sequence lies in the state arrays, counted from the head's first.
template <class Isa>
inline int64_t padded_row(const CpuPlan& plan, const Sequence& s, int64_t i) {
  const int rows = plan.panel_rows(s.seqlen_q);
  return i / rows * plan.panel_lanes(rows) + i % rows;
}

// Where |lse| is above this, lse - round(lse) is worth a pass over the keys to find: the weights
// exp(s - lse) carry it as a relative error, |lse| 2^-25 in float32. 16-bit results hide it longer.
template <class Isa>
inline double lse_limit(DType dtype) {
  if (dtype == DType::kFloat64) return 0;
  return dtype == DType::kFloat32 ? 16 : 1024;
}

// lse + rest of row i as a RowShift. float64 keeps them as base and fraction.
template <class Isa, class Real>
inline void shift_row(bool weightless, Real lse, Real rest, const BackwardScratch<Real>& r, int i) {
  constexpr Real kInfinity = std::numeric_limits<Real>::infinity();
  if constexpr (sizeof(Real) == 8) {
    r.base[i] = weightless ? kInfinity : lse;
    r.whole[i] = 0;
    r.fraction[i] = weightless ? Real{0} : rest;
  } else {
    const bool large = !(std::fabs(lse) < 4096);  // NaN too
    r.base[i] = large && !weightless ? lse : Real{0};
    const double log2_lse = ((large ? 0.0 : static_cast<double>(lse)) + rest) * kLog2E;
    const double whole = weightless ? 1e6 : std::nearbyint(log2_lse);
    r.whole[i] = static_cast<Real>(whole);
    r.fraction[i] = weightless ? Real{0} : static_cast<Real>(log2_lse - whole);
  }
}

// Packs what the scores take: the first `keys` rows of r.k, and q of a panel.
template <class Isa, class Real>
inline void pack_keys(const Worker<Isa, Real>& w, int64_t keys, const BackwardScratch<Real>& r) {
  if (r.k_rows.data == nullptr) return;
  MatrixUnit<Isa, Real>::pack_left(
      {r.k, w.plan.padded_dim, static_cast<int>(keys), static_cast<int>(w.problem.head_dim)},
      r.k_rows);
}
template <class Isa, class Real>
inline void pack_queries(const Worker<Isa, Real>& w, int lanes, const BackwardScratch<Real>& r) {
  if (r.q_lanes.data == nullptr) return;
  const int dim = static_cast<int>(w.problem.head_dim);
  MatrixUnit<Isa, Real>::pack_right({r.q_t, lanes, dim, lanes}, r.q_lanes);
}

// The same for dP.
template <class Isa, class Real>
inline void pack_values(const Worker<Isa, Real>& w, int64_t keys, const BackwardScratch<Real>& r) {
  if (r.v_rows.data == nullptr) return;
  MatrixUnit<Isa, Real>::pack_left(
      {r.v, w.plan.padded_dim_v, static_cast<int>(keys), static_cast<int>(w.problem.head_dim_v)},
      r.v_rows);
}
template <class Isa, class Real>
inline void pack_dout(const Worker<Isa, Real>& w, int lanes, const BackwardScratch<Real>& r) {
  if (r.dout_lanes.data == nullptr) return;
  const int dim_v = static_cast<int>(w.problem.head_dim_v);
  MatrixUnit<Isa, Real>::pack_right({r.dout_t, lanes, dim_v, lanes}, r.dout_lanes);
}

// The same for dK and dV.
template <class Isa, class Real>
inline void pack_panel_rows(const Worker<Isa, Real>& w, const Tile& t,
                            const BackwardScratch<Real>& r) {
  if constexpr (MatrixUnit<Isa, Real>::kPresent) {
    using Unit = MatrixUnit<Isa, Real>;
    if (r.q_rows.data == nullptr) return;
    const int ld = w.plan.padded_dim;
    const int ld_v = w.plan.padded_dim_v;
    Unit::pack_right({r.q, ld, t.rows, ld}, Unit::Mark::kRows, r.q_rows);
    Unit::pack_right({r.dout, ld_v, t.rows, ld_v}, Unit::Mark::kRows, r.dout_rows);
  }
}

// What a panel brings to every key tile: q and dout in both layouts, lse, delta; sets t.dead.
template <class Isa, class Real>
inline void load_backward_panel(Worker<Isa, Real>& w, Tile& t, const BackwardScratch<Real>& r) {
  const Problem& p = w.problem;
  const CpuPlan& plan = w.plan;
  const int dim = static_cast<int>(p.head_dim);
  const int dim_v = static_cast<int>(p.head_dim_v);
  load_queries<Isa, Real>(w, {p.q, *t.s, t.h, t.q0, t.rows, dim, plan.padded_dim}, r.q);
  load_queries<Isa, Real>(w, {p.dout, *t.s, t.h, t.q0, t.rows, dim_v, plan.padded_dim_v}, r.dout);
  transpose_to_lanes<Isa, Real>(r.q, plan.padded_dim, t.rows, dim, t.lanes, r.q_t);
  transpose_to_lanes<Isa, Real>(r.dout, plan.padded_dim_v, t.rows, dim_v, t.lanes, r.dout_t);
  pack_queries(w, t.lanes, r);
  pack_dout(w, t.lanes, r);
  const Real* state = w.job.template array<Real>(plan.row_state) +
                      state_row<Real>(plan, w.job, p.num_heads_q, t.b, t.h, 0);
  // x - lse carries half a unit of lse (unless rest makes up for it), its product with
  // log2 e and that constant about as much of the exponent, which is at most log2(seqlen_k) where
  // weights are equal.
  constexpr Real kUnit = std::numeric_limits<Real>::epsilon() / 2;
  const Real spread = static_cast<Real>(2 * std::log2(static_cast<double>(t.s->seqlen_k) + 1) + 1);
  const Real limit = static_cast<Real>(lse_limit<Isa>(p.dtype));
  for (int i = 0; i < t.lanes; ++i) {
    const Real* row = state + padded_row<Isa>(plan, *t.s, t.q0 + (i < t.rows ? i : 0));
    const bool weightless = i >= t.rows || row[0] == -std::numeric_limits<Real>::infinity();
    r.delta[i] = i < t.rows ? row[plan.row_stride] : Real{0};
    const Real rest = row[2 * plan.row_stride];
    const Real magnitude = rest != 0 ? Real{0} : std::fmin(std::fabs(row[0]), limit);
    r.snap[i] = weightless ? Real{0} : kUnit * (Real{1.5} * magnitude + spread);
    shift_row<Isa, Real>(weightless, row[0], rest, r, i);
  }
  t.dead = has_dead_rows<Isa, Real>(p, t);
  w.count_read(int64_t{3} * t.rows * static_cast<int64_t>(sizeof(Real)));
}

// r.p = P^T of the tile, r.hide and r.cap where the problem has them. Returns the tile's class.
template <class Isa, class Real>
inline TileClass recompute_weights(Worker<Isa, Real>& w, const Tile& t,
                                   const ScoreScale<Real>& scale, int64_t key_row,
                                   const BackwardScratch<Real>& r) {
  using V = Vec<Isa, Real>;
  const Problem& p = w.problem;
  TileClass tile_class = classify<Isa>(p, t);
  if (tile_class == TileClass::kHidden) return tile_class;
  if (t.dead) tile_class = TileClass::kPartial;
  const bool partial = tile_class == TileClass::kPartial;
  tile_logits<Isa, Real>(w, t, partial, scale, score_tile<Isa, Real>(w, t, r, key_row));
  const V zero = V::set1(Real{0});
  const ShiftedExp<Isa, Real> exp(scale.exponent);
  for (int i = 0; i < t.lanes; i += V::kLanes) {
    const RowShift<V> row = {V::load(r.base + i), V::load(r.whole + i), V::load(r.fraction + i),
                             V::load(r.snap + i)};
    for (int k_row = 0; k_row < t.keys; ++k_row) {
      Real* cell = r.p + k_row * t.lanes + i;
      V weight = exp(V::load(cell), row);
      if (partial) {  // lse may be NaN, hidden weights are 0
        weight = V::select_lt(V::load(r.hide + k_row * t.lanes + i), zero, zero, weight);
      }
      weight.store(cell);
    }
  }
  if (t.dead) hide_weightless<Isa, Real>(p, t, r.p, r.hide);
  return tile_class;
}

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
  const bool packed = r.dout_lanes.data != nullptr;
  return {r.v + key_row * ld, ld, r.dout_t, rows_from(r.v_rows, key_row), r.dout_lanes, !packed};
}

// dp = dP^T = keep * V dO^T, scaled, of one tile; keep = the keep mask where there is dropout.
template <class Isa, class Real>
inline void dp_tile(Worker<Isa, Real>& w, const Tile& t, const DpOperands<Real>& operands,
                    Real* keep, Real* dp) {
  using V = Vec<Isa, Real>;
  const Problem& p = w.problem;
  const GemmTile<Real> product = {.a = operands.v,
                                  .a_row = operands.ld,
                                  .a_step = 1,
                                  .b = operands.dout_t,
                                  .b_step = t.lanes,
                                  .c = dp,
                                  .c_row = t.lanes,
                                  .rows = t.keys,
                                  .cols = t.lanes,
                                  .depth = static_cast<int>(p.head_dim_v),
                                  .left = operands.v_parts,
                                  .right = operands.dout_parts};
  const bool partial = operands.by_groups && classify<Isa>(p, t) == TileClass::kPartial;
  for_key_groups<Isa, Real>(t, partial, [&](int k, int keys, VectorRange vectors) {
    const int lane = vectors.begin * V::kLanes;
    GemmTile<Real> part = product;
    part.a += k * part.a_row;
    part.b += lane;
    part.c += k * t.lanes + lane;
    part.rows = keys;
    part.cols = vectors.end * V::kLanes - lane;
    multiply_scores<Isa, Real>(part, keep);
  });
  if (!p.dropout.enabled) return;
  fill_keep<Isa, Real>(p, t, keep);
  const V scale = V::set1(static_cast<Real>(p.dropout.scale));
  for (int i = 0; i < t.keys * t.lanes; i += V::kLanes) {
    (V::load(dp + i) * (V::load(keep + i) * scale)).store(dp + i);
  }
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

// r.ds = dS^T, and r.p = keep * P^T. capped: dS of the scaled dot products, through softcap; else
// of the logits. A pair of weight 0, hidden or not, has dS = 0 whatever dP is.
template <class Isa, class Real>
inline void compute_ds(Worker<Isa, Real>& w, const Tile& t, bool capped, int64_t key_row,
                       const BackwardScratch<Real>& r) {
  using V = Vec<Isa, Real>;
  const Problem& p = w.problem;
  dp_tile<Isa, Real>(w, t, dp_operands<Isa, Real>(w, r, key_row), r.extra, r.ds);
  if (r.sums != nullptr) add_row_sums<Isa, Real>(t, r);
  const bool dropped = p.dropout.enabled;
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

// Which operands of a panel hold a NaN or infinity, and whether the tile is partly visible.
struct Nonfinite {
  bool q = false;
  bool dout = false;
  bool partial = false;
};

// dv += (keep P)^T dO and dk += dS^T Q, for the keys of the tile: rows of r.dv and r.dk from
// key_row on. r.hide must hold where an operand is not finite.
template <class Isa, class Real>
inline void accumulate_dk_dv(Worker<Isa, Real>& w, const Tile& t, int64_t key_row,
                             Nonfinite nonfinite, const BackwardScratch<Real>& r) {
  const int64_t ld = w.plan.padded_dim;
  const int64_t ld_v = w.plan.padded_dim_v;
  const GemmTile<Real> dv = {.a = r.p,
                             .a_row = t.lanes,
                             .a_step = 1,
                             .b = r.dout,
                             .b_step = ld_v,
                             .c = r.dv + key_row * ld_v,
                             .c_row = ld_v,
                             .rows = t.keys,
                             .cols = w.plan.padded_dim_v,
                             .depth = t.rows,
                             .accumulate = true};
  const GemmTile<Real> dk = {.a = r.ds,
                             .a_row = t.lanes,
                             .a_step = 1,
                             .b = r.q,
                             .b_step = ld,
                             .c = r.dk + key_row * ld,
                             .c_row = ld,
                             .rows = t.keys,
                             .cols = w.plan.padded_dim,
                             .depth = t.rows,
                             .accumulate = true};
  if constexpr (MatrixUnit<Isa, Real>::kPresent) {
    if (r.p_rows.data != nullptr) {
      const Real* hide = nonfinite.partial ? r.hide : nullptr;
      const auto add = [&](GemmTile<Real> product, const Parts& left, const Parts& right) {
        product.left = left;
        product.right = right;
        MatrixUnit<Isa, Real>::pack_left({product.a, t.lanes, t.keys, t.rows}, left);
        MatrixUnit<Isa, Real>::multiply(product);
        if (right.has_hard()) add_hard_right<Isa, Real>(product, hide, t.lanes);
      };
      add(dv, r.p_rows, r.dout_rows);
      add(dk, r.ds_rows, r.q_rows);
      return;
    }
  }
  const auto add = [&](const GemmTile<Real>& product, bool visible_only) {
    if (visible_only) return accumulate_visible_keys<Isa, Real>(product, r.hide, t.lanes);
    for_key_groups<Isa, Real>(t, nonfinite.partial, [&](int k, int keys, VectorRange vectors) {
      constexpr int kLanes = Vec<Isa, Real>::kLanes;
      const int first = vectors.begin * kLanes;
      GemmTile<Real> part = product;
      part.a += k * part.a_row + first;
      part.b += first * part.b_step;
      part.c += k * part.c_row;
      part.rows = keys;
      part.depth = static_cast<int>(min64(vectors.end * kLanes, t.rows)) - first;
      gemm<Isa, Real>(part);
    });
  };
  add(dv, nonfinite.dout);
  add(dk, nonfinite.q);
}

// One panel against one key tile: adds to dk, dv (rows of this tile) and to r.dq_t. Partial tiles
// alone are looked at for NaN and infinity.
template <class Isa, class Real>
inline void backward_tile(Worker<Isa, Real>& w, const Tile& t, const ScoreScale<Real>& scale,
                          int64_t key_row, const BackwardScratch<Real>& r) {
  const Problem& p = w.problem;
  const int64_t ld = w.plan.padded_dim;
  const int64_t ld_v = w.plan.padded_dim_v;
  const Real* k = r.k + key_row * ld;
  const TileClass tile_class = recompute_weights<Isa, Real>(w, t, scale, key_row, r);
  if (tile_class == TileClass::kHidden) return;
  compute_ds<Isa, Real>(w, t, scale.softcap > 0, key_row, r);
  const int dim = static_cast<int>(p.head_dim);
  const bool partial = tile_class == TileClass::kPartial;
  const bool packed = r.p_rows.data != nullptr;
  const auto nonfinite = [&](const Real* rows, int64_t count, int columns, int64_t stride) {
    return partial && !packed &&
           has_nonfinite<Isa, Real>(rows, count, columns, static_cast<int>(stride));
  };
  const int dim_v = static_cast<int>(p.head_dim_v);
  accumulate_dk_dv<Isa, Real>(
      w, t, key_row,
      {nonfinite(r.q, t.rows, dim, ld), nonfinite(r.dout, t.rows, dim_v, ld_v), partial}, r);
  const GemmTile<Real> dq = {.a = k,
                             .a_row = 1,
                             .a_step = ld,
                             .b = r.ds,
                             .b_step = t.lanes,
                             .c = r.dq_t,
                             .c_row = t.lanes,
                             .rows = dim,
                             .cols = t.lanes,
                             .depth = t.keys,
                             .accumulate = true};
  if constexpr (MatrixUnit<Isa, Real>::kPresent) {
    if (packed) {
      GemmTile<Real> product = dq;
      product.left = depth_from(r.k_columns, key_row);
      product.right = r.ds_lanes;
      product.right.ld = padded_depth(t.keys);
      using Unit = MatrixUnit<Isa, Real>;
      Unit::pack_right({r.ds, t.lanes, t.keys, t.lanes}, product.right);
      Unit::multiply(product);
      if (r.k_columns.has_hard()) {
        add_hard_left<Isa, Real>(product, partial ? r.hide : nullptr);
      }
      return;
    }
  }
  if (nonfinite(k, t.keys, dim, ld)) return accumulate_visible<Isa, Real>(dq, r.hide);
  for_key_groups<Isa, Real>(t, partial, [&](int first, int count, VectorRange vectors) {
    const int lane = vectors.begin * Vec<Isa, Real>::kLanes;
    GemmTile<Real> part = dq;
    part.a += first * part.a_step;
    part.b += first * t.lanes + lane;
    part.c += lane;
    part.cols = vectors.end * Vec<Isa, Real>::kLanes - lane;
    part.depth = count;
    gemm<Isa, Real>(part);
  });
}

}  // namespace attentile::cpu

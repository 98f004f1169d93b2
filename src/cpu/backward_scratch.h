// SPDX-License-Identifier: Apache-2.0
// What a backward task works in, and how a panel of queries and its keys get there: rows, their
// transposes, packed operands, lse and delta.
#pragma once

#include "cpu/flash1.h"

namespace attentile::cpu {

// The operands of the matrix unit, named by what they are made of and run along.
struct BackwardParts {
  Parts k_rows = {}, v_rows = {}, k_columns = {};
  Parts q_lanes = {}, dout_lanes = {}, q_rows = {}, dout_rows = {};
  Parts p_rows = {}, ds_rows = {}, ds_lanes = {};
};

template <class Real>
struct BackwardScratch : BackwardParts {
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
  Real* p = nullptr;  // [step_rows()][lanes] and likewise
  Real* ds = nullptr;
  Real* hide = nullptr;
  Real* extra = nullptr;  // of products, then keep
  Real* cap = nullptr;    // tanh(S / softcap)
  Real* lane = nullptr;   // [2][lanes]
  // Where products may go on beside other work.
  PendingProduct<Real>* pending = nullptr;
};

template <class Isa, class Real>
inline void take_backward_parts(Worker<Isa, Real>& w, int64_t lanes, BackwardScratch<Real>& r) {
  const CpuPlan& plan = w.plan;
  const int parts = w.parts;
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
  for (Real** tile : {&r.p, &r.ds, &r.hide, &r.extra, &r.cap}) {
    *tile = w.take(plan.step_rows() * lanes);
  }
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
inline void pack_keys(Worker<Isa, Real>& w, int64_t keys, const BackwardScratch<Real>& r) {
  const int dim = static_cast<int>(w.problem.head_dim);
  pack_tile<Isa, Real>(w, {r.k, w.plan.padded_dim, keys, dim}, false, r.k_rows);
}
template <class Isa, class Real>
inline void pack_queries(const Worker<Isa, Real>& w, int lanes, const BackwardScratch<Real>& r) {
  if (r.q_lanes.data == nullptr) return;
  const int dim = static_cast<int>(w.problem.head_dim);
  MatrixUnit<Isa, Real>::pack_right({r.q_t, lanes, dim, lanes}, r.q_lanes);
}

// The same for dP.
template <class Isa, class Real>
inline void pack_values(Worker<Isa, Real>& w, int64_t keys, const BackwardScratch<Real>& r) {
  const int dim_v = static_cast<int>(w.problem.head_dim_v);
  pack_tile<Isa, Real>(w, {r.v, w.plan.padded_dim_v, keys, dim_v}, false, r.v_rows);
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
    Unit::pack_right({r.q, ld, t.rows, ld}, r.q_rows, Unit::Mark::kRows);
    Unit::pack_right({r.dout, ld_v, t.rows, ld_v}, r.dout_rows, Unit::Mark::kRows);
  }
}

// Brings the keys of a tile to the first rows of r.k and r.v, packed too.
template <class Isa, class Real>
inline void load_tile_keys(Worker<Isa, Real>& w, const Tile& t, const BackwardScratch<Real>& r) {
  const Problem& p = w.problem;
  const int64_t head = t.h / p.group_size;
  const KeyRange keys = {t.k0, t.k0 + t.keys};
  const int dim = static_cast<int>(p.head_dim);
  const int dim_v = static_cast<int>(p.head_dim_v);
  load_keys<Isa, Real>(w, {p.k, *t.s, t.b, head, keys, dim, w.plan.padded_dim}, r.k);
  load_keys<Isa, Real>(w, {p.v, *t.s, t.b, head, keys, dim_v, w.plan.padded_dim_v}, r.v);
  pack_keys(w, t.keys, r);
  pack_values(w, t.keys, r);
}

// q and dout of a panel in both layouts, packed along the lanes.
template <class Isa, class Real>
inline void load_panel_rows(Worker<Isa, Real>& w, const Tile& t, const BackwardScratch<Real>& r) {
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
}

// What a panel brings to every key tile: its rows, lse, delta; sets t.dead.
template <class Isa, class Real>
inline void load_backward_panel(Worker<Isa, Real>& w, Tile& t, const BackwardScratch<Real>& r) {
  const Problem& p = w.problem;
  const CpuPlan& plan = w.plan;
  load_panel_rows(w, t, r);
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

}  // namespace attentile::cpu

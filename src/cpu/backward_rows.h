// SPDX-License-Identifier: Apache-2.0
// What the backward pass knows of a row before it meets a key: lse, delta, and what rounding took
// from lse.
#pragma once

#include "cpu/backward_tile.h"

namespace attentile::cpu {

// The first and the last block of keys that a panel meets, as [begin, end).
template <class Isa>
inline KeyRange blocks_of_panel(const CpuPlan& plan, const Sequence& s, int64_t q0, int64_t rows) {
  const KeyRange keys = s.band.keys(q0, q0 + rows);
  if (keys.end <= keys.begin) return {0, 0};
  const int64_t size = plan.block_keys(s);
  return {keys.begin / size, ceil_div(keys.end, size)};
}

template <class Isa, class Real>
inline Real* row_cell(const Worker<Isa, Real>& w, const Tile& t, int64_t i) {
  return w.job.template array<Real>(w.plan.row_state) +
         state_row<Real>(w.plan, w.job, w.problem.num_heads_q, t.b, t.h,
                         padded_row<Isa>(w.plan, *t.s, i));
}

// Whether the row's rest of lse is wanted: a question to the row alone. Where the sink outweighs
// the keys, lse is far above their logits, and its rounding outweighs theirs sooner.
template <class Isa>
inline bool wants_rest(const Problem& p, int64_t h, double lse) {
  const bool sunk = sink_logit<Isa>(p, h) > lse - 0.5;
  const double limit = lse_limit<Isa>(p.dtype) / (sunk ? 4 : 1);
  return std::fabs(lse) > limit && std::fabs(lse) < 1e37;
}

// Whether the row's weight is all the sink's, or there is none.
template <class Isa>
inline bool sees_nothing(const Problem& p, int64_t h, double lse) {
  return lse == -std::numeric_limits<double>::infinity() || lse == sink_logit<Isa>(p, h);
}

// Recomputes max and sum of the panel's rows and keeps lse - round(lse) for those that want it, or
// for all. A given lse that is not the rounded one (it may belong to more keys than these)
// is left, and own[i] says so.
template <class Isa, class Real>
inline void refine_lse(Worker<Isa, Real>& w, Tile t, bool all, const BackwardScratch<Real>& r,
                       bool* own) {
  const Problem& p = w.problem;
  const ScoreScale<Real> scale = make_score_scale<Isa, Real>(p, false);
  const int dim = static_cast<int>(p.head_dim);
  Panel<Real> panel;
  panel.q0 = t.q0;
  panel.rows = t.rows;
  panel.lanes = t.lanes;
  panel.row_max = r.base;
  panel.row_sum = r.whole;
  reset_panel<Isa, Real>(panel, 0);
  load_queries<Isa, Real>(w, {p.q, *t.s, t.h, t.q0, t.rows, dim, w.plan.padded_dim}, r.q);
  transpose_to_lanes<Isa, Real>(r.q, w.plan.padded_dim, t.rows, dim, t.lanes, r.q_t);
  pack_queries(w, t.lanes, r);
  const KeyRange range = t.s->band.keys(t.q0, t.q0 + t.rows);
  for (int64_t j = range.begin; j < range.end;) {
    const KeyRange keys = {j, min64(next_key_tile<Isa>(p, w.plan.step_n, j), range.end)};
    j = keys.end;
    t.k0 = keys.begin;
    t.keys = static_cast<int>(keys.end - keys.begin);
    const TileClass tile_class = classify<Isa>(p, t);
    if (tile_class == TileClass::kHidden) continue;
    if (!w.keep_going()) return;
    load_keys<Isa, Real>(w, {p.k, *t.s, t.b, t.h / p.group_size, keys, dim, w.plan.padded_dim},
                         r.k);
    pack_keys(w, t.keys, r);
    tile_logits<Isa, Real>(w, t, tile_class == TileClass::kPartial, scale,
                           score_tile<Isa, Real>(w, t, r, 0));
    online_softmax<Isa, Real>(panel, {r.p, r.p, t.keys, nullptr}, 0, scale.exponent);
  }
  RowEnd rows[kMaxPanelLanes];
  close_rows<Isa, Real>(p, t.h, panel, scale, r.lane, rows);
  for (int i = 0; i < t.rows; ++i) {
    Real* cell = row_cell(w, t, t.q0 + i);
    const double rest = (rows[i].hi - static_cast<double>(cell[0])) + rows[i].lo;
    const double magnitude = std::fabs(rows[i].lse());
    // The logarithm of the sum has an error of its own, whatever the magnitude of lse.
    own[i] = std::fabs(rest) <= (magnitude + 4) * std::numeric_limits<Real>::epsilon();
    if (own[i] && (all ? std::isfinite(cell[0]) : wants_rest<Isa>(p, t.h, cell[0]))) {
      cell[2 * w.plan.row_stride] = static_cast<Real>(rest);
    }
  }
}

// delta as sum_j P dP - dlse, as standard attention has it, and for panels that see kStepKeys
// keys at most: there the rounding of out can outweigh all else. Only for rows whose lse is that of
// these keys alone; the others keep rowsum(dout * out) - dlse.
template <class Isa, class Real>
inline void refine_delta(Worker<Isa, Real>& w, Tile t, const BackwardScratch<Real>& r,
                         const bool* own) {
  const Problem& p = w.problem;
  const ScoreScale<Real> scale = make_score_scale<Isa, Real>(p, false);
  const KeyRange keys = t.s->band.keys(t.q0, t.q0 + t.rows);
  double sums[kMaxPanelLanes] = {};
  load_backward_panel<Isa, Real>(w, t, r);
  for (int64_t j = keys.begin; j < keys.end;) {
    const KeyRange tile = {j, min64(next_key_tile<Isa>(p, w.plan.step_n, j), keys.end)};
    j = tile.end;
    t.k0 = tile.begin;
    t.keys = static_cast<int>(tile.end - tile.begin);
    if (classify<Isa>(p, t) == TileClass::kHidden) continue;
    if (!w.keep_going()) return;
    load_tile_keys(w, t, r);
    recompute_weights<Isa, Real>(w, t, scale, 0, r);
    dp_tile<Isa, Real>(w, t, dp_operands<Isa, Real>(w, r, 0), r.extra, r.ds);
    for (int k = 0; k < t.keys; ++k) {
      for (int i = 0; i < t.rows; ++i) {
        const double weight = r.p[k * t.lanes + i];
        if (weight == 0) continue;  // also hidden, where dP may be NaN
        sums[i] += weight * r.ds[k * t.lanes + i];
      }
    }
  }
  for (int i = 0; i < t.rows; ++i) {
    if (!own[i]) continue;
    Real* cell = row_cell(w, t, t.q0 + i);
    const double dlse =
        p.dlse.present ? load_scalar<Isa, Real>(
                             p.dlse.at(t.s->batch_q, t.h, t.s->row_q + t.q0 + i, 0), p.dlse.dtype)
                       : Real{0};
    cell[w.plan.row_stride] = static_cast<Real>(sums[i] - dlse);
  }
}

// lse, its rest and delta of the rows of a panel; dq = 0 if the panel meets no key at all.
template <class Isa, class Real>
inline void prepare_panel(Worker<Isa, Real>& w, const Tile& t, const BackwardScratch<Real>& r) {
  const Problem& p = w.problem;
  const Sequence& s = *t.s;
  const int dim_v = static_cast<int>(p.head_dim_v);
  const int ld = w.plan.padded_dim_v;
  load_queries<Isa, Real>(w, {p.out, s, t.h, t.q0, t.rows, dim_v, ld}, r.out);
  load_queries<Isa, Real>(w, {p.dout, s, t.h, t.q0, t.rows, dim_v, ld}, r.dout);
  bool large = false;
  for (int i = 0; i < t.rows; ++i) {
    const Real* out = r.out + i * ld;
    const Real* dout = r.dout + i * ld;
    const int64_t row = s.row_q + t.q0 + i;
    double delta = 0;
    bool all_zero = true;
    for (int c = 0; c < dim_v; ++c) {
      delta += static_cast<double>(out[c]) * dout[c];
      all_zero &= out[c] == 0;
    }
    const Real lse = load_scalar<Isa, Real>(p.lse.at(s.batch_q, t.h, row, 0), p.lse.dtype);
    if (all_zero && sees_nothing<Isa>(p, t.h, lse)) delta = 0;  // whatever dout holds
    if (p.dlse.present) {
      delta -= static_cast<double>(
          load_scalar<Isa, Real>(p.dlse.at(s.batch_q, t.h, row, 0), p.dlse.dtype));
    }
    Real* cell = row_cell(w, t, t.q0 + i);
    cell[0] = lse;
    cell[w.plan.row_stride] = static_cast<Real>(delta);
    cell[2 * w.plan.row_stride] = 0;
    if (w.plan.sum_rows) cell[3 * w.plan.row_stride] = cell[4 * w.plan.row_stride] = 0;
    large |= wants_rest<Isa>(p, t.h, lse);
  }
  w.count_read(t.rows * static_cast<int64_t>(sizeof(Real)));
  w.count_written(int64_t{3} * t.rows * static_cast<int64_t>(sizeof(Real)));
  const KeyRange blocks = blocks_of_panel<Isa>(w.plan, s, t.q0, t.rows);
  if (blocks.begin < blocks.end) {
    const KeyRange keys = s.band.keys(t.q0, t.q0 + t.rows);
    const bool narrow = keys.end - keys.begin <= kStepKeys;
    const bool standard = w.plan.algorithm == Algorithm::kStandard;
    if (!large && !narrow && !standard) return;
    bool own[kMaxPanelLanes] = {};
    refine_lse<Isa, Real>(w, t, narrow, r, own);
    if (narrow || standard) refine_delta<Isa, Real>(w, t, r, own);
    return;
  }
  fill_lanes<Isa, Real>(r.q, w.plan.padded_dim, Real{0});
  for (int i = 0; i < t.rows; ++i) {
    char* row = p.dq.at(s.batch_q, s.row_q + t.q0 + i, t.h, 0);
    store_row<Isa, Real>(r.q, row, p.dq.dtype, p.dq.stride[3], static_cast<int>(p.head_dim));
  }
}

template <class Isa, class Real>
void backward_rows_task(void* job, int64_t task, int worker, Progress& progress) {
  Worker<Isa, Real> w(job, worker, progress);
  const CpuPlan& plan = w.plan;
  const BlockTask found = find_block<Isa>(w.job.template array<int64_t>(plan.query_blocks),
                                          w.problem.batch, w.problem.num_heads_q, task);
  const Sequence s = w.problem.sequence(found.b);
  w.use_unit(s.seqlen_q);
  const int panel_rows = plan.panel_rows(s.seqlen_q);
  Tile t;
  t.b = found.b;
  t.h = found.h;
  t.s = &s;
  t.lanes = plan.panel_lanes(panel_rows);
  const BackwardScratch<Real> scratch = take_backward_scratch<Isa, Real>(w, t.lanes);
  const int64_t q_begin = found.block * plan.tile_m;
  const int64_t q_end = min64(q_begin + plan.tile_m, s.seqlen_q);
  for (t.q0 = q_begin; t.q0 < q_end; t.q0 += panel_rows) {
    if (!w.keep_going()) return;
    t.rows = static_cast<int>(min64(panel_rows, q_end - t.q0));
    prepare_panel<Isa, Real>(w, t, scratch);
  }
}

}  // namespace attentile::cpu

// SPDX-License-Identifier: Apache-2.0
// The backward pass of standard attention (see standard.h): P and dS as whole matrices.
#pragma once

#include "cpu/standard.h"

namespace attentile::cpu {

// All keys of a panel of queries, [seqlen_k][lanes].
template <class Real>
struct StandardStrips {
  Real* p = nullptr;    // S, then P
  Real* ds = nullptr;   // dP, then dS
  Real* cap = nullptr;  // tanh(S / softcap), if there is one
};

// P of hidden pairs is 0 also where their row is NaN.
template <class Isa, class Real>
inline void clear_hidden(Worker<Isa, Real>& w, const Tile& t, const TileScratch<Real>& scratch,
                         Real* tile) {
  using V = Vec<Isa, Real>;
  const V zero = V::set1(Real{0});
  if (classify<Isa>(w.problem, t) == TileClass::kFull) return;
  fill_hide<Isa, Real>(w, t, scratch.hide, scratch.lane);
  for (int i = 0; i < t.keys * t.lanes; i += V::kLanes) {
    V::select_lt(V::load(scratch.hide + i), zero, zero, V::load(tile + i)).store(tile + i);
  }
}

// In place, dP to dS = P * (dP - delta), with delta = sum_j P dP - dlse per row; with softcap also
// its derivative. A pair of weight 0, hidden or not, has dS = 0 whatever dP is. False: stopped.
template <class Isa, class Real>
inline bool standard_ds(Worker<Isa, Real>& w, StandardBlock<Isa, Real>& block,
                        const StandardStrips<Real>& strips, Real* delta) {
  using V = Vec<Isa, Real>;
  const Problem& p = w.problem;
  const Tile& t = block.t;
  const int64_t lanes = t.lanes;
  for (int i = 0; i < t.lanes; ++i) {
    const bool has_dlse = p.dlse.present && i < t.rows;
    delta[i] = has_dlse ? -load_scalar<Isa, Real>(
                              p.dlse.at(t.s->batch_q, t.h, t.s->row_q + t.q0 + i, 0), p.dlse.dtype)
                        : Real{0};
  }
  const V zero = V::set1(Real{0});
  const V one = V::set1(Real{1});
  const auto add_delta = [&] {
    for (int i = 0; i < t.lanes; i += V::kLanes) {
      V row_delta = V::load(delta + i);
      for (int k = 0; k < t.keys; ++k) {
        const int64_t at = (t.k0 + k) * lanes + i;
        const V weight = V::load(strips.p + at);
        row_delta =
            row_delta + V::select_lt(zero, weight, weight * V::load(strips.ds + at), weight);
      }
      row_delta.store(delta + i);
    }
  };
  const auto subtract_delta = [&] {
    for (int i = 0; i < t.lanes; i += V::kLanes) {
      const V row_delta = V::load(delta + i);
      for (int k = 0; k < t.keys; ++k) {
        const int64_t at = (t.k0 + k) * lanes + i;
        const V weight = V::load(strips.p + at);
        V ds = weight * (V::load(strips.ds + at) - row_delta);
        if (strips.cap != nullptr) {
          const V tanh_s = V::load(strips.cap + at);
          ds = ds * (one - tanh_s * tanh_s);
        }
        V::select_lt(zero, weight, ds, weight).store(strips.ds + at);
      }
    }
  };
  return for_key_tiles(w, block, add_delta) && for_key_tiles(w, block, subtract_delta);
}

// hide = -inf for the pairs that add nothing, whatever their rows hold. weights: P, or dS.
template <class Isa, class Real>
inline void hide_pairs(Worker<Isa, Real>& w, const Tile& t, const Real* weights, Real* hide,
                       Real* lane_buffer) {
  fill_hide<Isa, Real>(w, t, hide, lane_buffer);
  hide_dead_rows<Isa, Real>(w.problem, t, hide);
  hide_weightless<Isa, Real>(w.problem, t, weights, hide);
}

template <class Isa, class Real>
void standard_probs_task(void* job, int64_t task, int worker, Progress& progress) {
  Worker<Isa, Real> w(job, worker, progress);
  const Problem& p = w.problem;
  StandardBlock<Isa, Real> block(w, task);
  Tile& t = block.t;
  const int64_t lanes = t.lanes;
  const int dim = static_cast<int>(p.head_dim);
  const int dim_v = static_cast<int>(p.head_dim_v);
  const int64_t kv_head = t.h / p.group_size;
  Real* k_scratch = w.take(w.plan.tile_n * dim);
  Real* v_scratch = w.take(w.plan.tile_n * dim_v);
  Real* rows_buffer = w.take(w.plan.rows_buffer_size);
  Real* q_t = w.take(dim * lanes);
  Real* dout_t = w.take(dim_v * lanes);
  Real* lanes_buffer = w.take(3 * lanes);
  const TileScratch<Real> scratch = take_tile_scratch<Isa, Real>(w, t.lanes);
  const ScoreScale<Real> scale = make_score_scale<Isa, Real>(p, false);
  StandardStrips<Real> strips;
  strips.p = w.take(p.max_seqlen_k * lanes);
  strips.ds = w.take(p.max_seqlen_k * lanes);
  strips.cap = p.softcap > 0 ? w.take(p.max_seqlen_k * lanes) : nullptr;
  RowEnd rows[kMaxPanelLanes];

  const auto compute_tile = [&] {
    const KeyRange keys = {t.k0, t.k0 + t.keys};
    const int64_t at = t.k0 * lanes;
    load_keys<Isa, Real>(w, {p.k, block.s, t.b, kv_head, keys, dim, dim}, k_scratch);
    load_keys<Isa, Real>(w, {p.v, block.s, t.b, kv_head, keys, dim_v, dim_v}, v_scratch);
    ScoreTile<Real> tile = score_tile(scratch, q_t, k_scratch, dim);
    tile.s = strips.p + at;
    tile.cap = strips.cap == nullptr ? nullptr : strips.cap + at;
    tile_logits<Isa, Real>(w, t, classify<Isa>(p, t) != TileClass::kFull, scale, tile);
    dp_tile<Isa, Real>(w, t, {v_scratch, dim_v, dout_t}, scratch.extra, strips.ds + at);
    kernel_progress(progress, static_cast<double>(t.rows) * t.keys);
  };
  const auto store_probs = [&] {
    Real* tile = strips.p + t.k0 * lanes;
    clear_hidden<Isa, Real>(w, t, scratch, tile);
    store_scores(w, w.plan.scores, t, tile);
  };
  const auto store_ds = [&] { store_scores(w, w.plan.gradients, t, strips.ds + t.k0 * lanes); };
  for (int64_t q0 = block.q_begin; q0 < block.q_end; q0 += block.panel_rows) {
    block.select_panel(q0);
    Panel<Real> panel = {.q0 = q0, .rows = t.rows, .lanes = t.lanes, .q_t = q_t};
    load_panel_queries<Isa, Real>(w, block.s, t.h, panel, rows_buffer);
    load_queries<Isa, Real>(w, {p.dout, block.s, t.h, q0, t.rows, dim_v, dim_v}, rows_buffer);
    transpose_to_lanes<Isa, Real>(rows_buffer, dim_v, t.rows, dim_v, t.lanes, dout_t);
    if (!for_key_tiles(w, block, compute_tile) ||
        !softmax_strip(w, block, strips.p, lanes_buffer, rows) ||
        !for_key_tiles(w, block, store_probs) || !standard_ds(w, block, strips, lanes_buffer) ||
        !for_key_tiles(w, block, store_ds)) {
      return;
    }
  }
}

// dK and dV of a block of keys: dV = (keep P)^T dO, dK = dS^T Q over all queries of the group.
template <class Isa, class Real>
void standard_dkdv_task(void* job, int64_t task, int worker, Progress& progress) {
  Worker<Isa, Real> w(job, worker, progress);
  const Problem& p = w.problem;
  const CpuPlan& plan = w.plan;
  const BlockTask found = find_block<Isa>(w.job.template array<int64_t>(plan.key_blocks), p.batch,
                                          p.num_heads_kv, task);
  const Sequence s = p.sequence(found.b);
  const int panel_rows = plan.panel_rows(s.seqlen_q);
  Tile t;
  t.b = found.b;
  t.s = &s;
  t.lanes = plan.panel_lanes(panel_rows);
  const BackwardScratch<Real> r = take_backward_scratch<Isa, Real>(w, t.lanes);
  const KeyRange keys = {found.block * plan.tile_keys,
                         min64((found.block + 1) * plan.tile_keys, s.seqlen_k_given)};
  const int64_t used = min64(keys.end, s.seqlen_k);
  const int dim = static_cast<int>(p.head_dim);
  const int dim_v = static_cast<int>(p.head_dim_v);
  clear_tile<Isa, Real>(w, r.dk, keys.end - keys.begin, plan.padded_dim);
  clear_tile<Isa, Real>(w, r.dv, keys.end - keys.begin, plan.padded_dim_v);
  for (int64_t g = 0; g < p.group_size; ++g) {
    t.h = found.h * p.group_size + g;
    for (t.q0 = 0; t.q0 < s.seqlen_q; t.q0 += panel_rows) {
      t.rows = static_cast<int>(min64(panel_rows, s.seqlen_q - t.q0));
      load_queries<Isa, Real>(w, {p.q, s, t.h, t.q0, t.rows, dim, plan.padded_dim}, r.q);
      load_queries<Isa, Real>(w, {p.dout, s, t.h, t.q0, t.rows, dim_v, plan.padded_dim_v}, r.dout);
      const bool nonfinite_q = has_nonfinite<Isa, Real>(r.q, t.rows, dim, plan.padded_dim);
      const bool nonfinite_dout =
          has_nonfinite<Isa, Real>(r.dout, t.rows, dim_v, plan.padded_dim_v);
      for (int64_t j = keys.begin; j < used;) {
        if (!w.keep_going()) return;
        const int64_t end = min64(next_key_tile<Isa>(p, plan.tile_n, j), used);
        t.k0 = j;
        t.keys = static_cast<int>(end - j);
        const int64_t row = j - keys.begin;
        j = end;
        load_scores<Isa, Real>(w, plan.scores, t, r.p);
        load_scores<Isa, Real>(w, plan.gradients, t, r.ds);
        if (nonfinite_q || nonfinite_dout) hide_pairs<Isa, Real>(w, t, r.p, r.hide, r.lane);
        if (p.dropout.enabled) apply_keep<Isa, Real>(p, t, r.extra, r.p);
        accumulate_dk_dv<Isa, Real>(w, t, row, {nonfinite_q, nonfinite_dout}, r);
        kernel_progress(progress, static_cast<double>(t.rows) * t.keys);
      }
    }
  }
  store_keys<Isa, Real>(w, {p.dk, s, 0, found.h, keys, dim, plan.padded_dim},
                        to_finite<Isa, Real>(p.softmax_scale), r.dk);
  store_keys<Isa, Real>(w, {p.dv, s, 0, found.h, keys, dim_v, plan.padded_dim_v},
                        static_cast<Real>(p.dropout.enabled ? p.dropout.scale : 1.0), r.dv);
}

template <class Isa, class Real>
void standard_dq_task(void* job, int64_t task, int worker, Progress& progress) {
  Worker<Isa, Real> w(job, worker, progress);
  const Problem& p = w.problem;
  StandardBlock<Isa, Real> block(w, task);
  const int dim = static_cast<int>(p.head_dim);
  const int64_t lanes = block.t.lanes;
  Real* k_scratch = w.take(w.plan.tile_n * dim);
  Real* dq_t = w.take(dim * lanes);
  const TileScratch<Real> scratch = take_tile_scratch<Isa, Real>(w, block.t.lanes);
  for (int64_t q0 = block.q_begin; q0 < block.q_end; q0 += block.panel_rows) {
    block.select_panel(q0);
    fill_lanes<Isa, Real>(dq_t, dim * lanes, Real{0});
    for (int64_t k0 = 0, k_end = 0; k0 < block.s.seqlen_k; k0 = k_end) {
      if (!w.keep_going()) return;
      k_end = block.select_keys(w, k0);
      load_keys<Isa, Real>(
          w, {p.k, block.s, block.t.b, block.t.h / p.group_size, {k0, k_end}, dim, dim}, k_scratch);
      load_scores<Isa, Real>(w, w.plan.gradients, block.t, scratch.s);
      const GemmTile<Real> product = {.a = k_scratch,
                                      .a_row = 1,
                                      .a_step = dim,
                                      .b = scratch.s,
                                      .b_step = lanes,
                                      .c = dq_t,
                                      .c_row = lanes,
                                      .rows = dim,
                                      .cols = block.t.lanes,
                                      .depth = block.t.keys,
                                      .accumulate = true};
      if (has_nonfinite<Isa, Real>(k_scratch, block.t.keys, dim, dim)) {
        hide_pairs<Isa, Real>(w, block.t, scratch.s, scratch.hide, scratch.lane);
        accumulate_visible<Isa, Real>(product, scratch.hide);
      } else {
        gemm<Isa, Real>(product);
      }
      kernel_progress(progress, static_cast<double>(block.t.rows) * block.t.keys);
    }
    for (int i = 0; i < block.t.lanes; ++i) {
      scratch.lane[i] = to_finite<Isa, Real>(p.softmax_scale);
    }
    store_queries<Isa, Real>(w, {p.dq, block.s, block.t.h, q0, block.t.rows, dim, dim}, dq_t,
                             block.t.lanes, scratch.lane);
  }
}

}  // namespace attentile::cpu

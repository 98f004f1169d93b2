// SPDX-License-Identifier: Apache-2.0
// The backward pass of standard attention (see standard.h): P and dS as whole matrices.
#pragma once

#include "cpu/standard.h"

namespace attentile::cpu {

// keep * V dO^T of one tile, into dst.
template <class Isa, class Real>
inline void standard_dp(Worker<Isa, Real>& w, const Tile& t, const Real* v, const Real* dout_t,
                        Real* keep, Real* dst) {
  using V = Vec<Isa, Real>;
  const Problem& p = w.problem;
  gemm<Isa, Real>({.a = v,
                   .a_row = p.head_dim_v,
                   .a_step = 1,
                   .b = dout_t,
                   .b_step = t.lanes,
                   .c = dst,
                   .c_row = t.lanes,
                   .rows = t.keys,
                   .cols = t.lanes,
                   .depth = static_cast<int>(p.head_dim_v)});
  if (!p.dropout.enabled) return;
  fill_keep<Isa, Real>(p, t, keep);
  const V scale = V::set1(static_cast<Real>(p.dropout.scale));
  for (int i = 0; i < t.keys * t.lanes; i += V::kLanes) {
    (V::load(dst + i) * (V::load(keep + i) * scale)).store(dst + i);
  }
}

// ds = P * (dP - delta), with delta = sum_j P dP - dlse per row; with softcap also its derivative.
template <class Isa, class Real>
inline void standard_ds(Worker<Isa, Real>& w, const Tile& t, const Real* p_strip, const Real* cap,
                        Real* delta, Real* ds) {
  using V = Vec<Isa, Real>;
  const Problem& p = w.problem;
  const int64_t lanes = t.lanes;
  for (int i = 0; i < t.lanes; ++i) {
    const bool has_dlse = p.dlse.present && i < t.rows;
    delta[i] = has_dlse ? -load_scalar<Isa, Real>(
                              p.dlse.at(t.s->batch_q, t.h, t.s->row_q + t.q0 + i, 0), p.dlse.dtype)
                        : Real{0};
  }
  const V zero = V::set1(Real{0});
  const V one = V::set1(Real{1});
  for (int i = 0; i < t.lanes; i += V::kLanes) {
    V row_delta = V::load(delta + i);
    for (int k = 0; k < t.keys; ++k) {
      const V weight = V::load(p_strip + k * lanes + i);
      const V term = weight * V::load(ds + k * lanes + i);
      // A hidden key has weight 0 and may have a dP that is not finite.
      row_delta = row_delta + V::select_lt(zero, V::abs(weight), term, weight);
    }
    for (int k = 0; k < t.keys; ++k) {
      const V weight = V::load(p_strip + k * lanes + i);
      V value = weight * (V::load(ds + k * lanes + i) - row_delta);
      if (cap != nullptr) {
        const V tanh_s = V::load(cap + k * lanes + i);
        value = value * (one - tanh_s * tanh_s);
      }
      value.store(ds + k * lanes + i);
    }
  }
}

// P and dS of hidden pairs are 0 whatever NaN their row or their value holds.
template <class Isa, class Real>
inline void clear_hidden(Worker<Isa, Real>& w, StandardBlock<Isa, Real>& block,
                         const TileScratch<Real>& scratch, Real* strip) {
  using V = Vec<Isa, Real>;
  const V zero = V::set1(Real{0});
  for (int64_t k0 = 0, k_end = 0; k0 < block.s.seqlen_k; k0 = k_end) {
    k_end = block.select_keys(w, k0);
    if (classify<Isa>(w.problem, block.t) == TileClass::kFull) continue;
    fill_hide<Isa, Real>(w, block.t, scratch.hide, scratch.lane);
    Real* tile = strip + k0 * block.t.lanes;
    for (int i = 0; i < block.t.keys * block.t.lanes; i += V::kLanes) {
      V::select_lt(V::load(scratch.hide + i), zero, zero, V::load(tile + i)).store(tile + i);
    }
  }
}

template <class Isa, class Real>
void standard_probs_task(void* job, int64_t task, int worker, Progress& progress) {
  Worker<Isa, Real> w(job, worker, progress);
  const Problem& p = w.problem;
  StandardBlock<Isa, Real> block(w, task);
  const int64_t lanes = block.t.lanes;
  const int dim = static_cast<int>(p.head_dim);
  const int dim_v = static_cast<int>(p.head_dim_v);
  const int64_t kv_head = block.t.h / p.group_size;
  Real* k_scratch = w.take(w.plan.tile_n * dim);
  Real* v_scratch = w.take(w.plan.tile_n * dim_v);
  Real* rows_buffer = w.take(w.plan.rows_buffer_size);
  Real* q_t = w.take(dim * lanes);
  Real* dout_t = w.take(dim_v * lanes);
  Real* lanes_buffer = w.take(3 * lanes);
  const TileScratch<Real> scratch = take_tile_scratch<Isa, Real>(w, block.t.lanes);
  Real* p_strip = w.take(p.max_seqlen_k * lanes);
  Real* ds_strip = w.take(p.max_seqlen_k * lanes);
  Real* cap_strip = p.softcap > 0 ? w.take(p.max_seqlen_k * lanes) : nullptr;
  RowEnd rows[kMaxPanelLanes];
  for (int64_t q0 = block.q_begin; q0 < block.q_end; q0 += block.panel_rows) {
    block.select_panel(q0);
    Panel<Real> panel = {.q0 = q0, .rows = block.t.rows, .lanes = block.t.lanes, .q_t = q_t};
    load_panel_queries<Isa, Real>(w, block.s, block.t.h, panel, rows_buffer);
    load_queries<Isa, Real>(w, {p.dout, block.s, block.t.h, q0, block.t.rows, dim_v, dim_v},
                            rows_buffer);
    transpose_to_lanes<Isa, Real>(rows_buffer, dim_v, block.t.rows, dim_v, block.t.lanes, dout_t);
    for (int64_t k0 = 0, k_end = 0; k0 < block.s.seqlen_k; k0 = k_end) {
      if (!w.keep_going()) return;
      k_end = block.select_keys(w, k0);
      load_keys<Isa, Real>(w, {p.k, block.s, block.t.b, kv_head, {k0, k_end}, dim, dim}, k_scratch);
      load_keys<Isa, Real>(w, {p.v, block.s, block.t.b, kv_head, {k0, k_end}, dim_v, dim_v},
                           v_scratch);
      Real* cap = cap_strip == nullptr ? nullptr : cap_strip + k0 * lanes;
      standard_logits<Isa, Real>(w, block.t, k_scratch, q_t, scratch, cap);
      copy_lanes<Isa, Real>(scratch.s, p_strip + k0 * lanes, block.t.keys * lanes);
      standard_dp<Isa, Real>(w, block.t, v_scratch, dout_t, scratch.extra, ds_strip + k0 * lanes);
      kernel_progress(progress, static_cast<double>(block.t.rows) * block.t.keys);
    }
    block.select_all_keys();
    const int64_t count = block.s.seqlen_k * lanes;
    round_values<Isa, Real>(p.dtype, p_strip, count);
    round_values<Isa, Real>(p.dtype, ds_strip, count);
    softmax_strip<Isa, Real>(w, block.t, p_strip, lanes_buffer, rows);
    clear_hidden<Isa, Real>(w, block, scratch, p_strip);
    block.select_all_keys();
    store_scores<Isa, Real>(w, w.plan.scores, block.t, p_strip);
    round_values<Isa, Real>(p.dtype, p_strip, count);
    standard_ds<Isa, Real>(w, block.t, p_strip, cap_strip, lanes_buffer, ds_strip);
    clear_hidden<Isa, Real>(w, block, scratch, ds_strip);
    block.select_all_keys();
    store_scores<Isa, Real>(w, w.plan.gradients, block.t, ds_strip);
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
  fill_lanes<Isa, Real>(r.dk, (keys.end - keys.begin) * plan.padded_dim, Real{0});
  fill_lanes<Isa, Real>(r.dv, (keys.end - keys.begin) * plan.padded_dim_v, Real{0});
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
        if (p.dropout.enabled) apply_keep<Isa, Real>(p, t, r.extra, r.p);
        if (nonfinite_q || nonfinite_dout) fill_hide<Isa, Real>(w, t, r.hide, r.lane);
        const GemmTile<Real> dv = {.a = r.p,
                                   .a_row = t.lanes,
                                   .a_step = 1,
                                   .b = r.dout,
                                   .b_step = plan.padded_dim_v,
                                   .c = r.dv + row * plan.padded_dim_v,
                                   .c_row = plan.padded_dim_v,
                                   .rows = t.keys,
                                   .cols = plan.padded_dim_v,
                                   .depth = t.rows,
                                   .accumulate = true};
        const GemmTile<Real> dk = {.a = r.ds,
                                   .a_row = t.lanes,
                                   .a_step = 1,
                                   .b = r.q,
                                   .b_step = plan.padded_dim,
                                   .c = r.dk + row * plan.padded_dim,
                                   .c_row = plan.padded_dim,
                                   .rows = t.keys,
                                   .cols = plan.padded_dim,
                                   .depth = t.rows,
                                   .accumulate = true};
        nonfinite_dout ? accumulate_visible_keys<Isa, Real>(dv, r.hide, t.lanes)
                       : gemm<Isa, Real>(dv);
        nonfinite_q ? accumulate_visible_keys<Isa, Real>(dk, r.hide, t.lanes) : gemm<Isa, Real>(dk);
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
  Real* rows_buffer = w.take(w.plan.rows_buffer_size);
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
        fill_hide<Isa, Real>(w, block.t, scratch.hide, scratch.lane);
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
                             block.t.lanes, scratch.lane, rows_buffer);
  }
}

}  // namespace attentile::cpu

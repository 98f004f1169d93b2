// SPDX-License-Identifier: Apache-2.0
// Standard attention, the baseline everyone compares with: S, P (and in the backward pass P and dS)
// are whole matrices in slow memory, one pass over them per step, hidden tiles and all. They are
// float32 (float64 for float64 inputs) whatever the inputs are. It runs on the same tile product,
// loads, stores and threads as flash1 and flash2, so that a ratio measures what materialising the
// scores costs and nothing else.
//
//     forward   S = mods(Q K^T);  P = softmax(S) in place;  O = (keep P) V
//     backward  P and dS = P * (keep * dO V^T - delta)
//               dV = (keep P)^T dO,  dK = dS^T Q;  dQ = dS K
//
// A matrix is stored panel by panel, [panel][key][lanes], as the tiles are.
#pragma once

#include "cpu/backward.h"

namespace attentile::cpu {

template <class Isa, class Real>
inline Real* score_cell(const Worker<Isa, Real>& w, const Slice& slice, const Tile& t) {
  const int64_t* offsets = w.job.template array<int64_t>(w.plan.score_offsets);
  const int64_t* rows = w.job.template array<int64_t>(w.plan.padded_rows);
  const int64_t panel = padded_row<Isa>(w.plan, *t.s, t.q0);
  return w.job.template array<Real>(slice) + offsets[t.b] * w.problem.num_heads_q +
         (t.h * (rows[t.b + 1] - rows[t.b]) + panel) * t.s->seqlen_k + t.k0 * t.lanes;
}

template <class Isa, class Real>
inline void store_scores(Worker<Isa, Real>& w, const Slice& slice, const Tile& t, const Real* src) {
  const int64_t cells = static_cast<int64_t>(t.keys) * t.lanes;
  copy_lanes<Isa, Real>(src, score_cell<Isa, Real>(w, slice, t), cells);
  w.count_written(static_cast<int64_t>(t.keys) * t.rows * static_cast<int64_t>(sizeof(Real)));
}

template <class Isa, class Real>
inline void load_scores(Worker<Isa, Real>& w, const Slice& slice, const Tile& t, Real* dst) {
  const int64_t cells = static_cast<int64_t>(t.keys) * t.lanes;
  copy_lanes<Isa, Real>(score_cell<Isa, Real>(w, slice, t), dst, cells);
  w.count_read(static_cast<int64_t>(t.keys) * t.rows * static_cast<int64_t>(sizeof(Real)));
}

// A task of the standard algorithm: queries [q_begin, q_end) of one head, panel by panel.
template <class Isa, class Real>
struct StandardBlock {
  Sequence s;
  Tile t;
  int panel_rows = 0;
  int64_t q_begin = 0;
  int64_t q_end = 0;

  StandardBlock(Worker<Isa, Real>& w, int64_t task) {
    const BlockTask found = find_block<Isa>(w.job.template array<int64_t>(w.plan.query_blocks),
                                            w.problem.batch, w.problem.num_heads_q, task);
    s = w.problem.sequence(found.b);
    w.use_unit(s.seqlen_q);
    panel_rows = w.plan.panel_rows(s.seqlen_q);
    t.b = found.b;
    t.h = found.h;
    t.lanes = w.plan.panel_lanes(panel_rows);
    q_begin = found.block * w.plan.tile_m;
    q_end = min64(q_begin + w.plan.tile_m, s.seqlen_q);
  }
  void select_panel(int64_t q0) {
    t.s = &s;
    t.q0 = q0;
    t.rows = static_cast<int>(min64(panel_rows, q_end - q0));
  }
  // The key tile that begins at k0; returns where the next one does.
  int64_t select_keys(const Worker<Isa, Real>& w, int64_t k0) {
    const int64_t end = min64(next_key_tile<Isa>(w.problem, w.plan.tile_n, k0), s.seqlen_k);
    t.k0 = k0;
    t.keys = static_cast<int>(end - k0);
    return end;
  }
};

// Calls do_tile() for every key tile of the sequence, selected in block.t. False: stopped.
template <class Isa, class Real, class F>
[[gnu::always_inline]] inline bool for_key_tiles(Worker<Isa, Real>& w,
                                                 StandardBlock<Isa, Real>& block, F do_tile) {
  for (int64_t k0 = 0, k_end = 0; k0 < block.s.seqlen_k; k0 = k_end) {
    if (!w.keep_going()) return false;
    k_end = block.select_keys(w, k0);
    do_tile();
  }
  return true;
}

template <class Isa, class Real>
void standard_scores_task(void* job, int64_t task, int worker, Progress& progress) {
  Worker<Isa, Real> w(job, worker, progress);
  const Problem& p = w.problem;
  StandardBlock<Isa, Real> block(w, task);
  const int head_dim = static_cast<int>(p.head_dim);
  const KeyBuffers<Real> buffers = take_key_buffers(w);
  Real* rows_buffer = w.take(w.plan.rows_buffer_size);
  const TileScratch<Real> scratch = take_tile_scratch<Isa, Real>(w, block.t.lanes);
  const ScoreScale<Real> scale = make_score_scale<Isa, Real>(p, false);
  const int num_panels = static_cast<int>(ceil_div(block.q_end - block.q_begin, block.panel_rows));
  Panel<Real> panels[kMaxPanels];
  for (int n = 0; n < num_panels; ++n) {
    block.select_panel(block.q_begin + n * block.panel_rows);
    panels[n] = {.q0 = block.t.q0,
                 .rows = block.t.rows,
                 .lanes = block.t.lanes,
                 .q_t = w.take(static_cast<int64_t>(head_dim) * block.t.lanes),
                 .q_parts = take_query_parts(w, block.t.lanes)};
    load_panel_queries<Isa, Real>(w, block.s, block.t.h, panels[n], rows_buffer);
  }
  for (int64_t k0 = 0, k_end = 0; k0 < block.s.seqlen_k; k0 = k_end) {
    if (!w.keep_going()) return;
    k_end = block.select_keys(w, k0);
    const KeyTile<Real> tile = {.k0 = k0,
                                .keys = block.t.keys,
                                .k = buffers.k,
                                .k_ld = head_dim,
                                .k_parts = buffers.k_parts};
    load_keys<Isa, Real>(
        w, {p.k, block.s, block.t.b, block.t.h / p.group_size, {k0, k_end}, head_dim, head_dim},
        buffers.k);
    pack_tile<Isa, Real>(w, {tile.k, tile.k_ld, tile.keys, head_dim}, false, tile.k_parts);
    for (int n = 0; n < num_panels; ++n) {
      block.select_panel(panels[n].q0);
      tile_logits<Isa, Real>(w, block.t, classify<Isa>(p, block.t) != TileClass::kFull, scale,
                             score_tile(scratch, panels[n], tile, k0));
      store_scores<Isa, Real>(w, w.plan.scores, block.t, scratch.s);
    }
    kernel_progress(progress, static_cast<double>(block.q_end - block.q_begin) * block.t.keys);
  }
}

// Softmax in place of a strip [seqlen_k][lanes], all keys of a panel: e^(s - max) and its sum, then
// divided. Tile by tile, so that long sums are summed in blocks as everywhere; the maximum comes
// first and is therefore never raised. False: stopped.
template <class Isa, class Real>
inline bool softmax_strip(Worker<Isa, Real>& w, StandardBlock<Isa, Real>& block, Real* strip,
                          Real* lanes_buffer, RowEnd* rows) {
  using V = Vec<Isa, Real>;
  Tile& t = block.t;
  const int64_t lanes = t.lanes;
  Panel<Real> panel;
  panel.rows = t.rows;
  panel.lanes = t.lanes;
  panel.row_max = lanes_buffer;
  panel.row_sum = lanes_buffer + lanes;
  Real* divisor = lanes_buffer + 2 * lanes;
  reset_panel<Isa, Real>(panel, 0);
  const ScoreScale<Real> scale = make_score_scale<Isa, Real>(w.problem, false);
  const auto raise_maximum = [&] {
    const Real* s = strip + t.k0 * lanes;
    for (int i = 0; i < t.lanes; i += V::kLanes) {
      V row_max = V::load(panel.row_max + i);
      for (int k = 0; k < t.keys; ++k) row_max = V::max(V::load(s + k * lanes + i), row_max);
      row_max.store(panel.row_max + i);
    }
  };
  const auto weigh = [&] {
    Real* tile = strip + t.k0 * lanes;
    online_softmax<Isa, Real>(panel, {tile, tile, t.keys, nullptr}, 0, scale.exponent);
  };
  if (!for_key_tiles(w, block, raise_maximum) || !for_key_tiles(w, block, weigh)) return false;
  close_rows<Isa, Real>(w.problem, t.h, panel, scale, divisor, rows);
  Real* share = lanes_buffer;  // the maxima are not needed any more
  for (int i = 0; i < t.lanes; ++i) share[i] = static_cast<Real>(rows[i].share);
  return for_key_tiles(w, block, [&] {
    for (int k = 0; k < t.keys; ++k) {
      for (int i = 0; i < t.lanes; i += V::kLanes) {
        Real* cell = strip + (t.k0 + k) * lanes + i;
        (V::load(cell) / V::load(divisor + i) * V::load(share + i)).store(cell);
      }
    }
  });
}

template <class Isa, class Real>
void standard_softmax_task(void* job, int64_t task, int worker, Progress& progress) {
  Worker<Isa, Real> w(job, worker, progress);
  StandardBlock<Isa, Real> block(w, task);
  const Slice& scores = w.plan.scores;
  const int64_t lanes = block.t.lanes;
  Real* strip = w.take(w.problem.max_seqlen_k * lanes);
  Real* lanes_buffer = w.take(3 * lanes);
  RowEnd rows[kMaxPanelLanes];
  const auto load = [&] { load_scores(w, scores, block.t, strip + block.t.k0 * lanes); };
  const auto store = [&] { store_scores(w, scores, block.t, strip + block.t.k0 * lanes); };
  for (int64_t q0 = block.q_begin; q0 < block.q_end; q0 += block.panel_rows) {
    block.select_panel(q0);
    if (!for_key_tiles(w, block, load) || !softmax_strip(w, block, strip, lanes_buffer, rows) ||
        !for_key_tiles(w, block, store)) {
      return;
    }
    const Panel<Real> panel = {.q0 = q0, .rows = block.t.rows, .lanes = block.t.lanes};
    store_lse<Isa, Real>(w, block.t, panel, rows);
    constexpr Real kInfinity = std::numeric_limits<Real>::infinity();
    Real* divisor = row_cell(w, block.t, q0);
    for (int64_t i = 0; i < lanes; ++i) {
      divisor[i] = lanes_buffer[2 * lanes + i] == kInfinity ? kInfinity : Real{1};
    }
  }
}

// hide = -inf for the pairs that add nothing to a gradient, whatever their rows hold. weights: P,
// or dS.
template <class Isa, class Real>
inline void hide_pairs(Worker<Isa, Real>& w, const Tile& t, const Real* weights, Real* hide,
                       Real* lane_buffer) {
  fill_hide<Isa, Real>(w, t, hide, lane_buffer);
  hide_dead_rows<Isa, Real>(w.problem, t, hide);
  hide_weightless<Isa, Real>(w.problem, t, weights, hide);
}

// O^T = V^T (keep P)^T, in the backward pass dQ^T = K^T dS^T: panels share each tile of V or K.
template <class Isa, class Real>
void standard_product_task(void* job, int64_t task, int worker, Progress& progress) {
  Worker<Isa, Real> w(job, worker, progress);
  const Problem& p = w.problem;
  const bool backward = w.plan.backward;
  StandardBlock<Isa, Real> block(w, task);
  const int dim = static_cast<int>(backward ? p.head_dim : p.head_dim_v);
  const int64_t lanes = block.t.lanes;
  Real* rows = w.take(w.plan.tile_n * dim);
  const int64_t depth = value_depth(w.plan);
  const Parts columns = w.take_parts(left_size(w.parts, dim, depth), depth, w.plan.tile_n);
  const TileScratch<Real> scratch = take_tile_scratch<Isa, Real>(w, block.t.lanes);
  const int num_panels = static_cast<int>(ceil_div(block.q_end - block.q_begin, block.panel_rows));
  Real* sums[kMaxPanels];
  for (int n = 0; n < num_panels; ++n) {
    sums[n] = w.take(round_up(dim, 16) * lanes);
    fill_lanes<Isa, Real>(sums[n], dim * lanes, Real{0});
  }
  for (int64_t k0 = 0, k_end = 0; k0 < block.s.seqlen_k; k0 = k_end) {
    if (!w.keep_going()) return;
    k_end = block.select_keys(w, k0);
    load_keys<Isa, Real>(
        w,
        {backward ? p.k : p.v, block.s, block.t.b, block.t.h / p.group_size, {k0, k_end}, dim, dim},
        rows);
    pack_tile<Isa, Real>(w, {rows, dim, block.t.keys, dim}, true, columns);
    const bool nonfinite = has_nonfinite<Isa, Real>(rows, block.t.keys, dim, dim);
    for (int n = 0; n < num_panels; ++n) {
      block.select_panel(block.q_begin + n * block.panel_rows);
      const Tile& t = block.t;
      load_scores<Isa, Real>(w, backward ? w.plan.gradients : w.plan.scores, t, scratch.s);
      if (!backward && p.dropout.enabled) apply_keep<Isa, Real>(p, t, scratch.extra, scratch.s);
      if (nonfinite && backward) hide_pairs(w, t, scratch.s, scratch.hide, scratch.lane);
      if (nonfinite && !backward) fill_hide<Isa, Real>(w, t, scratch.hide, scratch.lane);
      const GemmTile<Real> product = {.a = rows,
                                      .a_row = 1,
                                      .a_step = dim,
                                      .b = scratch.s,
                                      .b_step = lanes,
                                      .c = sums[n],
                                      .c_row = lanes,
                                      .rows = dim,
                                      .cols = t.lanes,
                                      .depth = t.keys,
                                      .accumulate = true,
                                      .left = columns,
                                      .right = scratch.weights_parts[0]};
      if (multiply_weights<Isa, Real>(product, true, nonfinite ? scratch.hide : nullptr)) continue;
      nonfinite ? accumulate_visible<Isa, Real>(product, scratch.hide) : gemm<Isa, Real>(product);
    }
    kernel_progress(progress, static_cast<double>(block.q_end - block.q_begin) * block.t.keys);
  }
  const double factor = backward ? p.softmax_scale : (p.dropout.enabled ? p.dropout.scale : 1.0);
  for (int i = 0; i < block.t.lanes; ++i) scratch.lane[i] = to_finite<Isa, Real>(factor);
  for (int n = 0; n < num_panels; ++n) {
    block.select_panel(block.q_begin + n * block.panel_rows);
    const Tile& t = block.t;
    const Panel<Real> panel = {.lanes = t.lanes, .acc_o = sums[n]};
    if (!backward) clear_dead_rows<Isa, Real>(panel, dim, row_cell(w, t, t.q0));
    store_queries<Isa, Real>(w, {backward ? p.dq : p.out, block.s, t.h, t.q0, t.rows, dim, dim},
                             sums[n], t.lanes, scratch.lane);
  }
}

}  // namespace attentile::cpu

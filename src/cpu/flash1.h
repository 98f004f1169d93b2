// SPDX-License-Identifier: Apache-2.0
// FlashAttention's own loop order (Dao et al. 2022, algorithms 1 and 2): key tiles outside, query
// tiles inside, sized from the fast memory M (in values): B_c = ceil(M / 4d) keys, B_r = min(B_c,
// d) queries. O, m and l of every query live in slow memory and are read and rewritten at each
// step, which costs N^2 d^2 / M bytes where flash2 keeps them in registers and cache. Parallel over
// batch and heads only. O is kept undivided by l until the end, unlike the paper's line 12: weights
// that are powers of two then stay exact.
#pragma once

#include "cpu/forward.h"

namespace attentile::cpu {

// The panel's part of a state array [..][width][lanes].
template <class Real>
[[gnu::always_inline]] inline int64_t state_row(const CpuPlan& plan, const KernelJob& job,
                                                int64_t heads, int64_t b, int64_t h,
                                                int64_t panel_row) {
  const int64_t* prefix = job.array<int64_t>(plan.padded_rows);
  return prefix[b] * heads + h * (prefix[b + 1] - prefix[b]) + panel_row;
}

template <class Isa, class Real>
struct Flash1State {
  Real* o = nullptr;        // [head_dim_v][lanes]
  Real* row_max = nullptr;  // [lanes]
  Real* row_sum = nullptr;  // [lanes]
};

template <class Isa, class Real>
inline Flash1State<Isa, Real> flash1_state(const Worker<Isa, Real>& w, const Tile& t, int64_t n) {
  const int64_t row = state_row<Real>(w.plan, w.job, w.problem.num_heads_q, t.b, t.h, n * t.lanes);
  Real* rows = w.job.template array<Real>(w.plan.row_state);
  Flash1State<Isa, Real> state;
  state.o = w.job.template array<Real>(w.plan.tile_state) + row * w.problem.head_dim_v;
  state.row_max = rows + row;
  state.row_sum = rows + w.plan.row_stride + row;
  return state;
}

template <class Isa, class Real>
inline void count_state(Worker<Isa, Real>& w, int rows, bool read) {
  const int64_t bytes = rows * (w.problem.head_dim_v + 2) * static_cast<int64_t>(sizeof(Real));
  read ? w.count_read(bytes) : w.count_written(bytes);
}

template <class Isa, class Real>
inline void load_state(Worker<Isa, Real>& w, const Flash1State<Isa, Real>& state,
                       const Panel<Real>& panel) {
  copy_lanes<Isa, Real>(state.o, panel.acc_o, w.problem.head_dim_v * panel.lanes);
  copy_lanes<Isa, Real>(state.row_max, panel.row_max, panel.lanes);
  copy_lanes<Isa, Real>(state.row_sum, panel.row_sum, panel.lanes);
  count_state(w, panel.rows, true);
}

template <class Isa, class Real>
inline void store_state(Worker<Isa, Real>& w, const Flash1State<Isa, Real>& state,
                        const Panel<Real>& panel) {
  copy_lanes<Isa, Real>(panel.acc_o, state.o, w.problem.head_dim_v * panel.lanes);
  copy_lanes<Isa, Real>(panel.row_max, state.row_max, panel.lanes);
  copy_lanes<Isa, Real>(panel.row_sum, state.row_sum, panel.lanes);
  count_state(w, panel.rows, false);
}

// Whether no query of the panel sees any of the keys.
template <class Isa, class Real>
inline bool tile_hidden(const Problem& p, int64_t h, const Sequence& s, const Panel<Real>& panel,
                        KeyRange keys) {
  const int64_t q_end = panel.q0 + panel.rows;
  if (s.band.classify(panel.q0, q_end, keys.begin, keys.end) == TileClass::kHidden) return true;
  return p.block_mask.present &&
         !pattern_visible<Isa>(p, h, panel.q0, panel.rows, keys.begin, false);
}

// One panel against a tile of B_c keys, step_n at a time. False: stopped.
template <class Isa, class Real>
inline bool attend_in_steps(Worker<Isa, Real>& w, const Panel<Real>& panel, const Tile& head,
                            const ScoreScale<Real>& scale, KeyTile<Real>& tile,
                            const TileScratch<Real>& scratch) {
  const int64_t k_end = tile.k0 + tile.keys;
  for (int64_t k = tile.k0; k < k_end;) {
    const KeyRange step = {k, min64(next_key_tile<Isa>(w.problem, w.plan.step_n, k), k_end)};
    k = step.end;
    if (!w.keep_going()) return false;
    Tile t = trim_tile(panel, *head.s, step);
    t.b = head.b;
    t.h = head.h;
    attend_tile<Isa, Real>(w, panel, t, scale, tile, scratch);
    kernel_progress(w.progress, static_cast<double>(t.rows) * t.keys);
  }
  return true;
}

template <class Isa, class Real>
void flash1_forward_task(void* job, int64_t task, int worker, Progress& progress) {
  Worker<Isa, Real> w(job, worker, progress);
  const Problem& p = w.problem;
  const CpuPlan& plan = w.plan;
  Tile t;
  t.b = task / p.num_heads_q;
  t.h = task % p.num_heads_q;
  const Sequence s = p.sequence(t.b);
  t.s = &s;
  w.use_unit(s.seqlen_q);
  Panel<Real> panel;
  t.lanes = panel.lanes = plan.panel_lanes(plan.panel_rows_fixed);
  const int panel_rows = plan.panel_rows_fixed;
  const int64_t num_panels = ceil_div(s.seqlen_q, panel_rows);

  const KeyBuffers<Real> buffers = take_key_buffers(w);
  Real* rows_buffer = w.take(plan.rows_buffer_size);
  const TileScratch<Real> scratch = take_tile_scratch<Isa, Real>(w, t.lanes);
  panel.q_t = w.take(p.head_dim * t.lanes);
  panel.acc_o = w.take(round_up(p.head_dim_v, 16) * t.lanes);
  panel.row_max = w.take(t.lanes);
  panel.row_sum = w.take(t.lanes);
  panel.q_parts = take_query_parts(w, t.lanes);
  const auto select_panel = [&](int64_t n) {
    panel.q0 = n * panel_rows;
    panel.rows = static_cast<int>(min64(panel_rows, s.seqlen_q - panel.q0));
  };

  const ScoreScale<Real> scale = make_score_scale<Isa, Real>(p, true);
  for (int64_t n = 0; n < num_panels; ++n) {  // O = 0, l = 0, m = -inf in slow memory
    if (!w.keep_going()) return;
    select_panel(n);
    reset_panel<Isa, Real>(panel, static_cast<int>(p.head_dim_v));
    store_state<Isa, Real>(w, flash1_state<Isa, Real>(w, t, n), panel);
  }
  const KeyRange range = s.band.keys(0, s.seqlen_q);
  for (int64_t k = range.begin; k < range.end;) {
    const KeyRange keys = {k, min64(next_key_tile<Isa>(p, plan.tile_n, k), range.end)};
    k = keys.end;
    const bool hidden =
        p.block_mask.present && !pattern_visible<Isa>(p, t.h, 0, s.seqlen_q, keys.begin, false);
    KeyTile<Real> tile;
    if (!hidden) tile = load_key_tile<Isa, Real>(w, s, t, keys, buffers);
    for (int64_t n = 0; n < num_panels; ++n) {
      if (!w.keep_going()) return;
      select_panel(n);
      if (hidden || tile_hidden<Isa>(p, t.h, s, panel, keys)) {
        kernel_progress(progress, pairs_of_tile(panel, s, keys));  // done too
        continue;
      }
      load_panel_queries<Isa, Real>(w, s, t.h, panel, rows_buffer);
      const Flash1State<Isa, Real> state = flash1_state<Isa, Real>(w, t, n);
      load_state<Isa, Real>(w, state, panel);
      if (!attend_in_steps<Isa, Real>(w, panel, t, scale, tile, scratch)) return;
      store_state<Isa, Real>(w, state, panel);
    }
  }
  for (int64_t n = 0; n < num_panels; ++n) {
    if (!w.keep_going()) return;
    select_panel(n);
    load_state<Isa, Real>(w, flash1_state<Isa, Real>(w, t, n), panel);
    store_panel<Isa, Real>(w, t, panel, scale, rows_buffer);
  }
}

}  // namespace attentile::cpu

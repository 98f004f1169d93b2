// SPDX-License-Identifier: Apache-2.0
// The backward pass: key tiles outside, query panels inside (FlashAttention algorithm 4,
// FlashAttention-2 algorithm 2). Scores are recomputed from q, k and lse; per panel and key tile
//
//     P^T  = exp(min(mods(K Q^T) - lse, 0))        [keys][lanes]
//     dV  += (keep P)^T dO                          [keys][head_dim_v]
//     dP^T = keep * (V dO^T)
//     dS^T = P^T * (dP^T - delta)                   delta = rowsum(dO * O) - dlse
//     dK  += dS^T Q,   dQ^T += K^T dS^T             times softmax_scale when stored
//
// A flash2 task owns the dk and dv of a range of keys and sums over the query heads of its group.
// dq is added up by the tasks of a head one after the other, in the order of the keys, panel by
// panel (turnstile.h): the sum has the same bits for any number of threads, and a task only ever
// waits for the one before it to be done with that panel. flash1 is one task per KV head.
#pragma once

#include "cpu/backward_rows.h"
#include "cpu/backward_unit.h"

namespace attentile::cpu {

// Rows of dk or dv: src [keys][ld] times factor.
template <class Isa, class Real>
inline void store_keys(Worker<Isa, Real>& w, const KeyRows& k, Real factor, Real* src) {
  for (int64_t j = k.keys.begin; j < k.keys.end; ++j, src += k.ld) {
    if (j % kPollRows == 0 && !w.keep_going()) return;
    for (int c = 0; c < k.dim; ++c) src[c] = src[c] * factor + Real{0};
    char* row = k.array.at(k.s.batch_k, k.s.row_k + j, k.head, 0);
    store_row<Isa, Real>(src, row, k.array.dtype, k.array.stride[3], k.dim);
  }
  w.count_written(k.bytes());
}

// Adds r.dq_t (and r.sums) into the panel's when it is this block's turn, and stores dq after the
// last one. touched: whether r.dq_t holds anything; it is all zeros where the pattern hides the
// whole block.
template <class Isa, class Real>
inline bool add_dq(Worker<Isa, Real>& w, const Tile& t, int64_t block, bool touched,
                   const BackwardScratch<Real>& r) {
  const Problem& p = w.problem;
  const CpuPlan& plan = w.plan;
  const KeyRange blocks = blocks_of_panel<Isa>(plan, *t.s, t.q0, t.rows);
  const int64_t row =
      state_row<Real>(plan, w.job, p.num_heads_q, t.b, t.h, padded_row<Isa>(plan, *t.s, t.q0));
  Real* sum = w.job.template array<Real>(plan.tile_state) + row * p.head_dim;
  std::atomic<int32_t>& turn =
      w.job.template array<std::atomic<int32_t>>(plan.turns)[row / plan.lanes];
  const int32_t my_turn = static_cast<int32_t>(block - blocks.begin);
  const int64_t count = p.head_dim * t.lanes;
  const int64_t bytes = p.head_dim * t.rows * static_cast<int64_t>(sizeof(Real));
  using V = Vec<Isa, Real>;
  const bool last = block + 1 == blocks.end;
  const bool mine = kernel_wait_for_turn(turn, my_turn, w.progress, w.id);
  w.restore_unit();
  if (!mine) return false;
  for (int i = 0; r.sums != nullptr && i < t.rows; ++i) {
    Real* cell = row_cell(w, t, t.q0 + i);
    cell[3 * plan.row_stride] += r.sums[i];
    cell[4 * plan.row_stride] += r.sums[t.lanes + i];
  }
  if (my_turn > 0 && (touched || last)) {
    for (int64_t i = 0; i < count; i += V::kLanes) {
      (V::load(sum + i) + V::load(r.dq_t + i)).store(r.dq_t + i);
    }
    w.count_read(bytes);
  }
  if (last) {
    for (int i = 0; i < t.lanes; ++i) r.lane[i] = to_finite<Isa, Real>(p.softmax_scale);
    store_queries<Isa, Real>(
        w,
        {p.dq, *t.s, t.h, t.q0, t.rows, static_cast<int>(p.head_dim), static_cast<int>(p.head_dim)},
        r.dq_t, t.lanes, r.lane);
  } else if (touched || my_turn == 0) {
    copy_lanes<Isa, Real>(r.dq_t, sum, count);
    w.count_written(bytes);
  }
  kernel_pass_turn(turn, my_turn);
  return true;
}

// Brings the keys of a block that any query of the group sees into r.k and r.v, tile by tile: what
// the pattern hides from all of them is not read.
template <class Isa, class Real>
inline void load_block_keys(Worker<Isa, Real>& w, const Tile& head, KeyRange keys,
                            const BackwardScratch<Real>& r) {
  if (r.k_rows.data != nullptr) {
    clear_tile<Isa, Real>(w, r.k, keys.end - keys.begin, w.plan.padded_dim);
    clear_tile<Isa, Real>(w, r.v, keys.end - keys.begin, w.plan.padded_dim_v);
  }
  const Problem& p = w.problem;
  const Sequence& s = *head.s;
  const KeyRange seen = s.band.keys(0, s.seqlen_q);
  const KeyRange needed = {max64(keys.begin, seen.begin), min64(keys.end, seen.end)};
  for (int64_t j = needed.begin; j < needed.end;) {
    const KeyRange tile = {j, min64(next_key_tile<Isa>(p, w.plan.tile_n, j), needed.end)};
    j = tile.end;
    if (!w.keep_going()) return;
    bool visible = !p.block_mask.present;
    for (int64_t g = 0; g < p.group_size && !visible; ++g) {
      visible =
          pattern_visible<Isa>(p, head.kv_h * p.group_size + g, 0, s.seqlen_q, tile.begin, false);
    }
    if (!visible) continue;
    const int64_t row = tile.begin - keys.begin;
    load_keys<Isa, Real>(
        w, {p.k, s, head.b, head.kv_h, tile, static_cast<int>(p.head_dim), w.plan.padded_dim},
        r.k + row * w.plan.padded_dim);
    load_keys<Isa, Real>(
        w, {p.v, s, head.b, head.kv_h, tile, static_cast<int>(p.head_dim_v), w.plan.padded_dim_v},
        r.v + row * w.plan.padded_dim_v);
  }
  const int64_t rows = keys.end - keys.begin;
  pack_keys(w, rows, r);
  pack_values(w, rows, r);
  pack_tile<Isa, Real>(w, {r.k, w.plan.padded_dim, rows, static_cast<int>(p.head_dim)}, true,
                       r.k_columns);
}

// Asks for rows of q and dout ahead of their use.
template <class Isa, class Real>
inline void prefetch_queries(const Worker<Isa, Real>& w, const Tile& t, int64_t begin,
                             int64_t end) {
  const auto prefetch = [&](const Array4& array, int64_t dim) {
    const int64_t bytes = array.stride[3] == 1 ? dim * size_of(array.dtype) : 0;
    for (int64_t i = begin; i < min64(end, t.s->seqlen_q); ++i) {
      const char* row = array.at(t.s->batch_q, t.s->row_q + i, t.h, 0);
      for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(row + byte, 0, 2);
    }
  };
  prefetch(w.problem.q, w.problem.head_dim);
  prefetch(w.problem.dout, w.problem.head_dim_v);
}

// One panel of queries against the keys of the tile, from row key_row of the block on.
template <class Isa, class Real>
inline void gradient_tile(Worker<Isa, Real>& w, const Tile& t, const ScoreScale<Real>& scale,
                          int64_t key_row, const BackwardScratch<Real>& r) {
  using V = Vec<Isa, Real>;
  TileClass tile_class = TileClass::kHidden;
  if (r.pending == nullptr) {
    tile_class = backward_tile<Isa, Real>(w, t, scale, key_row, r);
  } else if constexpr (MatrixUnit<Isa, Real>::kPresent) {
    tile_class = backward_tile_on_unit<Isa, Real>(w, t, scale, key_row, r);
  }
  if (!w.plan.dbias_by_tiles) return;
  const bool hidden = tile_class == TileClass::kHidden;
  store_by_rows<Isa, Real>(w, t, w.problem.dbias, [&](int64_t key, int64_t i) {
    return hidden ? V::set1(Real{0}) : V::load(r.ds + key * t.lanes + i) + V::set1(Real{0});
  });
}

// One panel of queries (t.h, t.q0, t.rows) against one block of keys. False: stopped.
template <class Isa, class Real>
inline bool backward_panel(Worker<Isa, Real>& w, Tile t, int64_t block, KeyRange keys,
                           const BackwardScratch<Real>& r) {
  const Problem& p = w.problem;
  const ScoreScale<Real> scale = make_score_scale<Isa, Real>(p, false);
  const KeyRange seen = t.s->band.keys(t.q0, t.q0 + t.rows);
  const KeyRange range = {max64(keys.begin, seen.begin), min64(keys.end, seen.end)};
  fill_lanes<Isa, Real>(r.dq_t, p.head_dim * t.lanes, Real{0});
  if (r.sums != nullptr) fill_lanes<Isa, Real>(r.sums, int64_t{2} * t.lanes, Real{0});
  bool touched = false;
  const int64_t steps = max64(1, ceil_div(range.end - range.begin, w.plan.step_n));
  int64_t next = t.q0 + t.rows;  // of the next panel's rows, to be asked for
  for (int64_t j = range.begin; j < range.end;) {
    const int64_t end = min64(next_key_tile<Isa>(p, w.plan.step_n, j), range.end);
    t.k0 = j;
    t.keys = static_cast<int>(end - j);
    j = end;
    if (!w.keep_going()) return false;
    kernel_progress(w.progress, static_cast<double>(t.rows) * t.keys);  // hidden ones are done too
    if (classify<Isa>(p, t) == TileClass::kHidden) continue;
    if (!touched) load_backward_panel<Isa, Real>(w, t, r);
    if (!touched) pack_panel_rows(w, t, r);
    touched = true;
    gradient_tile<Isa, Real>(w, t, scale, t.k0 - keys.begin, r);
    const int64_t share = ceil_div(t.rows, steps);
    prefetch_queries<Isa, Real>(w, t, next, next + share);
    next += share;
  }
  return add_dq<Isa, Real>(w, t, block, touched, r);
}

// One block of keys of one KV head: its dk and dv whole, and its share of dq. False: stopped.
template <class Isa, class Real>
inline bool backward_block(Worker<Isa, Real>& w, const Tile& head, int64_t block,
                           const BackwardScratch<Real>& r) {
  const Problem& p = w.problem;
  const CpuPlan& plan = w.plan;
  const Sequence& s = *head.s;
  const int64_t size = plan.block_keys(s);
  const KeyRange keys = {block * size, min64((block + 1) * size, s.seqlen_k_given)};
  const KeyRange used = {keys.begin, min64(keys.end, s.seqlen_k)};
  const int panel_rows = plan.panel_rows(s.seqlen_q);
  clear_tile<Isa, Real>(w, r.dk, keys.end - keys.begin, plan.padded_dim);
  clear_tile<Isa, Real>(w, r.dv, keys.end - keys.begin, plan.padded_dim_v);
  load_block_keys<Isa, Real>(w, head, used, r);
  Tile t = head;
  t.lanes = plan.panel_lanes(panel_rows);
  for (int64_t g = 0; g < p.group_size; ++g) {
    t.h = head.kv_h * p.group_size + g;
    for (t.q0 = 0; t.q0 < s.seqlen_q; t.q0 += panel_rows) {
      t.rows = static_cast<int>(min64(panel_rows, s.seqlen_q - t.q0));
      const KeyRange blocks = blocks_of_panel<Isa>(plan, s, t.q0, t.rows);
      if (block < blocks.begin || block >= blocks.end) continue;
      if (!backward_panel<Isa, Real>(w, t, block, used, r)) return false;
    }
  }
  const Real dv_scale = static_cast<Real>(p.dropout.enabled ? p.dropout.scale : 1.0);
  store_keys<Isa, Real>(
      w, {p.dk, s, 0, head.kv_h, keys, static_cast<int>(p.head_dim), plan.padded_dim},
      to_finite<Isa, Real>(p.softmax_scale), r.dk);
  store_keys<Isa, Real>(
      w, {p.dv, s, 0, head.kv_h, keys, static_cast<int>(p.head_dim_v), plan.padded_dim_v}, dv_scale,
      r.dv);
  return true;
}

template <class Isa, class Real>
void flash2_backward_task(void* job, int64_t task, int worker, Progress& progress) {
  Worker<Isa, Real> w(job, worker, progress);
  const BlockTask found = find_block_by_turn<Isa>(w.job.template array<int64_t>(w.plan.key_blocks),
                                                  w.problem.batch, w.problem.num_heads_kv, task);
  const Sequence s = w.problem.sequence(found.b);
  Tile head;
  head.b = found.b;
  head.kv_h = found.h;
  head.s = &s;
  w.use_unit(s.seqlen_q);
  BackwardScratch<Real> scratch =
      take_backward_scratch<Isa, Real>(w, w.plan.panel_lanes(w.plan.panel_rows(s.seqlen_q)));
  PendingProduct<Real> pending;
  if (w.parts > 0) scratch.pending = &pending;
  backward_block<Isa, Real>(w, head, found.block, scratch);
}

template <class Isa, class Real>
void flash1_backward_task(void* job, int64_t task, int worker, Progress& progress) {
  Worker<Isa, Real> w(job, worker, progress);
  Tile head;
  head.b = task / w.problem.num_heads_kv;
  head.kv_h = task % w.problem.num_heads_kv;
  const Sequence s = w.problem.sequence(head.b);
  head.s = &s;
  w.use_unit(s.seqlen_q);
  BackwardScratch<Real> scratch =
      take_backward_scratch<Isa, Real>(w, w.plan.panel_lanes(w.plan.panel_rows(s.seqlen_q)));
  PendingProduct<Real> pending;
  if (w.parts > 0) scratch.pending = &pending;
  const int64_t blocks = ceil_div(s.seqlen_k_given, w.plan.block_keys(s));
  for (int64_t block = 0; block < blocks; ++block) {
    if (!backward_block<Isa, Real>(w, head, block, scratch)) return;
  }
}

}  // namespace attentile::cpu

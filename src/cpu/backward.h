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
  Real* q_t = nullptr;     // [head_dim][lanes]
  Real* dout_t = nullptr;  // [head_dim_v][lanes]
  Real* dq_t = nullptr;    // [head_dim][lanes]: this task's share
  Real* lse = nullptr;     // [lanes], +inf where a row's weights are all 0
  Real* delta = nullptr;   // [lanes]
  Real* snap = nullptr;    // [lanes], rounding error of the exponent
  Real* p = nullptr;       // [tile_n][lanes]
  Real* ds = nullptr;      // [tile_n][lanes]
  Real* hide = nullptr;    // [tile_n][lanes]
  Real* extra = nullptr;   // [tile_n][lanes], bias, then keep
  Real* cap = nullptr;     // [tile_n][lanes], tanh(S / softcap)
  Real* lane = nullptr;    // [2][lanes]
};

template <class Isa, class Real>
inline BackwardScratch<Real> take_backward_scratch(Worker<Isa, Real>& w, int lanes) {
  const Problem& p = w.problem;
  const CpuPlan& plan = w.plan;
  BackwardScratch<Real> r;
  r.k = w.take(plan.tile_keys * plan.padded_dim);
  r.v = w.take(plan.tile_keys * plan.padded_dim_v);
  r.dk = w.take(plan.tile_keys * plan.padded_dim);
  r.dv = w.take(plan.tile_keys * plan.padded_dim_v);
  r.q = w.take(static_cast<int64_t>(lanes) * plan.padded_dim);
  r.dout = w.take(static_cast<int64_t>(lanes) * plan.padded_dim_v);
  r.q_t = w.take(p.head_dim * lanes);
  r.dout_t = w.take(p.head_dim_v * lanes);
  r.dq_t = w.take(p.head_dim * lanes);
  for (Real** row : {&r.lse, &r.delta, &r.snap}) *row = w.take(lanes);
  for (Real** tile : {&r.p, &r.ds, &r.hide, &r.extra, &r.cap}) *tile = w.take(plan.tile_n * lanes);
  r.lane = w.take(2 * lanes);
  return r;
}

// Where row i of a sequence lies in the state arrays, counted from the head's first.
template <class Isa>
inline int64_t padded_row(const CpuPlan& plan, const Sequence& s, int64_t i) {
  const int rows = plan.panel_rows(s.seqlen_q);
  return i / rows * plan.panel_lanes(rows) + i % rows;
}

// The first and the last block of tile_keys keys that a panel meets, as [begin, end).
template <class Isa>
inline KeyRange blocks_of_panel(const CpuPlan& plan, const Sequence& s, int64_t q0, int64_t rows) {
  const KeyRange keys = s.band.keys(q0, q0 + rows);
  if (keys.end <= keys.begin) return {0, 0};
  return {keys.begin / plan.tile_keys, ceil_div(keys.end, plan.tile_keys)};
}

// lse and delta of every row of one block of queries; dq = 0 for panels that meet no key at all.
template <class Isa, class Real>
void backward_delta_task(void* job, int64_t task, int worker, Progress& progress) {
  Worker<Isa, Real> w(job, worker, progress);
  const Problem& p = w.problem;
  const CpuPlan& plan = w.plan;
  const BlockTask found = find_block<Isa>(w.job.template array<int64_t>(plan.query_blocks), p.batch,
                                          p.num_heads_q, task);
  const Sequence s = p.sequence(found.b);
  const int panel_rows = plan.panel_rows(s.seqlen_q);
  const int64_t q_begin = found.block * plan.tile_m;
  const int64_t q_end = min64(q_begin + plan.tile_m, s.seqlen_q);
  const int dim = static_cast<int>(p.head_dim_v);
  Real* out_row = w.take(dim);
  Real* dout_row = w.take(dim);
  Real* zero_row = w.take(p.head_dim);
  for (int64_t c = 0; c < p.head_dim; ++c) zero_row[c] = 0;
  const int64_t half = plan.row_state.bytes / 2 / static_cast<int64_t>(sizeof(Real));
  for (int64_t i = q_begin; i < q_end; ++i) {
    if (!w.keep_going()) return;
    load_queries<Isa, Real>(w, p.out, s, found.h, i, 1, dim, dim, out_row);
    load_queries<Isa, Real>(w, p.dout, s, found.h, i, 1, dim, dim, dout_row);
    double delta = 0;
    for (int c = 0; c < dim; ++c) delta += static_cast<double>(out_row[c]) * dout_row[c];
    if (p.dlse.present) {
      delta -= static_cast<double>(
          load_scalar<Isa, Real>(p.dlse.at(s.batch_q, found.h, s.row_q + i, 0), p.dlse.dtype));
    }
    Real* cell =
        w.job.template array<Real>(plan.row_state) +
        state_row<Real>(plan, w.job, p.num_heads_q, found.b, found.h, padded_row<Isa>(plan, s, i));
    cell[0] = load_scalar<Isa, Real>(p.lse.at(s.batch_q, found.h, s.row_q + i, 0), p.lse.dtype);
    cell[half] = static_cast<Real>(delta);
    const int64_t q0 = i / panel_rows * panel_rows;
    const KeyRange blocks = blocks_of_panel<Isa>(plan, s, q0, min64(panel_rows, s.seqlen_q - q0));
    if (blocks.begin < blocks.end) continue;
    store_row<Isa, Real>(zero_row, p.dq.at(s.batch_q, s.row_q + i, found.h, 0), p.dq.dtype,
                         p.dq.stride[3], static_cast<int>(p.head_dim));
  }
  w.count_read((q_end - q_begin) * static_cast<int64_t>(sizeof(Real)));
  w.count_written(2 * (q_end - q_begin) * static_cast<int64_t>(sizeof(Real)));
}

// What a panel brings to every key tile: q and dout in both layouts, lse, delta.
template <class Isa, class Real>
inline void load_backward_panel(Worker<Isa, Real>& w, const Tile& t,
                                const BackwardScratch<Real>& r) {
  const Problem& p = w.problem;
  const CpuPlan& plan = w.plan;
  const int dim = static_cast<int>(p.head_dim);
  const int dim_v = static_cast<int>(p.head_dim_v);
  load_queries<Isa, Real>(w, p.q, *t.s, t.h, t.q0, t.rows, dim, plan.padded_dim, r.q);
  load_queries<Isa, Real>(w, p.dout, *t.s, t.h, t.q0, t.rows, dim_v, plan.padded_dim_v, r.dout);
  transpose_to_lanes<Isa, Real>(r.q, plan.padded_dim, t.rows, dim, t.lanes, r.q_t);
  transpose_to_lanes<Isa, Real>(r.dout, plan.padded_dim_v, t.rows, dim_v, t.lanes, r.dout_t);
  const int64_t half = plan.row_state.bytes / 2 / static_cast<int64_t>(sizeof(Real));
  const Real* state = w.job.template array<Real>(plan.row_state) +
                      state_row<Real>(plan, w.job, p.num_heads_q, t.b, t.h, 0);
  // x - lse carries half a unit of lse, its product with log2 e and that constant about as much of
  // the exponent, which is at most log2(seqlen_k) where weights are equal.
  constexpr Real kUnit = std::numeric_limits<Real>::epsilon() / 2;
  const Real spread = static_cast<Real>(2 * std::log2(static_cast<double>(t.s->seqlen_k) + 1) + 1);
  for (int i = 0; i < t.lanes; ++i) {
    const Real* row = state + padded_row<Isa>(plan, *t.s, t.q0 + (i < t.rows ? i : 0));
    const bool weightless = i >= t.rows || row[0] == -std::numeric_limits<Real>::infinity();
    r.lse[i] = weightless ? std::numeric_limits<Real>::infinity() : row[0];
    r.delta[i] = i < t.rows ? row[half] : Real{0};
    const Real magnitude = r.lse[i] < 0 ? -r.lse[i] : r.lse[i];
    r.snap[i] = weightless ? Real{0} : kUnit * (Real{1.5} * magnitude + spread);
  }
  w.count_read(2 * t.rows * static_cast<int64_t>(sizeof(Real)));
}

// r.p = P^T of the tile, r.hide and r.cap where the problem has them. Returns the tile's class.
template <class Isa, class Real>
inline TileClass recompute_weights(Worker<Isa, Real>& w, const Tile& t,
                                   const ScoreScale<Real>& scale, const Real* k,
                                   const BackwardScratch<Real>& r) {
  using V = Vec<Isa, Real>;
  const Problem& p = w.problem;
  const TileClass tile_class = classify<Isa>(p, t);
  if (tile_class == TileClass::kHidden) return tile_class;
  gemm<Isa, Real>({.a = k,
                   .a_row = w.plan.padded_dim,
                   .a_step = 1,
                   .b = r.q_t,
                   .b_step = t.lanes,
                   .c = r.p,
                   .c_row = t.lanes,
                   .rows = t.keys,
                   .cols = t.lanes,
                   .depth = static_cast<int>(p.head_dim)});
  const bool partial = tile_class == TileClass::kPartial;
  const bool biased = p.bias.present || p.alibi_slopes.present;
  if (partial) fill_hide<Isa, Real>(w, t, r.hide, r.lane);
  if (biased) fill_bias<Isa, Real>(w, t, r.extra);
  apply_score_mods<Isa, Real>(scale, t, biased ? r.extra : nullptr, partial ? r.hide : nullptr, r.p,
                              r.cap);
  const V zero = V::set1(Real{0});
  const V exponent = V::set1(scale.exponent);
  for (int i = 0; i < t.lanes; i += V::kLanes) {
    const V lse = V::load(r.lse + i);
    const V snap = V::load(r.snap + i);
    for (int k_row = 0; k_row < t.keys; ++k_row) {
      Real* cell = r.p + k_row * t.lanes + i;
      const V below = V::min(zero, V::load(cell) - lse);
      exp2_snapped<Isa>(below * exponent, snap).store(cell);
    }
  }
  return tile_class;
}

// r.ds = dS^T (with respect to the logits after softcap and bias when `logits`, else to the scaled
// dot products), and r.p = keep * P^T.
template <class Isa, class Real>
inline void compute_ds(Worker<Isa, Real>& w, const Tile& t, const ScoreScale<Real>& scale,
                       const Real* v, bool partial, bool logits, const BackwardScratch<Real>& r) {
  using V = Vec<Isa, Real>;
  const Problem& p = w.problem;
  gemm<Isa, Real>({.a = v,
                   .a_row = w.plan.padded_dim_v,
                   .a_step = 1,
                   .b = r.dout_t,
                   .b_step = t.lanes,
                   .c = r.ds,
                   .c_row = t.lanes,
                   .rows = t.keys,
                   .cols = t.lanes,
                   .depth = static_cast<int>(p.head_dim_v)});
  const bool dropped = p.dropout.enabled;
  if (dropped) fill_keep<Isa, Real>(p, t, r.extra);
  const V zero = V::set1(Real{0});
  const V one = V::set1(Real{1});
  const V dropout_scale = V::set1(static_cast<Real>(p.dropout.scale));
  const bool capped = scale.softcap > 0 && !logits;
  for (int i = 0; i < t.lanes; i += V::kLanes) {
    const V delta = V::load(r.delta + i);
    for (int k = 0; k < t.keys; ++k) {
      const int at = k * t.lanes + i;
      const V weight = V::load(r.p + at);
      V dp = V::load(r.ds + at);
      if (dropped) {
        const V keep = V::load(r.extra + at);
        dp = dp * (keep * dropout_scale);
        (weight * keep).store(r.p + at);
      }
      V ds = weight * (dp - delta);
      if (capped) {
        const V tanh_s = V::load(r.cap + at);
        ds = ds * (one - tanh_s * tanh_s);
      }
      if (partial) ds = V::select_lt(V::load(r.hide + at), zero, zero, ds);
      ds.store(r.ds + at);
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
      V acc = V::set1(Real{0});
      for (int k = 0; k < t.depth; ++k) {
        if (hide[m * lanes + k] < 0) continue;
        acc = V::fma(V::set1(t.a[m * t.a_row + k]), V::load(t.b + k * t.b_step + n), acc);
      }
      Real* c = t.c + m * t.c_row + n;
      (V::load(c) + acc).store(c);
    }
  }
}

// Which operands of the panel and key tile hold a NaN or infinity; looked at for partial tiles
// only.
struct Nonfinite {
  bool q = false;
  bool dout = false;
  bool k = false;
};

// One panel against one key tile: adds to dk, dv (rows of this tile) and to r.dq_t.
template <class Isa, class Real>
inline void backward_tile(Worker<Isa, Real>& w, const Tile& t, const ScoreScale<Real>& scale,
                          int64_t key_row, const BackwardScratch<Real>& r) {
  const Problem& p = w.problem;
  const int64_t ld = w.plan.padded_dim;
  const int64_t ld_v = w.plan.padded_dim_v;
  const Real* k = r.k + key_row * ld;
  const Real* v = r.v + key_row * ld_v;
  const TileClass tile_class = recompute_weights<Isa, Real>(w, t, scale, k, r);
  if (tile_class == TileClass::kHidden) return;
  const bool partial = tile_class == TileClass::kPartial;
  compute_ds<Isa, Real>(w, t, scale, v, partial, false, r);
  const int dim = static_cast<int>(p.head_dim);
  Nonfinite nonfinite;
  if (partial) {
    nonfinite.q = has_nonfinite<Isa, Real>(r.q, t.rows, dim, static_cast<int>(ld));
    nonfinite.dout = has_nonfinite<Isa, Real>(r.dout, t.rows, static_cast<int>(p.head_dim_v),
                                              static_cast<int>(ld_v));
    nonfinite.k = has_nonfinite<Isa, Real>(k, t.keys, dim, static_cast<int>(ld));
  }
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
  nonfinite.dout ? accumulate_visible_keys<Isa, Real>(dv, r.hide, t.lanes) : gemm<Isa, Real>(dv);
  nonfinite.q ? accumulate_visible_keys<Isa, Real>(dk, r.hide, t.lanes) : gemm<Isa, Real>(dk);
  nonfinite.k ? accumulate_visible<Isa, Real>(dq, r.hide) : gemm<Isa, Real>(dq);
}

// rows of dk or dv: src [keys][ld] times factor.
template <class Isa, class Real>
inline void store_keys(Worker<Isa, Real>& w, const Array4& array, const Sequence& s, int64_t head,
                       KeyRange keys, int dim, int ld, Real factor, Real* src) {
  for (int64_t j = keys.begin; j < keys.end; ++j, src += ld) {
    for (int c = 0; c < dim; ++c) src[c] = src[c] * factor + Real{0};
    store_row<Isa, Real>(src, array.at(s.batch_k, s.row_k + j, head, 0), array.dtype,
                         array.stride[3], dim);
  }
  w.count_written((keys.end - keys.begin) * dim * size_of(array.dtype));
}

// Adds r.dq_t into the panel's sum when it is this block's turn, and stores dq after the last one.
// touched: whether r.dq_t holds anything; it is all zeros where the pattern hides the whole block.
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
  if (!kernel_wait_for_turn(turn, my_turn, w.progress, w.id)) return false;
  if (my_turn > 0 && (touched || last)) {
    for (int64_t i = 0; i < count; i += V::kLanes) {
      (V::load(sum + i) + V::load(r.dq_t + i)).store(r.dq_t + i);
    }
    w.count_read(bytes);
  }
  if (last) {
    for (int i = 0; i < t.lanes; ++i) r.lane[i] = to_finite<Isa, Real>(p.softmax_scale);
    store_queries<Isa, Real>(w, p.dq, *t.s, t.h, t.q0, t.rows, static_cast<int>(p.head_dim), r.dq_t,
                             t.lanes, r.lane, r.q);
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
  const Problem& p = w.problem;
  const Sequence& s = *head.s;
  const int64_t kv_head = head.h / p.group_size;
  const KeyRange seen = s.band.keys(0, s.seqlen_q);
  const KeyRange needed = {max64(keys.begin, seen.begin), min64(keys.end, seen.end)};
  for (int64_t j = needed.begin; j < needed.end;) {
    const KeyRange tile = {j, min64(next_key_tile<Isa>(p, w.plan.tile_n, j), needed.end)};
    j = tile.end;
    bool visible = !p.block_mask.present;
    for (int64_t g = 0; g < p.group_size && !visible; ++g) {
      visible =
          pattern_visible<Isa>(p, kv_head * p.group_size + g, 0, s.seqlen_q, tile.begin, false);
    }
    if (!visible) continue;
    const int64_t row = tile.begin - keys.begin;
    load_keys<Isa, Real>(w, p.k, s, head.b, kv_head, tile, static_cast<int>(p.head_dim),
                         w.plan.padded_dim, r.k + row * w.plan.padded_dim);
    load_keys<Isa, Real>(w, p.v, s, head.b, kv_head, tile, static_cast<int>(p.head_dim_v),
                         w.plan.padded_dim_v, r.v + row * w.plan.padded_dim_v);
  }
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
  bool touched = false;
  for (int64_t j = range.begin; j < range.end;) {
    const int64_t end = min64(next_key_tile<Isa>(p, w.plan.tile_n, j), range.end);
    t.k0 = j;
    t.keys = static_cast<int>(end - j);
    j = end;
    if (classify<Isa>(p, t) == TileClass::kHidden) continue;
    if (!w.keep_going()) return false;
    if (!touched) load_backward_panel<Isa, Real>(w, t, r);
    touched = true;
    backward_tile<Isa, Real>(w, t, scale, t.k0 - keys.begin, r);
    kernel_progress(w.progress, static_cast<double>(t.rows) * t.keys);
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
  const int64_t kv_head = head.h / p.group_size;
  const KeyRange keys = {block * plan.tile_keys,
                         min64((block + 1) * plan.tile_keys, s.seqlen_k_given)};
  const KeyRange used = {keys.begin, min64(keys.end, s.seqlen_k)};
  const int panel_rows = plan.panel_rows(s.seqlen_q);
  fill_lanes<Isa, Real>(r.dk, (keys.end - keys.begin) * plan.padded_dim, Real{0});
  fill_lanes<Isa, Real>(r.dv, (keys.end - keys.begin) * plan.padded_dim_v, Real{0});
  load_block_keys<Isa, Real>(w, head, used, r);
  Tile t = head;
  t.lanes = plan.panel_lanes(panel_rows);
  for (int64_t g = 0; g < p.group_size; ++g) {
    t.h = kv_head * p.group_size + g;
    for (t.q0 = 0; t.q0 < s.seqlen_q; t.q0 += panel_rows) {
      t.rows = static_cast<int>(min64(panel_rows, s.seqlen_q - t.q0));
      const KeyRange blocks = blocks_of_panel<Isa>(plan, s, t.q0, t.rows);
      if (block < blocks.begin || block >= blocks.end) continue;
      if (!backward_panel<Isa, Real>(w, t, block, used, r)) return false;
    }
  }
  const Real dv_scale = static_cast<Real>(p.dropout.enabled ? p.dropout.scale : 1.0);
  store_keys<Isa, Real>(w, p.dk, s, kv_head, keys, static_cast<int>(p.head_dim), plan.padded_dim,
                        to_finite<Isa, Real>(p.softmax_scale), r.dk);
  store_keys<Isa, Real>(w, p.dv, s, kv_head, keys, static_cast<int>(p.head_dim_v),
                        plan.padded_dim_v, dv_scale, r.dv);
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
  head.h = found.h * w.problem.group_size;
  head.s = &s;
  const BackwardScratch<Real> scratch =
      take_backward_scratch<Isa, Real>(w, w.plan.panel_lanes(w.plan.panel_rows(s.seqlen_q)));
  backward_block<Isa, Real>(w, head, found.block, scratch);
}

template <class Isa, class Real>
void flash1_backward_task(void* job, int64_t task, int worker, Progress& progress) {
  Worker<Isa, Real> w(job, worker, progress);
  Tile head;
  head.b = task / w.problem.num_heads_kv;
  head.h = task % w.problem.num_heads_kv * w.problem.group_size;
  const Sequence s = w.problem.sequence(head.b);
  head.s = &s;
  const BackwardScratch<Real> scratch =
      take_backward_scratch<Isa, Real>(w, w.plan.panel_lanes(w.plan.panel_rows(s.seqlen_q)));
  const int64_t blocks = ceil_div(s.seqlen_k_given, w.plan.tile_keys);
  for (int64_t block = 0; block < blocks; ++block) {
    if (!backward_block<Isa, Real>(w, head, block, scratch)) return;
  }
}

}  // namespace attentile::cpu

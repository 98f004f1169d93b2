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
inline void clear_hidden(Worker<Isa, Real>& w, const Tile& t, const BackwardScratch<Real>& r,
                         Real* tile) {
  using V = Vec<Isa, Real>;
  const V zero = V::set1(Real{0});
  if (classify<Isa>(w.problem, t) == TileClass::kFull) return;
  fill_hide<Isa, Real>(w, t, r.hide, r.lane);
  for (int i = 0; i < t.keys * t.lanes; i += V::kLanes) {
    V::select_lt(V::load(r.hide + i), zero, zero, V::load(tile + i)).store(tile + i);
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

template <class Isa, class Real>
void standard_probs_task(void* job, int64_t task, int worker, Progress& progress) {
  Worker<Isa, Real> w(job, worker, progress);
  const Problem& p = w.problem;
  StandardBlock<Isa, Real> block(w, task);
  Tile& t = block.t;
  const int64_t lanes = t.lanes;
  const BackwardScratch<Real> r = take_backward_scratch<Isa, Real>(w, t.lanes);
  Real* lanes_buffer = w.take(3 * lanes);
  const ScoreScale<Real> scale = make_score_scale<Isa, Real>(p, false);
  const int64_t strip = (p.max_seqlen_k + w.plan.spare_rows()) * lanes;
  StandardStrips<Real> strips;
  strips.p = w.take(strip);
  strips.ds = w.take(strip);
  strips.cap = p.softcap > 0 ? w.take(strip) : nullptr;
  RowEnd rows[kMaxPanelLanes];

  const auto compute_tile = [&] {
    const int64_t at = t.k0 * lanes;
    load_tile_keys(w, t, r);
    ScoreTile<Real> tile = score_tile<Isa, Real>(w, t, r, 0);
    tile.s = strips.p + at;
    tile.cap = strips.cap == nullptr ? nullptr : strips.cap + at;
    tile_logits<Isa, Real>(w, t, classify<Isa>(p, t) != TileClass::kFull, scale, tile);
    dp_tile<Isa, Real>(w, t, dp_operands<Isa, Real>(w, r, 0), r.extra, strips.ds + at);
    kernel_progress(progress, static_cast<double>(t.rows) * t.keys);
  };
  const auto store_probs = [&] {
    Real* tile = strips.p + t.k0 * lanes;
    clear_hidden<Isa, Real>(w, t, r, tile);
    store_scores(w, w.plan.scores, t, tile);
  };
  const auto store_ds = [&] { store_scores(w, w.plan.gradients, t, strips.ds + t.k0 * lanes); };
  for (int64_t q0 = block.q_begin; q0 < block.q_end; q0 += block.panel_rows) {
    block.select_panel(q0);
    load_panel_rows(w, t, r);
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
  w.use_unit(s.seqlen_q);
  const int panel_rows = plan.panel_rows(s.seqlen_q);
  Tile t;
  t.b = found.b;
  t.s = &s;
  t.lanes = plan.panel_lanes(panel_rows);
  const BackwardScratch<Real> r = take_backward_scratch<Isa, Real>(w, t.lanes);
  const KeyRange keys = {found.block * plan.block_keys(s),
                         min64((found.block + 1) * plan.block_keys(s), s.seqlen_k_given)};
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
      pack_panel_rows(w, t, r);
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
        const bool hidden = nonfinite_q || nonfinite_dout;
        if (hidden) hide_pairs<Isa, Real>(w, t, r.p, r.hide, r.lane);
        if (p.dropout.enabled) apply_keep<Isa, Real>(p, t, r.extra, r.p);
        accumulate_dk_dv<Isa, Real>(w, t, row, {nonfinite_q, nonfinite_dout, hidden}, r);
        kernel_progress(progress, static_cast<double>(t.rows) * t.keys);
      }
    }
  }
  store_keys<Isa, Real>(w, {p.dk, s, 0, found.h, keys, dim, plan.padded_dim},
                        to_finite<Isa, Real>(p.softmax_scale), r.dk);
  store_keys<Isa, Real>(w, {p.dv, s, 0, found.h, keys, dim_v, plan.padded_dim_v},
                        static_cast<Real>(p.dropout.enabled ? p.dropout.scale : 1.0), r.dv);
}

}  // namespace attentile::cpu

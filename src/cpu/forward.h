// SPDX-License-Identifier: Apache-2.0
// The forward pass. attend_tile does one panel of queries against one tile of keys, for flash1 and
// flash2 alike:
//
//     S^T = K Q^T                      [keys][lanes]
//     P^T = 2^((mods(S^T) - m) c)      online softmax, m and l per lane
//     O^T = O^T + V^T (keep * P^T)     [head_dim_v][lanes]
//
// flash2 (FlashAttention-2, algorithm 1): a task is a block of queries, cut into panels that share
// each key tile while it is in cache; the keys stream past. Bytes per task from slow memory: Q and
// O once, K and V once per visible key tile. No task waits for another.
#pragma once

#include "cpu/block_task.h"
#include "cpu/keep_tile.h"
#include "cpu/online_softmax.h"
#include "cpu/tile_gemm.h"

namespace attentile::cpu {

// Scratch that attend_tile works in.
template <class Real>
struct TileScratch {
  Real* s = nullptr;                        // [step_n][lanes]
  Real* weights = nullptr;                  // [step_n][lanes]
  Real* hide = nullptr;                     // [step_n][lanes]
  Real* extra = nullptr;                    // [step_n][lanes], of products, then keep
  Real* lane = nullptr;                     // [2][lanes]
  Parts weights_parts[2] = {};              // of a tile and of the one before it
  PendingProduct<Real>* pending = nullptr;  // of the one before, where products may wait
};

template <class Isa, class Real>
inline TileScratch<Real> take_tile_scratch(Worker<Isa, Real>& w, int lanes) {
  TileScratch<Real> scratch;
  for (Real** tile : {&scratch.s, &scratch.weights, &scratch.hide, &scratch.extra}) {
    *tile = w.take(w.plan.step_rows() * lanes);
  }
  scratch.lane = w.take(2 * lanes);
  const int64_t depth = padded_depth(w.plan.step_n);
  for (Parts& parts : scratch.weights_parts) {
    parts = w.take_parts(right_size(w.parts, lanes, depth), depth, 0);
  }
  return scratch;
}

// Keys [k0, k0 + keys) in scratch, or in place when they lie there as the kernel wants them.
template <class Real>
struct KeyTile {
  int64_t k0 = 0;
  int64_t keys = 0;
  const Real* k = nullptr;  // [keys][k_ld]
  const Real* v = nullptr;  // [keys][v_ld]
  int64_t k_ld = 0;
  int64_t v_ld = 0;
  int v_nonfinite = -1;  // -1: not looked at yet
  Parts k_parts = {};
  Parts v_parts = {};  // of V^T
};

// The score arithmetic's share of the scratch, for one panel and the keys from key k0 on.
template <class Real>
inline ScoreTile<Real> score_tile(const TileScratch<Real>& scratch, const Panel<Real>& panel,
                                  const KeyTile<Real>& keys, int64_t k0) {
  return {.k = keys.k + (k0 - keys.k0) * keys.k_ld,
          .k_ld = keys.k_ld,
          .q_t = panel.q_t,
          .s = scratch.s,
          .hide = scratch.hide,
          .extra = scratch.extra,
          .lane = scratch.lane,
          .k_parts = rows_from(keys.k_parts, k0 - keys.k0),
          .q_parts = panel.q_parts};
}

// Where a KeyTile is put.
template <class Real>
struct KeyBuffers {
  Real* k = nullptr;
  Real* v = nullptr;
  Parts k_parts = {};
  Parts v_parts = {};
};

template <class Isa, class Real>
inline KeyBuffers<Real> take_key_buffers(Worker<Isa, Real>& w) {
  const Problem& p = w.problem;
  const int parts = w.parts;
  const int64_t tile_n = w.plan.tile_n;
  const int64_t depth = padded_depth(p.head_dim);
  const int64_t depth_v = value_depth(w.plan);
  KeyBuffers<Real> buffers;
  buffers.k = w.take(tile_n * p.head_dim);
  buffers.v = w.take(tile_n * p.head_dim_v);
  // Trimmed tiles begin at any key: a tile more of rows.
  buffers.k_parts = w.take_parts(left_size(parts, tile_n + 15, depth), depth, tile_n);
  buffers.v_parts = w.take_parts(left_size(parts, p.head_dim_v, depth_v), depth_v, tile_n);
  return buffers;
}

// q of a panel of so many lanes for the matrix unit.
template <class Isa, class Real>
inline Parts take_query_parts(Worker<Isa, Real>& w, int64_t lanes) {
  const int64_t depth = padded_depth(w.problem.head_dim);
  return w.take_parts(right_size(w.parts, lanes, depth), depth, lanes);
}

// O^T += V^T P^T over the pairs that are not hidden: for tiles where a NaN or infinity in a value
// that some queries do not see must not reach those. The same sums in the same order as gemm.
template <class Isa, class Real>
[[gnu::noinline]] void accumulate_visible(const GemmTile<Real>& t, const Real* hide) {
  using V = Vec<Isa, Real>;
  const V zero = V::set1(Real{0});
  for (int m = 0; m < t.rows; ++m) {
    for (int n = 0; n < t.cols; n += V::kLanes) {
      Real* c = t.c + m * t.c_row + n;
      V total = V::load(c);
      V acc = zero;
      for (int k = 0; k < t.depth; ++k) {
        const V a = V::select_lt(V::load(hide + k * t.b_step + n), zero, zero,
                                 V::set1(t.a[m * t.a_row + k * t.a_step]));
        acc = V::fma(a, V::load(t.b + k * t.b_step + n), acc);
        if (k + 1 < t.depth && (k + 1) % kLongestSum<Real> != 0) continue;
        total = total + acc;
        acc = zero;
      }
      total.store(c);
    }
  }
}

// C += A B for A = V^T or K^T and B = P^T or dS^T of a tile, without what the band hides. hide: of
// the tile, where hidden pairs must not meet at all, else null.
template <class Isa, class Real>
inline void multiply_by_groups(const Tile& t, bool partial, const GemmTile<Real>& product,
                               const Real* hide) {
  for_key_groups<Isa, Real>(t, partial, [&](int k, int keys, VectorRange vectors) {
    const int lane = vectors.begin * Vec<Isa, Real>::kLanes;
    GemmTile<Real> part = product;
    part.a += k * part.a_step;
    part.b += k * t.lanes + lane;
    part.c += lane;
    part.cols = vectors.end * Vec<Isa, Real>::kLanes - lane;
    part.depth = keys;
    hide != nullptr ? accumulate_visible<Isa, Real>(part, hide + k * t.lanes + lane)
                    : gemm<Isa, Real>(part);
  });
}

// The product's columns [lane, lane + count), unpacked.
template <class Real>
[[gnu::always_inline]] inline GemmTile<Real> lanes_of(GemmTile<Real> product, int lane, int count) {
  product.b += lane;
  product.c += lane;
  product.cols = count;
  return product;
}

// Weights times keep, in place.
template <class Isa, class Real>
inline void apply_keep(const Problem& p, const Tile& t, Real* keep, Real* weights) {
  using V = Vec<Isa, Real>;
  fill_keep<Isa, Real>(p, t, keep);
  for (int i = 0; i < t.keys * t.lanes; i += V::kLanes) {
    (V::load(weights + i) * V::load(keep + i)).store(weights + i);
  }
}

// The part of `keys`, at most step_n of them, that some query of the panel may see, as a tile.
template <class Real>
[[gnu::always_inline]] inline Tile trim_tile(const Panel<Real>& panel, const Sequence& s,
                                             KeyRange keys) {
  const KeyRange seen = s.band.keys(panel.q0, panel.q0 + panel.rows);
  const int64_t begin = max64(keys.begin, seen.begin);
  const int64_t end = min64(keys.end, seen.end);
  Tile t;
  t.s = &s;
  t.q0 = panel.q0;
  t.rows = panel.rows;
  t.lanes = panel.lanes;
  t.k0 = begin;
  t.keys = static_cast<int>(max64(0, end - begin));
  return t;
}

// (query, key) pairs of a tile that the band leaves, in the unit of progress.
template <class Real>
[[gnu::always_inline]] inline double pairs_of_tile(const Panel<Real>& panel, const Sequence& s,
                                                   KeyRange keys) {
  const KeyRange seen = s.band.keys(panel.q0, panel.q0 + panel.rows);
  const int64_t count = min64(keys.end, seen.end) - max64(keys.begin, seen.begin);
  return static_cast<double>(panel.rows) * static_cast<double>(max64(0, count));
}

template <class Isa, class Real>
inline void attend_tile(Worker<Isa, Real>& w, const Panel<Real>& panel, Tile t,
                        const ScoreScale<Real>& scale, KeyTile<Real>& keys,
                        const TileScratch<Real>& scratch) {
  const Problem& p = w.problem;
  const TileClass tile_class = classify<Isa>(p, t);
  if (tile_class == TileClass::kHidden) return;
  const int head_dim_v = static_cast<int>(p.head_dim_v);
  const int64_t skip = t.k0 - keys.k0;
  const bool partial = tile_class == TileClass::kPartial;
  tile_logits<Isa, Real>(w, t, partial, scale, score_tile(scratch, panel, keys, t.k0));
  PendingProduct<Real>* pending = scratch.pending;
  const bool other = pending != nullptr && pending->waits &&
                     pending->tile.right.data == scratch.weights_parts[0].data;
  Parts packed = scratch.weights_parts[other ? 1 : 0];
  packed.ld = padded_depth(t.keys);
  // The weights themselves are wanted too where they are dropped or meet values that have no parts.
  const bool pack_later = p.dropout.enabled || keys.v_parts.has_hard();
  const WeightTile<Real> weights = {
      scratch.s, scratch.weights, t.keys, partial ? &t : nullptr, pack_later ? Parts{} : packed,
      pending};
  const LeftOut found = online_softmax<Isa, Real>(panel, weights, head_dim_v, scale.exponent);
  uint64_t left_out = found.vectors;
  if (pending != nullptr) MatrixUnit<Isa, Real>::finish(*pending);
  if (found.all) return;
  if constexpr (sizeof(Real) == 4) {
    // With a block pattern the rows beside decide whether a tile is full: no bit may tell. And on
    // the unit faint weights are found in memory.
    const bool all_wanted = p.block_mask.present || w.parts == kExactParts;
    if (left_out != 0 && all_wanted && weights.packed.data == nullptr) {
      for (int i = 0; i < t.lanes; i += Vec<Isa, Real>::kLanes) {
        if ((left_out & left_out_bit(panel, i)) == 0) continue;
        restore_subnormal<Isa>(panel, weights, i, scale.exponent);
      }
      left_out = 0;
    }
  }
  if (p.dropout.enabled) apply_keep<Isa, Real>(p, t, scratch.extra, scratch.weights);
  const GemmTile<Real> product = {.a = keys.v + skip * keys.v_ld,
                                  .a_row = 1,
                                  .a_step = keys.v_ld,
                                  .b = scratch.weights,
                                  .b_step = t.lanes,
                                  .c = panel.acc_o,
                                  .c_row = t.lanes,
                                  .rows = head_dim_v,
                                  .cols = t.lanes,
                                  .depth = t.keys,
                                  .accumulate = true,
                                  .left = depth_from(keys.v_parts, skip),
                                  .right = packed};
  if (pending != nullptr && weights.packed.data != nullptr && left_out == 0) {
    pending->begin(product);
    return;
  }
  const bool done =
      multiply_weights<Isa, Real>(product, pack_later, partial ? scratch.hide : nullptr);
  if (!done) {
    if (partial && keys.v_nonfinite < 0) {
      keys.v_nonfinite = tile_has_nonfinite<Isa, Real>(w, keys.v, keys.keys, head_dim_v, keys.v_ld);
    }
    const bool visible_only = partial && keys.v_nonfinite > 0;
    multiply_by_groups<Isa, Real>(t, partial, product, visible_only ? scratch.hide : nullptr);
  }
  if (done && pack_later) return;
  for (int i = 0; left_out != 0 && i < t.lanes; i += Vec<Isa, Real>::kLanes) {
    if ((left_out & left_out_bit(panel, i)) == 0) continue;
    if (done) {
      if constexpr (MatrixUnit<Isa, Real>::kPresent) {
        add_faint_right<Isa, Real>(lanes_of(product, i, Vec<Isa, Real>::kLanes));
      }
    } else if constexpr (sizeof(Real) == 4) {
      add_subnormal<Isa>(panel, weights, i, product, p.dropout.enabled ? scratch.extra : nullptr,
                         scale.exponent);
    }
  }
}

// Brings keys [begin, end) of KV head `head` within reach: copied to scratch and widened, or read
// in place when they are already rows of Real, without gaps unless they are packed.
template <class Isa, class Real>
inline KeyTile<Real> load_key_tile(Worker<Isa, Real>& w, const Sequence& s, const Tile& t,
                                   KeyRange range, const KeyBuffers<Real>& buffers) {
  const Problem& p = w.problem;
  const int64_t head = t.h / p.group_size;
  KeyTile<Real> tile;
  tile.k0 = range.begin;
  tile.keys = range.end - range.begin;
  const auto fetch = [&](const Array4& array, int dim, Real* buffer, int64_t& ld) -> const Real* {
    const bool in_place = array.dtype == (sizeof(Real) == 4 ? DType::kFloat32 : DType::kFloat64) &&
                          array.stride[3] == 1 && !p.paged() &&
                          (array.stride[1] == dim || w.parts > 0);
    if (in_place) {
      ld = array.stride[1];
      w.count_read(tile.keys * dim * size_of(array.dtype));
      return reinterpret_cast<const Real*>(p.key_row(array, s, t.b, head, range.begin));
    }
    ld = dim;
    load_keys<Isa, Real>(w, {array, s, t.b, head, range, dim, dim}, buffer);
    return buffer;
  };
  const int dim = static_cast<int>(p.head_dim);
  const int dim_v = static_cast<int>(p.head_dim_v);
  tile.k = fetch(p.k, dim, buffers.k, tile.k_ld);
  tile.v = fetch(p.v, dim_v, buffers.v, tile.v_ld);
  tile.k_parts = buffers.k_parts;
  tile.v_parts = buffers.v_parts;
  pack_tile<Isa, Real>(w, {tile.k, tile.k_ld, tile.keys, dim}, false, tile.k_parts);
  pack_tile<Isa, Real>(w, {tile.v, tile.v_ld, tile.keys, dim_v}, true, tile.v_parts);
  return tile;
}

// Asks for keys and values ahead of their use: a tile is many short rows, which the processor does
// not foresee.
template <class Isa, class Real>
inline void prefetch_keys(const Worker<Isa, Real>& w, const Sequence& s, const Tile& t,
                          KeyRange keys) {
  const Problem& p = w.problem;
  const int64_t head = t.h / p.group_size;
  const auto prefetch = [&](const Array4& array, int64_t dim) {
    const int64_t bytes = array.stride[3] == 1 ? dim * size_of(array.dtype) : 0;
    for (int64_t j = keys.begin; j < keys.end; ++j) {
      const char* row = p.key_row(array, s, t.b, head, j);
      for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(row + byte, 0, 2);
    }
  };
  prefetch(p.k, p.head_dim);
  prefetch(p.v, p.head_dim_v);
}

template <class Isa, class Real>
inline void load_panel_queries(Worker<Isa, Real>& w, const Sequence& s, int64_t h,
                               const Panel<Real>& panel, Real* rows_buffer) {
  const int head_dim = static_cast<int>(w.problem.head_dim);
  load_queries<Isa, Real>(w, {w.problem.q, s, h, panel.q0, panel.rows, head_dim, head_dim},
                          rows_buffer);
  transpose_to_lanes<Isa, Real>(rows_buffer, head_dim, panel.rows, head_dim, panel.lanes,
                                panel.q_t);
  if (panel.q_parts.data == nullptr) return;
  MatrixUnit<Isa, Real>::pack_right({panel.q_t, panel.lanes, head_dim, panel.lanes}, panel.q_parts);
}

template <class Isa, class Real>
inline void store_lse(Worker<Isa, Real>& w, const Tile& t, const Panel<Real>& panel,
                      const RowEnd* rows) {
  const Array4& array = w.problem.lse;
  if (!array.present) return;
  for (int i = 0; i < panel.rows; ++i) {
    char* cell = array.at(t.s->batch_q, t.h, t.s->row_q + panel.q0 + i, 0);
    *reinterpret_cast<Real*>(cell) = static_cast<Real>(rows[i].lse());
  }
  w.count_written(panel.rows * static_cast<int64_t>(sizeof(Real)));
}

// O = 0 in rows whose every visible logit is -inf, also where a value they see is NaN: those that
// are divided by infinity.
template <class Isa, class Real>
inline void clear_dead_rows(const Panel<Real>& panel, int head_dim_v, const Real* divisor) {
  using V = Vec<Isa, Real>;
  const V zero = V::set1(Real{0});
  const V largest = V::set1(std::numeric_limits<Real>::max());
  for (int i = 0; i < panel.lanes; i += V::kLanes) {
    const V l = V::load(divisor + i);
    if (!V::any_lt(largest, l)) continue;
    for (int c = 0; c < head_dim_v; ++c) {
      Real* cell = panel.acc_o + static_cast<int64_t>(c) * panel.lanes + i;
      V::select_lt(largest, l, zero, V::load(cell)).store(cell);
    }
  }
}

// O times the keys' share of the row's weight: apart from 1 / l, since the product of both may be
// subnormal where neither is.
template <class Isa, class Real>
inline void multiply_rows(const Panel<Real>& panel, int head_dim_v, const RowEnd* rows) {
  using V = Vec<Isa, Real>;
  Real share[kMaxPanelLanes];
  for (int i = 0; i < panel.lanes; ++i) share[i] = static_cast<Real>(rows[i].share);
  for (int64_t c = 0; c < head_dim_v; ++c) {
    Real* o = panel.acc_o + c * panel.lanes;
    for (int i = 0; i < panel.lanes; i += V::kLanes) {
      (V::load(o + i) * V::load(share + i)).store(o + i);
    }
  }
}

// Writes out and lse of a finished panel.
template <class Isa, class Real>
inline void store_panel(Worker<Isa, Real>& w, const Tile& t, const Panel<Real>& panel,
                        const ScoreScale<Real>& scale, Real* lane_buffer) {
  const Problem& p = w.problem;
  const int head_dim_v = static_cast<int>(p.head_dim_v);
  RowEnd rows[kMaxPanelLanes];
  close_rows<Isa, Real>(p, t.h, panel, scale, lane_buffer, rows);
  clear_dead_rows<Isa, Real>(panel, head_dim_v, lane_buffer);
  const double kept_scale = p.dropout.enabled ? p.dropout.scale : 1.0;
  if (p.sink.present) multiply_rows<Isa, Real>(panel, head_dim_v, rows);
  for (int i = 0; i < panel.lanes; ++i) {  // O is divided by l
    lane_buffer[i] = static_cast<Real>(kept_scale / lane_buffer[i]);
  }
  store_queries<Isa, Real>(w, {p.out, *t.s, t.h, panel.q0, panel.rows, head_dim_v, head_dim_v},
                           panel.acc_o, panel.lanes, lane_buffer);
  store_lse<Isa, Real>(w, t, panel, rows);
}

template <class Isa, class Real>
void flash2_forward_task(void* job, int64_t task, int worker, Progress& progress) {
  Worker<Isa, Real> w(job, worker, progress);
  const Problem& p = w.problem;
  const CpuPlan& plan = w.plan;
  const BlockTask found = find_block<Isa>(w.job.template array<int64_t>(plan.query_blocks), p.batch,
                                          p.num_heads_q, task);
  const Sequence s = p.sequence(found.b);
  w.use_unit(s.seqlen_q);
  const int panel_rows = plan.panel_rows(s.seqlen_q);
  const int lanes = plan.panel_lanes(panel_rows);
  const int64_t q_begin = (found.blocks - 1 - found.block) * plan.tile_m;  // longest first
  const int64_t q_end = min64(q_begin + plan.tile_m, s.seqlen_q);
  const int num_panels = static_cast<int>(ceil_div(q_end - q_begin, panel_rows));

  const KeyBuffers<Real> buffers = take_key_buffers(w);
  Real* rows_buffer = w.take(plan.rows_buffer_size);
  PendingProduct<Real> pending;
  TileScratch<Real> scratch = take_tile_scratch<Isa, Real>(w, lanes);
  if (w.parts > 0) scratch.pending = &pending;
  Panel<Real> panels[kMaxPanels];
  for (int n = 0; n < num_panels; ++n) {
    Panel<Real>& panel = panels[n];
    panel.q0 = q_begin + int64_t{n} * panel_rows;
    panel.rows = static_cast<int>(min64(panel_rows, q_end - panel.q0));
    panel.lanes = static_cast<int>(round_up(panel.rows, Vec<Isa, Real>::kLanes));
    panel.q_t = w.take(p.head_dim * lanes);
    panel.acc_o = w.take(round_up(p.head_dim_v, 16) * lanes);
    panel.row_max = w.take(lanes);
    panel.row_sum = w.take(lanes);
    panel.q_parts = take_query_parts(w, lanes);
    load_panel_queries<Isa, Real>(w, s, found.h, panel, rows_buffer);
    reset_panel<Isa, Real>(panel, static_cast<int>(p.head_dim_v));
  }

  const ScoreScale<Real> scale = make_score_scale<Isa, Real>(p, true);
  Tile t;
  t.b = found.b;
  t.h = found.h;
  t.s = &s;
  const KeyRange range = s.band.keys(q_begin, q_end);
  for (int64_t k = range.begin; k < range.end;) {
    const int64_t k_end = min64(next_key_tile<Isa>(p, plan.tile_n, k), range.end);
    const KeyRange keys = {k, k_end};
    k = k_end;
    const KeyRange next = {k, min64(next_key_tile<Isa>(p, plan.tile_n, k), range.end)};
    if (!w.keep_going()) return;
    double pairs = 0;  // hidden ones are done too
    for (int n = 0; n < num_panels; ++n) pairs += pairs_of_tile(panels[n], s, keys);
    kernel_progress(progress, pairs);
    if (p.block_mask.present &&
        !pattern_visible<Isa>(p, t.h, q_begin, q_end - q_begin, keys.begin, false)) {
      continue;
    }
    KeyTile<Real> tile = load_key_tile<Isa, Real>(w, s, t, keys, buffers);
    for (int n = 0; n < num_panels; ++n) {
      Tile trimmed = trim_tile(panels[n], s, keys);
      trimmed.b = t.b;
      trimmed.h = t.h;
      trimmed.next_rows = (n + 1 < num_panels ? 1 : -n) * int64_t{panel_rows};
      attend_tile<Isa, Real>(w, panels[n], trimmed, scale, tile, scratch);
      const int64_t share = ceil_div(next.end - next.begin, num_panels);
      const int64_t first = min64(next.begin + n * share, next.end);
      prefetch_keys<Isa, Real>(w, s, t, {first, min64(first + share, next.end)});
    }
    MatrixUnit<Isa, Real>::finish(pending);
  }
  for (int n = 0; n < num_panels; ++n) {
    store_panel<Isa, Real>(w, t, panels[n], scale, rows_buffer);
  }
}

}  // namespace attentile::cpu

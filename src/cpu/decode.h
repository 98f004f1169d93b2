// SPDX-License-Identifier: Apache-2.0
// The forward pass of flash2 for a sequence of few queries, as in generation: a task is one piece
// of the keys of one KV head (split-KV; FlashAttention's "flash decoding"), for all query heads
// that share it. The lanes run along head_dim, since there are too few queries to fill them:
//
//     S[row][key]  = q[row] . k[key]           [rows][keys]
//     P            = 2^((mods(S) - m) c)       online softmax, m and l per row
//     O[row]       = O[row] + P[row] V         [rows][head_dim_v]
//
// Row r = g * seqlen_q + i is query i of the g-th query head of the KV head. Keys and values are
// widened in registers and read once for all rows: bytes per task from slow memory are its keys and
// values, and Q. Every task leaves O, m and l in the workspace; whoever finishes the last piece of
// a KV head adds the pieces up in their order, so that it does not matter who that is. The size of
// a piece depends on the sequence's own length alone.
#pragma once

#include <type_traits>

#include "cpu/decode_tile.h"

namespace attentile::cpu {

// All tiles of one piece. Element: how keys and values lie in memory; float and copied: their
// widened copies.
template <class Isa, class Element>
inline bool attend_piece(Worker<Isa, float>& w, DecodeTask t, KeyRange piece, bool copied) {
  const Problem& p = w.problem;
  const CpuPlan& plan = w.plan;
  const int64_t dim = plan.padded_dim;
  const int64_t dim_v = plan.padded_dim_v;
  const ScoreScale<float> scale = make_score_scale<Isa, float>(p, true);
  const WeightExp<Isa, float> exp(scale.exponent);
  const float margin = kRaiseThreshold<float> / scale.exponent.hi;
  RowPointers<Element> keys;
  RowPointers<Element> values;
  for (int64_t k = piece.begin; k < piece.end; k += t.keys) {
    if (!w.keep_going()) return false;
    t.k0 = k;
    t.keys = static_cast<int>(min64((k / kDecodeKeys + 1) * kDecodeKeys, piece.end) - k);
    const KeyRange tile = {k, k + t.keys};
    if constexpr (std::is_same_v<Element, float>) {
      if (copied) {
        const int d = static_cast<int>(p.head_dim);
        const int d_v = static_cast<int>(p.head_dim_v);
        copy_rows<Isa>(w, {p.k, *t.s, t.b, t.kv_h, tile, d, static_cast<int>(dim)}, t.widened,
                       keys);
        copy_rows<Isa>(w, {p.v, *t.s, t.b, t.kv_h, tile, d_v, static_cast<int>(dim_v)},
                       t.widened + kDecodeKeys * dim, values);
      }
    }
    if (!copied) {
      find_rows<Isa>(p, t, p.k, piece.end, keys);
      find_rows<Isa>(p, t, p.v, piece.end, values);
      w.count_read(t.keys * (p.head_dim + p.head_dim_v) * size_of(p.dtype));
    }
    t.partial = p.mask.present ||
                t.s->band.classify(0, t.seqlen_q, tile.begin, tile.end) != TileClass::kFull;
    for (int row0 = 0; row0 < t.rows; row0 += kDecodeRows) {
      if (row0 > 0 && !w.keep_going()) return false;
      const DecodeTask part = rows_of(t, row0, plan);
      tile_products<Isa>(part, dim, keys);
      for (int row = 0; row < part.rows; ++row) {
        scale_row<Isa>(w, part, scale, row);
        if (part.partial) hide_keys<Isa>(w, part, row);
        weigh_row<Isa>(part, exp, margin, dim_v, row);
      }
      tile_output<Isa>(part, dim_v, values);
    }
  }
  return true;
}

// The pieces of one KV head: the n-th is the work of task first + n * step, which left its state
// under that number.
struct DecodePieces {
  int64_t first = 0;
  int64_t step = 0;
  int64_t count = 0;
};

template <class Isa>
inline DecodeState decode_state(const KernelJob& job, int64_t n) {
  const CpuPlan& plan = *job.plan;
  const int64_t rows = plan.decode_rows;
  DecodeState state;
  state.acc_o = job.array<float>(plan.tile_state) + n * plan.decode_state_size();
  state.row_sum = state.acc_o + rows * plan.padded_dim_v;
  state.row_max = state.row_sum + rows * plan.lanes;
  return state;
}

// Adds up row `row` of the pieces, in their order, into the first of them: O and l. Returns m.
template <class Isa>
inline float merge_row(const KernelJob& job, const ScoreScale<float>& scale, DecodePieces pieces,
                       int row) {
  using V = Vec<Isa, float>;
  constexpr float kNothing = -std::numeric_limits<float>::infinity();
  const WeightExp<Isa, float> exp(scale.exponent);
  const int64_t dim_v = job.plan->padded_dim_v;
  float top = kNothing;
  for (int64_t n = 0; n < pieces.count; ++n) {
    const float row_max = decode_state<Isa>(job, pieces.first + n * pieces.step).row_max[row];
    top = row_max > top ? row_max : top;
  }
  const V base = V::set1(top == kNothing ? 0.0f : top);
  const DecodeState total = decode_state<Isa>(job, pieces.first);
  float* o = total.acc_o + row * dim_v;
  float* l = total.row_sum + row * V::kLanes;
  for (int64_t n = 0; n < pieces.count; ++n) {
    const DecodeState piece = decode_state<Isa>(job, pieces.first + n * pieces.step);
    const V alpha = exp(V::set1(piece.row_max[row]) - base);
    const auto take = [&](const float* from, float* to) {
      const V scaled = V::load(from) * alpha;
      (n == 0 ? scaled : V::load(to) + scaled).store(to);
    };
    for (int64_t c = 0; c < dim_v; c += V::kLanes) take(piece.acc_o + row * dim_v + c, o + c);
    take(piece.row_sum + row * V::kLanes, l);
  }
  return top;
}

// Writes out and lse of all rows of a KV head whose pieces are done.
template <class Isa>
inline void finish_rows(Worker<Isa, float>& w, const DecodeTask& t, DecodePieces pieces) {
  using V = Vec<Isa, float>;
  const Problem& p = w.problem;
  const ScoreScale<float> scale = make_score_scale<Isa, float>(p, true);
  const DecodeState total = decode_state<Isa>(w.job, pieces.first);
  const int dim_v = static_cast<int>(p.head_dim_v);
  const V zero = V::set1(0.0f);
  float row_max[kDecodeQueries];
  float row_sum[kDecodeQueries];
  float divisor[kDecodeQueries];
  RowEnd ends[kDecodeQueries];
  Panel<float> panel;
  panel.rows = panel.lanes = t.seqlen_q;
  panel.row_max = row_max;
  panel.row_sum = row_sum;
  const int64_t state_bytes = (p.head_dim_v + 2) * static_cast<int64_t>(sizeof(float));
  w.count_read(t.rows * pieces.count * state_bytes);
  for (int row = 0; row < t.rows; ++row) {
    if (!w.keep_going()) return;
    const int64_t i = t.query(row);
    row_max[i] = merge_row<Isa>(w.job, scale, pieces, row);
    row_sum[i] = 0;
    for (int n = 0; n < V::kLanes; ++n) row_sum[i] += total.row_sum[row * V::kLanes + n];
    if (i + 1 < t.seqlen_q) continue;
    Tile tile;
    tile.s = t.s;
    tile.h = t.head(p, row);
    close_rows<Isa, float>(p, tile.h, panel, scale, divisor, ends);
    for (int n = 0; n < t.seqlen_q; ++n) {
      float* o = total.acc_o + (row - i + n) * w.plan.padded_dim_v;
      const bool dead = divisor[n] > std::numeric_limits<float>::max();
      // Apart: their product may be subnormal where neither is.
      const V inverse = V::set1(1.0f / divisor[n]);
      const V share = V::set1(static_cast<float>(ends[n].share));
      for (int64_t c = 0; c < dim_v; c += V::kLanes) {
        (dead ? zero : V::load(o + c) * inverse * share + zero).store(o + c);  // -0 becomes +0
      }
      store_row<Isa, float>(o, p.out.at(t.s->batch_q, t.s->row_q + n, tile.h, 0), p.out.dtype,
                            p.out.stride[3], dim_v);
    }
    w.count_written(static_cast<int64_t>(t.seqlen_q) * dim_v * size_of(p.dtype));
    store_lse<Isa, float>(w, tile, panel, ends);
  }
}

template <class Isa>
void flash2_decode_task(void* job, int64_t number, int worker, Progress& progress) {
  Worker<Isa, float> w(job, worker, progress);
  const Problem& p = w.problem;
  const CpuPlan& plan = w.plan;
  const int64_t* prefix = w.job.template array<int64_t>(plan.key_blocks);
  const BlockTask found = find_block_by_turn<Isa>(prefix, p.batch, p.num_heads_kv, number);
  const Sequence s = p.sequence(found.b);
  const KeyRange piece = plan.decode_piece(s, found.block);

  DecodeTask t;
  t.s = &s;
  t.b = found.b;
  t.kv_h = found.h;
  t.seqlen_q = static_cast<int>(s.seqlen_q);
  t.rows = static_cast<int>(p.group_size * s.seqlen_q);
  t.q = w.take(int64_t{t.rows} * plan.padded_dim);
  t.s_rows = w.take(min64(plan.decode_rows, kDecodeRows) * kDecodeKeys);
  t.hide = w.take(min64(plan.decode_rows, kDecodeRows) * kDecodeKeys);
  t.extra = w.take(kDecodeKeys);
  t.widened = w.take(kDecodeKeys * (int64_t{plan.padded_dim} + plan.padded_dim_v));
  t.state = decode_state<Isa>(w.job, number);
  for (int64_t g = 0; g < p.group_size; ++g) {
    if (!w.keep_going()) return;
    load_queries<Isa, float>(w,
                             {p.q, s, t.kv_h * p.group_size + g, 0, t.seqlen_q,
                              static_cast<int>(p.head_dim), plan.padded_dim},
                             t.q + g * t.seqlen_q * plan.padded_dim);
  }
  fill_lanes<Isa, float>(t.state.acc_o, int64_t{t.rows} * plan.padded_dim_v, 0.0f);
  fill_lanes<Isa, float>(t.state.row_sum, int64_t{t.rows} * plan.lanes, 0.0f);
  for (int row = 0; row < t.rows; ++row) {
    t.state.row_max[row] = -std::numeric_limits<float>::infinity();
  }
  const auto in_place = [&](const Array4& array, int64_t dim, int padded) {
    return array.stride[3] == 1 && dim == padded;
  };
  const bool copied = !in_place(p.k, p.head_dim, plan.padded_dim) ||
                      !in_place(p.v, p.head_dim_v, plan.padded_dim_v);
  bool done = false;
  if (copied || p.dtype == DType::kFloat32) {
    done = attend_piece<Isa, float>(w, t, piece, copied);
  } else if (p.dtype == DType::kFloat16) {
    done = attend_piece<Isa, Float16Bits>(w, t, piece, false);
  } else {
    done = attend_piece<Isa, BFloat16Bits>(w, t, piece, false);
  }
  if (!done) return;
  kernel_progress(progress, static_cast<double>(t.rows) *
                                static_cast<double>(max64(0, piece.end - piece.begin)));
  const int64_t state_bytes = (p.head_dim_v + 2) * static_cast<int64_t>(sizeof(float));
  w.count_written(t.rows * state_bytes);
  std::atomic<int32_t>& finished =
      w.job.template array<std::atomic<int32_t>>(plan.turns)[found.b * p.num_heads_kv + found.h];
  if (kernel_count_finished(finished) == found.blocks) {
    finish_rows<Isa>(w, t, {number - found.block * p.num_heads_kv, p.num_heads_kv, found.blocks});
  }
}

}  // namespace attentile::cpu

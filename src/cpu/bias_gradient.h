// SPDX-License-Identifier: Apache-2.0
// dbias and dsink. dbias is the sum of dS over the dimensions along which bias was broadcast: a
// task owns a range of its elements, recomputes the dS tiles that reach them in a fixed order, adds
// in float64 and rounds once. No array of dbias's shape is needed besides dbias, no task waits.
#pragma once

#include "cpu/backward.h"

namespace attentile::cpu {

// Elements of dbias that a task owns: [keys] x [lanes], either of them 1 where it is summed.
struct BiasBlock {
  int64_t b = 0;
  int64_t h = 0;
  int64_t q0 = 0;
  int64_t rows = 0;
  KeyRange keys;
  double* sum = nullptr;  // [keys or 1][lanes]
};

// exp(sink - lse) of row i: what the sink has of its weight.
template <class Isa, class Real>
inline double sink_weight(const Worker<Isa, Real>& w, const Tile& t, int64_t i) {
  const double sink = sink_logit<Isa>(w.problem, t.h);
  if (sink == -std::numeric_limits<double>::infinity()) return 0;
  const double log_weight = sink - static_cast<double>(*row_cell(w, t, i));
  return std::exp(log_weight > 0 ? 0.0 : log_weight);
}

// delta of row i, whose sink has the weight `sunk`, for sums over all keys. Where there are sums,
// sum_j P dP is taken for rowsum(dout * out), which 16-bit rounding of out has touched; unless lse
// belongs to more keys than these, so that the weights do not add up to 1.
template <class Isa, class Real>
inline double summed_delta(const Worker<Isa, Real>& w, const Tile& t, int64_t i, double sunk) {
  const Problem& p = w.problem;
  const int64_t stride = w.plan.row_stride;
  const Real* row = row_cell(w, t, i);
  const double delta = row[stride];
  if (!w.plan.sum_rows) return delta;
  const double unit = p.dtype == DType::kFloat16 ? 0x1p-11 : 0x1p-8;
  const double missing = 1 - sunk - static_cast<double>(row[4 * stride]);
  if (!(std::fabs(missing) <= unit)) return delta;
  const char* dlse = p.dlse.at(t.s->batch_q, t.h, t.s->row_q + i, 0);
  return static_cast<double>(row[3 * stride]) -
         (p.dlse.present ? load_scalar<Isa, double>(dlse, p.dlse.dtype) : 0.0);
}

// Adds the dS of queries [q0, q0 + rows) x keys of one (batch, head) to the block's sums.
template <class Isa, class Real>
inline void add_bias_gradient(Worker<Isa, Real>& w, Tile t, const BiasBlock& block,
                              const BackwardScratch<Real>& r) {
  const Problem& p = w.problem;
  const ScoreScale<Real> scale = make_score_scale<Isa, Real>(p, false);
  const bool sum_queries = p.dbias_shape[2] == 1;
  const bool sum_keys = p.dbias_shape[3] == 1;
  const KeyRange seen = t.s->band.keys(t.q0, t.q0 + t.rows);
  const KeyRange range = {max64(block.keys.begin, seen.begin), min64(block.keys.end, seen.end)};
  bool loaded = false;
  for (int64_t j = range.begin; j < range.end;) {
    const KeyRange tile = {j, min64(next_key_tile<Isa>(p, w.plan.step_n, j), range.end)};
    j = tile.end;
    t.k0 = tile.begin;
    t.keys = static_cast<int>(tile.end - tile.begin);
    if (!w.keep_going()) return;
    if (classify<Isa>(p, t) == TileClass::kHidden) continue;
    if (!loaded) {
      load_backward_panel<Isa, Real>(w, t, r);
      for (int i = 0; sum_keys && i < t.rows; ++i) {
        const int64_t row = t.q0 + i;
        r.delta[i] = static_cast<Real>(summed_delta(w, t, row, sink_weight(w, t, row)));
      }
      loaded = true;
    }
    load_tile_keys(w, t, r);
    recompute_weights<Isa, Real>(w, t, scale, 0, r);
    compute_ds<Isa, Real>(w, t, false, 0, r);
    for (int k = 0; k < t.keys; ++k) {
      double* sums = block.sum + (sum_keys ? 0 : t.k0 + k - block.keys.begin) * t.lanes;
      for (int i = 0; i < t.rows; ++i) sums[sum_queries ? 0 : i] += r.ds[k * t.lanes + i];
    }
  }
}

template <class Isa, class Real>
inline void store_bias_block(Worker<Isa, Real>& w, const BiasBlock& block, int lanes) {
  using V = Vec<Isa, Real>;
  const Array4& to = w.problem.dbias;
  Tile t;
  t.b = block.b;
  t.h = block.h;
  t.q0 = block.q0;
  t.k0 = block.keys.begin;
  t.rows = static_cast<int>(block.rows);
  t.keys = w.problem.dbias_shape[3] == 1 ? 1 : static_cast<int>(block.keys.end - block.keys.begin);
  if (size_of(to.dtype) == sizeof(Real)) {
    return store_by_rows<Isa, Real>(w, t, to, [&](int64_t k, int64_t i0) {
      Real rounded[V::kLanes];
      for (int i = 0; i < V::kLanes; ++i) {
        rounded[i] = static_cast<Real>(block.sum[k * lanes + i0 + i]);
      }
      return V::load(rounded);
    });
  }
  double row[kStepKeys];  // rounded once, from float64
  for (int i = 0; i < t.rows; ++i) {
    for (int k = 0; k < t.keys; ++k) row[k] = block.sum[k * lanes + i];
    kernel_store_row(row, to.at(t.b, t.h, t.q0 + i, t.k0), to.dtype, to.stride[3], t.keys);
  }
  w.count_written(int64_t{t.rows} * t.keys * size_of(to.dtype));
}

template <class Isa, class Real>
void bias_gradient_task(void* job, int64_t task, int worker, Progress& progress) {
  Worker<Isa, Real> w(job, worker, progress);
  const Problem& p = w.problem;
  const CpuPlan& plan = w.plan;
  const bool sum_keys = p.dbias_shape[3] == 1;
  const bool sum_queries = p.dbias_shape[2] == 1;
  const int64_t key_tiles = sum_keys ? 1 : ceil_div(p.dbias_shape[3], plan.step_n);
  BiasBlock block;
  block.keys.begin = task % key_tiles * plan.step_n;
  block.keys.end =
      sum_keys ? p.max_seqlen_k : min64(block.keys.begin + plan.step_n, p.dbias_shape[3]);
  block.h = task / key_tiles % p.dbias_shape[1];
  block.b = task / key_tiles / p.dbias_shape[1];
  const int lanes = plan.panel_lanes_max;
  w.use_unit(p.max_seqlen_q);
  BackwardScratch<Real> r = take_backward_scratch<Isa, Real>(w, lanes);
  r.sums = nullptr;  // they are complete
  BackwardScratch<Real> unpacked = r;
  static_cast<BackwardParts&>(unpacked) = {};
  const int64_t num_sums = (sum_keys ? 1 : plan.step_n) * lanes;
  block.sum = reinterpret_cast<double*>(
      w.take(num_sums * static_cast<int64_t>(sizeof(double) / sizeof(Real))));

  const auto clear = [&] {
    for (int64_t i = 0; i < num_sums; ++i) block.sum[i] = 0;
  };
  const auto add_heads = [&](int64_t q0) {  // every (batch, head) that shares these elements
    for (int64_t b = p.dbias_shape[0] == 1 ? 0 : block.b; b < p.batch; ++b) {
      const Sequence s = p.sequence(b);
      for (int64_t h = p.dbias_shape[1] == 1 ? 0 : block.h; h < p.num_heads_q; ++h) {
        Tile t;
        t.b = b;
        t.h = h;
        t.s = &s;
        t.q0 = q0;
        t.rows = static_cast<int>(clamp64(s.seqlen_q - q0, 0, lanes));
        t.lanes = lanes;
        const bool packed = plan.parts_for(s.seqlen_q) > 0;
        if (t.rows > 0) add_bias_gradient<Isa, Real>(w, t, block, packed ? r : unpacked);
        if (p.dbias_shape[1] != 1) break;
      }
      if (p.dbias_shape[0] != 1) break;
    }
  };

  clear();
  for (int64_t q0 = 0; q0 < p.max_seqlen_q; q0 += lanes) {
    add_heads(q0);
    if (!w.keep_going()) return;
    if (sum_queries) continue;
    block.q0 = q0;
    block.rows = min64(lanes, p.max_seqlen_q - q0);
    store_bias_block<Isa, Real>(w, block, lanes);
    clear();
  }
  if (!sum_queries) return;
  block.q0 = 0;
  block.rows = 1;
  store_bias_block<Isa, Real>(w, block, lanes);
}

// dsink[h] = -sum over rows of exp(sink - lse) delta: the sink's weight times (0 - delta).
template <class Isa, class Real>
void sink_gradient_task(void* job, int64_t task, int worker, Progress& progress) {
  Worker<Isa, Real> w(job, worker, progress);
  const Problem& p = w.problem;
  double sum = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    const Sequence s = p.sequence(b);
    Tile t;
    t.b = b;
    t.h = task;
    t.s = &s;
    for (int64_t i = 0; i < s.seqlen_q; ++i) {
      if (i % 1024 == 0 && !w.keep_going()) return;
      const double weight = sink_weight(w, t, i);
      if (weight != 0) sum -= weight * summed_delta(w, t, i, weight);  // else delta may be NaN
    }
  }
  *reinterpret_cast<float*>(p.dsink.at(task, 0, 0, 0)) = static_cast<float>(sum + 0.0);
}

}  // namespace attentile::cpu

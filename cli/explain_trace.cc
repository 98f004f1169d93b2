// SPDX-License-Identifier: Apache-2.0
// The online softmax of FlashAttention-2 (Dao 2023, algorithm 1) for one row at a time.
#include "cli/explain_trace.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "dtype.h"

namespace attentile::cli {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

double element(const char* row, DType dtype, int64_t index) {
  return load_as_double(row, dtype, index);
}

}  // namespace

Head make_head(const Problem& problem, int64_t batch, int64_t head) {
  return {.problem = &problem, .sequence = problem.sequence(batch), .batch = batch, .head = head};
}

double Head::logit(int64_t i, int64_t j) const {
  const Problem& p = *problem;
  const char* q = p.q.at(sequence.batch_q, sequence.row_q + i, head, 0);
  const char* k = p.key_row(p.k, sequence, batch, head / p.group_size, j);
  double dot = 0;
  for (int64_t c = 0; c < p.head_dim; ++c) {
    dot += element(q, p.dtype, c * p.q.stride[3]) * element(k, p.dtype, c * p.k.stride[3]);
  }
  const double scaled = p.softmax_scale * dot;
  return p.softcap > 0 ? p.softcap * std::tanh(scaled / p.softcap) : scaled;
}

double Head::value(int64_t j, int64_t column) const {
  const Problem& p = *problem;
  const char* v = p.key_row(p.v, sequence, batch, head / p.group_size, j);
  return element(v, p.dtype, column * p.v.stride[3]);
}

RowTrace trace_row(const Head& head, const Tiling& tiling, int64_t row) {
  const BandMask& band = head.sequence.band;
  const int64_t q_begin = row / tiling.tile_m * tiling.tile_m;
  const int64_t q_end = std::min(q_begin + tiling.tile_m, head.sequence.seqlen_q);
  const auto columns = static_cast<size_t>(head.problem->head_dim_v);
  RowTrace trace;
  trace.row = row;
  std::vector<double> acc_o(columns);
  double row_max = kMinusInfinity;
  double row_sum = 0;
  for (int64_t k_begin = 0; k_begin < band.seqlen_k; k_begin += tiling.tile_n) {
    const int64_t k_end = std::min(k_begin + tiling.tile_n, band.seqlen_k);
    const TileClass tile_class = band.classify(q_begin, q_end, k_begin, k_end);
    if (tile_class == TileClass::kHidden) continue;
    std::vector<double> logits(static_cast<size_t>(k_end - k_begin), kMinusInfinity);
    double tile_max = kMinusInfinity;
    for (int64_t j = k_begin; j < k_end; ++j) {
      if (!band.visible(row, j)) continue;
      const double s = head.logit(row, j);
      logits[static_cast<size_t>(j - k_begin)] = s;
      tile_max = std::max(tile_max, s);
    }
    const double new_max = std::max(row_max, tile_max);
    const double rescale = row_max == kMinusInfinity ? 1 : std::exp(row_max - new_max);
    row_sum *= rescale;
    for (double& o : acc_o) o *= rescale;
    for (int64_t j = k_begin; j < k_end; ++j) {
      const double s = logits[static_cast<size_t>(j - k_begin)];
      if (s == kMinusInfinity) continue;
      const double weight = std::exp(s - new_max);
      row_sum += weight;
      for (size_t c = 0; c < columns; ++c) {
        acc_o[c] += weight * head.value(j, static_cast<int64_t>(c));
      }
    }
    row_max = new_max;
    trace.steps.push_back(
        {k_begin / tiling.tile_n, tile_class, tile_max, row_max, row_sum, rescale});
  }
  trace.lse = row_sum > 0 ? row_max + std::log(row_sum) : kMinusInfinity;

  std::vector<double> at_once(columns);
  for (int64_t j = band.lo(row); j < band.hi(row); ++j) {
    const double weight = std::exp(head.logit(row, j) - trace.lse);
    for (size_t c = 0; c < columns; ++c) {
      at_once[c] += weight * head.value(j, static_cast<int64_t>(c));
    }
  }
  for (size_t c = 0; c < columns; ++c) {
    const double tiled = row_sum > 0 ? acc_o[c] / row_sum : 0;
    trace.error = std::max(trace.error, std::abs(tiled - at_once[c]));
  }
  return trace;
}

TileGrid classify_tiles(const Sequence& sequence, const Tiling& tiling) {
  TileGrid grid;
  grid.tiles_q = ceil_div(sequence.seqlen_q, tiling.tile_m);
  grid.tiles_k = ceil_div(sequence.seqlen_k, tiling.tile_n);
  for (int64_t q = 0; q < grid.tiles_q; ++q) {
    for (int64_t k = 0; k < grid.tiles_k; ++k) {
      const TileClass tile_class = sequence.band.classify(
          q * tiling.tile_m, std::min((q + 1) * tiling.tile_m, sequence.seqlen_q),
          k * tiling.tile_n, std::min((k + 1) * tiling.tile_n, sequence.seqlen_k));
      grid.classes.push_back(tile_class);
      int64_t& count = tile_class == TileClass::kHidden
                           ? grid.hidden
                           : (tile_class == TileClass::kFull ? grid.full : grid.partial);
      ++count;
    }
  }
  return grid;
}

HeatMap probability_map(const Head& head, int64_t max_cells,
                        const std::function<void(double)>& progress) {
  const Sequence& s = head.sequence;
  HeatMap map;
  map.rows = std::min(s.seqlen_q, max_cells);
  map.columns = std::min(s.seqlen_k, max_cells);
  map.cells.assign(static_cast<size_t>(map.rows * map.columns), 0.0);
  std::vector<double> logits;
  for (int64_t i = 0; i < s.seqlen_q; ++i) {
    progress(static_cast<double>(i) / static_cast<double>(s.seqlen_q));
    const int64_t begin = s.band.lo(i);
    const int64_t end = s.band.hi(i);
    if (begin >= end) continue;
    logits.clear();
    for (int64_t j = begin; j < end; ++j) logits.push_back(head.logit(i, j));
    const double row_max = *std::max_element(logits.begin(), logits.end());
    double row_sum = 0;
    for (double& x : logits) row_sum += x = std::exp(x - row_max);
    const int64_t row = i * map.rows / s.seqlen_q;
    for (int64_t j = begin; j < end; ++j) {
      const int64_t column = j * map.columns / s.seqlen_k;
      double& cell = map.cells[static_cast<size_t>(row * map.columns + column)];
      cell = std::max(cell, logits[static_cast<size_t>(j - begin)] / row_sum);
    }
  }
  return map;
}

}  // namespace attentile::cli

// SPDX-License-Identifier: Apache-2.0
// flash2 on one head, evaluated tile by tile in float64 for the eye: which tiles it visits, and
// what the running maximum and sum of a row are after each of them. Independent of the kernels, it
// uses the same mask.h that they do.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "mask.h"
#include "problem.h"

namespace attentile::cli {

// One head of one sequence.
struct Head {
  const Problem* problem = nullptr;
  Sequence sequence;
  int64_t batch = 0;
  int64_t head = 0;

  double logit(int64_t i, int64_t j) const;  // scaled and capped; the mask is the band's business
  double value(int64_t j, int64_t column) const;
};

Head make_head(const Problem& problem, int64_t batch, int64_t head);

struct Tiling {
  int64_t tile_m = 64;
  int64_t tile_n = 64;
};

// After one key tile, for one traced row.
struct TraceStep {
  int64_t key_tile = 0;
  TileClass tile_class = TileClass::kHidden;
  double tile_max = 0;  // largest visible logit of the row in this tile
  double row_max = 0;   // running
  double row_sum = 0;   // running, relative to row_max
  double rescale = 1;   // what acc_o and row_sum were multiplied by
};

struct RowTrace {
  int64_t row = 0;
  std::vector<TraceStep> steps;  // visited tiles only
  double lse = 0;
  double error = 0;  // largest difference of out from the softmax taken at once
};

RowTrace trace_row(const Head& head, const Tiling& tiling, int64_t row);

// Class of every tile, [tiles_q][tiles_k].
struct TileGrid {
  int64_t tiles_q = 0;
  int64_t tiles_k = 0;
  std::vector<TileClass> classes;
  int64_t hidden = 0;
  int64_t partial = 0;
  int64_t full = 0;

  TileClass at(int64_t q, int64_t k) const { return classes[static_cast<size_t>(q * tiles_k + k)]; }
};

TileGrid classify_tiles(const Sequence& sequence, const Tiling& tiling);

// Probabilities of the head, each cell the largest of the pairs that it covers; at most
// max_cells x max_cells. progress hears the fraction done after every row.
struct HeatMap {
  int64_t rows = 0;
  int64_t columns = 0;
  std::vector<double> cells;
};

HeatMap probability_map(const Head& head, int64_t max_cells,
                        const std::function<void(double)>& progress);

}  // namespace attentile::cli

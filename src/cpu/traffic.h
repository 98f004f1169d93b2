// SPDX-License-Identifier: Apache-2.0
// What a call will look at and move, counted without doing it and without walking over its tiles: a
// band lets every panel of queries see one interval of keys whose ends rise in step, so the sums
// over all panels have closed forms. A block pattern has none; its tiles are looked at one by one
// where the plan was given their bytes and they are not too many.
#pragma once

#include <cstdint>

#include "cpu/kernel.h"
#include "problem.h"

namespace attentile::cpu {

// Panels of `rows` queries from query 0 on against tiles of `keys` keys from key 0 on (from the
// first key of each column, with a block pattern).
struct Grid {
  int64_t rows = 1;
  int64_t keys = 1;
};

// How many (panel, key tile) pairs the band and the lengths of one sequence leave visible. `by_row`
// counts every pair as often as its panel has rows.
__int128 count_tiles(const Sequence& s, const Grid& grid, bool by_row);

// Bytes that the forward pass of plan.algorithm moves between slow and fast memory: what its tile
// loads and stores will count. Exact unless a visible value is NaN or infinite, a block pattern's
// data is null or a look at it would take more than kMaxPatternSteps steps: then the pattern counts
// as all visible. Saturates.
inline constexpr int64_t kMaxPatternSteps = int64_t{1} << 24;
Traffic predict_forward_traffic(const Problem& problem, const CpuPlan& plan);

// Pairs (query, key) that band and lengths leave visible, over all query heads.
int64_t count_visible_pairs(const Problem& problem);

// The work of a call in the unit that its kernels tell progress in: (query, key) pairs of the tiles
// they meet.
double count_work(const Problem& problem, const CpuPlan& plan);

}  // namespace attentile::cpu

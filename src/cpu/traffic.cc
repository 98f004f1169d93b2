// SPDX-License-Identifier: Apache-2.0
// See traffic.h. Sums are held in 128 bits: a call has at most 2^58 scores.
#include "cpu/traffic.h"

#include <limits>

#include "cpu/plan.h"

namespace attentile::cpu {
namespace {

int64_t saturate(__int128 value) {
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max() / 2;  // so that a sum of two fits
  return value > kMax ? kMax : static_cast<int64_t>(value);
}

// First i in [0, count) with value(i) > bound for a function that never falls; count if there is
// none.
template <class F>
int64_t first_above(int64_t count, int64_t bound, F value) {
  int64_t low = 0;
  int64_t high = count;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    value(middle) > bound ? high = middle : low = middle + 1;
  }
  return low;
}

// sum over i in [0, count) of floor((slope * i + start) / divisor), all of them at least 0 and
// divisor positive. Euclid's algorithm: each round swaps slope and divisor and takes the remainder.
__int128 sum_of_quotients(__int128 count, __int128 slope, __int128 start, __int128 divisor) {
  __int128 total = 0;
  while (count > 0) {
    total += count * (count - 1) / 2 * (slope / divisor) + count * (start / divisor);
    slope %= divisor;
    start %= divisor;
    const __int128 end = slope * count + start;
    count = end / divisor;  // lattice points are counted by rows instead of columns from here on
    start = end % divisor;
    const __int128 swapped = slope;
    slope = divisor;
    divisor = swapped;
  }
  return total;
}

// Whether the block pattern shows any of these queries a column.
bool column_visible(const Problem& p, int64_t h, int64_t q_begin, int64_t q_end, int64_t column) {
  for (int64_t r = q_begin / p.block_size_q; r <= (q_end - 1) / p.block_size_q; ++r) {
    if (*p.block_mask.at(h, r, column, 0) != 0) return true;
  }
  return false;
}

// count_tiles for the pairs that the block pattern of head h shows too.
__int128 count_pattern_tiles(const Problem& p, const Sequence& s, int64_t h, const Grid& grid,
                             bool by_row) {
  __int128 total = 0;
  for (int64_t q = 0; q < s.seqlen_q; q += grid.rows) {
    const int64_t q_end = min64(q + grid.rows, s.seqlen_q);
    const KeyRange seen = s.band.keys(q, q_end);
    int64_t tiles = 0;
    for (int64_t begin = seen.begin, end = 0; begin < seen.end; begin = end) {
      const int64_t column = begin / p.block_size_k;
      const int64_t first = column * p.block_size_k;
      end = min64(first + p.block_size_k, seen.end);
      if (!column_visible(p, h, q, q_end, column)) continue;
      tiles += (end - 1 - first) / grid.keys - (begin - first) / grid.keys + 1;
    }
    total += static_cast<__int128>(tiles) * (by_row ? q_end - q : 1);
  }
  return total;
}

bool reads_pattern(const Problem& p, int panel_rows) {
  if (!p.block_mask.present || p.block_mask.data == nullptr) return false;
  const int64_t heads = p.block_mask.stride[0] == 0 ? 1 : p.num_heads_q;
  const int64_t rows = ceil_div(p.max_seqlen_q, panel_rows) +  //
                       ceil_div(p.max_seqlen_q, p.block_size_q);
  const int64_t factors[] = {rows, ceil_div(p.max_seqlen_k, p.block_size_k),
                             has_equal_sequences(p) ? 1 : p.batch};
  int64_t steps = heads;
  for (int64_t factor : factors) steps = saturate(static_cast<__int128>(steps) * factor);
  return steps <= kMaxPatternSteps;
}

// Counts over all query heads of one sequence.
struct HeadCounter {
  const Problem& p;
  const Sequence& s;
  bool with_pattern;

  __int128 tiles(const Grid& grid, bool by_row) const {
    if (!with_pattern) return count_tiles(s, grid, by_row) * p.num_heads_q;
    const bool one_for_all = p.block_mask.stride[0] == 0;
    __int128 total = 0;
    for (int64_t h = 0; h < (one_for_all ? 1 : p.num_heads_q); ++h) {
      total += count_pattern_tiles(p, s, h, grid, by_row);
    }
    return one_for_all ? total * p.num_heads_q : total;
  }
};

struct Bytes {
  __int128 read = 0;
  __int128 written = 0;
};

Bytes forward_bytes(const Problem& p, const CpuPlan& plan, const HeadCounter& count) {
  const Sequence& s = count.s;
  const int64_t itemsize = size_of(p.dtype);
  const int64_t value_bytes = plan.wide ? 8 : 4;
  const int64_t q_bytes = p.head_dim * itemsize;  // of one row, and likewise
  const int64_t kv_bytes = (p.head_dim + p.head_dim_v) * itemsize;
  const int64_t state_bytes = (p.head_dim_v + 2) * value_bytes;
  const int64_t score_bytes =  // read per score
      (p.bias.present ? size_of(p.bias.dtype) : 0) + (p.mask.present ? 1 : 0);
  const __int128 rows = static_cast<__int128>(s.seqlen_q) * p.num_heads_q;
  const Grid panels = {.rows = plan.panel_rows(s.seqlen_q), .keys = 1};
  Bytes bytes;
  bytes.written = rows * (p.head_dim_v * itemsize + (p.lse.present ? value_bytes : 0));
  if (plan.algorithm == Algorithm::kStandard) {
    const __int128 scores = rows * s.seqlen_k;
    const __int128 blocks =
        static_cast<__int128>(ceil_div(s.seqlen_q, plan.tile_m)) * p.num_heads_q;
    bytes.read =
        rows * q_bytes + blocks * s.seqlen_k * kv_bytes + scores * (2 * value_bytes + score_bytes);
    bytes.written += 2 * scores * value_bytes;
    return bytes;
  }
  if (plan.decodes(s.seqlen_q)) {
    const KeyRange seen = s.band.keys(0, s.seqlen_q);
    const int64_t pieces = plan.decode_pieces(s);
    const int64_t keys = max64(0, seen.end - seen.begin);
    bytes.read = rows * (pieces * (q_bytes + state_bytes) + keys * score_bytes) +
                 static_cast<__int128>(p.num_heads_kv) * keys * kv_bytes;
    bytes.written += rows * pieces * state_bytes;
    return bytes;
  }
  if (score_bytes > 0) bytes.read = count.tiles(panels, true) * score_bytes;
  if (plan.algorithm == Algorithm::kFlash1) {
    const Grid tiles = {.rows = panels.rows, .keys = plan.tile_n};
    const __int128 visits = count.tiles(tiles, true);
    bytes.read += count.tiles({.rows = s.seqlen_q, .keys = 1}, false) * kv_bytes +
                  visits * (q_bytes + state_bytes) + rows * state_bytes;
    bytes.written += (visits + rows) * state_bytes;
  } else {
    bytes.read += rows * q_bytes + count.tiles({.rows = plan.tile_m, .keys = 1}, false) * kv_bytes;
  }
  return bytes;
}

}  // namespace

__int128 count_tiles(const Sequence& s, const Grid& grid, bool by_row) {
  const BandMask& band = s.band;
  const int64_t panels = s.seqlen_q / grid.rows;  // whole ones
  const int64_t last_key = band.seqlen_k - 1;
  const auto first = [&](int64_t n) { return band.lo(n * grid.rows); };
  const auto end = [&](int64_t n) { return band.hi((n + 1) * grid.rows - 1); };
  const auto clip = [](int64_t n, int64_t low, int64_t high) { return max64(low, min64(n, high)); };
  // Panels [begin, stop) see a key. Their first key stays 0 up to panel `ramp` and rises by
  // grid.rows from there on, their end rises likewise up to panel `flat` and then stays.
  const int64_t begin = first_above(panels, 0, end);
  const int64_t stop = max64(begin, first_above(panels, last_key, first));
  __int128 total = 0;
  if (begin < stop) {
    const int64_t flat = clip(first_above(panels, last_key, end), begin, stop);
    const int64_t ramp = clip(first_above(panels, 0, first), begin, stop);
    total = stop - begin;
    if (begin < flat) {
      total += sum_of_quotients(flat - begin, grid.rows, end(begin) - 1, grid.keys);
    }
    total += static_cast<__int128>(stop - flat) * (last_key / grid.keys);
    if (ramp < stop) total -= sum_of_quotients(stop - ramp, grid.rows, first(ramp), grid.keys);
  }
  if (by_row) total *= grid.rows;
  const int64_t rest = s.seqlen_q % grid.rows;
  const KeyRange seen = band.keys(s.seqlen_q - rest, s.seqlen_q);
  if (seen.begin < seen.end) {
    const int64_t tiles = (seen.end - 1) / grid.keys - seen.begin / grid.keys + 1;
    total += static_cast<__int128>(tiles) * (by_row ? rest : 1);
  }
  return total;
}

Traffic predict_forward_traffic(const Problem& problem, const CpuPlan& plan) {
  if (has_nothing_to_compute(problem)) return {};
  const bool with_pattern = reads_pattern(problem, plan.panel_rows(problem.max_seqlen_q));
  Bytes total;
  for_sequences(problem, [&](const Sequence& s, int64_t times) {
    if (s.seqlen_q == 0) return;
    const Bytes entry = forward_bytes(problem, plan, {problem, s, with_pattern});
    total.read += entry.read * times;
    total.written += entry.written * times;
  });
  return {saturate(total.read), saturate(total.written)};
}

int64_t count_visible_pairs(const Problem& problem) {
  __int128 pairs = 0;
  for_sequences(problem, [&](const Sequence& s, int64_t times) {
    pairs += count_tiles(s, {}, false) * times;
  });
  return saturate(pairs * problem.num_heads_q);
}

double count_work(const Problem& problem, const CpuPlan& plan) {
  const bool standard = plan.algorithm == Algorithm::kStandard;
  double pairs = 0;
  for_sequences(problem, [&](const Sequence& s, int64_t times) {
    const __int128 scores =
        standard ? static_cast<__int128>(s.seqlen_q) * s.seqlen_k
                 : count_tiles(s, {.rows = plan.panel_rows(s.seqlen_q), .keys = 1}, true);
    pairs += static_cast<double>(scores) * static_cast<double>(times);
  });
  const double passes = standard ? (plan.backward ? 3 : 2) : 1;
  return pairs * static_cast<double>(problem.num_heads_q) * passes;
}

}  // namespace attentile::cpu

// SPDX-License-Identifier: Apache-2.0
// The CPU planner; see plan.h. Sizes are computed in 128 bits and saturate, so that a plan for a
// problem that fits no machine is still a plan, and its allocation the thing that fails.
#include "cpu/plan.h"

#include <algorithm>
#include <limits>

namespace attentile::cpu {
namespace {

constexpr int64_t kAlignment = 64;

// Panels of a forward task share each key tile while it is in cache. Beside a block pattern there
// are few: a tile that one of them sees is loaded for all.
constexpr int kPatternPanels = 4;
constexpr int kPanelVectors = 4;

// By itself the matrix unit takes a sequence only where that pays: packing its keys is shared by
// its queries, and products grow with the square of the parts. The most queries that do not pay, by
// parts, and the narrowest heads of float32 that do.
constexpr int kOffUnitQueries[] = {0, 16, 64, 240};
constexpr int64_t kLeastUnitDim = 32;

int64_t saturate(__int128 value) {
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max() / 4;
  return value > kMax ? kMax : static_cast<int64_t>(value);
}
int64_t product(int64_t a, int64_t b) {
  return saturate(static_cast<__int128>(a) * b);
}
int64_t sum(int64_t a, int64_t b) {
  return saturate(static_cast<__int128>(a) + b);
}

// Adds up arrays as Worker::take hands them out.
struct Sizer {
  int64_t bytes = 0;
  int64_t value_bytes = 4;
  void take(int64_t count, int64_t times = 1) {
    bytes = sum(bytes, product(round_up(product(count, value_bytes), kAlignment), times));
  }
  void take_parts(int64_t values, int64_t sources) {
    take(ceil_div(values, 2));
    if (sources > 0) take(ceil_div(sources + 1, 4));
  }
};

// Sums over the batch entries of what the workspace holds per entry.
struct Totals {
  int64_t query_blocks = 0;
  int64_t key_blocks = 0;
  int64_t padded_rows = 0;
  int64_t scores = 0;  // padded_rows x seqlen_k
};

// Threads that have enough to do: to wake one takes some microseconds, in which it could do about
// kWorkOfThread multiply-adds.
int useful_workers(const Problem& p, int workers) {
  constexpr int64_t kWorkOfThread = 200'000;
  int64_t work = 0;
  for_sequences(p, [&](const Sequence& s, int64_t times) {
    const int64_t rate = s.seqlen_q <= kDecodeQueries ? 4 : 1;  // few queries take their time
    work = sum(work, product(product(s.seqlen_q, s.seqlen_k), product(rate, times)));
  });
  work = product(product(work, p.num_heads_q), p.head_dim + p.head_dim_v);
  return static_cast<int>(min64(workers, 1 + work / kWorkOfThread));
}

int64_t padded_rows(const CpuPlan& plan, int64_t seqlen_q) {
  const int rows = plan.panel_rows(seqlen_q);
  return product(ceil_div(seqlen_q, rows), plan.panel_lanes(rows));
}

Totals add_sequences(const Problem& p, const CpuPlan& plan) {
  Totals totals;
  for_sequences(p, [&](const Sequence& s, int64_t times) {
    const int64_t padded = padded_rows(plan, s.seqlen_q);
    totals.query_blocks = sum(totals.query_blocks, product(count_query_blocks(plan, s), times));
    totals.key_blocks = sum(totals.key_blocks, product(count_key_blocks(plan, s), times));
    totals.padded_rows = sum(totals.padded_rows, product(padded, times));
    totals.scores = sum(totals.scores, product(product(padded, s.seqlen_k), times));
  });
  return totals;
}

// Few queries do not fill the lanes. Dropout and block patterns are drawn for whole panels only,
// and float64 is for exactness. The backward pass has to find the scores of the forward pass.
int choose_few_queries(const Problem& p) {
  if (is_wide(p) || p.algorithm != Algorithm::kFlash2) return 0;
  const bool whole_panels = p.dropout.enabled || p.block_mask.present;
  return whole_panels || p.group_size > kDecodeGroup ? 0 : kDecodeQueries;
}

// Panels of a forward task: their Q and O share half of L2, and every worker should find four
// tasks, or two on a matrix unit. Each task loads all keys anew, and packs them for the unit: a
// short rest of the longest sequence is not worth one, and its tasks are equally long.
int64_t choose_panels(const Problem& p, const Machine& machine, const CpuPlan& plan) {
  const bool by_pattern = p.block_mask.present && plan.algorithm != Algorithm::kStandard;
  const int64_t width = plan.padded_dim + plan.padded_dim_v;
  const int64_t panel_bytes = plan.panel_rows_max * width * (plan.wide ? 8 : 4);
  const int64_t heads = max64(1, product(p.batch, p.num_heads_q));
  const int64_t all = ceil_div(p.max_seqlen_q, plan.panel_rows_max);
  const auto count_tasks = [&](int64_t panels) {
    return max64(1, ceil_div(all - panels / kRestOfPanels, panels));
  };
  const int64_t tasks = plan.parts > 0 ? 2 : 4;
  int64_t panels = by_pattern ? kPatternPanels : kPanels;
  while (panels > 1 && panels * panel_bytes > machine.l2_bytes / 2) panels /= 2;
  while (panels > 1 && product(heads, count_tasks(panels)) < tasks * plan.workers) panels /= 2;
  return by_pattern || all < panels ? panels : ceil_div(all, count_tasks(panels));
}

void choose_tiles(const Problem& p, const Machine& machine, CpuPlan& plan) {
  const int64_t value_bytes = plan.wide ? 8 : 4;
  plan.lanes = machine.lanes;
  plan.few_queries = choose_few_queries(p);
  if (plan.few_queries > 0 && !p.backward) {
    plan.decode_rows = product(p.group_size, min64(p.max_seqlen_q, plan.few_queries));
  }
  plan.parts = machine.isa == Isa::kAmx ? matrix_parts(p) : 0;
  plan.off_unit_queries = p.isa == Isa::kAmx ? plan.few_queries : kOffUnitQueries[plan.parts];
  plan.padded_dim = static_cast<int>(round_up(p.head_dim, plan.lanes));
  plan.padded_dim_v = static_cast<int>(round_up(p.head_dim_v, plan.lanes));
  plan.fast_memory_bytes = p.fast_memory_bytes > 0 ? p.fast_memory_bytes : machine.l2_bytes;
  if (plan.algorithm == Algorithm::kFlash1) {
    const int64_t fast_values = max64(1, plan.fast_memory_bytes / 4);
    const int64_t columns = ceil_div(fast_values, 4 * p.head_dim);  // B_c of the paper
    plan.tile_n = clamp64(columns, 1, max64(1, p.max_seqlen_k));
    plan.tile_keys = plan.tile_n;
    plan.panel_rows_fixed = static_cast<int>(min64(columns, p.head_dim));  // B_r
    plan.panel_rows_max = plan.panel_rows_fixed;
    plan.tile_m = round_up(256, plan.panel_rows_fixed);
  } else {
    plan.tile_n = kStepKeys;
    plan.panel_rows_max = plan.lanes * kPanelVectors;
    const int64_t width = plan.padded_dim + plan.padded_dim_v;
    // Keys of a backward task: K, V and their gradients stay in L2. Each panel is fetched (and
    // packed, for a matrix unit) anew for every task, which more keys make up for; short sequences
    // are rather cut into more tasks.
    const int64_t steps = width <= 160 ? 4 : (width <= 320 ? 2 : 1);
    plan.unit_keys = plan.parts > 0 ? 2 : 1;
    plan.tile_keys_short = steps * kStepKeys * plan.unit_keys;
    plan.long_keys = 16 * plan.tile_keys_short;
    const bool fits = plan.tile_keys_short * 4 * width * value_bytes <= machine.l2_bytes / 2;
    const bool any_long = p.max_seqlen_k >= plan.long_keys && fits;
    plan.tile_keys = plan.tile_keys_short * (any_long ? 2 : 1);
    plan.tile_m = choose_panels(p, machine, plan) * plan.panel_rows_max;
  }
  plan.step_n = min64(plan.tile_n, kStepKeys);
  plan.panel_lanes_max = plan.panel_lanes(plan.panel_rows_max);
  plan.rows_buffer_size = max64(plan.panel_rows_max * max64(p.head_dim, p.head_dim_v),
                                plan.panel_lanes_max + max64(p.head_dim, p.head_dim_v));
}

// head_dim_v: of what the weights are multiplied by, V or (standard, backward) K.
int64_t forward_scratch(const Problem& p, const CpuPlan& plan, int64_t head_dim_v) {
  const int64_t lanes = plan.panel_lanes_max;
  const int64_t panels =
      plan.algorithm == Algorithm::kFlash1 ? 1 : ceil_div(plan.tile_m, plan.panel_rows_max);
  Sizer size{kAlignment, plan.wide ? 8 : 4};
  size.take(product(plan.tile_n, p.head_dim));
  size.take(product(plan.tile_n, head_dim_v));
  if (plan.parts > 0) {
    const int64_t depth = padded_depth(p.head_dim);
    size.take_parts(left_size(plan.parts, plan.tile_n + 15, depth), plan.tile_n);
    size.take_parts(left_size(plan.parts, head_dim_v, value_depth(plan)), plan.tile_n);
    size.take_parts(right_size(plan.parts, lanes, padded_depth(plan.step_n)), 0);
    size.take_parts(right_size(plan.parts, lanes, padded_depth(plan.step_n)), 0);
    for (int64_t n = 0; n < panels; ++n) {
      size.take_parts(right_size(plan.parts, lanes, depth), lanes);
    }
  }
  size.take(plan.rows_buffer_size);
  size.take(plan.step_rows() * lanes, 4);
  size.take(2 * lanes);
  size.take(p.head_dim * lanes, panels);
  size.take(round_up(head_dim_v, 16) * lanes, panels);
  size.take(lanes, 2 * panels);
  if (plan.algorithm == Algorithm::kStandard) {
    size.take(product(p.max_seqlen_k, lanes));
    size.take(3 * lanes);
  }
  Sizer decode{kAlignment, sizeof(float)};
  decode.take(product(plan.decode_rows, plan.padded_dim));
  decode.take(min64(plan.decode_rows, kDecodeRows) * kDecodeKeys, 2);
  decode.take(kDecodeKeys);
  decode.take(kDecodeKeys * int64_t{plan.padded_dim + plan.padded_dim_v});
  if (plan.decodes(p.max_seqlen_q)) return decode.bytes;  // so does every sequence
  return max64(size.bytes, plan.decode_rows > 0 ? decode.bytes : 0);
}

void take_backward_parts(const Problem& p, const CpuPlan& plan, Sizer& size) {
  const int64_t lanes = plan.panel_lanes_max;
  const int64_t keys = plan.tile_keys;
  const int64_t rows = keys + plan.spare_rows();
  const int64_t dim = padded_depth(p.head_dim);
  const int64_t dim_v = padded_depth(p.head_dim_v);
  const int64_t queries = padded_depth(lanes);
  size.take_parts(left_size(plan.parts, rows, dim), keys);
  size.take_parts(left_size(plan.parts, rows, dim_v), keys);
  size.take_parts(left_size(plan.parts, p.head_dim, padded_depth(keys) + 32), keys);
  size.take_parts(right_size(plan.parts, lanes, dim), lanes);
  size.take_parts(right_size(plan.parts, lanes, dim_v), lanes);
  size.take_parts(right_size(plan.parts, plan.padded_dim, queries), lanes);
  size.take_parts(right_size(plan.parts, plan.padded_dim_v, queries), lanes);
  size.take_parts(left_size(plan.parts, plan.step_n, queries), 0);
  size.take_parts(left_size(plan.parts, plan.step_n, queries), 0);
  size.take_parts(right_size(plan.parts, lanes, padded_depth(plan.step_n)), 0);
}

int64_t backward_scratch(const Problem& p, const CpuPlan& plan) {
  const int64_t lanes = plan.panel_lanes_max;
  Sizer size{kAlignment, plan.wide ? 8 : 4};
  const int64_t spare = plan.spare_rows();
  size.take(product(plan.tile_keys, plan.padded_dim));
  size.take(product(plan.tile_keys, plan.padded_dim_v));
  size.take(product(plan.tile_keys + spare, plan.padded_dim));
  size.take(product(plan.tile_keys + spare, plan.padded_dim_v));
  if (plan.parts > 0) take_backward_parts(p, plan, size);
  size.take(lanes * plan.padded_dim);
  size.take(lanes * plan.padded_dim_v, 2);
  size.take(round_up(p.head_dim, 16) * lanes, 2);
  size.take(p.head_dim_v * lanes);
  size.take(lanes, 5);
  size.take(plan.step_rows() * lanes, 5);
  size.take(2 * lanes, 2);
  size.take(plan.step_n * lanes * (plan.wide ? 1 : 2));  // sums of bias gradients
  if (plan.algorithm == Algorithm::kStandard) {
    size.take(3 * lanes);
    size.take(product(sum(p.max_seqlen_k, spare), lanes), 3);
    return max64(size.bytes, forward_scratch(p, plan, p.head_dim));
  }
  return size.bytes;
}

void add_phase(CpuPlan& plan, KernelId kernel, int64_t num_tasks) {
  plan.phases[plan.num_phases++] = {kernel, num_tasks};
}

// Whether every element of dbias is the dS of one pair, and every pair is in a tile that the main
// pass does not skip: then that pass writes dbias as it goes.
bool is_dbias_by_tiles(const Problem& p) {
  if (!p.dbias.present || p.softcap > 0 || p.block_mask.present || p.batch == 0) return false;
  const Sequence s = p.sequence(0);
  const bool alike = p.cu_seqlens_q.data == nullptr && p.cu_seqlens_k.data == nullptr &&
                     p.seqused_k.data == nullptr && p.leftpad_k.data == nullptr;
  const int64_t shape[] = {p.batch, p.num_heads_q, s.seqlen_q, s.seqlen_k};
  return alike && s.seqlen_q > 1 && s.seqlen_k > 1 && s.seqlen_k == s.seqlen_k_given &&
         std::equal(shape, shape + 4, p.dbias_shape) &&
         s.band.classify(0, s.seqlen_q, 0, s.seqlen_k) == TileClass::kFull;
}

void list_phases(const Problem& p, const Totals& totals, CpuPlan& plan) {
  const int64_t query_tasks = product(totals.query_blocks, p.num_heads_q);
  const int64_t key_tasks = product(totals.key_blocks, p.num_heads_kv);
  const bool standard = plan.algorithm == Algorithm::kStandard;
  const bool flash1 = plan.algorithm == Algorithm::kFlash1;
  if (!plan.backward) {
    if (standard) {
      add_phase(plan, kStandardScores, query_tasks);
      add_phase(plan, kStandardSoftmax, query_tasks);
      add_phase(plan, kStandardOutput, query_tasks);
    } else if (flash1) {
      add_phase(plan, kFlash1Forward, product(p.batch, p.num_heads_q));
    } else {
      if (query_tasks > 0) add_phase(plan, kFlash2Forward, query_tasks);
      if (plan.decode_rows > 0 && key_tasks > 0) add_phase(plan, kFlash2Decode, key_tasks);
    }
    return;
  }
  if (!standard || p.dbias.present || p.dsink.present) {
    add_phase(plan, kBackwardRows, query_tasks);
  }
  if (standard) {
    add_phase(plan, kStandardProbs, query_tasks);
    add_phase(plan, kStandardDkDv, key_tasks);
    add_phase(plan, kStandardDq, query_tasks);
  } else if (flash1) {
    add_phase(plan, kFlash1Backward, product(p.batch, p.num_heads_kv));
  } else {
    add_phase(plan, kFlash2Backward, key_tasks);
  }
  if (p.dbias.present && !plan.dbias_by_tiles) {
    const int64_t key_tiles = p.dbias_shape[3] == 1 ? 1 : ceil_div(p.dbias_shape[3], plan.step_n);
    add_phase(plan, kBiasGradient, product(product(p.dbias_shape[0], p.dbias_shape[1]), key_tiles));
  }
  if (p.dsink.present) add_phase(plan, kSinkGradient, p.num_heads_q);
}

void lay_out_workspace(const Problem& p, const Totals& totals, CpuPlan& plan) {
  const int64_t value_bytes = plan.wide ? 8 : 4;
  const bool standard = plan.algorithm == Algorithm::kStandard;
  const bool flash1_forward = plan.algorithm == Algorithm::kFlash1 && !plan.backward;
  const int64_t rows = product(totals.padded_rows, p.num_heads_q);
  int64_t offset = 0;
  const auto place = [&](Slice& slice, int64_t bytes) {
    slice = {offset, bytes};
    offset = sum(offset, saturate(round_up(bytes, kAlignment)));
  };
  const int64_t prefix_bytes = product(sum(p.batch, 1), sizeof(int64_t));
  place(plan.query_blocks, prefix_bytes);
  place(plan.key_blocks, prefix_bytes);
  place(plan.padded_rows, prefix_bytes);
  place(plan.score_offsets, prefix_bytes);
  plan.row_stride = rows;
  const bool sums_keys = p.dsink.present || (p.dbias.present && p.dbias_shape[3] == 1);
  plan.sum_rows = plan.backward && !standard && sums_keys && size_of(p.dtype) == 2;
  const int row_arrays =
      plan.backward ? (plan.sum_rows ? 5 : 3) : (flash1_forward ? 2 : (standard ? 1 : 0));
  place(plan.row_state, product(rows, row_arrays * value_bytes));
  if (flash1_forward) place(plan.tile_state, product(rows, p.head_dim_v * value_bytes));
  if (plan.decode_rows > 0) {
    const int64_t tasks = product(totals.key_blocks, p.num_heads_kv);
    place(plan.tile_state, product(tasks, product(plan.decode_state_size(), sizeof(float))));
    place(plan.turns, product(product(p.batch, p.num_heads_kv), sizeof(int32_t)));
  }
  if (plan.backward && !standard) {
    place(plan.tile_state, product(rows, p.head_dim * value_bytes));
    place(plan.turns, product(rows / plan.lanes, sizeof(int32_t)));
  }
  const int64_t score_bytes = product(product(totals.scores, p.num_heads_q), value_bytes);
  if (standard) place(plan.scores, score_bytes);
  if (standard && plan.backward) place(plan.gradients, score_bytes);
  plan.shared_bytes = offset;
  plan.scratch_bytes =
      plan.backward ? backward_scratch(p, plan) : forward_scratch(p, plan, p.head_dim_v);
  // One alignment more, since the caller's workspace may begin anywhere.
  plan.workspace_bytes = sum(sum(offset, product(plan.scratch_bytes, plan.workers)), kAlignment);
}

}  // namespace

int64_t count_query_blocks(const CpuPlan& plan, const Sequence& s) {
  return plan.decodes(s.seqlen_q) ? 0 : ceil_div(s.seqlen_q, plan.tile_m);
}

int64_t count_key_blocks(const CpuPlan& plan, const Sequence& s) {
  if (plan.decode_rows == 0) return ceil_div(s.seqlen_k_given, plan.block_keys(s));
  return plan.decodes(s.seqlen_q) ? plan.decode_pieces(s) : 0;
}

int matrix_parts(const Problem& problem) {
  if (problem.dtype == DType::kFloat16) return 2;
  if (problem.sink.present) return 0;
  if (problem.dtype == DType::kFloat32) {
    const bool wide_heads = min64(problem.head_dim, problem.head_dim_v) >= kLeastUnitDim;
    return wide_heads || problem.isa == Isa::kAmx ? kExactParts : 0;
  }
  return problem.dtype == DType::kBFloat16 ? 1 : 0;
}

CpuPlan make_plan(const Problem& problem, const Machine& machine, int workers) {
  CpuPlan plan;
  plan.algorithm = problem.algorithm;
  plan.isa = machine.isa;
  plan.backward = problem.backward;
  plan.wide = is_wide(problem);
  plan.workers = has_nothing_to_compute(problem) ? 1 : useful_workers(problem, workers);
  choose_tiles(problem, machine, plan);
  if (has_nothing_to_compute(problem)) return plan;
  const Totals totals = add_sequences(problem, plan);
  plan.dbias_by_tiles =
      plan.backward && plan.algorithm != Algorithm::kStandard && is_dbias_by_tiles(problem);
  list_phases(problem, totals, plan);
  int64_t most_tasks = 1;
  for (int n = 0; n < plan.num_phases; ++n) {
    most_tasks = max64(most_tasks, plan.phases[n].num_tasks);
  }
  plan.workers = static_cast<int>(min64(plan.workers, most_tasks));
  lay_out_workspace(problem, totals, plan);
  return plan;
}

}  // namespace attentile::cpu

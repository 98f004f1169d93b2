// SPDX-License-Identifier: Apache-2.0
// What the backend hands to a kernel: the plan, the workspace cut into named arrays, and one table
// of entry points per instruction set. Plain data, shared by files compiled with and without ISA
// flags; helpers that kernels call back are declared here and compiled without flags.
#pragma once

#include <atomic>
#include <cstdint>

#include "cpu/executor.h"
#include "cpu/matrix_unit.h"
#include "problem.h"

namespace attentile::cpu {

// The kernels of an instruction set and accumulation type. Each is a TaskFunction over a KernelJob.
enum KernelId : int {
  kFlash2Forward,    // task: (batch, head, block of tile_m queries)
  kFlash2Decode,     // task: (batch, KV head, piece of the keys); sequences of few queries
  kFlash1Forward,    // task: (batch, head)
  kStandardScores,   // task: as flash2; writes S
  kStandardSoftmax,  // task: as flash2; S becomes P, writes lse
  kStandardOutput,   // task: as flash2; writes out
  kBackwardRows,     // task: as flash2; delta = rowsum(dout * out) - dlse, and lse with its rest
  kFlash2Backward,   // task: (batch, KV head, block of tile_keys keys); dk, dv, dq in turn
  kFlash1Backward,   // task: (batch, KV head)
  kStandardProbs,    // task: as flash2; writes P and dS
  kStandardDkDv,     // task: as flash2 backward
  kStandardDq,       // task: as flash2
  kBiasGradient,     // task: (dbias batch, dbias head, block of step_n keys)
  kSinkGradient,     // task: query head
  kNumKernels
};

struct KernelSet {
  Isa isa = Isa::kScalar;
  int lanes = 0;
  TaskFunction run[kNumKernels] = {};
  // See peak.h; they return the operations done.
  double (*peak_probe)(int64_t steps) = nullptr;
  double (*product_probe)(int64_t steps) = nullptr;
};

// Kernel sets built into this library, best first, for float or double accumulation.
struct KernelTable {
  const KernelSet* const* sets = nullptr;
  int count = 0;
};
KernelTable kernel_table(bool wide);
const KernelSet* find_kernels(Isa isa, bool wide);  // null: not built in

// Keys of a tile of scores: it and the keys of head_dim 64 share a 32 KiB L1. docs/kernels/cpu.md.
inline constexpr int64_t kStepKeys = 64;
// Longest sequence of queries that flash2_decode_task takes, and the keys of one of its pieces for
// a sequence of up to kShortCache keys, and beyond.
inline constexpr int kDecodeQueries = 8;
inline constexpr int kDecodeGroup = 128;  // largest group of query heads that it takes
inline constexpr int kDecodeRows = 64;    // that meet kDecodeKeys keys at once
inline constexpr int64_t kDecodeKeys = 64;
inline constexpr int kDecodeAheadK = 16;  // rows that are asked for so many keys before their use
inline constexpr int kDecodeAheadV = 32;
inline constexpr int64_t kShortCache = 16384;
inline constexpr int64_t kShortPiece = 512;
inline constexpr int64_t kLongPiece = 2048;
// Panels of a forward task, and what share of them more it takes rather than leave a short rest.
inline constexpr int kPanels = 16;
inline constexpr int kRestOfPanels = 8;
inline constexpr int kMaxPanels = kPanels + kPanels / kRestOfPanels;
inline constexpr int kMaxPanelLanes = 512;  // flash1: B_r <= head_dim, rounded up to the lanes

// One array of the workspace: bytes from its base.
struct Slice {
  int64_t offset = 0;
  int64_t bytes = 0;
};

struct Phase {
  KernelId kernel = kFlash2Forward;
  int64_t num_tasks = 0;
};

struct CpuPlan {
  Algorithm algorithm = Algorithm::kFlash2;
  Isa isa = Isa::kScalar;
  bool backward = false;
  bool wide = false;         // double accumulation
  bool sum_rows = false;     // backward: see summed_delta
  int parts = 0;             // of an operand of the matrix unit; 0: not used
  int off_unit_queries = 0;  // so many of a sequence, or fewer, go without it
  int lanes = 4;
  int workers = 1;

  int64_t tile_n = 64;           // keys of a tile, as it is loaded
  int64_t step_n = 64;           // keys of a tile of scores: tile_n, but kStepKeys at most
  int64_t tile_m = 64;           // queries of a forward task, a multiple of the panel
  int64_t tile_keys = 64;        // keys of a backward task, a multiple of tile_n
  int64_t tile_keys_short = 64;  // the same, for sequences of fewer keys than
  int unit_keys = 1;             // so many times more of either for sequences on the unit
  int64_t long_keys = 0;
  int panel_rows_max = 0;  // queries of a panel (the SIMD lanes run along them) at most
  int panel_lanes_max = 0;
  int panel_rows_fixed = 0;      // flash1: B_r; 0: by the sequence's length, see panel_rows()
  int padded_dim = 0;            // head_dim and head_dim_v rounded up to the lanes
  int64_t rows_buffer_size = 0;  // values: [panel rows][head_dim], or one per lane
  int padded_dim_v = 0;
  int64_t fast_memory_bytes = 0;
  int few_queries = 0;          // sequences of up to so many are multiplied by dot_products.h
  bool dbias_by_tiles = false;  // dbias is written by the main pass of backward
  int64_t decode_rows = 0;  // of all query heads of a KV head at most; 0: no sequence is decoded

  int num_phases = 0;
  Phase phases[6];

  // Workspace: shared arrays, then `workers` scratch slices.
  Slice query_blocks, key_blocks, padded_rows, score_offsets;  // int64 prefix sums [batch + 1]
  // [arrays][row_stride]. Backward: lse, delta, rest of lse, with sum_rows also sum P dP and sum P.
  // flash1: m, l. standard: what out is divided by, 1 or, for dead rows, infinity.
  Slice row_state;
  Slice tile_state;        // O (flash1) or dQ (backward), transposed panels: [padded rows][dim];
                           // decode: O, l and m of every piece
  Slice scores;            // standard: S or P, transposed panels, float32 or float64
  Slice gradients;         // standard backward: dS, likewise
  Slice turns;             // int32 per panel: whose turn it is to add into dq;
                           // decode: per KV head, how many of its pieces are done
  int64_t row_stride = 0;  // padded rows of all heads
  int64_t shared_bytes = 0;
  int64_t scratch_bytes = 0;  // of one worker
  int64_t workspace_bytes = 0;

  // Queries of a panel for a sequence of this length: a bit-deciding choice in the backward pass.
  [[gnu::always_inline]] int panel_rows(int64_t seqlen_q) const {
    if (panel_rows_fixed != 0) return panel_rows_fixed;
    int rows = lanes;
    while (rows < seqlen_q && rows < panel_rows_max) rows *= 2;
    return rows;
  }
  // Keys of a backward task.
  [[gnu::always_inline]] int64_t block_keys(const Sequence& s) const {
    const int64_t keys = s.seqlen_k_given < long_keys ? tile_keys_short : tile_keys;
    return parts_for(s.seqlen_q) > 0 ? keys : keys / unit_keys;
  }
  // Pieces of the keys for a sequence of few queries, counted from the first that it sees. One at
  // least, so that rows that see nothing are written too.
  [[gnu::always_inline]] bool decodes(int64_t seqlen_q) const {
    return decode_rows > 0 && seqlen_q > 0 && seqlen_q <= few_queries;
  }
  [[gnu::always_inline]] static int64_t piece_size(int64_t seqlen_k) {
    return seqlen_k <= kShortCache ? kShortPiece : kLongPiece;
  }
  [[gnu::always_inline]] int64_t decode_pieces(const Sequence& s) const {
    const KeyRange seen = s.band.keys(0, s.seqlen_q);
    const int64_t size = piece_size(s.seqlen_k);
    return max64(1, ceil_div(seen.end, size) - seen.begin / size);
  }
  [[gnu::always_inline]] KeyRange decode_piece(const Sequence& s, int64_t n) const {
    const KeyRange seen = s.band.keys(0, s.seqlen_q);
    const int64_t size = piece_size(s.seqlen_k);
    const int64_t begin = (seen.begin / size + n) * size;
    return {max64(begin, seen.begin), min64(begin + size, seen.end)};
  }
  [[gnu::always_inline]] int64_t decode_state_size() const {
    return decode_rows * (padded_dim_v + lanes) + round_up(decode_rows, 16);
  }
  // Of the operands of this sequence, in both passes: the weights of one are those of the other.
  [[gnu::always_inline]] int parts_for(int64_t seqlen_q) const {
    return seqlen_q > off_unit_queries ? parts : 0;
  }
  // The matrix unit writes whole tiles.
  [[gnu::always_inline]] int spare_rows() const { return parts > 0 ? 16 : 0; }
  [[gnu::always_inline]] int64_t step_rows() const {
    return parts > 0 ? (step_n + 15) / 16 * 16 : step_n;
  }
  [[gnu::always_inline]] int panel_lanes(int rows) const {
    return (rows + lanes - 1) / lanes * lanes;
  }
};

// Values of V^T are read 32 keys at a time from any key on.
[[gnu::always_inline]] inline int64_t value_depth(const CpuPlan& plan) {
  return padded_depth(plan.tile_n) + 32;
}

// One call: everything a task reads. workspace is cut as the plan says.
struct KernelJob {
  const Problem* problem = nullptr;
  const CpuPlan* plan = nullptr;
  char* workspace = nullptr;

  template <class T>
  [[gnu::always_inline]] T* array(const Slice& slice) const {
    return reinterpret_cast<T*>(workspace + slice.offset);
  }
  [[gnu::always_inline]] char* scratch(int worker) const {
    return workspace + plan->shared_bytes + worker * plan->scratch_bytes;
  }
};

// At the start of each worker's scratch.
struct alignas(64) WorkerTraffic {
  int64_t bytes_read = 0;
  int64_t bytes_written = 0;
};

// Called back by kernels; compiled without ISA flags (backend.cc).
bool kernel_keep_going(Progress& progress, int worker);
void kernel_progress(Progress& progress, double units);
bool kernel_wait_for_turn(std::atomic<int32_t>& counter, int32_t turn, Progress& progress,
                          int worker);
void kernel_pass_turn(std::atomic<int32_t>& counter, int32_t turn);
int32_t kernel_count_finished(std::atomic<int32_t>& counter);  // this one included
// dst[i * dst_stride] = src[i] rounded to dtype, dst_stride in elements.
void kernel_store_row(const float* src, void* dst, DType dtype, int64_t dst_stride, int count);
void kernel_store_row(const double* src, void* dst, DType dtype, int64_t dst_stride, int count);

}  // namespace attentile::cpu

// SPDX-License-Identifier: Apache-2.0
// Writes the keep mask, see keep_mask.h: row by row on all threads, eight keys per call of the
// generator (philox.h has the mapping).
#include "keep_mask.h"

#include <cstdint>

#include "cpu/executor.h"

namespace attentile {
namespace {

constexpr int64_t kRowsPerTask = 16;
constexpr uint64_t kGroup = 32;            // keys that four calls decide
constexpr int64_t kGroupsPerCheck = 1024;  // about 100 us of work

// The decisions for the keys of the group that begins with whole-problem key `first`, as bits.
uint32_t keep_bits(const Dropout& dropout, uint64_t first, uint32_t row, uint32_t stream) {
  uint32_t bits = 0;
  for (uint32_t pair = 0; pair < 4; ++pair) {
    const uint32_t column = Dropout::column(first + uint64_t{2} * pair);
    const Philox4 random =
        philox4x32_10({{column, row, stream, dropout.offset_low}}, dropout.key0, dropout.key1);
    for (uint32_t word = 0; word < 4; ++word) {
      const uint32_t low = random.word[word] & 0xFFFFu;
      const uint32_t high = random.word[word] >> 16;
      const uint32_t at = 8 * word + 2 * pair;
      bits |= (low >= dropout.threshold ? 1u : 0u) << at;
      bits |= (high >= dropout.threshold ? 1u : 0u) << (at + 1);
    }
  }
  return bits;
}

// One query of one head. False: stopped.
bool write_row(const Problem& p, int64_t index, int worker, cpu::Progress& progress) {
  const int64_t i = index % p.max_seqlen_q;
  const int64_t h = index / p.max_seqlen_q % p.num_heads_q;
  const int64_t b = index / p.max_seqlen_q / p.num_heads_q;
  const Dropout& dropout = p.dropout;
  const auto key_base = static_cast<uint64_t>(dropout.key_base);
  const uint64_t end = key_base + static_cast<uint64_t>(p.max_seqlen_k);
  const uint32_t row = dropout.row(i);
  const uint32_t stream = dropout.stream(b, h);
  char* cells = p.keep.at(b, h, i, 0);
  int64_t group = 0;
  for (uint64_t first = key_base / kGroup * kGroup; first < end; first += kGroup, ++group) {
    if (group % kGroupsPerCheck == 0 && !progress.keep_going(worker)) return false;
    const uint32_t bits = dropout.enabled ? keep_bits(dropout, first, row, stream) : ~0u;
    const uint64_t begin = first < key_base ? key_base : first;
    const uint64_t stop = end - first < kGroup ? end : first + kGroup;
    for (uint64_t key = begin; key < stop; ++key) {
      const auto j = static_cast<int64_t>(key - key_base);
      cells[j * p.keep.stride[3]] = static_cast<char>(bits >> (key - first) & 1u);
    }
  }
  return true;
}

void run_task(void* job, int64_t task, int worker, cpu::Progress& progress) {
  const Problem& p = *static_cast<const Problem*>(job);
  const int64_t begin = task * kRowsPerTask;
  const int64_t end = min64(begin + kRowsPerTask, p.batch * p.num_heads_q * p.max_seqlen_q);
  for (int64_t index = begin; index < end; ++index) {
    if (!write_row(p, index, worker, progress)) return;
  }
}

}  // namespace

Status write_keep_mask(const Problem& problem, const ExecutionContext& context) {
  const int64_t rows = problem.batch * problem.num_heads_q * problem.max_seqlen_q;
  const int64_t num_tasks = ceil_div(rows, kRowsPerTask);
  Problem job = problem;
  cpu::Progress progress(context, 0.0);
  return cpu::parallel_for(context, cpu::worker_count(context), num_tasks, &run_task, &job,
                           progress);
}

}  // namespace attentile

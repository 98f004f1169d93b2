// SPDX-License-Identifier: Apache-2.0
// The two passes over all rows, for any arithmetic (see row.h), spread over threads such that every
// sum has one owner and one order: bits do not depend on the number of threads.
//
//     forward    task = 64 queries of one head of one sequence
//     backward   task = one KV head of one sequence, with all query heads of its group, since dk
//                and dv sum over them. Where dbias sums over sequences or heads, they share a task.
#pragma once

#include <algorithm>
#include <cstdint>
#include <new>
#include <vector>

#include "cpu/executor.h"
#include "reference/attention.h"
#include "reference/gradient_row.h"
#include "reference/row.h"

namespace attentile::reference {

struct PassSettings {
  DType rounding = DType::kFloat64;  // of S, P, dP and dS
  Results values = {};
  bool with_conditions = false;
  Results conditions = {};  // float64
};

inline constexpr int64_t kRowBlock = 64;

// Throws std::bad_alloc where the lists of a call are longer than any address space; so their sizes
// can be multiplied without a check.
inline void require_memory(const Problem& problem, const ExecutionContext& context) {
  constexpr int64_t kMaxBytes = int64_t{1} << 47;
  if (workspace_bytes(problem, context) > kMaxBytes) throw std::bad_alloc();
}

// Stores n elements along the last axis.
template <class Real>
void store_row(const Array4& array, const int64_t (&at)[3], const Real* row, int64_t n) {
  for (int64_t c = 0; c < n; ++c) {
    store(array, {at[0], at[1], at[2], c}, static_cast<double>(row[c]));
  }
}

template <class Real>
struct ForwardJob {
  ForwardJob(const Problem& p, const PassSettings& with, int workers) : problem(p), settings(with) {
    first_task.reserve(static_cast<size_t>(p.batch) + 1);
    first_task.push_back(0);
    for (int64_t b = 0; b < p.batch; ++b) {
      const int64_t blocks = ceil_div(p.sequence(b).seqlen_q, kRowBlock);
      first_task.push_back(first_task.back() + blocks * p.num_heads_q);
    }
    rows.reserve(static_cast<size_t>(workers));
    for (int w = 0; w < workers; ++w) rows.emplace_back(p, with.rounding, with.with_conditions);
  }

  static void run(void* job, int64_t task, int worker, cpu::Progress& progress) {
    static_cast<ForwardJob*>(job)->run_task(task, {&progress, worker});
  }

  void run_task(int64_t task, const Watch& watch) {
    const auto after = std::upper_bound(first_task.begin(), first_task.end(), task);
    const int64_t b = after - first_task.begin() - 1;
    const int64_t within = task - first_task[static_cast<size_t>(b)];
    const int64_t h = within % problem.num_heads_q;
    const int64_t begin = within / problem.num_heads_q * kRowBlock;
    AttentionRow<Real>& row = rows[static_cast<size_t>(watch.worker)];
    if (!row.enter_head(b, h / problem.group_size, watch)) return;
    const int64_t end = std::min(begin + kRowBlock, row.s.seqlen_q);
    for (int64_t i = begin; i < end; ++i) {
      if (!row.enter_row(h, i, watch) || !row.compute_out(watch)) return;
      const int64_t out_row[3] = {row.s.batch_q, row.s.row_q + i, h};
      const int64_t lse_at[4] = {row.s.batch_q, h, row.s.row_q + i, 0};
      store_row(settings.values.out, out_row, row.out.data(), problem.head_dim_v);
      if (settings.values.lse.present) {
        store(settings.values.lse, lse_at, static_cast<double>(row.lse));
      }
      if (settings.with_conditions) {
        store_row(settings.conditions.out, out_row, row.out_condition.data(), problem.head_dim_v);
        store(settings.conditions.lse, lse_at, row.lse_condition);
      }
      watch.progress->add(1);
    }
  }

  const Problem& problem;
  const PassSettings& settings;
  std::vector<AttentionRow<Real>> rows;  // one per worker
  std::vector<int64_t> first_task;       // [batch + 1]
};

inline int forward_workers(const Problem& problem, const ExecutionContext& context) {
  const int64_t most_tasks =
      problem.batch * problem.num_heads_q * ceil_div(problem.max_seqlen_q, kRowBlock);
  return static_cast<int>(clamp64(most_tasks, 1, static_cast<int64_t>(cpu::worker_count(context))));
}

template <class Real>
Status forward_pass(const Problem& problem, const PassSettings& settings,
                    const ExecutionContext& context) {
  if (total_rows(problem) == 0) return {};
  require_memory(problem, context);
  cpu::Progress progress(context, total_rows(problem));
  const int workers = forward_workers(problem, context);
  ForwardJob<Real> job(problem, settings, workers);
  return cpu::parallel_for(context, workers, job.first_task.back(), &ForwardJob<Real>::run, &job,
                           progress);
}

template <class Real>
struct BackwardJob {
  BackwardJob(const Problem& p, const PassSettings& with, int workers)
      : problem(p),
        settings(with),
        batches_per_task(p.dbias.present && p.dbias_shape[0] == 1 ? p.batch : 1),
        heads_per_task(p.dbias.present && p.dbias_shape[1] == 1 ? p.num_heads_kv : 1) {
    rows.reserve(static_cast<size_t>(workers));
    for (int w = 0; w < workers; ++w) rows.emplace_back(p, with.rounding, with.with_conditions);
    if (!problem.dsink.present) return;
    dsink.resize(static_cast<size_t>(p.batch * p.num_heads_q));
    dsink_condition.resize(dsink.size());
  }

  int64_t num_tasks() const {
    if (problem.batch == 0 || problem.num_heads_kv == 0) return 0;
    return (problem.batch / batches_per_task) * (problem.num_heads_kv / heads_per_task);
  }

  static void run(void* job, int64_t task, int worker, cpu::Progress& progress) {
    static_cast<BackwardJob*>(job)->run_task(task, {&progress, worker});
  }

  void run_task(int64_t task, const Watch& watch) {
    const int64_t tasks_per_batch = problem.num_heads_kv / heads_per_task;
    const int64_t first_b = task / tasks_per_batch * batches_per_task;
    const int64_t first_kv = task % tasks_per_batch * heads_per_task;
    DenseBias<Real> slab;
    if (problem.dbias.present) {
      const int64_t heads = heads_per_task * problem.group_size;
      if (!slab.resize(problem.dbias_shape, heads, settings.with_conditions, watch)) return;
      slab.first_head = first_kv * problem.group_size;
    }
    for (int64_t b = first_b; b < first_b + batches_per_task; ++b) {
      for (int64_t kv_head = first_kv; kv_head < first_kv + heads_per_task; ++kv_head) {
        if (!run_head(b, kv_head, &slab, watch)) return;
      }
    }
    if (problem.dbias.present) store_slab(slab, first_b, watch);
  }

  // Every query of every head that reads this KV head. False: stopped.
  bool run_head(int64_t b, int64_t kv_head, DenseBias<Real>* slab, const Watch& watch) {
    GradientRow<Real>& row = rows[static_cast<size_t>(watch.worker)];
    if (!row.enter_head(b, kv_head, watch)) return false;
    const Sequence& s = row.row.s;
    for (int64_t g = 0; g < problem.group_size; ++g) {
      const int64_t h = kv_head * problem.group_size + g;
      for (int64_t i = 0; i < s.seqlen_q; ++i) {
        if (!watch.keep_going(i) || !row.enter_row(h, i, slab, watch)) return false;
        const int64_t at[3] = {s.batch_q, s.row_q + i, h};
        store_row(settings.values.dq, at, row.dq.data(), problem.head_dim);
        if (settings.with_conditions) {
          store_row(settings.conditions.dq, at, row.dq_condition.data(), problem.head_dim);
        }
        if (problem.dsink.present) {
          const size_t index = static_cast<size_t>(b * problem.num_heads_q + h);
          dsink[index] += row.dsink;
          dsink_condition[index] += row.dsink_condition;
        }
        watch.progress->add(1);
      }
    }
    return store_keys(row, kv_head, watch);
  }

  // Row by row; those beyond the used length are written as 0. False: stopped.
  bool store_keys(const GradientRow<Real>& row, int64_t kv_head, const Watch& watch) {
    const Sequence& s = row.row.s;
    for (int64_t j = 0; j < s.seqlen_k_given; ++j) {
      if (!watch.keep_going(j)) return false;
      const int64_t at[3] = {s.batch_k, s.row_k + j, kv_head};
      const auto put = [&](const Array4& array, const auto& rows_of_j, int64_t n) {
        for (int64_t c = 0; c < n; ++c) {
          const double value = j < s.seqlen_k ? static_cast<double>(rows_of_j[j * n + c]) : 0.0;
          store(array, {at[0], at[1], at[2], c}, value);
        }
      };
      put(settings.values.dk, row.dk, problem.head_dim);
      put(settings.values.dv, row.dv, problem.head_dim_v);
      if (!settings.with_conditions) continue;
      put(settings.conditions.dk, row.dk_condition, problem.head_dim);
      put(settings.conditions.dv, row.dv_condition, problem.head_dim_v);
    }
    return true;
  }

  void store_slab(const DenseBias<Real>& slab, int64_t first_b, const Watch& watch) {
    const int64_t b = problem.dbias_shape[0] == 1 ? 0 : first_b;
    for (int64_t at = 0; at < static_cast<int64_t>(slab.value.size()); ++at) {
      if (!watch.keep_going(at)) return;
      const int64_t columns = problem.dbias_shape[3];
      const int64_t plane = problem.dbias_shape[2] * columns;
      const int64_t h = problem.dbias_shape[1] == 1 ? 0 : slab.first_head + at / plane;
      const int64_t index[4] = {b, h, at % plane / columns, at % columns};
      store(settings.values.dbias, index, static_cast<double>(slab.value[at]));
      if (settings.with_conditions) store(settings.conditions.dbias, index, slab.condition[at]);
    }
  }

  void store_dsink() {
    for (int64_t h = 0; problem.dsink.present && h < problem.num_heads_q; ++h) {
      Real sum = 0;
      double condition = 0;
      for (int64_t b = 0; b < problem.batch; ++b) {
        sum += dsink[static_cast<size_t>(b * problem.num_heads_q + h)];
        condition += dsink_condition[static_cast<size_t>(b * problem.num_heads_q + h)];
      }
      store(settings.values.dsink, {h, 0, 0, 0}, static_cast<double>(sum));
      if (settings.with_conditions) store(settings.conditions.dsink, {h, 0, 0, 0}, condition);
    }
  }

  const Problem& problem;
  const PassSettings& settings;
  const int64_t batches_per_task;
  const int64_t heads_per_task;
  std::vector<GradientRow<Real>> rows;  // one per worker
  std::vector<Real> dsink;              // [batch][num_heads_q], summed over the batch at the end
  std::vector<double> dsink_condition;
};

// A dbias that no task reaches (no sequences, no heads) is 0.
inline void clear(const Array4& array, const int64_t (&shape)[4], const Watch& watch) {
  for (int64_t a = 0; a < shape[0]; ++a) {
    for (int64_t b = 0; b < shape[1]; ++b) {
      for (int64_t c = 0; c < shape[2]; ++c) {
        for (int64_t d = 0; d < shape[3]; ++d) {
          if (!watch.keep_going(c * shape[3] + d)) return;
          store(array, {a, b, c, d}, 0.0);
        }
      }
    }
  }
}

inline int backward_workers(const Problem& problem, const ExecutionContext& context) {
  return static_cast<int>(clamp64(problem.batch * problem.num_heads_kv, 1,
                                  static_cast<int64_t>(cpu::worker_count(context))));
}

template <class Real>
Status backward_pass(const Problem& problem, const PassSettings& settings,
                     const ExecutionContext& context) {
  require_memory(problem, context);
  cpu::Progress progress(context, total_rows(problem));
  const int workers = backward_workers(problem, context);
  BackwardJob<Real> job(problem, settings, workers);
  if (problem.dbias.present && job.num_tasks() == 0) {
    const Watch watch = {&progress, 0};
    clear(settings.values.dbias, problem.dbias_shape, watch);
    if (settings.with_conditions) clear(settings.conditions.dbias, problem.dbias_shape, watch);
  }
  Status status =
      cpu::parallel_for(context, workers, job.num_tasks(), &BackwardJob<Real>::run, &job, progress);
  if (status.ok()) job.store_dsink();
  return status;
}

}  // namespace attentile::reference

// SPDX-License-Identifier: Apache-2.0
// The CPU backend; see backend.h. Also the functions that kernels call back, compiled here without
// instruction-set flags.
#include "cpu/backend.h"

#include <cstring>
#include <string>

#include "cpu/cpu_info.h"
#include "cpu/traffic.h"
#include "cpu/turnstile.h"
#include "dtype.h"
#include "memory.h"

namespace attentile::cpu {
namespace {

// Prefix sums over the batch, zeroed turns and traffic counts. Offsets into the scores are the
// standard algorithm's alone: elsewhere their number may exceed any array.
void prepare_workspace(const KernelJob& job) {
  const Problem& p = *job.problem;
  const CpuPlan& plan = *job.plan;
  int64_t* query_blocks = job.array<int64_t>(plan.query_blocks);
  int64_t* key_blocks = job.array<int64_t>(plan.key_blocks);
  int64_t* padded_rows = job.array<int64_t>(plan.padded_rows);
  int64_t* score_offsets = job.array<int64_t>(plan.score_offsets);
  const bool has_scores = plan.algorithm == Algorithm::kStandard;
  query_blocks[0] = key_blocks[0] = padded_rows[0] = score_offsets[0] = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    const Sequence s = p.sequence(b);
    const int rows = plan.panel_rows(s.seqlen_q);
    const int64_t padded = ceil_div(s.seqlen_q, rows) * plan.panel_lanes(rows);
    query_blocks[b + 1] = query_blocks[b] + count_query_blocks(plan, s);
    key_blocks[b + 1] = key_blocks[b] + count_key_blocks(plan, s);
    padded_rows[b + 1] = padded_rows[b] + padded;
    score_offsets[b + 1] = score_offsets[b] + (has_scores ? padded * s.seqlen_k : 0);
  }
  std::memset(job.array<char>(plan.turns), 0, static_cast<size_t>(plan.turns.bytes));
  for (int worker = 0; worker < plan.workers; ++worker) {
    *reinterpret_cast<WorkerTraffic*>(job.scratch(worker)) = {};
  }
}

void report_traffic(const KernelJob& job, Traffic* traffic) {
  if (traffic == nullptr) return;
  *traffic = {};
  for (int worker = 0; worker < job.plan->workers; ++worker) {
    const WorkerTraffic& counts = *reinterpret_cast<const WorkerTraffic*>(job.scratch(worker));
    traffic->bytes_read += counts.bytes_read;
    traffic->bytes_written += counts.bytes_written;
  }
}

// A result that is written as 0: what a task clears is one row of the first two axes.
struct ZeroJob {
  const Array4& array;
  int64_t shape[4];

  int64_t num_tasks() const {
    const bool empty = shape[0] == 0 || shape[1] == 0 || shape[2] == 0 || shape[3] == 0;
    return array.present && !empty ? shape[0] * shape[1] : 0;
  }
  static void run(void* job, int64_t task, int worker, Progress& progress) {
    const ZeroJob& self = *static_cast<const ZeroJob*>(job);
    const int64_t bytes = size_of(self.array.dtype);
    for (int64_t c = 0; c < self.shape[2]; ++c) {
      if (!progress.keep_going(worker)) return;
      for (int64_t d = 0; d < self.shape[3]; ++d) {
        char* element = self.array.at(task / self.shape[1], task % self.shape[1], c, d);
        std::memset(element, 0, static_cast<size_t>(bytes));
      }
    }
  }
};

template <class Real>
void store_row(const Real* src, void* dst, DType dtype, int64_t stride, int count) {
  const bool same = size_of(dtype) == static_cast<int64_t>(sizeof(Real));
  if (same && stride == 1) {
    std::memcpy(dst, src, static_cast<size_t>(count) * sizeof(Real));
    return;
  }
  if (dtype == DType::kBFloat16) {
    uint16_t* out = static_cast<uint16_t*>(dst);
    for (int i = 0; i < count; ++i) out[i * stride] = double_to_bfloat16(src[i]);
  } else if (dtype == DType::kFloat16) {
    uint16_t* out = static_cast<uint16_t*>(dst);
    for (int i = 0; i < count; ++i) out[i * stride] = double_to_float16(src[i]);
  } else if (dtype == DType::kFloat32) {
    float* out = static_cast<float*>(dst);
    for (int i = 0; i < count; ++i) out[i * stride] = static_cast<float>(src[i]);
  } else {
    double* out = static_cast<double*>(dst);
    for (int i = 0; i < count; ++i) out[i * stride] = src[i];
  }
}

}  // namespace

bool kernel_keep_going(Progress& progress, int worker) {
  return progress.keep_going(worker);
}

void kernel_progress(Progress& progress, double units) {
  progress.add(units);
}

bool kernel_wait_for_turn(std::atomic<int32_t>& counter, int32_t turn, Progress& progress,
                          int worker) {
  return wait_for_turn(counter, turn, progress, worker);
}

void kernel_pass_turn(std::atomic<int32_t>& counter, int32_t turn) {
  pass_turn(counter, turn);
}

int32_t kernel_count_finished(std::atomic<int32_t>& counter) {
  return counter.fetch_add(1, std::memory_order_acq_rel) + 1;
}

void kernel_store_row(const float* src, void* dst, DType dtype, int64_t stride, int count) {
  store_row(src, dst, dtype, stride, count);
}

void kernel_store_row(const double* src, void* dst, DType dtype, int64_t stride, int count) {
  store_row(src, dst, dtype, stride, count);
}

Result<Isa> plan_isa(const Problem& problem) {
  const KernelTable table = kernel_table(is_wide(problem));
  Isa built_in[16];
  for (int n = 0; n < table.count; ++n) built_in[n] = table.sets[n]->isa;
  const Isa not_by_itself = matrix_parts(problem) > 0 ? Isa::kAuto : Isa::kAmx;
  return resolve_isa(problem.isa, {built_in, table.count}, not_by_itself);
}

Result<CpuPlan> plan_call(const Problem& problem, const ExecutionContext& context) {
  const Result<Isa> isa = plan_isa(problem);
  if (!isa.ok()) return isa.status();
  Machine machine;
  machine.isa = *isa;
  machine.lanes = find_kernels(*isa, is_wide(problem))->lanes;
  machine.l2_bytes = cpu_info().l2_bytes;
  return make_plan(problem, machine, worker_count(context));
}

Status run(const Problem& problem, const ExecutionContext& context) {
  const Result<CpuPlan> planned = plan_call(problem, context);
  if (!planned.ok()) return planned.status();
  const double work = context.poll == nullptr ? 0.0 : count_work(problem, *planned);
  Progress progress(context, work);
  return run(problem, *planned, context, progress);
}

Status run(const Problem& problem, const CpuPlan& plan, const ExecutionContext& context,
           Progress& progress) {
  AlignedBuffer own;
  char* workspace = static_cast<char*>(context.workspace);
  if (workspace == nullptr) {
    own = AlignedBuffer(plan.workspace_bytes);
    if (!own.ok()) return out_of_memory("workspace", plan.workspace_bytes);
    workspace = own.data();
  } else if (context.workspace_bytes < plan.workspace_bytes) {
    return Status(StatusCode::kInvalidArgument,
                  "workspace: has " + std::to_string(context.workspace_bytes) +
                      " bytes, but this call needs " + std::to_string(plan.workspace_bytes));
  }
  workspace += -reinterpret_cast<uintptr_t>(workspace) % kCacheLineBytes;
  KernelJob job{.problem = &problem, .plan = &plan, .workspace = workspace};
  prepare_workspace(job);
  const KernelSet& kernels = *find_kernels(plan.isa, plan.wide);
  for (int n = 0; n < plan.num_phases; ++n) {
    const Phase& phase = plan.phases[n];
    Status status = parallel_for(context, plan.workers, phase.num_tasks, kernels.run[phase.kernel],
                                 &job, progress);
    if (!status.ok()) return status;
  }
  report_traffic(job, context.traffic);
  return Status();
}

Status write_zeros(const Problem& p, const ExecutionContext& context) {
  if (context.traffic != nullptr) *context.traffic = {};
  if (!p.backward) return Status();
  const bool packed = p.cu_seqlens_k.data != nullptr;
  const int64_t batch = packed ? 1 : p.batch;
  const int64_t rows = packed ? p.total_k : p.max_seqlen_k;
  const int64_t* bias = p.dbias_shape;
  ZeroJob jobs[] = {{p.dk, {batch, rows, p.num_heads_kv, p.head_dim}},
                    {p.dv, {batch, rows, p.num_heads_kv, p.head_dim_v}},
                    {p.dbias, {bias[0], bias[1], bias[2], bias[3]}},
                    {p.dsink, {p.num_heads_q, 1, 1, 1}}};
  Progress progress(context, 0.0);
  for (ZeroJob& job : jobs) {
    Status status = parallel_for(context, worker_count(context), job.num_tasks(), &ZeroJob::run,
                                 &job, progress);
    if (!status.ok()) return status;
  }
  return Status();
}

}  // namespace attentile::cpu

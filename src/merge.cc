// SPDX-License-Identifier: Apache-2.0
// merge: combines softmax states over disjoint sets of keys, row by row, in double.
//
//     lse = m + log(sum_p exp(lse_p - m)),  m = max_p lse_p
//     out = sum_p exp(lse_p - lse) out_p
//
// A state with lse = -inf holds no key and is left out, whatever its out holds; a row without any
// other state is (0, -inf). Each element of the result is written after the elements of the parts
// that it depends on were read, so the result may be one of the parts.
#include <cmath>
#include <limits>
#include <new>
#include <vector>

#include "attentile/attention.h"
#include "cpu/executor.h"
#include "dtype.h"
#include "mask.h"
#include "memory.h"
#include "validate.h"

namespace attentile {
namespace {

constexpr int64_t kRowsPerTask = 64;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// One row of a state: out (batch, row, head, -) and lse (batch, head, row). Packed views have no
// batch axis.
struct Row {
  int64_t b, i, h;

  int64_t out_index(const TensorView& out) const {
    const bool packed = out.rank == 3;
    const int64_t* stride = out.stride + (packed ? 0 : 1);
    return (packed ? 0 : b * out.stride[0]) + i * stride[0] + h * stride[1];
  }
  int64_t lse_index(const TensorView& lse) const {
    const bool packed = lse.rank == 2;
    const int64_t* stride = lse.stride + (packed ? 0 : 1);
    return (packed ? 0 : b * lse.stride[0]) + h * stride[0] + i * stride[1];
  }
};

struct MergeJob {
  const std::vector<PartialState>* parts = nullptr;
  const PartialState* result = nullptr;
  int64_t num_rows = 0;  // of all sequences and heads
  int64_t seqlen = 0;
  int64_t num_heads = 0;
  int64_t head_dim_v = 0;
  std::vector<double> weights = {};  // [worker][part]
};

void merge_row(const MergeJob& job, const Row& row, double* weights) {
  const std::vector<PartialState>& parts = *job.parts;
  double max = -kInfinity;
  bool nan = false;
  for (size_t p = 0; p < parts.size(); ++p) {
    const TensorView& lse = parts[p].lse;
    weights[p] = load_as_double(lse.data, lse.dtype, row.lse_index(lse));
    nan = nan || std::isnan(weights[p]);
    if (weights[p] > max) max = weights[p];
  }
  double sum = 0;
  for (size_t p = 0; p < parts.size(); ++p) {
    if (weights[p] == -kInfinity) {
      weights[p] = -1;  // neutral: left out below
      continue;
    }
    weights[p] = weights[p] == max ? 1.0 : std::exp(weights[p] - max);
    sum += weights[p];
  }
  for (size_t p = 0; p < parts.size(); ++p) {
    if (weights[p] != -1) weights[p] /= sum;
  }
  const TensorView& out = job.result->out;
  for (int64_t c = 0; c < job.head_dim_v; ++c) {
    double value = 0;
    for (size_t p = 0; p < parts.size(); ++p) {
      if (weights[p] == -1) continue;
      const TensorView& part = parts[p].out;
      const int64_t index = row.out_index(part) + c * part.stride[part.rank - 1];
      value += weights[p] * load_as_double(part.data, part.dtype, index);
    }
    store_from_double(out.data, out.dtype, row.out_index(out) + c * out.stride[out.rank - 1],
                      value);
  }
  const TensorView& lse = job.result->lse;
  const double log_sum = nan ? sum : (sum > 0 ? max + std::log(sum) : -kInfinity);
  store_from_double(lse.data, lse.dtype, row.lse_index(lse), log_sum);
}

void run_task(void* job_data, int64_t task, int worker, cpu::Progress& progress) {
  MergeJob& job = *static_cast<MergeJob*>(job_data);
  double* weights = job.weights.data() + static_cast<size_t>(worker) * job.parts->size();
  const int64_t begin = task * kRowsPerTask;
  const int64_t end = min64(begin + kRowsPerTask, job.num_rows);
  for (int64_t index = begin; index < end; ++index) {
    if (!progress.keep_going(worker)) return;
    const int64_t within = index % (job.seqlen * job.num_heads);
    merge_row(job,
              {.b = index / (job.seqlen * job.num_heads),
               .i = within / job.num_heads,
               .h = within % job.num_heads},
              weights);
  }
  progress.add(static_cast<double>(end - begin));
}

}  // namespace

Status merge(const std::vector<PartialState>& parts, const PartialState& result,
             const ExecutionContext& context) {
  Status status = validate_merge(parts, result);
  if (status.ok()) status = validate_context(context);
  if (!status.ok()) return status;
  const TensorView& out = result.out;
  const int64_t* shape = out.shape + (out.rank == 3 ? 0 : 1);
  MergeJob job = {.parts = &parts,
                  .result = &result,
                  .num_rows = (out.rank == 3 ? 1 : out.shape[0]) * shape[0] * shape[1],
                  .seqlen = shape[0],
                  .num_heads = shape[1],
                  .head_dim_v = shape[2]};
  const int64_t num_tasks = ceil_div(job.num_rows, kRowsPerTask);
  const int workers =
      static_cast<int>(clamp64(num_tasks, 1, static_cast<int64_t>(cpu::worker_count(context))));
  try {
    job.weights.resize(static_cast<size_t>(workers) * parts.size());
  } catch (const std::bad_alloc&) {
    return make_status(StatusCode::kOutOfMemory,
                       "workspace: memory for merge could not be allocated");
  }
  if (context.traffic != nullptr) *context.traffic = {};  // it has no tiles
  cpu::Progress progress(context, static_cast<double>(job.num_rows));
  return cpu::parallel_for(context, workers, num_tasks, &run_task, &job, progress);
}

}  // namespace attentile

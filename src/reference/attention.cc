// SPDX-License-Identifier: Apache-2.0
// The oracle's entry points. The definition itself is in row.h (one row forward) and gradient_row.h
// (one row backward); passes.h runs them over all rows.
#include "reference/attention.h"

#include <limits>
#include <new>

#include "memory.h"
#include "reference/passes.h"

namespace attentile::reference {
namespace {

Status out_of_memory() {
  return make_status(StatusCode::kOutOfMemory,
                     "workspace: memory for algorithm reference could not be allocated");
}

// Sizes saturate, as in cpu/plan.cc.
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

Results outputs_of(const Problem& problem) {
  return {.out = problem.out,
          .lse = problem.lse,
          .dq = problem.dq,
          .dk = problem.dk,
          .dv = problem.dv,
          .dbias = problem.dbias,
          .dsink = problem.dsink};
}

void set_shape(ExactArray* array, int64_t a, int64_t b, int64_t c, int64_t d) {
  *array = {.present = true, .shape = {a, b, c, d}};
  array->value.assign(static_cast<size_t>(array->size()), 0.0);
}

// A float64 array over numbers that lie in the array's shape.
Array4 array_over(const ExactArray& array, std::vector<double>* numbers) {
  if (!array.present) return {};
  return {.data = reinterpret_cast<char*>(numbers->data()),
          .dtype = DType::kFloat64,
          .present = true,
          .stride = {array.shape[1] * array.shape[2] * array.shape[3],
                     array.shape[2] * array.shape[3], array.shape[3], 1}};
}

Results arrays_over(ExactResult* result, std::vector<double> ExactArray::* numbers) {
  const auto over = [numbers](ExactArray* array) {
    (array->*numbers).resize(array->value.size());
    return array_over(*array, &(array->*numbers));
  };
  return {.out = over(&result->out),
          .lse = over(&result->lse),
          .dq = over(&result->dq),
          .dk = over(&result->dk),
          .dv = over(&result->dv),
          .dbias = over(&result->dbias),
          .dsink = over(&result->dsink)};
}

}  // namespace

void shape_result(const Problem& p, ExactResult* result) {
  *result = {};
  const int64_t batch_q = p.varlen ? 1 : p.batch;
  const int64_t rows_q = p.varlen ? p.total_q : p.max_seqlen_q;
  set_shape(&result->out, batch_q, rows_q, p.num_heads_q, p.head_dim_v);
  set_shape(&result->lse, batch_q, p.num_heads_q, rows_q, 1);
  if (!p.backward) return;
  const bool packed_k = p.cu_seqlens_k.data != nullptr;
  const int64_t batch_k = packed_k ? 1 : p.batch;
  const int64_t rows_k = packed_k ? p.total_k : p.max_seqlen_k;
  set_shape(&result->dq, batch_q, rows_q, p.num_heads_q, p.head_dim);
  set_shape(&result->dk, batch_k, rows_k, p.num_heads_kv, p.head_dim);
  set_shape(&result->dv, batch_k, rows_k, p.num_heads_kv, p.head_dim_v);
  if (p.dbias.present) {
    set_shape(&result->dbias, p.dbias_shape[0], p.dbias_shape[1], p.dbias_shape[2],
              p.dbias_shape[3]);
  }
  if (p.dsink.present) set_shape(&result->dsink, p.num_heads_q, 1, 1, 1);
}

Results value_arrays(ExactResult* result) {
  return arrays_over(result, &ExactArray::value);
}

Status run_forward(const Problem& problem, const ExecutionContext& context) {
  try {
    const PassSettings settings = {.values = outputs_of(problem)};
    return forward_pass<double>(problem, settings, context);
  } catch (const std::bad_alloc&) {
    return out_of_memory();
  }
}

Status run_backward(const Problem& problem, const ExecutionContext& context) {
  try {
    const PassSettings settings = {.values = outputs_of(problem)};
    return backward_pass<double>(problem, settings, context);
  } catch (const std::bad_alloc&) {
    return out_of_memory();
  }
}

int64_t workspace_bytes(const Problem& p, const ExecutionContext& context) {
  constexpr int64_t kReal = sizeof(double);
  const int64_t copies = p.backward ? 2 : 1;  // k and v, then dk and dv
  const int64_t lists = p.backward ? 5 : 4;   // of a row: keys, tanh, P, kept, then dS
  const int64_t per_key = kReal * (copies * (p.head_dim + p.head_dim_v) + lists) + 1;
  const int64_t per_column = kReal * copies * (p.head_dim + p.head_dim_v);  // q, out, dq, dout
  int64_t slab = 0;
  if (p.backward && p.dbias.present) {
    const int64_t heads = p.dbias_shape[1] == 1 ? 1 : p.group_size;
    slab = product(product(kReal * heads, p.dbias_shape[2]), p.dbias_shape[3]);
  }
  int64_t shared = product(kReal, sum(p.batch, 1));  // the first tasks; backward: sums for dsink
  if (p.backward)
    shared = p.dsink.present ? product(product(2 * kReal, p.num_heads_q), p.batch) : 0;
  const int workers = p.backward ? backward_workers(p, context) : forward_workers(p, context);
  const int64_t own = sum(sum(product(longest_seqlen_k(p), per_key), per_column), slab);
  return sum(product(workers, own), shared);
}

Status compute_exact(const Problem& problem, const ExecutionContext& context, ExactResult* result) {
  try {
    shape_result(problem, result);
    const PassSettings settings = {.values = value_arrays(result),
                                   .with_conditions = true,
                                   .conditions = arrays_over(result, &ExactArray::condition)};
    // float64 results are judged by a floor of a few units alone: their oracle needs more bits.
    const bool wide = problem.dtype == DType::kFloat64;
    Status status = wide ? forward_pass<long double>(problem, settings, context)
                         : forward_pass<double>(problem, settings, context);
    if (!status.ok() || !problem.backward) return status;
    status = wide ? backward_pass<long double>(problem, settings, context)
                  : backward_pass<double>(problem, settings, context);
    return status;
  } catch (const std::bad_alloc&) {
    return out_of_memory();
  }
}

}  // namespace attentile::reference

// SPDX-License-Identifier: Apache-2.0
// Standard attention in q's precision; see rounded_standard.h.
#include "reference/rounded_standard.h"

#include <new>

#include "memory.h"
#include "reference/passes.h"

namespace attentile::reference {
namespace {

void round_values(DType dtype, ExactArray* array) {
  for (double& value : array->value) value = round_to(dtype, value);
}

template <class Real>
Status run_passes(const Problem& problem, const PassSettings& settings,
                  const ExecutionContext& context) {
  Status status = forward_pass<Real>(problem, settings, context);
  if (status.ok() && problem.backward) status = backward_pass<Real>(problem, settings, context);
  return status;
}

}  // namespace

Status compute_standard(const Problem& problem, const ExecutionContext& context,
                        ExactResult* result) {
  try {
    shape_result(problem, result);
    ExactResult& r = *result;
    const PassSettings settings = {.rounding = problem.dtype, .values = value_arrays(result)};
    const bool wide = problem.dtype == DType::kFloat64;
    const Status status = wide ? run_passes<double>(problem, settings, context)
                               : run_passes<float>(problem, settings, context);
    for (ExactArray* array : {&r.out, &r.dq, &r.dk, &r.dv}) round_values(problem.dtype, array);
    round_values(wide ? DType::kFloat64 : DType::kFloat32, &r.lse);
    round_values(DType::kFloat32, &r.dsink);
    if (r.dbias.present) round_values(problem.dbias.dtype, &r.dbias);
    return status;
  } catch (const std::bad_alloc&) {
    return make_status(StatusCode::kOutOfMemory,
                       "workspace: memory for standard attention could not be allocated");
  }
}

}  // namespace attentile::reference

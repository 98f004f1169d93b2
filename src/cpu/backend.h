// SPDX-License-Identifier: Apache-2.0
// The CPU backend: plan, workspace, then the plan's phases over the threads.
#pragma once

#include "cpu/plan.h"

namespace attentile::cpu {

// The instruction set of a call. kUnavailable or kInvalidArgument when the one that was asked for
// has no kernels here.
Result<Isa> plan_isa(const Problem& problem);

// The plan of a call on this machine. Errors as above.
Result<CpuPlan> plan_call(const Problem& problem, const ExecutionContext& context);

// Runs a problem whose algorithm is standard, flash1 or flash2, and that has something to compute.
Status run(const Problem& problem, const ExecutionContext& context);

// The same with its plan made, telling `progress` of count_work() units (traffic.h).
Status run(const Problem& problem, const CpuPlan& plan, const ExecutionContext& context,
           Progress& progress);

// All of a problem that has_nothing_to_compute(), whatever its algorithm: the results that are not
// empty all the same (dk, dv, dbias, dsink) become 0.
Status write_zeros(const Problem& problem, const ExecutionContext& context);

}  // namespace attentile::cpu

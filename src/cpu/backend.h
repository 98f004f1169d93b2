// SPDX-License-Identifier: Apache-2.0
// The CPU backend: plan, workspace, then the plan's phases over the threads.
#pragma once

#include "cpu/plan.h"

namespace attentile::cpu {

// The plan of a call on this machine. kUnavailable or kInvalidArgument when the instruction set
// that was asked for has no kernels here.
Result<CpuPlan> plan_call(const Problem& problem, const ExecutionContext& context);

// Runs a problem whose algorithm is standard, flash1 or flash2.
Status run(const Problem& problem, const ExecutionContext& context);

}  // namespace attentile::cpu

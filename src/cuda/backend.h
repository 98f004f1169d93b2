// SPDX-License-Identifier: Apache-2.0
// The CUDA backend as the entry points call it. Tensors and index arrays lie in device memory:
// nothing here reads or writes them.
#pragma once

#include "attentile/attention.h"
#include "cuda/backend_table.h"
#include "cuda/plan.h"
#include "problem.h"

namespace attentile::cuda {

// The table of libattentile_cuda.so, loaded on first use, or kUnavailable with the reason why there
// is none (load.h).
const Result<const BackendTable*>& backend();

// Of the current device of this thread; asked of the driver once per device.
Result<DeviceLimits> current_limits(const BackendTable& table);

// Puts a call on context.stream and returns: with a workspace of the plan's size it allocates
// nothing and waits for nothing, so that it may be captured into a graph. Without one the memory is
// the stream's own (cudaMallocAsync), released by the stream when the call is over.
Status run(const Problem& problem, const ExecutionContext& context);
Status run(const BackendTable& table, const Problem& problem, const ExecutionContext& context);

Result<Plan> plan_call(const Problem& problem);
// For a GPU of these limits, at hand or not.
Result<Plan> plan_call(const Problem& problem, const DeviceLimits& limits);

}  // namespace attentile::cuda

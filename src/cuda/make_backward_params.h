// SPDX-License-Identifier: Apache-2.0
// From a Problem to what its backward kernels see. Pure: no device is asked.
#pragma once

#include "attentile/status.h"
#include "cuda/backward_params.h"
#include "cuda/device_limits.h"
#include "problem.h"

namespace attentile::cuda {

// Ok, or kUnsupported with the reason why no kernel here serves the problem.
Status check_backward(const Problem& problem, const DeviceLimits& limits = {});

// Of a problem that check_backward() accepts. params.call.workspace is the caller's to set, to
// backward_workspace_bytes() of device memory, at a multiple of 16 bytes.
BackwardParams make_backward_params(const Problem& problem, const DeviceLimits& limits = {});
int64_t backward_workspace_bytes(const Problem& problem, const DeviceLimits& limits = {});

// Why dq is summed in order although atomic_dq allows another; null where it is not.
const char* why_ordered_dq(const Problem& problem);

}  // namespace attentile::cuda

// SPDX-License-Identifier: Apache-2.0
// From a Problem to what its forward kernel sees. Pure: no device is asked.
#pragma once

#include "attentile/status.h"
#include "cuda/device_limits.h"
#include "cuda/params.h"
#include "problem.h"

namespace attentile::cuda {

// Shared memory that a block of any call takes at most: on a GPU that has less than the first, the
// kernels for long sequences do without.
inline constexpr int32_t kLargestSharedBytes = 131616;
inline constexpr int32_t kSharedBytes = 98848;

// One tensor of a Problem.
ArrayParams make_array(const Array4& array);

// Ok, or kUnsupported with the reason why no kernel here serves the problem.
Status check_forward(const Problem& problem, const DeviceLimits& limits = {});

// Of a problem that check_forward() accepts. params.workspace is the caller's to set, to
// forward_workspace_bytes() of device memory, at a multiple of 16 bytes.
ForwardParams make_forward_params(const Problem& problem, const DeviceLimits& limits = {});
int64_t forward_workspace_bytes(const Problem& problem, const DeviceLimits& limits = {});

}  // namespace attentile::cuda

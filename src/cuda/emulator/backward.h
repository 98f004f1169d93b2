// SPDX-License-Identifier: Apache-2.0
// The backward pass on the emulated GPU.
#pragma once

#include "attentile/status.h"
#include "cuda/backward_params.h"
#include "cuda/device_limits.h"
#include "cuda/emulator/device.h"
#include "problem.h"

namespace attentile::cuda::emulator {

// Runs a problem's kernels on a device that has the problem's memory registered, with a workspace
// of its own. kUnsupported where no kernel serves it, kInternal if a launch was not clean;
// `report`, unless null, has the counts of all launches.
Status run_backward(Device& device, const Problem& problem, Report* report = nullptr,
                    const DeviceLimits& limits = {});

// The launches alone, with the workspace of params.
Report start_backward(Device& device, DType dtype, const BackwardParams& params);

}  // namespace attentile::cuda::emulator

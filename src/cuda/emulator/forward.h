// SPDX-License-Identifier: Apache-2.0
// The forward pass on the emulated GPU.
#pragma once

#include "attentile/status.h"
#include "cuda/device_limits.h"
#include "cuda/emulator/device.h"
#include "cuda/params.h"
#include "problem.h"

namespace attentile::cuda::emulator {

// Runs a problem's kernels on a device that has the problem's memory registered. kUnsupported where
// no kernel serves it, kInternal if a launch was not clean; `report`, unless null, tells more.
Status run_forward(Device& device, const Problem& problem, Report* report = nullptr,
                   const DeviceLimits& limits = {});

// The same from what the kernels see; the workspace is found here.
Report run_forward(Device& device, DType dtype, ForwardParams params);

// The same, with the workspace of params: the launches alone.
Report start_forward(Device& device, DType dtype, const ForwardParams& params);

}  // namespace attentile::cuda::emulator

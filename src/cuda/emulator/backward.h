// SPDX-License-Identifier: Apache-2.0
// The backward pass on the emulated GPU.
#pragma once

#include "attentile/status.h"
#include "cuda/emulator/device.h"
#include "problem.h"

namespace attentile::cuda::emulator {

// Runs a problem's kernels on a device that has the problem's memory registered, with a workspace
// of its own. kUnsupported where no kernel serves it, kInternal if a launch was not clean;
// `report`, unless null, has the counts of all launches and the findings of the last.
Status run_backward(Device& device, const Problem& problem, Report* report = nullptr);

}  // namespace attentile::cuda::emulator

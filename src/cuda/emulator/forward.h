// SPDX-License-Identifier: Apache-2.0
// The forward pass on the emulated GPU.
#pragma once

#include "attentile/status.h"
#include "cuda/emulator/device.h"
#include "problem.h"

namespace attentile::cuda::emulator {

// Runs a problem's kernel on a device that has the problem's memory registered. kUnsupported where
// no kernel serves it, kInternal if the launch was not clean; `report`, unless null, tells more.
Status run_forward(Device& device, const Problem& problem, Report* report = nullptr);

}  // namespace attentile::cuda::emulator

// SPDX-License-Identifier: Apache-2.0
// From a Problem to what its forward kernel sees. Pure: no device is asked.
#pragma once

#include "attentile/status.h"
#include "cuda/params.h"
#include "problem.h"

namespace attentile::cuda {

// Ok, or kUnsupported with the reason why no kernel here serves the problem.
Status check_forward(const Problem& problem);

// Of a problem that check_forward() accepts and that has something to compute.
ForwardParams make_forward_params(const Problem& problem);

}  // namespace attentile::cuda

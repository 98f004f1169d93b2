// SPDX-License-Identifier: Apache-2.0
// The calls that a GPU is checked and looked at with, as cases of the conformance table.
#pragma once

#include <vector>

#include "conformance/case.h"

namespace attentile::gpu {

// Small, one for each feature and class of head_dim.
std::vector<conformance::Case> short_cases();
// Several blocks each, some that share a row or a gradient among blocks.
std::vector<conformance::Case> repeated_cases();
// Of one batch entry: it is repeated until the tensors are wide.
std::vector<conformance::Case> wide_cases();
// As large as models are.
std::vector<conformance::Case> profiled_cases();

}  // namespace attentile::gpu

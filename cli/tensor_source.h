// SPDX-License-Identifier: Apache-2.0
// Reads, or makes, the input tensors of a request, as they are stored. Internal to tensors.cc.
#pragma once

#include "cli/tensors.h"

namespace attentile::cli {

io::TensorMap read_inputs(const TensorRequest& request);

}  // namespace attentile::cli

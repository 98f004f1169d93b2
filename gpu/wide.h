// SPDX-License-Identifier: Apache-2.0
// Tensors of more elements than 32 bits count.
#pragma once

#include "conformance/case.h"
#include "cuda/backend_table.h"

namespace attentile::gpu {

// Prints the elements of the call's largest tensor and the bytes of all of them, workspace too,
// where that has `elements` at least; 1 if they are more than a GPU of 141 GB holds with ease.
int check_size(const conformance::Case& c, int64_t elements);

// The same call on the device, its first, middle and last entry bit for bit as the small one's.
// Returns 1 after a failed check.
int run_wide(const cuda::BackendTable& table, const conformance::Case& c, int64_t elements);

}  // namespace attentile::gpu

// SPDX-License-Identifier: Apache-2.0
// What the writers of all formats share: the checks of a view, and its elements in row-major order.
#pragma once

#include <string>

#include "attentile/status.h"
#include "attentile/tensor.h"
#include "io/atomic_file.h"

namespace attentile::io {

// What is wrong with a view that is to be written, or an empty string.
std::string fault_of(const TensorView& view);

// Writes the elements of a view without fault; a strided one is gathered piece by piece.
Status write_elements(AtomicFile& file, const TensorView& view);

}  // namespace attentile::io

// SPDX-License-Identifier: Apache-2.0
// The emulated backend in the place of a GPU, for a whole test program.
#pragma once

#include <cstdlib>

#include "cuda/load.h"

namespace attentile::cuda::test {

inline void use_emulated_backend() {
  setenv(kLibraryVariable, ATTENTILE_BINARY_DIR "/libattentile_cuda_emulated.so", 0);
}

}  // namespace attentile::cuda::test

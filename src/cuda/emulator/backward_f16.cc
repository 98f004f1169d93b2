// SPDX-License-Identifier: Apache-2.0
// The kernels of the backward pass for float16, compiled for the host.
#include "cuda/emulator/backward_of.h"

namespace attentile::cuda::emulator {

template Report start_backward_of<Float16>(Device&, const BackwardParams&);

}  // namespace attentile::cuda::emulator

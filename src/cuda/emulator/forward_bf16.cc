// SPDX-License-Identifier: Apache-2.0
// The kernels of the forward pass for bfloat16, compiled for the host.
#include "cuda/emulator/forward_of.h"

namespace attentile::cuda::emulator {

template Report start_forward_of<BFloat16>(Device&, const ForwardParams&);

}  // namespace attentile::cuda::emulator

// SPDX-License-Identifier: Apache-2.0
// The kernels of the forward pass for float32, compiled for GPUs.
#include "cuda/gpu/forward_of.h"

namespace attentile::cuda::gpu {

template int32_t start_forward_of<float>(const ForwardParams&, void*, Sentence*);

}  // namespace attentile::cuda::gpu

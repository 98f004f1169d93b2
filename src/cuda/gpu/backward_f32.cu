// SPDX-License-Identifier: Apache-2.0
// The kernels of the backward pass for float32, compiled for GPUs.
#include "cuda/gpu/backward_of.h"

namespace attentile::cuda::gpu {

template int32_t start_backward_of<float>(const BackwardParams&, void*, Sentence*);

}  // namespace attentile::cuda::gpu

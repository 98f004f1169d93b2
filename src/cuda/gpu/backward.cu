// SPDX-License-Identifier: Apache-2.0
// The kernels of the backward pass, compiled for GPUs.
#include "cuda/gpu/runtime.h"
#include "cuda/library_passes.h"

namespace attentile::cuda {

template int32_t library_backward<gpu::Runtime>(DType, const BackwardParams*, void*, Sentence*);

}  // namespace attentile::cuda

// SPDX-License-Identifier: Apache-2.0
// Every forward kernel as nvcc sees it: tools/check_cuda_compile.py compiles this file.
#include "cuda/forward_kernels.h"

namespace attentile::cuda {

cudaError_t start_forward(DType dtype, const ForwardParams& params, cudaStream_t stream) {
  return with_forward_kernel(dtype, params, [&]<class Kernel>() {
    const uint32_t blocks = static_cast<uint32_t>(forward_blocks<Kernel>(params));
    return launch<Kernel>({blocks}, Kernel::kSharedBytes, params, stream);
  });
}

}  // namespace attentile::cuda

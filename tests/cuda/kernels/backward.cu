// SPDX-License-Identifier: Apache-2.0
// Every backward kernel as nvcc sees it: tools/check_cuda_compile.py compiles this file.
#include "cuda/backward_kernels.h"

namespace attentile::cuda {

cudaError_t start_backward(DType dtype, const BackwardParams& params, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  backward_pass(dtype, params, [&]<class Kernel>(int64_t blocks, const auto& kernel_params) {
    error = launch<Kernel>({static_cast<uint32_t>(blocks)}, Kernel::kSharedBytes, kernel_params,
                           stream);
    return error == cudaSuccess;
  });
  return error;
}

}  // namespace attentile::cuda

// SPDX-License-Identifier: Apache-2.0
// The kernels of the tests as nvcc sees them: tools/check_cuda_compile.py compiles this file.
#include "cuda/kernels/gemm.h"
#include "cuda/kernels/instructions.h"

namespace attentile::cuda::test {

template <class Kernel>
cudaError_t start(const typename Kernel::Params& params, cudaStream_t stream) {
  return launch<Kernel>({1, 1, 1}, Kernel::kSharedBytes, params, stream);
}

template cudaError_t start<Gemm<BFloat16>>(const Gemm<BFloat16>::Params&, cudaStream_t);
template cudaError_t start<Gemm<Float16>>(const Gemm<Float16>::Params&, cudaStream_t);
template cudaError_t start<Gemm<Float16, true>>(const Gemm<Float16, true>::Params&, cudaStream_t);
template cudaError_t start<Instructions<BFloat16>>(const Instructions<BFloat16>::Params&,
                                                   cudaStream_t);
template cudaError_t start<Instructions<Float16>>(const Instructions<Float16>::Params&,
                                                  cudaStream_t);

}  // namespace attentile::cuda::test

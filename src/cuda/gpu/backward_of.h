// SPDX-License-Identifier: Apache-2.0
// The backward pass of one type on a GPU; each is compiled by itself.
#pragma once

#include "cuda/backward_kernels.h"
#include "cuda/gpu/runtime.h"

namespace attentile::cuda::gpu {

template <class T>
int32_t start_backward_of(const BackwardParams& params, void* stream, Sentence* sentence) {
  int32_t code = 0;
  backward_pass<T>(params, [&]<class Kernel>(int64_t blocks, const auto& kernel_params) {
    code = Runtime::launch<Kernel>(blocks, kernel_params, stream, sentence);
    return code == 0;
  });
  return code;
}

}  // namespace attentile::cuda::gpu

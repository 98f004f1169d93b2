// SPDX-License-Identifier: Apache-2.0
// The forward pass of one type on a GPU; each is compiled by itself.
#pragma once

#include "cuda/forward_kernels.h"
#include "cuda/gpu/runtime.h"

namespace attentile::cuda::gpu {

template <class T>
int32_t start_forward_of(const ForwardParams& params, void* stream, Sentence* sentence) {
  int32_t code = 0;
  forward_pass<T>(params, [&]<class Kernel>(int64_t blocks, const auto& kernel_params) {
    code = Runtime::launch<Kernel>(blocks, kernel_params, stream, sentence);
    return code == 0;
  });
  return code;
}

}  // namespace attentile::cuda::gpu

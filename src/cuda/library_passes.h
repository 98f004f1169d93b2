// SPDX-License-Identifier: Apache-2.0
// Both passes over a Runtime: its launch<Kernel>(blocks, params, stream, sentence) starts one.
#pragma once

#include "cuda/backward_kernels.h"
#include "cuda/forward_kernels.h"
#include "cuda/library.h"

namespace attentile::cuda {

template <class Runtime>
int32_t library_forward(DType dtype, const ForwardParams* params, void* stream,
                        Sentence* sentence) {
  int32_t code = 0;
  forward_pass(dtype, *params, [&]<class Kernel>(int64_t blocks, const auto& kernel_params) {
    code = Runtime::template launch<Kernel>(blocks, kernel_params, stream, sentence);
    return code == 0;
  });
  return code;
}

template <class Runtime>
int32_t library_backward(DType dtype, const BackwardParams* params, void* stream,
                         Sentence* sentence) {
  int32_t code = 0;
  backward_pass(dtype, *params, [&]<class Kernel>(int64_t blocks, const auto& kernel_params) {
    code = Runtime::template launch<Kernel>(blocks, kernel_params, stream, sentence);
    return code == 0;
  });
  return code;
}

}  // namespace attentile::cuda

// SPDX-License-Identifier: Apache-2.0
// From a dtype to the type that kernels are written over.
#pragma once

#include "attentile/tensor.h"
#include "cuda/device/arithmetic.h"

namespace attentile::cuda {

// what.template operator()<T>() for the type of a dtype.
template <class What>
auto with_kernel_type(DType dtype, What&& what) {
  if (dtype == DType::kFloat32) return what.template operator()<float>();
  return dtype == DType::kFloat16 ? what.template operator()<Float16>()
                                  : what.template operator()<BFloat16>();
}

}  // namespace attentile::cuda

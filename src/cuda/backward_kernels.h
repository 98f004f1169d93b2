// SPDX-License-Identifier: Apache-2.0
// The kernels of the backward pass and their order.
#pragma once

#include "cuda/backward_params.h"
#include "dtype.h"

namespace attentile::cuda {

// The launches of a backward pass, in order, as calls of launch.template operator()<Kernel>(blocks,
// params), which says whether to go on.
template <class Launch>
bool backward_pass(DType, const BackwardParams&, Launch&&) {
  return true;
}

}  // namespace attentile::cuda

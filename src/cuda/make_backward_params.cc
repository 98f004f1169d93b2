// SPDX-License-Identifier: Apache-2.0
#include "cuda/make_backward_params.h"

#include "cuda/make_params.h"

namespace attentile::cuda {

Status check_backward(const Problem&, const DeviceLimits&) {
  return Status(StatusCode::kUnsupported,
                "device: is cuda, but the CUDA kernels compute the forward pass alone");
}

BackwardParams make_backward_params(const Problem& problem, const DeviceLimits& limits) {
  BackwardParams params;
  params.call = make_forward_params(problem, limits);
  return params;
}

int64_t backward_workspace_bytes(const Problem&, const DeviceLimits&) {
  return 0;
}

}  // namespace attentile::cuda

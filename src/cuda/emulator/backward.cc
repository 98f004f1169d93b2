// SPDX-License-Identifier: Apache-2.0
// The backward pass on the emulated GPU; the kernels themselves: backward_f32.cc and its siblings.
#include "cuda/emulator/backward.h"

#include "cuda/emulator/backward_of.h"
#include "cuda/emulator/workspace.h"
#include "cuda/kernel_type.h"
#include "cuda/make_backward_params.h"

namespace attentile::cuda::emulator {

Status run_backward(Device& device, const Problem& problem, Report* report,
                    const DeviceLimits& limits) {
  if (Status status = check_backward(problem, limits); !status.ok()) return status;
  BackwardParams params = make_backward_params(problem, limits);
  Workspace workspace(device, backward_workspace_bytes(problem, limits));
  params.call.workspace = workspace.data();
  const Report all = start_backward(device, problem.dtype, params);
  if (report != nullptr) *report = all;
  if (all.clean()) return Status();
  return Status(StatusCode::kInternal, "emulator: the launch was not clean\n" + all.text());
}

Report start_backward(Device& device, DType dtype, const BackwardParams& params) {
  return with_kernel_type(dtype, [&]<class T>() { return start_backward_of<T>(device, params); });
}

}  // namespace attentile::cuda::emulator

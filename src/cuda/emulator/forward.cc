// SPDX-License-Identifier: Apache-2.0
// The forward pass on the emulated GPU; the kernels themselves: forward_f32.cc and its siblings.
#include "cuda/emulator/forward.h"

#include "cuda/emulator/forward_of.h"
#include "cuda/emulator/workspace.h"
#include "cuda/kernel_type.h"
#include "cuda/make_params.h"

namespace attentile::cuda::emulator {

Status run_forward(Device& device, const Problem& problem, Report* report,
                   const DeviceLimits& limits) {
  if (Status status = check_forward(problem, limits); !status.ok()) return status;
  const Report all = run_forward(device, problem.dtype, make_forward_params(problem, limits));
  if (report != nullptr) *report = all;
  if (all.clean()) return Status();
  return Status(StatusCode::kInternal, "emulator: the launch was not clean\n" + all.text());
}

Report run_forward(Device& device, DType dtype, ForwardParams params) {
  Workspace workspace(device, partial_bytes(params));
  params.workspace = workspace.data();
  return start_forward(device, dtype, params);
}

Report start_forward(Device& device, DType dtype, const ForwardParams& params) {
  return with_kernel_type(dtype, [&]<class T>() { return start_forward_of<T>(device, params); });
}

}  // namespace attentile::cuda::emulator

// SPDX-License-Identifier: Apache-2.0
// The backward pass on the emulated GPU: the kernel table, compiled for the host.
#include "cuda/emulator/backward.h"

#include "cuda/backward_kernels.h"
#include "cuda/emulator/workspace.h"
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
  Report all;
  all.completed = true;  // nothing to do is done
  backward_pass(dtype, params, [&]<class Kernel>(int64_t blocks, const auto& kernel_params) {
    all.add(device.launch<Kernel>({static_cast<uint32_t>(blocks)}, Kernel::kSharedBytes,
                                  kernel_params));
    return all.clean();
  });
  return all;
}

}  // namespace attentile::cuda::emulator

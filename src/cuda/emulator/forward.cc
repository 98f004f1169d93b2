// SPDX-License-Identifier: Apache-2.0
// The forward pass on the emulated GPU: the kernel table, compiled for the host.
#include "cuda/emulator/forward.h"

#include "cuda/forward_kernels.h"
#include "cuda/make_params.h"

namespace attentile::cuda::emulator {

Status run_forward(Device& device, const Problem& problem, Report* report) {
  if (Status status = check_forward(problem); !status.ok()) return status;
  const ForwardParams params = make_forward_params(problem);
  Report result;
  result.completed = true;  // nothing to do is done
  forward_pass(problem.dtype, params, [&]<class Kernel>(int64_t blocks, const auto& kernel_params) {
    result =
        device.launch<Kernel>({static_cast<uint32_t>(blocks)}, Kernel::kSharedBytes, kernel_params);
    return result.clean();
  });
  if (report != nullptr) *report = result;
  if (result.clean()) return Status();
  return Status(StatusCode::kInternal, "emulator: the launch was not clean\n" + result.text());
}

}  // namespace attentile::cuda::emulator

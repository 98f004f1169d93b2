// SPDX-License-Identifier: Apache-2.0
// The backward pass on the emulated GPU: the kernel table, compiled for the host.
#include "cuda/emulator/backward.h"

#include <memory>

#include "cuda/backward_kernels.h"
#include "cuda/make_backward_params.h"

namespace attentile::cuda::emulator {
namespace {

struct alignas(64) Line {
  char byte[64];
};

// The counts of one more launch to those before it.
void add_launch(Report report, Report* sum) {
  report.total.add(sum->total);
  for (const auto& [line, counters] : sum->lines) report.lines[line].add(counters);
  report.switches += sum->switches;
  report.instructions += sum->instructions;
  *sum = std::move(report);
}

}  // namespace

Status run_backward(Device& device, const Problem& problem, Report* report) {
  if (Status status = check_backward(problem); !status.ok()) return status;
  BackwardParams params = make_backward_params(problem);
  const size_t bytes = static_cast<size_t>(backward_workspace_bytes(problem));
  const auto workspace = std::make_unique<Line[]>(bytes / sizeof(Line) + 1);
  params.call.workspace = workspace[0].byte;
  if (bytes > 0) {
    device.register_memory(workspace[0].byte, bytes, {.name = "workspace", .initialised = false});
  }
  Report result;
  result.completed = true;  // nothing to do is done
  backward_pass(problem.dtype, params,
                [&]<class Kernel>(int64_t blocks, const auto& kernel_params) {
                  add_launch(device.launch<Kernel>({static_cast<uint32_t>(blocks)},
                                                   Kernel::kSharedBytes, kernel_params),
                             &result);
                  return result.clean();
                });
  if (bytes > 0) device.forget_memory(workspace[0].byte);
  if (report != nullptr) *report = result;
  if (result.clean()) return Status();
  return Status(StatusCode::kInternal, "emulator: the launch was not clean\n" + result.text());
}

}  // namespace attentile::cuda::emulator

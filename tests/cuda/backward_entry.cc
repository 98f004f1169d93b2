// SPDX-License-Identifier: Apache-2.0
// Registers what a backward call may touch, launches, requires clean reports.
#include "cuda/backward_entry.h"

#include <cstdio>

#include "conformance/call.h"
#include "cuda/emulator/backward.h"
#include "cuda/emulator_entry.h"
#include "cuda/support.h"
#include "validate.h"

namespace attentile::cuda::test {

Status emulate_backward(const CallViews& call, const AttentionOptions& options,
                        const emulator::Options& device_options, emulator::Report* report) {
  const Result<Problem> problem =
      validate_backward(call.inputs, call.outputs, call.gradients, options, Check::kCall);
  if (!problem.ok()) return problem.status();
  Device device(device_options);
  register_call(device, call.inputs, {});
  const std::pair<const char*, const TensorView*> read[] = {{"out", &call.outputs.out},
                                                            {"lse", &call.outputs.lse},
                                                            {"dout", &call.gradients.dout},
                                                            {"dlse", &call.gradients.dlse}};
  for (const auto& [name, view] : read) {
    register_view(device, *view, {.name = name, .writable = false});
  }
  const std::pair<const char*, const TensorView*> written[] = {{"dq", &call.gradients.dq},
                                                               {"dk", &call.gradients.dk},
                                                               {"dv", &call.gradients.dv},
                                                               {"dbias", &call.gradients.dbias},
                                                               {"dsink", &call.gradients.dsink}};
  for (const auto& [name, view] : written) {
    register_view(device, *view, {.name = name, .initialised = false});
  }
  return emulator::run_backward(device, *problem, report);
}

conformance::EntryResult run_both_passes(const conformance::Case& c,
                                         const conformance::Oracle& oracle,
                                         const conformance::Cell& cell, uint64_t layout_seed) {
  using conformance::Placement;
  const Placement placement = layout_seed % 2 == 0 ? Placement::kContiguous : Placement::kRandom;
  conformance::PlacedCall call(c, oracle.given, oracle.slots, layout_seed, placement);
  const emulator::Options device = {.schedule = kSchedules[layout_seed / 2 % 4],
                                    .completion = kCompletions[layout_seed / 8 % 3],
                                    .block_order = kBlockOrders[layout_seed / 32 % 4],
                                    .seed = layout_seed,
                                    .ex2_ulps = ex2_ulps_of(layout_seed)};
  conformance::EntryResult result;
  AttentionOptions options = options_of(c);
  options.atomic_dq = cell.atomic_dq;
  result.status = emulate_forward(call.inputs(), call.outputs(), options, device);
  if (c.backward && result.status.ok()) {
    call.freeze_outputs();
    result.status =
        emulate_backward({call.inputs(), call.outputs(), call.gradients()}, options, device);
  }
  if (!result.status.ok()) return result;
  result.damage = call.damage();
  result.results = call.results();
  return result;
}

void print_counts(int64_t head_dim, const emulator::Report& report) {
  const auto print = [](uint64_t count) { return static_cast<unsigned long long>(count); };
  const auto& total = report.total;
  std::printf("head_dim %3llu: mma %6llu, ex2 %6llu, wavefronts %6llu, conflicts %llu, read %llu, ",
              print(static_cast<uint64_t>(head_dim)), print(total.mma), print(total.ex2),
              print(total.shared_wavefronts), print(total.bank_conflicts),
              print(total.global_read_bytes));
  std::printf("written %llu\n", print(total.global_written_bytes));
}

}  // namespace attentile::cuda::test

// SPDX-License-Identifier: Apache-2.0
// Registers what a call may touch, launches, requires a clean report.
#include "cuda/emulator_entry.h"

#include "conformance/call.h"
#include "cuda/emulator/forward.h"
#include "cuda/make_params.h"
#include "cuda/support.h"
#include "validate.h"

namespace attentile::cuda::test {

void register_view(Device& device, const TensorView& view, const emulator::Region& region) {
  if (!view.present()) return;
  int64_t first = 0;
  int64_t last = 0;
  for (int axis = 0; axis < view.rank; ++axis) {
    if (view.shape[axis] == 0) return;
    if (view.shape[axis] == 1) continue;
    const int64_t span = (view.shape[axis] - 1) * view.stride[axis];
    (span < 0 ? first : last) += span;
  }
  const int64_t width = size_of(view.dtype);
  device.register_memory(static_cast<const char*>(view.data) + first * width,
                         static_cast<size_t>((last - first + 1) * width), region);
}

void register_call(Device& device, const AttentionInputs& inputs, const AttentionOutputs& outputs) {
  const std::pair<const char*, const TensorView*> read[] = {
      {"q", &inputs.q},
      {"k", &inputs.k},
      {"v", &inputs.v},
      {"bias", &inputs.bias},
      {"mask", &inputs.mask},
      {"sink", &inputs.sink},
      {"alibi_slopes", &inputs.alibi_slopes},
      {"cu_seqlens_q", &inputs.cu_seqlens_q},
      {"cu_seqlens_k", &inputs.cu_seqlens_k},
      {"seqused_k", &inputs.seqused_k},
      {"block_table", &inputs.block_table},
      {"cache_batch_idx", &inputs.cache_batch_idx},
      {"leftpad_k", &inputs.leftpad_k},
  };
  for (const auto& [name, view] : read) {
    register_view(device, *view, {.name = name, .writable = false});
  }
  register_view(device, outputs.out, {.name = "out", .initialised = false});
  register_view(device, outputs.lse, {.name = "lse", .initialised = false});
  register_view(device, outputs.keep, {.name = "keep", .initialised = false});
}

Status emulate_forward(const AttentionInputs& inputs, const AttentionOutputs& outputs,
                       const AttentionOptions& options, const emulator::Options& device_options,
                       emulator::Report* report, const ChangeParams& change) {
  const Result<Problem> problem = validate_forward(inputs, outputs, options, Check::kCall);
  if (!problem.ok()) return problem.status();
  Device device(device_options);
  register_call(device, inputs, outputs);
  if (!change) return emulator::run_forward(device, *problem, report);
  if (Status status = check_forward(*problem); !status.ok()) return status;
  ForwardParams params = make_forward_params(*problem);
  change(params);
  const Report done = emulator::run_forward(device, problem->dtype, params);
  if (report != nullptr) *report = done;
  return done.clean() ? Status() : Status(StatusCode::kInternal, done.text());
}

ChangeParams split_by(int32_t keys) {
  return [keys](ForwardParams& params) {
    params.split_keys = keys;
    params.num_splits = static_cast<int32_t>(
        std::max<int64_t>(1, ceil_div(params.max_seqlen_k + key_phase(params), keys)));
  };
}

void one_head(ForwardParams& params) {
  params.few_queries = 0;
  params.num_splits = 1;
}

void packed(ForwardParams& params) {
  one_head(params);
  params.all_packed = true;
}

int ex2_ulps_of(uint64_t layout_seed) {
  constexpr int kUlps[] = {0, 2, -2};
  return kUlps[layout_seed % 3];
}

conformance::EntryResult run_emulator(const conformance::Case& c, const conformance::Oracle& oracle,
                                      const conformance::Cell&, uint64_t layout_seed) {
  using conformance::Placement;
  const Placement placement = layout_seed % 2 == 0 ? Placement::kContiguous : Placement::kRandom;
  conformance::PlacedCall call(c, oracle.given, oracle.slots, layout_seed, placement);
  const emulator::Options device = {.schedule = kSchedules[layout_seed / 2 % 4],
                                    .completion = kCompletions[layout_seed / 8 % 3],
                                    .block_order = kBlockOrders[layout_seed / 32 % 4],
                                    .seed = layout_seed,
                                    .ex2_ulps = ex2_ulps_of(layout_seed)};
  conformance::EntryResult result;
  const ChangeParams changes[] = {{}, split_by(64), one_head, packed};
  const ChangeParams& change = changes[layout_seed / 128 % 4];
  result.status =
      emulate_forward(call.inputs(), call.outputs(), options_of(c), device, nullptr, change);
  if (!result.status.ok()) return result;
  result.damage = call.damage();
  result.results = call.results();
  return result;
}

}  // namespace attentile::cuda::test

// SPDX-License-Identifier: Apache-2.0
#include "cli/device_plan.h"

#include <fmt/format.h>

#include "cli/error.h"
#include "cli/numbers.h"
#include "io/device_call.h"
#include "validate.h"

namespace attentile::cli {
namespace {

const std::vector<Choice<cuda::DeviceLimits>> kGpus = {
    {"a100", {.num_sms = 108, .shared_bytes_per_block = 163 * 1024}},
    {"h200", {.num_sms = 132, .shared_bytes_per_block = 227 * 1024}}};

// The call with its tensors said to be on a GPU.
CallTensors on_device(const CallTensors& call) {
  CallTensors moved;
  moved.inputs = call.inputs;
  moved.outputs = call.outputs;
  moved.gradients = call.gradients;
  io::set_device(moved.inputs, moved.outputs, moved.gradients, Device::kCuda);
  return moved;
}

}  // namespace

AttentionOptions device_options(const CallTensors& call, AttentionOptions options) {
  const Problem problem = take(validate_forward(call.inputs, call.outputs, options, Check::kPlan));
  options.max_seqlen_q = problem.max_seqlen_q;
  options.max_seqlen_k = problem.max_seqlen_k;
  return options;
}

Plan plan_on_device(const CallTensors& call, const AttentionOptions& options, bool backward) {
  const CallTensors there = on_device(call);
  Plan plan = take(backward ? plan_backward(there.inputs, there.outputs, there.gradients, options)
                            : plan_forward(there.inputs, there.outputs, options));
  const Plan here =
      take(backward ? plan_backward(call.inputs, call.outputs, call.gradients, options)
                    : plan_forward(call.inputs, call.outputs, options));
  plan.visible_pairs = here.visible_pairs;
  plan.flops = here.flops;
  return plan;
}

void declare_gpu(Arguments& arguments) {
  arguments.value("--gpu", "NAME",
                  "a100 or h200: what a call launches there; none need be at hand");
}

std::optional<Gpu> read_gpu(const Arguments& arguments) {
  const std::string* name = arguments.find("--gpu");
  if (name == nullptr) return std::nullopt;
  return Gpu{*name, choose(arguments, "--gpu", kGpus, cuda::DeviceLimits{})};
}

std::vector<GpuPass> plan_for_gpu(const Gpu& gpu, const CallTensors& call,
                                  const AttentionOptions& options, bool backward) {
  const CallTensors there = on_device(call);
  const AttentionOptions with = device_options(call, options);
  const Problem forward = take(validate_forward(there.inputs, there.outputs, with, Check::kPlan));
  std::vector<GpuPass> passes = {{"forward", take(cuda::make_plan(forward, gpu.limits))}};
  if (!backward) return passes;
  const Problem problem =
      take(validate_backward(there.inputs, there.outputs, there.gradients, with, Check::kPlan));
  passes.push_back({"backward", take(cuda::make_plan(problem, gpu.limits))});
  return passes;
}

Json gpu_facts(const Gpu& gpu, const std::vector<GpuPass>& passes) {
  Json json = {{"name", gpu.name},
               {"num_sms", gpu.limits.num_sms},
               {"shared_bytes_per_block", gpu.limits.shared_bytes_per_block}};
  for (const GpuPass& pass : passes) {
    Json launches = Json::array();
    for (const cuda::LaunchPlan& launch : pass.plan.launches) {
      launches.push_back({{"kernel", launch.kernel},
                          {"blocks", launch.blocks},
                          {"threads", launch.threads},
                          {"shared_bytes", launch.shared_bytes},
                          {"tile_m", launch.tile_m},
                          {"tile_n", launch.tile_n},
                          {"blocks_per_sm", launch.blocks_per_sm(gpu.limits)}});
    }
    json[pass.name] = {{"launches", launches}, {"workspace_bytes", pass.plan.workspace_bytes}};
  }
  return json;
}

void print_gpu(std::FILE* out, const Gpu& gpu, const std::vector<GpuPass>& passes) {
  fmt::print(out, "{}: {} SMs, {} of shared memory for a block\n", gpu.name, gpu.limits.num_sms,
             bytes_words(gpu.limits.shared_bytes_per_block));
  for (const GpuPass& pass : passes) {
    fmt::print(out, "\n{}, workspace {}\n", pass.name,
               bytes_words(static_cast<double>(pass.plan.workspace_bytes)));
    fmt::print(out, "  {:<36}{:>11}{:>9}{:>9}{:>10}{:>9}{:>10}{:>9}\n", "kernel", "tile", "blocks",
               "threads", "shared", "per SM", "warps/SM", "waves");
    for (const cuda::LaunchPlan& launch : pass.plan.launches) {
      const int per_sm = launch.blocks_per_sm(gpu.limits);
      const double at_once = static_cast<double>(per_sm) * gpu.limits.num_sms;
      fmt::print(out, "  {:<36}{:>11}{:>9}{:>9}{:>10}{:>9}{:>10}{:>9.2f}\n", launch.kernel,
                 fmt::format("{} x {}", launch.tile_m, launch.tile_n), launch.blocks,
                 launch.threads, launch.shared_bytes, per_sm, per_sm * launch.threads / 32,
                 static_cast<double>(launch.blocks) / at_once);
    }
    if (pass.plan.launches.empty()) fmt::print(out, "  nothing to do\n");
  }
  fmt::print(out,
             "\nper SM: blocks that threads and shared memory allow; registers may allow fewer\n");
}

}  // namespace attentile::cli

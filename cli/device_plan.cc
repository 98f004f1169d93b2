// SPDX-License-Identifier: Apache-2.0
#include "cli/device_plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/error.h"
#include "cli/numbers.h"
#include "cpu/traffic.h"
#include "cuda/kernel_facts.h"
#include "io/device_call.h"
#include "validate.h"

namespace attentile::cli {
namespace {

// SXM boards: SMs, shared memory of a block; data-sheet peaks.
const std::vector<Choice<Gpu>> kGpus = {
    {"a100",
     {"a100", {.num_sms = 108, .shared_bytes_per_block = 163 * 1024}, 80, 312e12, 2.039e12}},
    {"h200", {"h200", {.num_sms = 132, .shared_bytes_per_block = 227 * 1024}, 90, 989e12, 4.8e12}}};

// Useful flops, and bytes if every tensor crosses device memory once.
GpuPass least_work(const char* name, const Problem& p) {
  const double pairs = static_cast<double>(cpu::count_visible_pairs(p));
  const double columns = static_cast<double>(p.head_dim + p.head_dim_v);
  const double rows_q = static_cast<double>(p.total_q) * static_cast<double>(p.num_heads_q);
  const double rows_k = static_cast<double>(p.total_k) * static_cast<double>(p.num_heads_kv);
  const double elements = (p.backward ? 2 : 1) * columns * (rows_q + rows_k);  // and gradients
  GpuPass pass = {.name = name, .plan = {}};
  pass.flops = 2 * pairs * (p.backward ? columns + columns + p.head_dim : columns);
  pass.bytes = elements * static_cast<double>(size_of(p.dtype)) + 4 * rows_q;
  return pass;
}

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
  return choose(arguments, "--gpu", kGpus, Gpu{});
}

std::vector<GpuPass> plan_for_gpu(const Gpu& gpu, const CallTensors& call,
                                  const AttentionOptions& options, bool backward) {
  const CallTensors there = on_device(call);
  const AttentionOptions with = device_options(call, options);
  const Problem forward = take(validate_forward(there.inputs, there.outputs, with, Check::kPlan));
  // Where the lengths are in the index arrays, those here tell how many pairs there are.
  const Problem here = take(validate_forward(call.inputs, call.outputs, options, Check::kPlan));
  std::vector<GpuPass> passes = {least_work("forward", here)};
  passes[0].plan = take(cuda::make_plan(forward, gpu.limits));
  if (!backward) return passes;
  const Problem problem =
      take(validate_backward(there.inputs, there.outputs, there.gradients, with, Check::kPlan));
  passes.push_back(least_work(
      "backward",
      take(validate_backward(call.inputs, call.outputs, call.gradients, options, Check::kPlan))));
  passes[1].plan = take(cuda::make_plan(problem, gpu.limits));
  return passes;
}

namespace {

int32_t blocks_per_sm(const Gpu& gpu, const cuda::LaunchPlan& launch,
                      const cuda::KernelFacts* facts) {
  const int32_t blocks = launch.blocks_per_sm(gpu.limits);
  if (facts == nullptr) return blocks;
  return std::min(blocks, cuda::blocks_by_registers(facts->registers, launch.threads));
}

// Units of an SM and the cycles of each for one tile, the largest of which bounds the kernel.
struct Unit {
  const char* name;
  double cycles;
};
std::vector<Unit> units_of(const cuda::KernelFacts& facts, int32_t threads) {
  const cuda::TileCycles c = cuda::tile_cycles(facts, threads);
  return {{"tensor", c.tensor}, {"issue", c.issue},      {"shared", c.shared},
          {"exp", c.exp},       {"float", c.arithmetic}, {"index", c.index}};
}
const char* bound_of(const std::vector<Unit>& units) {
  return std::ranges::max_element(units, {}, &Unit::cycles)->name;
}

}  // namespace

Json gpu_facts(const Gpu& gpu, const std::vector<GpuPass>& passes) {
  Json json = {{"name", gpu.name},
               {"num_sms", gpu.limits.num_sms},
               {"shared_bytes_per_block", gpu.limits.shared_bytes_per_block},
               {"architecture", gpu.architecture},
               {"peak_flops", gpu.peak_flops},
               {"bytes_per_s", gpu.bytes_per_s}};
  for (const GpuPass& pass : passes) {
    Json launches = Json::array();
    for (const cuda::LaunchPlan& launch : pass.plan.launches) {
      const auto* facts = cuda::find_kernel_facts(launch.kernel, gpu.architecture);
      Json row = {{"kernel", launch.kernel},
                  {"blocks", launch.blocks},
                  {"threads", launch.threads},
                  {"shared_bytes", launch.shared_bytes},
                  {"tile_m", launch.tile_m},
                  {"tile_n", launch.tile_n},
                  {"blocks_per_sm", blocks_per_sm(gpu, launch, facts)}};
      if (facts != nullptr) row["registers"] = facts->registers;
      if (facts != nullptr && facts->tile.mma > 0) {
        const cuda::TileInstructions& t = facts->tile;
        row["tile_instructions"] = {{"mma", t.mma},          {"ldmatrix", t.ldmatrix},
                                    {"copy", t.copy},        {"exp", t.exp},
                                    {"float", t.arithmetic}, {"memory", t.memory},
                                    {"shuffle", t.shuffle},  {"control", t.control},
                                    {"index", t.index},      {"total", t.total()}};
        const std::vector<Unit> units = units_of(*facts, launch.threads);
        for (const Unit& unit : units) row["tile_cycles"][unit.name] = unit.cycles;
        row["bound"] = bound_of(units);
      }
      launches.push_back(row);
    }
    json[pass.name] = {{"launches", launches},
                       {"workspace_bytes", pass.plan.workspace_bytes},
                       {"flops", pass.flops},
                       {"bytes", pass.bytes}};
  }
  return json;
}

namespace {

void print_launches(std::FILE* out, const Gpu& gpu, const GpuPass& pass) {
  fmt::print(out, "  {:<32}{:>10}{:>8}{:>9}{:>9}{:>11}{:>8}{:>10}{:>8}\n", "kernel", "tile",
             "blocks", "threads", "shared", "registers", "per SM", "warps/SM", "waves");
  for (const cuda::LaunchPlan& launch : pass.plan.launches) {
    const auto* facts = cuda::find_kernel_facts(launch.kernel, gpu.architecture);
    const int per_sm = blocks_per_sm(gpu, launch, facts);
    const double at_once = static_cast<double>(per_sm) * gpu.limits.num_sms;
    fmt::print(out, "  {:<32}{:>10}{:>8}{:>9}{:>9}{:>11}{:>8}{:>10}{:>8.2f}\n", launch.kernel,
               fmt::format("{} x {}", launch.tile_m, launch.tile_n), launch.blocks, launch.threads,
               launch.shared_bytes, facts == nullptr ? "-" : fmt::format("{}", facts->registers),
               per_sm, per_sm * launch.threads / 32, static_cast<double>(launch.blocks) / at_once);
  }
  if (pass.plan.launches.empty()) fmt::print(out, "  nothing to do\n");
}

void print_tiles(std::FILE* out, const Gpu& gpu, const GpuPass& pass) {
  bool first = true;
  for (const cuda::LaunchPlan& launch : pass.plan.launches) {
    const auto* facts = cuda::find_kernel_facts(launch.kernel, gpu.architecture);
    if (facts == nullptr || facts->tile.mma == 0) continue;
    const cuda::TileInstructions& t = facts->tile;
    if (first) {
      fmt::print(out, "  {:<32}{:>6}{:>10}{:>6}{:>6}{:>7}{:>8}{:>9}{:>7}{:>7}\n",
                 "instructions of a warp, a tile", "mma", "ldmatrix", "copy", "exp", "float",
                 "memory", "control", "index", "all");
    }
    first = false;
    fmt::print(out, "  {:<32}{:>6}{:>10}{:>6}{:>6}{:>7}{:>8}{:>9}{:>7}{:>7}\n", launch.kernel,
               t.mma, t.ldmatrix, t.copy, t.exp, t.arithmetic, t.memory, t.shuffle + t.control,
               t.index, t.total());
    const std::vector<Unit> units = units_of(*facts, launch.threads);
    std::string cycles;
    for (const Unit& unit : units) cycles += fmt::format("{} {:.0f}, ", unit.name, unit.cycles);
    fmt::print(out, "    cycles of an SM, a tile of a block: {}{}\n", cycles,
               launch.kernel.starts_with("AtomicGradients")
                   ? "the additions to memory not counted"
                   : std::string("bound by ") + bound_of(units));
  }
}

}  // namespace

void print_gpu(std::FILE* out, const Gpu& gpu, const std::vector<GpuPass>& passes) {
  fmt::print(out, "{}: {} SMs, {} of shared memory for a block; {:.0f} TFLOP/s, {:.1f} TB/s\n",
             gpu.name, gpu.limits.num_sms, bytes_words(gpu.limits.shared_bytes_per_block),
             gpu.peak_flops / 1e12, gpu.bytes_per_s / 1e12);
  for (const GpuPass& pass : passes) {
    const double intensity = pass.flops / pass.bytes;
    const double ridge = gpu.peak_flops / gpu.bytes_per_s;
    fmt::print(out, "\n{}, workspace {}; {:.0f} flops a byte, {} by {} (ridge {:.0f})\n", pass.name,
               bytes_words(static_cast<double>(pass.plan.workspace_bytes)), intensity, "bound",
               intensity < ridge ? "memory" : "products", ridge);
    print_launches(out, gpu, pass);
    print_tiles(out, gpu, pass);
  }
  fmt::print(out,
             "\nregisters and instructions: ptxas and disassembly of nvcc 13.0; cycles: each unit "
             "alone at its\npeak rate; no figure of time is predicted\n");
}

}  // namespace attentile::cli

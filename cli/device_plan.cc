// SPDX-License-Identifier: Apache-2.0
#include "cli/device_plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/error.h"
#include "cli/numbers.h"
#include "cpu/traffic.h"
#include "cuda/kernel_facts.h"
#include "cuda/make_backward_params.h"
#include "io/device_call.h"
#include "validate.h"

namespace attentile::cli {
namespace {

// SXM boards: SMs, shared memory of a block; data-sheet peaks.
const std::vector<Choice<Gpu>> kGpus = {
    {"a100",
     {.name = "a100",
      .limits = {.num_sms = 108, .shared_bytes_per_block = 163 * 1024},
      .architecture = 80,
      .peak_flops = 312e12,
      .peak_flops_f32 = 19.5e12,
      .bytes_per_s = 2.039e12}},
    {"h200",
     {.name = "h200",
      .limits = {.num_sms = 132, .shared_bytes_per_block = 227 * 1024},
      .architecture = 90,
      .peak_flops = 989e12,
      .peak_flops_f32 = 67e12,
      .bytes_per_s = 4.8e12}}};

// Of a bias or mask, (batch, head, query, key); what broadcasts is there once.
double bytes_of(const Array4& array, const Problem& p) {
  if (!array.present) return 0;
  const int64_t extents[4] = {p.batch, p.num_heads_q, p.max_seqlen_q, p.max_seqlen_k};
  double bytes = static_cast<double>(size_of(array.dtype));
  for (int axis = 0; axis < 4; ++axis) {
    if (array.stride[axis] != 0) bytes *= static_cast<double>(extents[axis]);
  }
  return bytes;
}

// Useful flops, and bytes if every tensor crosses device memory once.
GpuPass least_work(const char* name, const Gpu& gpu, const Problem& p) {
  const double pairs = static_cast<double>(cpu::count_visible_pairs(p));
  const double columns = static_cast<double>(p.head_dim + p.head_dim_v);
  const double rows_q = static_cast<double>(p.total_q) * static_cast<double>(p.num_heads_q);
  const double rows_k = static_cast<double>(p.total_k) * static_cast<double>(p.num_heads_kv);
  const double elements = (p.backward ? 2 : 1) * columns * (rows_q + rows_k);  // and gradients
  GpuPass pass = {.name = name, .plan = {}, .note = {}};
  pass.flops = 2 * pairs * (p.backward ? columns + columns + p.head_dim : columns);
  pass.bytes = elements * static_cast<double>(size_of(p.dtype)) + 4 * rows_q;
  for (const Array4* array : {&p.bias, &p.dbias, &p.mask, &p.keep}) {
    pass.bytes += bytes_of(*array, p);
  }
  pass.peak_flops = gpu.peak_flops_of(p.dtype);
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
  std::vector<GpuPass> passes = {least_work("forward", gpu, here)};
  passes[0].plan = take(cuda::make_plan(forward, gpu.limits));
  if (!backward) return passes;
  const Problem problem =
      take(validate_backward(there.inputs, there.outputs, there.gradients, with, Check::kPlan));
  passes.push_back(least_work(
      "backward", gpu,
      take(validate_backward(call.inputs, call.outputs, call.gradients, options, Check::kPlan))));
  passes[1].plan = take(cuda::make_plan(problem, gpu.limits));
  const char* why = problem.atomic_dq ? cuda::why_ordered_dq(problem) : nullptr;
  if (why != nullptr) passes[1].note = std::string("atomic_dq: not used: ") + why;
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
std::vector<Unit> units_of(const cuda::TileCycles& c) {
  return {{"tensor", c.tensor}, {"issue", c.issue},      {"shared", c.shared},
          {"exp", c.exp},       {"float", c.arithmetic}, {"index", c.index}};
}

// A full tile of a kernel: its machine code, and what the emulator counts.
struct Tile {
  cuda::TileInstructions instructions;
  cuda::TileCounts counts;
  std::vector<Unit> units;

  // Not known of kernels that add to memory in their loop, at a rate which no data sheet tells.
  const char* bound() const {
    if (counts.written_bytes > 0) return nullptr;
    return std::ranges::max_element(units, {}, &Unit::cycles)->name;
  }
};
std::optional<Tile> find_tile(const Gpu& gpu, const cuda::LaunchPlan& launch) {
  const auto* facts = cuda::find_kernel_facts(launch.kernel, gpu.architecture);
  const auto* counts = cuda::find_tile_counts(launch.kernel);
  if (facts == nullptr || counts == nullptr) return std::nullopt;
  return Tile{facts->tile, *counts,
              units_of(cuda::tile_cycles(*facts, *counts, launch.threads,
                                         blocks_per_sm(gpu, launch, facts)))};
}

Json tile_facts(const Tile& tile) {
  const cuda::TileInstructions& t = tile.instructions;
  const cuda::TileCounts& c = tile.counts;
  Json json = {{"tile_instructions",
                {{"mma", t.mma},
                 {"ldmatrix", t.ldmatrix},
                 {"copy", t.copy},
                 {"exp", t.exp},
                 {"float", t.arithmetic},
                 {"memory", t.memory},
                 {"shuffle", t.shuffle},
                 {"control", t.control},
                 {"index", t.index},
                 {"total", t.total()}}},
               {"tile_counts",
                {{"mma", c.mma},
                 {"ex2", c.ex2},
                 {"copies", c.copies},
                 {"shared_wavefronts", c.shared_wavefronts},
                 {"bank_conflicts", c.bank_conflicts},
                 {"read_bytes", c.read_bytes},
                 {"read_sectors", c.read_sectors},
                 {"written_bytes", c.written_bytes},
                 {"written_sectors", c.written_sectors}}},
               {"bound", nullptr}};
  if (tile.bound() != nullptr) json["bound"] = tile.bound();
  for (const Unit& unit : tile.units) json["tile_cycles"][unit.name] = unit.cycles;
  return json;
}

}  // namespace

Json gpu_facts(const Gpu& gpu, const std::vector<GpuPass>& passes) {
  Json json = {{"name", gpu.name},
               {"num_sms", gpu.limits.num_sms},
               {"shared_bytes_per_block", gpu.limits.shared_bytes_per_block},
               {"architecture", gpu.architecture},
               {"peak_flops", passes.front().peak_flops},
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
      if (const std::optional<Tile> tile = find_tile(gpu, launch)) row.update(tile_facts(*tile));
      launches.push_back(row);
    }
    json[pass.name] = {{"launches", launches},
                       {"workspace_bytes", pass.plan.workspace_bytes},
                       {"flops", pass.flops},
                       {"bytes", pass.bytes},
                       {"note", pass.note}};
  }
  return json;
}

namespace {

using Row = std::vector<std::string>;

// The first column to the left, the others to the right, as wide as their words.
void print_table(std::FILE* out, const std::vector<Row>& rows) {
  std::vector<size_t> widths(rows.front().size(), 0);
  for (const Row& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (const Row& row : rows) {
    std::string line = fmt::format("  {:<{}}", row[0], widths[0]);
    for (size_t i = 1; i < row.size(); ++i) line += fmt::format("  {:>{}}", row[i], widths[i]);
    fmt::print(out, "{}\n", line);
  }
}

void print_launches(std::FILE* out, const Gpu& gpu, const GpuPass& pass) {
  std::vector<Row> rows = {{"kernel", "tile", "blocks", "threads", "shared", "registers", "per SM",
                            "warps/SM", "waves"}};
  for (const cuda::LaunchPlan& launch : pass.plan.launches) {
    const auto* facts = cuda::find_kernel_facts(launch.kernel, gpu.architecture);
    const int per_sm = blocks_per_sm(gpu, launch, facts);
    const double at_once = static_cast<double>(per_sm) * gpu.limits.num_sms;
    rows.push_back({launch.kernel,
                    launch.tile_n == 0 ? "-" : fmt::format("{} x {}", launch.tile_m, launch.tile_n),
                    fmt::format("{}", launch.blocks), fmt::format("{}", launch.threads),
                    fmt::format("{}", launch.shared_bytes),
                    facts == nullptr ? "-" : fmt::format("{}", facts->registers),
                    fmt::format("{}", per_sm), fmt::format("{}", per_sm * launch.threads / 32),
                    fmt::format("{:.2f}", static_cast<double>(launch.blocks) / at_once)});
  }
  print_table(out, rows);
}

void print_tiles(std::FILE* out, const Gpu& gpu, const GpuPass& pass) {
  std::vector<Row> mixes = {{"instructions of a warp, a tile", "mma", "ldmatrix", "copy", "exp",
                             "float", "memory", "control", "index", "all"}};
  std::vector<Row> counts = {{"counted of a block, a tile", "mma", "ex2", "wavefronts", "conflicts",
                              "bytes read", "sectors", "bytes written", "sectors"}};
  std::vector<Row> cycles = {{"cycles of an SM, a tile of a block", "tensor", "issue", "shared",
                              "exp", "float", "index", "bound"}};
  const auto add = [](std::vector<Row>& rows, const std::string& kernel,
                      std::initializer_list<int32_t> numbers) {
    rows.push_back({kernel});
    for (const int32_t number : numbers) rows.back().push_back(fmt::format("{}", number));
  };
  for (const cuda::LaunchPlan& launch : pass.plan.launches) {
    const std::optional<Tile> tile = find_tile(gpu, launch);
    if (!tile) continue;
    const cuda::TileInstructions& t = tile->instructions;
    add(mixes, launch.kernel,
        {t.mma, t.ldmatrix, t.copy, t.exp, t.arithmetic, t.memory, t.shuffle + t.control, t.index,
         t.total()});
    const cuda::TileCounts& c = tile->counts;
    add(counts, launch.kernel,
        {c.mma, c.ex2, c.shared_wavefronts, c.bank_conflicts, c.read_bytes, c.read_sectors,
         c.written_bytes, c.written_sectors});
    add(cycles, launch.kernel, {});
    for (const Unit& unit : tile->units) {
      cycles.back().push_back(fmt::format("{:.0f}", unit.cycles));
    }
    cycles.back().emplace_back(tile->bound() == nullptr ? "-" : tile->bound());
  }
  if (mixes.size() == 1) return;
  for (const std::vector<Row>* rows : {&mixes, &counts, &cycles}) {
    fmt::print(out, "\n");
    print_table(out, *rows);
  }
}

void print_pass(std::FILE* out, const Gpu& gpu, const GpuPass& pass) {
  if (pass.plan.launches.empty()) {
    fmt::print(out, "\n{}: nothing to do\n", pass.name);
    return;
  }
  const double intensity = pass.flops / pass.bytes;
  const double ridge = pass.peak_flops / gpu.bytes_per_s;
  fmt::print(out,
             "\n{}, workspace {}; {:.0f} flops a byte, at the peaks bound by {} (ridge {:.0f})\n",
             pass.name, bytes_words(static_cast<double>(pass.plan.workspace_bytes)), intensity,
             intensity < ridge ? "memory" : "products", ridge);
  if (!pass.note.empty()) fmt::print(out, "  {}\n", pass.note);
  print_launches(out, gpu, pass);
  if (pass.flops > 0) print_tiles(out, gpu, pass);
}

}  // namespace

void print_gpu(std::FILE* out, const Gpu& gpu, const std::vector<GpuPass>& passes) {
  fmt::print(out, "{}: {} SMs, {} of shared memory for a block; {:.3g} TFLOP/s, {:.1f} TB/s\n",
             gpu.name, gpu.limits.num_sms, bytes_words(gpu.limits.shared_bytes_per_block),
             passes.front().peak_flops / 1e12, gpu.bytes_per_s / 1e12);
  for (const GpuPass& pass : passes) print_pass(out, gpu, pass);
  fmt::print(
      out,
      "\nTFLOP/s, TB/s: data sheet. Registers, instructions: ptxas and disassembly of nvcc 13.0. "
      "Counted: by the\nemulator; wavefronts of shared memory, sectors of 32 bytes. Cycles: each "
      "unit alone at its peak rate;\nbound: the largest, unless the loop adds to memory. "
      "No figure of time is predicted.\n{}",
      gpu.architecture < 90 ? ""
                            : "The peak of products is that of wgmma; these kernels' mma.sync "
                              "may be slower.\n");
}

}  // namespace attentile::cli

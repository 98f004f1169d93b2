// SPDX-License-Identifier: Apache-2.0
// The public entry points: validate, then the backend. Nothing else.
#include "attentile/attention.h"

#include <new>

#include "cpu/backend.h"
#include "cpu/cpu_info.h"
#include "keep_mask.h"
#include "memory.h"
#include "reference/attention.h"
#include "validate.h"

namespace attentile {
namespace {

Status run(const Result<Problem>& problem, const ExecutionContext& context) {
  if (!problem.ok()) return problem.status();
  if (Status status = validate_context(context); !status.ok()) return status;
  if (problem->algorithm != Algorithm::kReference) return cpu::run(*problem, context);
  return problem->backward ? reference::run_backward(*problem, context)
                           : reference::run_forward(*problem, context);
}

// No exception leaves the library: all it can meet is a failed allocation.
template <class F>
auto guarded(F body) noexcept -> decltype(body()) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return make_status(StatusCode::kOutOfMemory, "out of memory");
  } catch (...) {
    return make_status(StatusCode::kInternal, "an unexpected exception was caught");
  }
}

Traffic forward_traffic(const Problem& problem, const ExecutionContext& context,
                        Algorithm algorithm) {
  Problem variant = problem;
  variant.backward = false;
  variant.algorithm = algorithm;
  const Result<cpu::CpuPlan> plan = cpu::plan_call(variant, context);
  return plan.ok() ? cpu::predict_forward_traffic(variant, *plan) : Traffic{};
}

void add_notes(const Problem& problem, const cpu::CpuPlan& cpu_plan, Plan& plan) {
  const auto note = [&](std::string text) { plan.notes.push_back(std::move(text)); };
  if (plan.algorithm == Algorithm::kFlash1) {
    note("tile_n = ceil(M / 4d) and tile_m = min(tile_n, d) for M = " +
         std::to_string(plan.fast_memory_bytes / 4) + " values of fast memory");
  } else {
    note("tile_m = " + std::to_string(plan.tile_m / cpu_plan.panel_rows_max) + " panels of " +
         std::to_string(cpu_plan.panel_rows_max) + " queries in " + std::to_string(cpu_plan.lanes) +
         "-lane registers share each key tile");
  }
  if (plan.algorithm == Algorithm::kStandard) {
    note("flash2 does not run: the algorithm was set to standard, which materialises the scores");
  } else if (plan.algorithm == Algorithm::kFlash1) {
    note(
        "flash2 does not run: the algorithm was set to flash1, which rewrites O once per key tile");
  }
  for (Isa isa : cpu::isa_priority()) {
    if (isa == plan.isa) break;
    const char* why = cpu::find_kernels(isa, cpu::is_wide(problem)) == nullptr
                          ? "this build has no kernels for it"
                          : (cpu::cpu_supports(isa) ? "another instruction set was asked for"
                                                    : "this machine does not have it");
    note(std::string(to_string(isa)) + " does not run: " + why);
  }
}

Result<Plan> make_public_plan(const Result<Problem>& problem, const ExecutionContext& context) {
  if (!problem.ok()) return problem.status();
  if (Status status = validate_context(context); !status.ok()) return status;
  Plan plan;
  plan.backward = problem->backward;
  plan.algorithm = problem->algorithm;
  plan.visible_pairs = cpu::count_visible_pairs(*problem);
  const double width = problem->backward ? 3.0 * problem->head_dim + 2.0 * problem->head_dim_v
                                         : 1.0 * problem->head_dim + problem->head_dim_v;
  plan.flops = 2.0 * width * static_cast<double>(plan.visible_pairs);
  plan.traffic_standard = forward_traffic(*problem, context, Algorithm::kStandard);
  plan.traffic_flash1 = forward_traffic(*problem, context, Algorithm::kFlash1);
  plan.traffic_flash2 = forward_traffic(*problem, context, Algorithm::kFlash2);
  if (problem->algorithm == Algorithm::kReference) {
    plan.isa = Isa::kScalar;
    plan.workspace_bytes = reference::workspace_bytes(*problem, context);
    plan.notes.push_back("the definition in float64: no tiles; its workspace is always its own");
    return plan;
  }
  const Result<cpu::CpuPlan> cpu_plan = cpu::plan_call(*problem, context);
  if (!cpu_plan.ok()) return cpu_plan.status();
  plan.isa = cpu_plan->isa;
  plan.threads = cpu_plan->workers;
  plan.tile_n = cpu_plan->tile_n;
  plan.tile_m = plan.algorithm == Algorithm::kFlash1 || plan.backward
                    ? cpu_plan->panel_rows(problem->max_seqlen_q)
                    : cpu_plan->tile_m;
  for (int n = 0; n < cpu_plan->num_phases; ++n) plan.num_tasks += cpu_plan->phases[n].num_tasks;
  plan.workspace_bytes = cpu_plan->workspace_bytes;
  plan.fast_memory_bytes = cpu_plan->fast_memory_bytes;
  add_notes(*problem, *cpu_plan, plan);
  return plan;
}

}  // namespace

Status attention_forward(const AttentionInputs& inputs, const AttentionOutputs& outputs,
                         const AttentionOptions& options, const ExecutionContext& context) {
  return guarded([&]() -> Status {
    const Result<Problem> problem = validate_forward(inputs, outputs, options, Check::kCall);
    Status status = run(problem, context);
    if (status.ok() && problem->keep.present) write_keep_mask(*problem);
    return status;
  });
}

Status attention_backward(const AttentionInputs& inputs, const AttentionOutputs& outputs,
                          const AttentionGradients& gradients, const AttentionOptions& options,
                          const ExecutionContext& context) {
  return guarded([&]() -> Status {
    return run(validate_backward(inputs, outputs, gradients, options, Check::kCall), context);
  });
}

Result<Plan> plan_forward(const AttentionInputs& inputs, const AttentionOutputs& outputs,
                          const AttentionOptions& options, const ExecutionContext& context) {
  return guarded([&]() -> Result<Plan> {
    return make_public_plan(validate_forward(inputs, outputs, options, Check::kPlan), context);
  });
}

Result<Plan> plan_backward(const AttentionInputs& inputs, const AttentionOutputs& outputs,
                           const AttentionGradients& gradients, const AttentionOptions& options,
                           const ExecutionContext& context) {
  return guarded([&]() -> Result<Plan> {
    return make_public_plan(validate_backward(inputs, outputs, gradients, options, Check::kPlan),
                            context);
  });
}

std::vector<Isa> available_isas() {
  std::vector<Isa> isas;
  const cpu::KernelTable table = cpu::kernel_table(false);
  for (int n = 0; n < table.count; ++n) {
    if (cpu::cpu_supports(table.sets[n]->isa)) isas.push_back(table.sets[n]->isa);
  }
  return isas;
}

const char* to_string(Algorithm algorithm) {
  switch (algorithm) {
    case Algorithm::kAuto: return "auto";
    case Algorithm::kReference: return "reference";
    case Algorithm::kStandard: return "standard";
    case Algorithm::kFlash1: return "flash1";
    case Algorithm::kFlash2: return "flash2";
  }
  return "unknown";
}

const char* to_string(Isa isa) {
  switch (isa) {
    case Isa::kAuto: return "auto";
    case Isa::kScalar: return "scalar";
    case Isa::kAvx2: return "avx2";
    case Isa::kAvx512: return "avx512";
    case Isa::kAvx512Bf16: return "avx512_bf16";
    case Isa::kNeon: return "neon";
    case Isa::kNeonBf16: return "neon_bf16";
  }
  return "unknown";
}

}  // namespace attentile

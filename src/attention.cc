// SPDX-License-Identifier: Apache-2.0
// The public entry points: validate, then the backend. Nothing else.
#include "attentile/attention.h"

#include <new>
#include <stdexcept>

#include "cpu/backend.h"
#include "cpu/cpu_info.h"
#include "cpu/float_environment.h"
#include "cpu/traffic.h"
#include "cuda/backend.h"
#include "keep_mask.h"
#include "memory.h"
#include "reference/passes.h"
#include "validate.h"

namespace attentile {
namespace {

// What both a call and its plan must get past: `reference` runs the same code everywhere, but what
// was asked for by name is there or refused.
Status check(const Result<Problem>& problem, const ExecutionContext& context) {
  if (!problem.ok()) return problem.status();
  if (Status status = validate_context(context); !status.ok()) return status;
  if (problem->device == Device::kCuda) return Status();
  if (problem->algorithm == Algorithm::kReference && problem->isa == Isa::kAuto) return Status();
  return cpu::plan_isa(*problem).status();
}

Status run(const Result<Problem>& problem, const ExecutionContext& context) {
  if (Status status = check(problem, context); !status.ok()) return status;
  if (problem->device == Device::kCuda) return cuda::run(*problem, context);
  if (cpu::has_nothing_to_compute(*problem)) return cpu::write_zeros(*problem, context);
  if (problem->algorithm != Algorithm::kReference) return cpu::run(*problem, context);
  if (context.traffic != nullptr) *context.traffic = {};  // it has no tiles, so nothing is counted
  return problem->backward ? reference::run_backward(*problem, context)
                           : reference::run_forward(*problem, context);
}

// No exception leaves the library: all it can meet is a failed allocation. What the caller's thread
// does with floating-point numbers enters no result.
template <class F>
auto guarded(F body) noexcept -> decltype(body()) {
  const cpu::DefaultFloatEnvironment environment;
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return make_status(StatusCode::kOutOfMemory, "out of memory");
  } catch (const std::length_error&) {  // a vector longer than any memory
    return make_status(StatusCode::kOutOfMemory, "out of memory");
  } catch (...) {
    return make_status(StatusCode::kInternal, "an unexpected exception was caught");
  }
}

// What the forward pass of each algorithm would move, whichever of them runs.
void add_traffic(const Problem& problem, const ExecutionContext& context, Plan& plan) {
  const struct {
    Algorithm algorithm;
    Traffic* traffic;
  } rows[] = {{Algorithm::kStandard, &plan.traffic_standard},
              {Algorithm::kFlash1, &plan.traffic_flash1},
              {Algorithm::kFlash2, &plan.traffic_flash2}};
  for (const auto& row : rows) {
    Problem variant = problem;
    variant.backward = false;
    variant.algorithm = row.algorithm;
    const Result<cpu::CpuPlan> forward = cpu::plan_call(variant, context);
    if (!forward.ok()) continue;
    plan.fast_memory_bytes = forward->fast_memory_bytes;
    *row.traffic = cpu::predict_forward_traffic(variant, *forward);
  }
}

void add_notes(const Problem& problem, const cpu::CpuPlan& cpu_plan, Plan& plan) {
  const auto note = [&](std::string text) { plan.notes.push_back(std::move(text)); };
  const int64_t panel = cpu_plan.panel_rows(problem.max_seqlen_q);
  const std::string for_unit =
      "float16, and without a sink for bfloat16 and, in heads of 32 or more, float32";
  const std::string lanes = std::to_string(cpu_plan.lanes) + "-lane registers";
  if (plan.algorithm == Algorithm::kFlash1 && !plan.backward) {
    note("tile_n = ceil(M / 4d) and tile_m = min(tile_n, d) for M = " +
         std::to_string(plan.fast_memory_bytes / 4) + " values of fast memory");
  } else if (plan.backward) {
    note("tile_m = one panel of " + std::to_string(panel) + " queries in " + lanes +
         ", which meets the " + std::to_string(cpu_plan.tile_keys) + " keys of a task");
  } else if (cpu_plan.decodes(problem.max_seqlen_q)) {
    note("tile_m = the sequence's few queries, for all " + std::to_string(problem.group_size) +
         " query heads of a KV head at once");
  } else {
    const int64_t panels = plan.tile_m / panel;
    note("tile_m = " + std::to_string(panels) + (panels == 1 ? " panel of " : " panels of ") +
         std::to_string(panel) + " queries in " + lanes + " that share each key tile");
  }
  if (cpu_plan.decode_rows > 0) {
    note("sequences of up to " + std::to_string(cpu_plan.few_queries) +
         " queries split their keys into pieces of " + std::to_string(cpu::kShortPiece) + ", of " +
         std::to_string(cpu::kLongPiece) + " above " + std::to_string(cpu::kShortCache) + " keys");
  } else if (!plan.backward && problem.max_seqlen_q <= cpu::kDecodeQueries) {
    note(
        "the kernel for few queries does not run: it is for flash2 without dropout and block "
        "pattern, not for float64 and groups of more than " +
        std::to_string(cpu::kDecodeGroup) + " query heads");
  }
  const std::string few = std::to_string(cpu_plan.off_unit_queries) + " queries";
  if (cpu_plan.parts_for(problem.max_seqlen_q) > 0) {
    constexpr const char* kProducts[] = {"bfloat16", "float16, as two bfloat16 each,",
                                         "float32, as three bfloat16 each,"};
    note(std::string("products of ") + kProducts[cpu_plan.parts - 1] + " run on the matrix unit" +
         (cpu_plan.off_unit_queries > 0 ? ", in sequences of more than " + few : ""));
  } else if (cpu_plan.parts > 0) {
    note("the matrix unit does not run: it pays from more than " + few + " a sequence on");
  } else if (plan.isa == Isa::kAmx) {
    note("the matrix unit does not run: it is for " + for_unit);
  }
  if (plan.algorithm == Algorithm::kStandard) {
    note("flash2 does not run: the algorithm was set to standard, which materialises the scores");
  } else if (plan.algorithm == Algorithm::kFlash1) {
    note(
        "flash2 does not run: the algorithm was set to flash1, which rewrites O once per key tile");
  }
  for (Isa isa : cpu::isa_priority()) {
    if (isa == plan.isa) break;
    std::string why = "another instruction set was asked for";
    if (cpu::find_kernels(isa, cpu::is_wide(problem)) == nullptr) {
      why = "this build has no kernels for it";
    } else if (!cpu::cpu_supports(isa)) {
      why = "this machine does not have it";
    } else if (isa == Isa::kAmx && problem.isa == Isa::kAuto && cpu::matrix_parts(problem) == 0) {
      why = "its matrix unit is for " + for_unit;
    }
    note(std::string(to_string(isa)) + " does not run: " + why);
  }
}

int64_t reference_tasks(const Problem& p) {
  if (p.backward) {
    const bool one_batch = p.dbias.present && p.dbias_shape[0] == 1;
    const bool one_head = p.dbias.present && p.dbias_shape[1] == 1;
    return (one_batch ? 1 : p.batch) * (one_head ? 1 : p.num_heads_kv);
  }
  int64_t blocks = 0;
  const bool equal = cpu::has_equal_sequences(p);
  for (int64_t b = 0; b < (equal ? 1 : p.batch); ++b) {
    blocks += ceil_div(p.sequence(b).seqlen_q, reference::kRowBlock);
  }
  return blocks * (equal ? p.batch : 1) * p.num_heads_q;
}

void add_reference(const Problem& problem, const ExecutionContext& context, Plan& plan) {
  plan.isa = Isa::kScalar;
  plan.notes.push_back("the definition in float64: no tiles; its workspace is always its own");
  if (cpu::has_nothing_to_compute(problem)) return;
  plan.workspace_bytes = reference::workspace_bytes(problem, context);
  plan.num_tasks = reference_tasks(problem);
  plan.threads = static_cast<int>(
      clamp64(plan.num_tasks, 1, static_cast<int64_t>(cpu::worker_count(context))));
}

Result<Plan> make_public_plan(const Result<Problem>& problem, const ExecutionContext& context) {
  if (Status status = check(problem, context); !status.ok()) return status;
  if (problem->device == Device::kCuda) return cuda::plan_call(*problem);
  Plan plan;
  plan.backward = problem->backward;
  plan.algorithm = problem->algorithm;
  plan.visible_pairs = cpu::count_visible_pairs(*problem);
  const double width = problem->backward ? 3.0 * problem->head_dim + 2.0 * problem->head_dim_v
                                         : 1.0 * problem->head_dim + problem->head_dim_v;
  plan.flops = 2.0 * width * static_cast<double>(plan.visible_pairs);
  add_traffic(*problem, context, plan);
  if (problem->algorithm == Algorithm::kReference) {
    add_reference(*problem, context, plan);
    return plan;
  }
  const Result<cpu::CpuPlan> cpu_plan = cpu::plan_call(*problem, context);
  if (!cpu_plan.ok()) return cpu_plan.status();
  plan.isa = cpu_plan->isa;
  plan.threads = cpu_plan->workers;
  const bool decodes = cpu_plan->decodes(problem->max_seqlen_q);
  plan.tile_n = decodes ? cpu::kDecodeKeys : cpu_plan->tile_n;
  // A sequence shorter than the widest panel is one panel.
  const int panel = cpu_plan->panel_rows(problem->max_seqlen_q);
  const bool one_panel =
      plan.algorithm == Algorithm::kFlash1 || plan.backward || panel < cpu_plan->panel_rows_max;
  plan.tile_m = one_panel ? panel : cpu_plan->tile_m;
  if (decodes) plan.tile_m = problem->max_seqlen_q;
  for (int n = 0; n < cpu_plan->num_phases; ++n) plan.num_tasks += cpu_plan->phases[n].num_tasks;
  plan.workspace_bytes = cpu_plan->workspace_bytes;
  add_notes(*problem, *cpu_plan, plan);
  return plan;
}

}  // namespace

Status attention_forward(const AttentionInputs& inputs, const AttentionOutputs& outputs,
                         const AttentionOptions& options, const ExecutionContext& context) {
  return guarded([&]() -> Status {
    const Result<Problem> problem = validate_forward(inputs, outputs, options, Check::kCall);
    if (!problem.ok()) return problem.status();
    Status status = validate_workspace(inputs, outputs, nullptr, context);
    if (status.ok()) status = run(problem, context);
    const bool here = problem->device == Device::kCpu;  // else a kernel writes it
    if (status.ok() && here && problem->keep.present) status = write_keep_mask(*problem, context);
    return status;
  });
}

Status attention_backward(const AttentionInputs& inputs, const AttentionOutputs& outputs,
                          const AttentionGradients& gradients, const AttentionOptions& options,
                          const ExecutionContext& context) {
  return guarded([&]() -> Status {
    const Result<Problem> problem =
        validate_backward(inputs, outputs, gradients, options, Check::kCall);
    if (!problem.ok()) return problem.status();
    const Status status = validate_workspace(inputs, outputs, &gradients, context);
    return status.ok() ? run(problem, context) : status;
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

std::vector<Isa> available_isas() noexcept {
  std::vector<Isa> isas;
  try {
    const cpu::KernelTable table = cpu::kernel_table(false);
    for (int n = 0; n < table.count; ++n) {
      if (cpu::cpu_supports(table.sets[n]->isa)) isas.push_back(table.sets[n]->isa);
    }
  } catch (const std::bad_alloc&) {
    isas.clear();
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
    case Isa::kAmx: return "amx";
    case Isa::kNeon: return "neon";
    case Isa::kNeonBf16: return "neon_bf16";
  }
  return "unknown";
}

}  // namespace attentile

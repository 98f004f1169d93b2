// SPDX-License-Identifier: Apache-2.0
// Plans first, on views without memory, so that a wrong request is refused before anything is
// allocated; then checks that results and workspace fit, computes, and judges by the oracle.
#include "cli/attend_run.h"

#include <chrono>

#include "cli/error.h"
#include "cli/memory.h"
#include "cli/progress.h"
#include "validate.h"

namespace attentile::cli {
namespace {

void plan_passes(const CallTensors& call, const AttendWork& work, const ExecutionContext& context,
                 AttendResult& result) {
  const bool backward = call.gradients.dq.present();
  result.forward.plan = take(plan_forward(call.inputs, call.outputs, work.options, context));
  if (!backward) return;
  result.backward.emplace();
  result.backward->plan =
      take(plan_backward(call.inputs, call.outputs, call.gradients, work.options, context));
}

void require_enough_memory(const CallTensors& call, const AttendResult& result) {
  int64_t workspace = result.forward.plan.workspace_bytes;
  if (result.backward) workspace = std::max(workspace, result.backward->plan.workspace_bytes);
  require_memory("memory",
                 static_cast<double>(result_bytes(call)) + static_cast<double>(workspace));
}

template <class Call>
void compute(PassResult& pass, ExecutionContext context, const char* label, std::FILE* progress,
             Call&& function) {
  ProgressBar bar(progress, label);
  bar.watch(context);
  context.traffic = &pass.traffic;
  const auto start = std::chrono::steady_clock::now();
  const Status status = function(context);
  pass.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  InterruptGuard::check();
  require_ok(status);
}

void judge(const CallTensors& call, const AttendWork& work, ExecutionContext context,
           AttendResult& result) {
  ProgressBar bar(work.progress, "verify");
  bar.watch(context);
  const auto append = [&](const Problem& problem) {
    const reference::AccuracyOptions rule{
        .normal_inputs = work.normal_inputs,
        .stores_scores = problem.algorithm == Algorithm::kStandard};
    auto verdicts = reference::check(problem, context, rule);
    InterruptGuard::check();
    require_ok(verdicts.status());
    for (reference::Verdict& verdict : *verdicts) result.verdicts.push_back(std::move(verdict));
  };
  append(take(validate_forward(call.inputs, call.outputs, work.options, Check::kCall)));
  if (result.backward) append(result.backward->problem);
}

}  // namespace

AttendResult run_attend(CallTensors& call, const AttendWork& work) {
  ExecutionContext context;
  context.num_threads = work.threads;
  AttendResult result;
  plan_passes(call, work, context, result);
  require_enough_memory(call, result);
  allocate_results(call, work.layout);

  result.forward.problem =
      take(validate_forward(call.inputs, call.outputs, work.options, Check::kCall));
  compute(result.forward, context, "forward", work.progress, [&](const ExecutionContext& with) {
    return attention_forward(call.inputs, call.outputs, work.options, with);
  });
  if (result.backward) {
    result.backward->problem = take(
        validate_backward(call.inputs, call.outputs, call.gradients, work.options, Check::kCall));
    compute(
        *result.backward, context, "backward", work.progress, [&](const ExecutionContext& with) {
          return attention_backward(call.inputs, call.outputs, call.gradients, work.options, with);
        });
  }
  if (work.verify) judge(call, work, context, result);
  return result;
}

}  // namespace attentile::cli

// SPDX-License-Identifier: Apache-2.0
// Plans first, on views without memory, so that a wrong request is refused before anything is
// allocated; then checks that results and workspace fit, computes, and judges by the oracle. On a
// device it computes on copies of the tensors there.
#include "cli/attend_run.h"

#include <chrono>
#include <cmath>
#include <tuple>

#include "cli/device_plan.h"
#include "cli/error.h"
#include "cli/memory.h"
#include "cli/progress.h"
#include "dtype.h"
#include "io/device_call.h"
#include "reference/rounded_standard.h"
#include "validate.h"

namespace attentile::cli {
namespace {

void plan_passes(const CallTensors& call, const AttendWork& work, const ExecutionContext& context,
                 AttendResult& result) {
  const bool backward = call.gradients.dq.present();
  if (work.device != DeviceChoice::kCpu) {
    const AttentionOptions options = device_options(call, work.options);
    result.forward.plan = plan_on_device(call, options, false);
    if (backward) result.backward.emplace().plan = plan_on_device(call, options, true);
    return;
  }
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
  context.traffic = &pass.traffic.emplace();
  const auto start = std::chrono::steady_clock::now();
  const Status status = function(context);
  pass.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  InterruptGuard::check();
  require_ok(status);
}

// One pass on a device: workspace, the call itself, which is what is timed, results back.
void compute_on_device(PassResult& pass, io::DeviceCall& device, const AttendWork& work,
                       const AttentionOptions& options, bool backward) {
  require_ok(device.use_workspace(options, backward));
  ProgressBar bar(work.progress, backward ? "backward" : "forward");
  ExecutionContext watched;
  bar.watch(watched);
  device.set_poll(watched);
  const auto start = std::chrono::steady_clock::now();
  Status status = device.start(options, backward);
  if (status.ok()) status = device.synchronise();
  pass.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  device.set_poll({});
  if (status.ok()) status = device.download(backward);
  InterruptGuard::check();
  require_ok(status);
  if (!device.damage().empty()) environment_failed("--device: {}", device.damage());
}

void run_on_device(const CallTensors& call, const AttendWork& work, AttendResult& result) {
  const AttentionOptions options = device_options(call, work.options);
  io::DeviceCall device(device_table(), call.inputs, call.outputs, call.gradients);
  require_ok(device.status());
  compute_on_device(result.forward, device, work, options, false);
  if (result.backward) compute_on_device(*result.backward, device, work, options, true);
}

int64_t count_nans(const Array4& got, const reference::ExactArray& exact) {
  if (!got.present || !exact.present) return 0;
  int64_t nans = 0;
  for (int64_t a = 0; a < exact.shape[0]; ++a) {
    for (int64_t b = 0; b < exact.shape[1]; ++b) {
      for (int64_t c = 0; c < exact.shape[2]; ++c) {
        for (int64_t d = 0; d < exact.shape[3]; ++d) {
          if (!std::isnan(exact.at(a, b, c, d))) continue;
          nans += std::isnan(load_as_double(got.at(a, b, c, d), got.dtype, 0)) ? 1 : 0;
        }
      }
    }
  }
  return nans;
}

int64_t nans_of(std::string_view name, const Problem& p, const reference::ExactResult& exact) {
  const std::tuple<std::string_view, const Array4*, const reference::ExactArray*> outputs[] = {
      {"out", &p.out, &exact.out},      {"lse", &p.lse, &exact.lse},
      {"dq", &p.dq, &exact.dq},         {"dk", &p.dk, &exact.dk},
      {"dv", &p.dv, &exact.dv},         {"dbias", &p.dbias, &exact.dbias},
      {"dsink", &p.dsink, &exact.dsink}};
  for (const auto& [word, got, right] : outputs) {
    if (word == name) return count_nans(*got, *right);
  }
  return 0;
}

// The comparison of reference::check, with the exact values kept to count NaN.
void judge_pass(const Problem& problem, const AttendWork& work, const ExecutionContext& context,
                std::vector<Judged>& judged) {
  const reference::AccuracyOptions rule{.normal_inputs = work.normal_inputs};
  reference::ExactResult exact;
  reference::ExactResult standard;
  Status status = reference::compute_exact(problem, context, &exact);
  if (status.ok()) status = reference::compute_standard(problem, context, &standard);
  InterruptGuard::check();
  require_ok(status);
  const auto verdicts = problem.backward ? reference::check_backward(problem, exact, standard, rule)
                                         : reference::check_forward(problem, exact, standard, rule);
  for (const reference::Verdict& verdict : verdicts) {
    judged.push_back({verdict, nans_of(verdict.name, problem, exact)});
  }
}

void judge(const CallTensors& call, const AttendWork& work, ExecutionContext context,
           AttendResult& result) {
  ProgressBar bar(work.progress, "verify");
  bar.watch(context);
  const Problem forward =
      take(validate_forward(call.inputs, call.outputs, work.options, Check::kCall));
  judge_pass(forward, work, context, result.judged);
  if (result.backward) judge_pass(result.backward->problem, work, context, result.judged);
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
  if (result.backward) {
    result.backward->problem = take(
        validate_backward(call.inputs, call.outputs, call.gradients, work.options, Check::kCall));
  }
  if (work.device != DeviceChoice::kCpu) {
    run_on_device(call, work, result);
    if (work.verify) judge(call, work, context, result);
    return result;
  }
  compute(result.forward, context, "forward", work.progress, [&](const ExecutionContext& with) {
    return attention_forward(call.inputs, call.outputs, work.options, with);
  });
  if (result.backward) {
    compute(
        *result.backward, context, "backward", work.progress, [&](const ExecutionContext& with) {
          return attention_backward(call.inputs, call.outputs, call.gradients, work.options, with);
        });
  }
  if (work.verify) judge(call, work, context, result);
  return result;
}

}  // namespace attentile::cli

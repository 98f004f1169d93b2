// SPDX-License-Identifier: Apache-2.0
// Interleaved timing: one warm-up each, then rounds in which every subject runs once, until each
// has run for min_time_s and at least three times (once will do when a single run takes longer
// than ten times min_time_s).
#include "cli/bench_measure.h"

#include <algorithm>
#include <chrono>

#include "cli/error.h"
#include "cli/memory.h"
#include "cli/numbers.h"
#include "cli/progress.h"
#include "cpu/peak.h"
#include "validate.h"

namespace attentile::cli {
namespace {

struct Subject {
  std::string name;
  AttentionOptions options;
  Plan plan;
  std::vector<double> seconds;
};

double sum(const std::vector<double>& values) {
  double total = 0;
  for (double value : values) total += value;
  return total;
}

Plan plan_of(const CallTensors& call, const AttentionOptions& options,
             const ExecutionContext& context, bool backward) {
  if (backward) {
    return take(plan_backward(call.inputs, call.outputs, call.gradients, options, context));
  }
  return take(plan_forward(call.inputs, call.outputs, options, context));
}

double run_once(const CallTensors& call, const Subject& subject, const ExecutionContext& context,
                bool backward) {
  const auto start = std::chrono::steady_clock::now();
  const Status status =
      backward
          ? attention_backward(call.inputs, call.outputs, call.gradients, subject.options, context)
          : attention_forward(call.inputs, call.outputs, subject.options, context);
  const auto stop = std::chrono::steady_clock::now();
  InterruptGuard::check();
  require_ok(status);
  return std::chrono::duration<double>(stop - start).count();
}

bool enough(const std::vector<double>& seconds, double min_time_s) {
  const double total = sum(seconds);
  if (total >= 10 * min_time_s && !seconds.empty()) return true;
  return seconds.size() >= 3 && total >= min_time_s;
}

Timing summarize(Subject& subject) {
  std::vector<double>& seconds = subject.seconds;
  std::sort(seconds.begin(), seconds.end());
  const size_t middle = seconds.size() / 2;
  const double median =
      seconds.size() % 2 == 1 ? seconds[middle] : 0.5 * (seconds[middle - 1] + seconds[middle]);
  return {.name = subject.name,
          .plan = subject.plan,
          .median_s = median,
          .min_s = seconds.front(),
          .runs = static_cast<int>(seconds.size())};
}

void time_subjects(const CallTensors& call, std::vector<Subject>& subjects,
                   const ExecutionContext& context, const BenchRequest& request, bool backward) {
  for (const Subject& subject : subjects) {
    // The backward pass reads out and lse.
    if (backward) run_once(call, subject, context, false);
    run_once(call, subject, context, backward);
  }
  constexpr size_t kMaxRuns = 100'000;
  for (bool done = false; !done;) {
    done = true;
    for (Subject& subject : subjects) {
      subject.seconds.push_back(run_once(call, subject, context, backward));
      done = done &&
             (enough(subject.seconds, request.min_time_s) || subject.seconds.size() >= kMaxRuns);
    }
  }
}

}  // namespace

BenchResult measure(const BenchCase& bench_case, const BenchRequest& request) {
  const bool backward = bench_case.call.backward;
  ProgressBar silent(nullptr, "");
  ExecutionContext context;
  context.num_threads = bench_case.threads;
  silent.watch(context);

  BenchResult result;
  result.bench_case = bench_case;
  const CallTensors shapes = describe_call(bench_case.call);
  std::vector<Subject> subjects(2);
  subjects[0].name = "attentile";
  subjects[1].name = "standard";
  for (Subject& subject : subjects) subject.options = request.options;
  subjects[1].options.algorithm = Algorithm::kStandard;
  for (Subject& subject : subjects) {
    subject.plan = plan_of(shapes, subject.options, context, backward);
  }
  const double bytes = call_bytes(bench_case.call);
  require_memory("--shape", bytes + static_cast<double>(subjects[0].plan.workspace_bytes));
  const double needed = bytes + static_cast<double>(subjects[1].plan.workspace_bytes);
  if (needed > available_memory()) {
    result.skipped = fmt::format("needs {}", bytes_words(needed));
    subjects.pop_back();
  }

  const CallTensors call = make_call(bench_case.call, 1);
  result.problem = take(validate_forward(call.inputs, call.outputs, request.options, Check::kCall));
  time_subjects(call, subjects, context, request, backward);
  for (Subject& subject : subjects) result.timings.push_back(summarize(subject));
  return result;
}

double Peaks::gflops(Isa isa, DType dtype, int threads) {
  const auto key = std::make_tuple(isa, dtype, threads);
  const auto found = known_.find(key);
  if (found != known_.end()) return found->second;
  return known_[key] = cpu::measure_peak_gflops(isa, dtype, threads);
}

Json to_record(const BenchResult& result, const Timing& timing, double peak_gflops) {
  const SyntheticCall& call = result.bench_case.call;
  Json record;
  record["name"] = timing.name;
  record["pass"] = call.backward ? "backward" : "forward";
  record.update(shape_facts(result.problem, call.layout));
  record["threads"] = result.bench_case.threads;
  record["median_s"] = timing.median_s;
  record["min_s"] = timing.min_s;
  record["runs"] = timing.runs;
  const double gflops = timing.median_s > 0 ? timing.plan.flops / timing.median_s * 1e-9 : 0;
  record["gflops"] = gflops;
  record["peak_gflops"] = peak_gflops;
  record["fraction_of_peak"] = peak_gflops > 0 ? gflops / peak_gflops : 0;
  record["bytes_per_s"] = nullptr;
  if (!call.backward && result.problem.max_seqlen_q == 1 && timing.median_s > 0) {
    const Problem& p = result.problem;
    const double values = static_cast<double>(p.total_k) * static_cast<double>(p.num_heads_kv) *
                          static_cast<double>(p.head_dim + p.head_dim_v);
    record["bytes_per_s"] = values * static_cast<double>(size_of(p.dtype)) / timing.median_s;
  }
  record["algorithm"] = to_string(timing.plan.algorithm);
  record["isa"] = to_string(timing.plan.isa);
  return record;
}

}  // namespace attentile::cli

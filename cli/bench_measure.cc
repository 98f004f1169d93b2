// SPDX-License-Identifier: Apache-2.0
// Interleaved timing: one warm-up each, then rounds in which every subject runs once, until each
// has run for min_time_s and at least three times (once will do when a single run takes longer
// than ten times min_time_s).
#include "cli/bench_measure.h"

#include <algorithm>
#include <chrono>

#include "cli/device_plan.h"
#include "cli/error.h"
#include "cli/memory.h"
#include "cli/numbers.h"
#include "cpu/peak.h"
#include "io/device_call.h"
#include "validate.h"

namespace attentile::cli {
namespace {

struct Subject {
  std::string name;
  AttentionOptions options;
  Plan plan;
  std::vector<double> seconds = {};
  double total_s = 0;

  void add(double run_s) {
    seconds.push_back(run_s);
    total_s += run_s;
  }
};

constexpr size_t kMinRuns = 3;
constexpr size_t kMaxRuns = 100'000;
constexpr int kPeakRuns = 3;  // a millisecond each
constexpr std::chrono::milliseconds kPeakInterval{50};

bool enough(const Subject& subject, double min_time_s) {
  const size_t runs = subject.seconds.size();
  if (runs >= kMaxRuns) return true;
  if (subject.total_s >= 10 * min_time_s && runs > 0) return true;
  return runs >= kMinRuns && subject.total_s >= min_time_s;
}

// Rounds until every subject has enough, by the mean of its runs so far; at least one more.
double rounds_left(const std::vector<Subject>& subjects, double min_time_s) {
  double rounds = 1;
  for (const Subject& subject : subjects) {
    const double runs = static_cast<double>(subject.seconds.size());
    double needed = static_cast<double>(kMinRuns);
    if (subject.total_s > 0) {
      const double mean_s = subject.total_s / runs;
      needed = std::min(std::max(needed, min_time_s / mean_s), 10 * min_time_s / mean_s);
    }
    rounds = std::max(rounds, std::min(needed, static_cast<double>(kMaxRuns)) - runs);
  }
  return rounds;
}

// Moves the bar from run to run and, by the polls of a run, within it.
class CaseProgress {
 public:
  explicit CaseProgress(const CaseShare& share) : share_(share) {}
  CaseProgress(const CaseProgress&) = delete;
  CaseProgress& operator=(const CaseProgress&) = delete;

  void watch(ExecutionContext& context) {
    context.poll = [](void* progress, double fraction) {
      return static_cast<CaseProgress*>(progress)->update(fraction);
    };
    context.poll_data = this;
  }

  // A run begins, the first of about `left`.
  void begin_run(double left) {
    left_ = std::max(left, 1.0);
    update(0);
  }
  void end_run() { ++done_; }

 private:
  int update(double fraction) {
    shown_ = std::max(shown_, (done_ + fraction) / (done_ + left_));
    return share_.bar.update((share_.begin + shown_) / share_.cases);
  }

  const CaseShare& share_;
  double done_ = 0;  // runs
  double left_ = 1;  // the one at hand included
  double shown_ = 0;
};

Plan plan_of(const CallTensors& call, const AttentionOptions& options,
             const ExecutionContext& context, bool backward) {
  if (backward) {
    return take(plan_backward(call.inputs, call.outputs, call.gradients, options, context));
  }
  return take(plan_forward(call.inputs, call.outputs, options, context));
}

// What is timed: the tensors here and, where another device computes, its copies of them.
struct Tensors {
  const CallTensors& call;
  io::DeviceCall* device = nullptr;
};

Status run_on_device(io::DeviceCall& device, const AttentionOptions& options, bool backward) {
  const Status status = device.start(options, backward);
  return status.ok() ? device.synchronise() : status;
}

double run_once(const Tensors& tensors, const Subject& subject, const ExecutionContext& context,
                bool backward) {
  const CallTensors& call = tensors.call;
  const auto start = std::chrono::steady_clock::now();
  const Status status =
      tensors.device != nullptr ? run_on_device(*tensors.device, subject.options, backward)
      : backward
          ? attention_backward(call.inputs, call.outputs, call.gradients, subject.options, context)
          : attention_forward(call.inputs, call.outputs, subject.options, context);
  const auto stop = std::chrono::steady_clock::now();
  InterruptGuard::check();
  require_ok(status);
  return std::chrono::duration<double>(stop - start).count();
}

double median_of(std::vector<double>& values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : 0.5 * (values[middle - 1] + values[middle]);
}

Timing summarize(Subject& subject) {
  std::vector<double>& seconds = subject.seconds;
  const double median = median_of(seconds);
  return {.name = subject.name,
          .plan = subject.plan,
          .median_s = median,
          .min_s = seconds.front(),
          .runs = static_cast<int>(seconds.size())};
}

// Returns the peaks, one for every round or few: the clock moves, and a run's peak is that of its
// moment.
std::vector<double> time_subjects(const Tensors& call, std::vector<Subject>& subjects,
                                  ExecutionContext context, double min_time_s,
                                  const CaseShare& share) {
  const bool backward = call.call.gradients.dq.present();
  CaseProgress progress(share);
  progress.watch(context);
  if (call.device != nullptr) call.device->set_poll(context);
  const double per_round = static_cast<double>(subjects.size());
  double warm_ups = per_round;
  for (const Subject& subject : subjects) {
    progress.begin_run(warm_ups-- + per_round * rounds_left(subjects, min_time_s));
    // The backward pass reads out and lse.
    if (call.device != nullptr && backward) {
      require_ok(call.device->use_workspace(subject.options, false));
    }
    if (backward) run_once(call, subject, context, false);
    if (call.device != nullptr) require_ok(call.device->use_workspace(subject.options, backward));
    run_once(call, subject, context, backward);
    progress.end_run();
  }
  std::vector<double> peaks;
  auto next_peak = std::chrono::steady_clock::now();
  for (bool done = false; !done;) {
    done = true;
    double runs_left = per_round * rounds_left(subjects, min_time_s);
    if (call.device == nullptr && std::chrono::steady_clock::now() >= next_peak) {
      peaks.push_back(cpu::measure_peak_gflops(subjects[0].plan.isa, call.call.inputs.q.dtype,
                                               context.num_threads, kPeakRuns));
      next_peak = std::chrono::steady_clock::now() + kPeakInterval;
    }
    for (Subject& subject : subjects) {
      progress.begin_run(runs_left--);
      subject.add(run_once(call, subject, context, backward));
      progress.end_run();
      done = done && enough(subject, min_time_s);
    }
  }
  if (call.device != nullptr) call.device->set_poll({});
  return peaks;
}

// On a device: without standard attention and without a peak, which are the CPU's.
BenchResult measure_on_device(const BenchCase& bench_case, const BenchRequest& request,
                              const CaseShare& share) {
  BenchResult result;
  result.bench_case = bench_case;
  result.device = to_string(request.device);
  result.skipped = std::string("on ") + result.device;
  const CallTensors shapes = describe_call(bench_case.call);
  std::vector<Subject> subjects(1);
  subjects[0].name = "attentile";
  subjects[0].options = device_options(shapes, request.options);
  subjects[0].plan = plan_on_device(shapes, subjects[0].options, bench_case.call.backward);
  require_memory("--shape", call_bytes(bench_case.call));
  const CallTensors call = make_call(bench_case.call, 1);
  result.problem = take(validate_forward(call.inputs, call.outputs, request.options, Check::kCall));
  io::DeviceCall device(device_table(), call.inputs, call.outputs, call.gradients);
  require_ok(device.status());
  time_subjects({call, &device}, subjects, {}, request.min_time_s, share);
  result.timings.push_back(summarize(subjects[0]));
  return result;
}

}  // namespace

BenchResult measure(const BenchCase& bench_case, const BenchRequest& request,
                    const CaseShare& share) {
  if (request.device != DeviceChoice::kCpu) {
    return measure_on_device(bench_case, request, share);
  }
  const bool backward = bench_case.call.backward;
  ExecutionContext context;
  context.num_threads = bench_case.threads;

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
  std::vector<double> peaks = time_subjects({call}, subjects, context, request.min_time_s, share);
  result.peak_gflops = median_of(peaks);
  for (Subject& subject : subjects) result.timings.push_back(summarize(subject));
  return result;
}

Json to_record(const BenchResult& result, const Timing& timing) {
  const SyntheticCall& call = result.bench_case.call;
  Json record;
  record["name"] = timing.name;
  record["pass"] = call.backward ? "backward" : "forward";
  record.update(shape_facts(result.problem, call.layout));
  record["seqlens"] = call.seqlens.empty() ? Json(nullptr) : Json(call.seqlens);
  record["threads"] = result.bench_case.threads;
  record["median_s"] = timing.median_s;
  record["min_s"] = timing.min_s;
  record["runs"] = timing.runs;
  const double gflops = timing.median_s > 0 ? timing.plan.flops / timing.median_s * 1e-9 : 0;
  record["gflops"] = gflops;
  record["peak_gflops"] = result.peak_gflops;
  record["fraction_of_peak"] = result.peak_gflops > 0 ? gflops / result.peak_gflops : 0;
  record["bytes_per_s"] = nullptr;
  if (!call.backward && result.problem.max_seqlen_q == 1 && timing.median_s > 0) {
    const Problem& p = result.problem;
    const double values = static_cast<double>(p.total_k) * static_cast<double>(p.num_heads_kv) *
                          static_cast<double>(p.head_dim + p.head_dim_v);
    record["bytes_per_s"] = values * static_cast<double>(size_of(p.dtype)) / timing.median_s;
  }
  if (timing.plan.device == Device::kCuda) {
    record["device"] = result.device;
    record["threads"] = 1;
  }
  record["algorithm"] = to_string(timing.plan.algorithm);
  record["isa"] = to_string(timing.plan.isa);
  return record;
}

}  // namespace attentile::cli

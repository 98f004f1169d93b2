// SPDX-License-Identifier: Apache-2.0
// See peak.h.
#include "cpu/peak.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "cpu/cpu_info.h"
#include "cpu/kernel.h"

namespace attentile::cpu {
namespace {

struct Probe {
  double (*run)(int64_t steps);
  int64_t steps;
  std::atomic<double> operations{0.0};
};

void probe_task(void* job, int64_t, int, Progress&) {
  Probe& probe = *static_cast<Probe*>(job);
  probe.operations.fetch_add(probe.run(probe.steps), std::memory_order_relaxed);
}

// GFLOP/s of one run in which every thread does `steps` steps.
double run_once(double (*run)(int64_t), int64_t steps, int threads) {
  ExecutionContext context;
  context.num_threads = threads;
  Progress progress(context, 0.0);
  Probe probe{run, steps};
  const auto begin = std::chrono::steady_clock::now();
  // Several tasks a thread: one that wakes late does not leave its share undone.
  (void)parallel_for(context, threads, int64_t{8} * threads, &probe_task, &probe, progress);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  return probe.operations.load() / seconds.count() * 1e-9;
}

using ProbeOf = double (*KernelSet::*)(int64_t);

double measure_gflops(ProbeOf probe, const KernelSet* kernels, int threads, int runs) {
  if (kernels == nullptr || !cpu_supports(kernels->isa) || threads < 1 || runs < 1) return 0.0;
  constexpr int64_t kSteps = 40'000;  // about 100 us a task at 24 accumulators and 4 GHz
  std::vector<double> gflops(static_cast<size_t>(runs));
  run_once(kernels->*probe, kSteps, threads);  // wakes the threads and the clock
  for (double& result : gflops) result = run_once(kernels->*probe, kSteps, threads);
  const auto middle = gflops.begin() + runs / 2;
  std::nth_element(gflops.begin(), middle, gflops.end());
  return *middle;
}

}  // namespace

double measure_peak_gflops(Isa isa, DType dtype, int threads, int runs) {
  const KernelSet* kernels = find_kernels(isa, dtype == DType::kFloat64);
  return measure_gflops(&KernelSet::peak_probe, kernels, threads, runs);
}

double measure_product_gflops(Isa isa, DType dtype, int threads, int runs) {
  const KernelSet* kernels = find_kernels(isa, dtype == DType::kFloat64);
  return measure_gflops(&KernelSet::product_probe, kernels, threads, runs);
}

}  // namespace attentile::cpu

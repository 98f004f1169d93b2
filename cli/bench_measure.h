// SPDX-License-Identifier: Apache-2.0
// Times one bench case: the chosen algorithm and standard attention, run in turn, so that a change
// of the machine's speed meets both.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/bench_cases.h"
#include "cli/facts.h"
#include "cli/progress.h"

namespace attentile::cli {

struct Timing {
  std::string name;  // "attentile" or "standard"
  Plan plan;
  double median_s = 0;
  double min_s = 0;
  int runs = 0;
};

struct BenchResult {
  BenchCase bench_case;
  Problem problem;  // shapes only
  std::vector<Timing> timings;
  double peak_gflops = 0;  // the median of those measured between the runs
  std::string device;      // of another than the CPU: its name
  std::string skipped;     // why standard was not run; "" when it was
};

// The part of the bar that one case moves: from begin / cases to (begin + 1) / cases.
struct CaseShare {
  ProgressBar& bar;
  double begin = 0;
  double cases = 1;
};

BenchResult measure(const BenchCase& bench_case, const BenchRequest& request,
                    const CaseShare& share);

// One record in the names of the interface.
Json to_record(const BenchResult& result, const Timing& timing);

}  // namespace attentile::cli

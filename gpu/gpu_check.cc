// SPDX-License-Identifier: Apache-2.0
// What only a device can tell, a JSON object a line; the device is that of ATTENTILE_CUDA_LIBRARY.
//
//   gpu_check table TABLE CELLS SECONDS    the conformance table, until one of the two is reached;
//                                          TABLE: bf16, f16, f32 or bf16+atomic_dq
//   gpu_check cell CELL [atomic_dq]        one cell of it, by the name that a failure tells
//   gpu_check short [NAME]                 a call of each feature against the oracle, in memory
//   that
//                                          ends where its tensors end: for compute-sanitizer
//   gpu_check profile [NAME]               the main kernels at the size they are made for, for ncu
//   gpu_check repeat LAUNCHES SECONDS [NAME]   the same call again and again: bits that differ
//   gpu_check wide ELEMENTS [NAME]         a tensor of so many elements, checked at both ends
//   gpu_check sizes ELEMENTS [NAME]        the bytes that this would take
//
// NAME: one case alone. A failure is a line {"failure": cell, "what": ..., "again": arguments that
// repeat it}. A list or table ends at the first error that would hit every later call too. Exit
// status 0, 1 where a check failed, 2 where the request was wrong, 3 without a device.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "conformance/crash_report.h"
#include "conformance/oracle.h"
#include "conformance/runner.h"
#include "cuda/backend.h"
#include "gpu/cases.h"
#include "gpu/json_line.h"
#include "gpu/prepared.h"
#include "gpu/wide.h"

namespace attentile::gpu {
namespace {

using conformance::Case;
using conformance::Results;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int refuse(const std::string& words) {
  std::fprintf(stderr, "gpu_check: %s\n", words.c_str());
  return 2;
}

// --- the table -----------------------------------------------------------------------------------
constexpr const char* kTables[] = {"bf16", "f16", "f32", "bf16+atomic_dq"};
constexpr const char* kAtomic = "atomic_dq";

conformance::Options device_options(const std::string& filter, int64_t cells, bool atomic_dq) {
  conformance::Options options;
  options.atomic_dq = atomic_dq;
  options.count = cells;
  options.filter = filter;
  options.entries = {conformance::Entry::kDevice};
  options.algorithms = {Algorithm::kFlash2};
  options.isas = {Isa::kAuto};
  options.max_failures = 20;
  return options;
}

// Runs cells, tells failures as they come, then what there was.
int run_cells(const std::string& name, const conformance::Options& options, double seconds) {
  size_t told = 0;
  bool sticky = false;
  const auto tell = [&](const conformance::Summary& summary) {
    for (; told < summary.failures.size(); ++told) {
      const conformance::Failure& failure = summary.failures[told];
      sticky = sticky || failure.what.starts_with("internal: ");
      fail(failure.cell, failure.what,
           "cell '" + failure.cell + "'" + (options.atomic_dq ? " atomic_dq" : ""));
    }
  };
  const double end = now() + seconds;
  const conformance::Summary summary =
      conformance::run(options, [&](const conformance::Summary& so_far, double) {
        tell(so_far);
        return !sticky && now() < end;
      });
  if (!summary.status.ok()) return refuse(summary.status.message());
  tell(summary);
  double worst = 0;
  for (const auto& [output, ratio] : summary.worst_ratios) worst = std::max(worst, ratio);
  JsonLine()
      .text("dtype", name)
      .whole("cells", summary.cells)
      .whole("passed", summary.passed)
      .whole("failed", summary.failed)
      .whole("refused", summary.refused)
      .real("largest_error_over_allowed", worst)
      .counts("refusals", summary.refusals)
      .text("stopped", sticky ? " (stopped at an internal error)" : "")
      .print();
  return summary.failed == 0 ? 0 : 1;
}

int run_table(const std::string& table, int64_t cells, double seconds) {
  if (std::ranges::find(kTables, table) == std::end(kTables)) {
    return refuse("table: was '" + table + "', expected bf16, f16, f32 or bf16+atomic_dq");
  }
  const bool atomic_dq = table.ends_with(kAtomic);
  const std::string filter = "dtype=" + table.substr(0, table.find('+'));
  return run_cells(table, device_options(filter, cells, atomic_dq), seconds);
}

// --- lists of cases ------------------------------------------------------------------------------
// One case: what went wrong.
using Check = std::function<Outcome(const Case&)>;

int run_list(const std::vector<Case>& cases, const std::string& command, const Check& check) {
  int result = 0;
  for (const Case& c : cases) {
    conformance::set_current_cell(c.name);
    const Outcome outcome = check(c);
    conformance::set_current_cell({});
    if (outcome.what.empty()) continue;
    result = fail(c.name, outcome.what, command + " '" + c.name + "'");
    if (outcome.sticky) break;
  }
  return result;
}

Outcome run_short(const cuda::BackendTable& table, const Case& c) {
  conformance::Oracle oracle(c);
  if (!oracle.status.ok()) return outcome_of(oracle.status);
  Prepared call(table, c, oracle.given, io::Surroundings::kNothing);
  const double begin = now();
  Outcome outcome = call.run(false);
  if (!outcome.what.empty()) return outcome;
  JsonLine().text("name", c.name).real("seconds", now() - begin).print();
  return {conformance::judge(c, oracle, call.placed.results()).failure};
}

Outcome run_profile(const cuda::BackendTable& table, const Case& c) {
  Prepared call(table, c, conformance::make_values(c));
  const double begin = now();
  Outcome outcome = call.run(true);
  JsonLine().text("name", c.name).real("seconds", now() - begin).print();
  return outcome;
}

bool same(const testing::DenseTensor& a, const testing::DenseTensor& b) {
  return a.present == b.present && a.bytes == b.bytes;
}
bool same(const Results& a, const Results& b) {
  return same(a.out, b.out) && same(a.lse, b.lse) && same(a.dq, b.dq) && same(a.dk, b.dk) &&
         same(a.dv, b.dv) && same(a.dbias, b.dbias) && same(a.dsink, b.dsink);
}

Status launch(Prepared& call, bool backward) {
  Status status = call.device.poison_results(backward);
  if (status.ok()) status = call.device.start(call.options, backward);
  if (status.ok()) status = call.device.synchronise();
  return status.ok() ? call.device.download(backward) : status;
}

Outcome run_repeat(const cuda::BackendTable& table, const Case& c, int64_t launches,
                   double seconds) {
  Prepared call(table, c, conformance::make_values(c));
  Outcome outcome = call.run(true);
  if (!outcome.what.empty()) return outcome;
  const Results first = call.placed.results();
  int64_t differ = 0;
  int64_t done = 1;
  for (const double end = now() + seconds; done < launches && now() < end; ++done) {
    for (const bool backward : {false, true}) {
      if (backward && !c.backward) continue;
      const Status status = launch(call, backward);
      if (!status.ok()) return outcome_of(status);
    }
    if (!same(first, call.placed.results())) ++differ;
  }
  JsonLine().text("name", c.name).whole("launches", done).whole("differ", differ).print();
  if (differ == 0) return {};
  return {std::to_string(differ) + " of " + std::to_string(done) + " launches differ in a bit"};
}

// --- the program ---------------------------------------------------------------------------------
std::vector<Case> named(std::vector<Case> cases, const std::string& name) {
  if (!name.empty()) std::erase_if(cases, [&](const Case& c) { return c.name != name; });
  return cases;
}

int for_each(const std::vector<Case>& cases, const std::function<int(const Case&)>& check) {
  int result = 0;
  for (const Case& c : cases) result |= check(c);
  return result;
}

struct Arguments {
  std::vector<std::string> words;

  std::string text(size_t n) const { return n < words.size() ? words[n] : ""; }
  int64_t whole(size_t n) const { return std::atoll(text(n).c_str()); }
  double real(size_t n) const { return std::atof(text(n).c_str()); }
};

int run_case_lists(const cuda::BackendTable& table, const Arguments& given) {
  const std::string what = given.text(0);
  if (what == "short") {
    return run_list(named(short_cases(), given.text(1)), what,
                    [&](const Case& c) { return run_short(table, c); });
  }
  if (what == "profile") {
    return run_list(named(profiled_cases(), given.text(1)), what,
                    [&](const Case& c) { return run_profile(table, c); });
  }
  if (what == "repeat") {
    return run_list(
        named(repeated_cases(), given.text(3)), "repeat " + given.text(1) + " " + given.text(2),
        [&](const Case& c) { return run_repeat(table, c, given.whole(1), given.real(2)); });
  }
  const std::vector<Case> wide = named(wide_cases(), given.text(2));
  const int64_t elements = given.whole(1);
  if (what == "sizes") {
    return for_each(wide, [&](const Case& c) { return check_size(c, elements); });
  }
  return for_each(wide, [&](const Case& c) { return run_wide(table, c, elements); });
}

int run(const Arguments& given) {
  const std::string what = given.text(0);
  constexpr const char* kKnown[] = {"table", "cell", "short", "profile", "repeat", "wide", "sizes"};
  if (std::ranges::find(kKnown, what) == std::end(kKnown)) {
    return refuse("expected table, cell, short, profile, repeat, wide or sizes");
  }
  const bool counts = what == "repeat" || what == "wide" || what == "sizes";
  if ((counts && given.whole(1) < 1) || (what == "table" && given.whole(2) < 1)) {
    return refuse(what + ": number is '" + given.text(counts ? 1 : 2) + "', expected at least 1");
  }
  const Result<const cuda::BackendTable*>& found = cuda::backend();
  if (!found.ok()) {
    refuse(found.status().message());
    return 3;
  }
  if (what == "table") return run_table(given.text(1), given.whole(2), given.real(3));
  if (what != "cell") return run_case_lists(**found, given);
  return run_cells("cell", device_options(given.text(1), 1, given.text(2) == kAtomic), 60);
}

}  // namespace
}  // namespace attentile::gpu

int main(int argc, char** argv) {
  attentile::conformance::install_crash_report();
  return attentile::gpu::run({{argv + 1, argv + argc}});
}

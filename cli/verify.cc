// SPDX-License-Identifier: Apache-2.0
// `attentile verify`: the conformance table on this machine.
#include <unistd.h>

#include <algorithm>

#include "attentile/attention.h"
#include "cli/attention_arguments.h"
#include "cli/commands.h"
#include "cli/device_argument.h"
#include "cli/facts.h"
#include "cli/numbers.h"
#include "cli/progress.h"
#include "conformance/runner.h"

namespace attentile::cli {
namespace {

using conformance::Summary;

void declare(Arguments& arguments) {
  arguments.value("--filter", "KEY=VALUE/...",
                  "only matching cells; keys: case, entry, algorithm, isa, dtype, tier");
  arguments.value("--isa", "NAME", "only this instruction set");
  arguments.value("--algorithm", "NAME", "only this algorithm");
  declare_device(arguments);
  declare_atomic_dq(arguments);
  arguments.value("--count", "N",
                  "generated cells to run, default 4000; the named cases come on top");
  arguments.value("--seed", "S", "seed of the first generated case, default 1");
  arguments.flag("--list", "print the cases that match and run nothing");
  arguments.flag("--json", "the summary as JSON on stdout");
}

conformance::Options read_table(const Arguments& arguments) {
  conformance::Options table;
  const DeviceChoice device = read_device(arguments);
  const Isa isa_wanted = read_isa(arguments);
  const Algorithm algorithm = read_algorithm(arguments);
  if (device != DeviceChoice::kCpu) {
    table.entries = {conformance::Entry::kDevice};
    table.algorithms = {Algorithm::kFlash2};
    table.isas = {Isa::kAuto};
    if (isa_wanted != Isa::kAuto) {
      wrong_request("--isa: {} with --device {}, expected auto: the CPU alone has several",
                    to_string(isa_wanted), to_string(device));
    }
    if (algorithm != Algorithm::kAuto && algorithm != Algorithm::kFlash2) {
      wrong_request("--algorithm: {} with --device {}, expected auto or flash2",
                    to_string(algorithm), to_string(device));
    }
  }
  if (isa_wanted != Isa::kAuto) table.isas = {isa_wanted};
  if (algorithm != Algorithm::kAuto) table.algorithms = {algorithm};
  table.atomic_dq = arguments.has("--atomic-dq");
  if (const std::string* text = arguments.find("--filter")) table.filter = *text;
  if (const std::string* text = arguments.find("--count")) {
    table.count = parse_int("--count", *text, {.min = 1, .max = 1'000'000'000});
  }
  if (const std::string* text = arguments.find("--seed")) {
    table.seed0 = parse_uint64("--seed", *text);
  }
  const std::vector<Isa> isas = available_isas();
  for (Isa isa : table.isas) {
    if (isa != Isa::kAuto && std::find(isas.begin(), isas.end(), isa) == isas.end()) {
      environment_failed("--isa: {} is not on this machine or not in this build", to_string(isa));
    }
  }
  char path[4096];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof path);
  if (length > 0 && length < static_cast<ssize_t>(sizeof path)) {
    table.cli_path.assign(path, static_cast<size_t>(length));
  }
  return table;
}

void require_cells(const Summary& summary) {
  if (!summary.status.ok()) {
    // The sentence begins with the field's name, "filter".
    throw Error(exit_of(summary.status.code()), "--" + summary.status.message());
  }
  if (summary.cells == 0) wrong_request("--filter: no cell matches, expected at least one");
}

Json to_json(const Summary& summary) {
  Json failures = Json::array();
  for (const conformance::Failure& failure : summary.failures) {
    failures.push_back(
        {{"cell", failure.cell}, {"what", failure.what}, {"command", failure.command}});
  }
  return {{"command", "verify"},
          {"cases", summary.cases},
          {"cells", summary.cells},
          {"generated_cells", summary.generated_cells},
          {"passed", summary.passed},
          {"failed", summary.failed},
          {"refused", summary.refused},
          {"vacuous", summary.vacuous},
          {"refusals", summary.refusals},
          {"by_entry", summary.by_entry},
          {"by_tier", summary.by_tier},
          {"by_dtype", summary.by_dtype},
          {"by_isa", summary.by_isa},
          {"by_feature", summary.by_feature},
          {"worst_ratios", summary.worst_ratios},
          {"failures", failures}};
}

void print_counts(std::FILE* out, const char* title, const std::map<std::string, int64_t>& counts) {
  std::string text;
  for (const auto& [name, count] : counts) text += fmt::format("  {} {}", name, count);
  if (!text.empty()) fmt::print(out, "{:<10}{}\n", title, text);
}

void print_text(std::FILE* out, const Summary& summary) {
  for (const conformance::Failure& failure : summary.failures) {
    fmt::print(out, "FAIL {}\n     {}\n     {}\n", failure.cell, failure.what, failure.command);
  }
  print_counts(out, "entry", summary.by_entry);
  print_counts(out, "isa", summary.by_isa);
  print_counts(out, "dtype", summary.by_dtype);
  print_counts(out, "tier", summary.by_tier);
  print_counts(out, "feature", summary.by_feature);
  for (const auto& [reason, count] : summary.refusals) {
    fmt::print(out, "refused   {:>7}  {}\n", count, reason);
  }
  if (!summary.worst_ratios.empty())
    fmt::print(out, "largest error, as a share of what is allowed\n");
  for (const auto& [name, ratio] : summary.worst_ratios) {
    fmt::print(out, "  {:<24}{:.3f}\n", name, ratio);
  }
  fmt::print(out,
             "{} cases, {} cells: {} passed, {} failed, {} refused; {} could not have failed\n",
             summary.cases, summary.cells, summary.passed, summary.failed, summary.refused,
             summary.vacuous);
}

}  // namespace

Exit verify(const Words& words, const Streams& streams) {
  Arguments arguments("verify", "The conformance table against the float64 oracle, here.");
  declare(arguments);
  if (!parse_or_help(arguments, words, streams)) return Exit::kDone;
  const conformance::Options table = read_table(arguments);
  if (arguments.has("--list")) {
    conformance::Options counted = table;
    counted.dry = true;
    require_cells(conformance::run(counted));
    for (const std::string& line : conformance::describe(table))
      fmt::print(streams.out, "{}\n", line);
    return Exit::kDone;
  }
  Summary summary;
  {
    const InterruptGuard guard;
    ProgressBar bar(streams.err, "verify");
    summary = conformance::run(
        table, [&](const Summary&, double fraction) { return bar.update(fraction) == 0; });
    InterruptGuard::check();
  }
  require_cells(summary);
  if (arguments.has("--json")) {
    fmt::print(streams.out, "{}", to_text(to_json(summary)));
  } else {
    print_text(streams.out, summary);
  }
  // All refused: nothing was verified.
  return summary.failed == 0 && summary.passed > 0 ? Exit::kDone : Exit::kCheckFailed;
}

}  // namespace attentile::cli

// SPDX-License-Identifier: Apache-2.0
// conformance_driver: the table from a command line of its own, with counts of what was covered.
// Used by hand and for the long runs; `attentile verify` is the same table for users.
#include <CLI/CLI.hpp>
#include <cstdio>

#include "conformance/crash_report.h"
#include "conformance/runner.h"

namespace {

using attentile::conformance::Summary;

void print_counts(const char* title, const std::map<std::string, int64_t>& counts) {
  std::printf("%s", title);
  for (const auto& [name, count] : counts) {
    std::printf("  %s %lld", name.c_str(), static_cast<long long>(count));
  }
  std::printf("\n");
}

void print_summary(const Summary& summary) {
  for (const auto& failure : summary.failures) {
    std::printf("FAILED %s\n  %s\n  %s\n", failure.cell.c_str(), failure.what.c_str(),
                failure.command.c_str());
  }
  print_counts("entries ", summary.by_entry);
  print_counts("tiers   ", summary.by_tier);
  print_counts("dtypes  ", summary.by_dtype);
  print_counts("isas    ", summary.by_isa);
  print_counts("features", summary.by_feature);
  std::printf("largest error / allowed:");
  for (const auto& [name, ratio] : summary.worst_ratios)
    std::printf("  %s %.2f", name.c_str(), ratio);
  std::printf("\n");
  for (const auto& [reason, count] : summary.refusals) {
    std::printf("refused %lld: %s\n", static_cast<long long>(count), reason.c_str());
  }
  std::printf(
      "%lld cases, %lld cells: %lld passed, %lld failed, %lld refused; %lld passed with an "
      "output that zeros would match\n",
      static_cast<long long>(summary.cases), static_cast<long long>(summary.cells),
      static_cast<long long>(summary.passed), static_cast<long long>(summary.failed),
      static_cast<long long>(summary.refused), static_cast<long long>(summary.vacuous));
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("The conformance table");
  attentile::conformance::Options options;
  bool list = false;
  bool no_named = false;
  app.add_option("--count", options.count, "cells to run");
  app.add_option("--seed0", options.seed0, "seed of the first generated case");
  app.add_option("--filter", options.filter,
                 "key=value/..., keys: case entry algorithm isa dtype tier");
  app.add_option("--cli", options.cli_path, "the attentile binary, for entry=cli");
  app.add_option("--max-failures", options.max_failures, "stop after so many; 0: never");
  app.add_flag("--product", options.product, "every entry, algorithm and ISA of each case");
  app.add_flag("--no-named", no_named, "generated cases only");
  app.add_flag("--list", list, "describe the cases, run nothing");
  CLI11_PARSE(app, argc, argv);
  options.named = !no_named;
  if (list) {
    for (const std::string& line : attentile::conformance::describe(options)) {
      std::printf("%s\n", line.c_str());
    }
    return 0;
  }
  attentile::conformance::install_crash_report();
  const Summary summary = attentile::conformance::run(options);
  if (!summary.status.ok()) {
    std::fprintf(stderr, "%s\n", summary.status.message().c_str());
    return 2;
  }
  print_summary(summary);
  return summary.failed == 0 ? 0 : 1;
}

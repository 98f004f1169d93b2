// SPDX-License-Identifier: Apache-2.0
// `attentile bench`: times in percent of the peak measured in this process, with standard
// attention as the ratio.
#include "cli/bench_file.h"
#include "cli/bench_measure.h"
#include "cli/build_info.h"
#include "cli/commands.h"
#include "cli/output_file.h"
#include "cli/progress.h"

namespace attentile::cli {
namespace {

void print_heading(std::FILE* out) {
  fmt::print(out, "{:<9}{:<6}{:<36}{:>3}{:>12}{:>10}{:>8}{:>12}{:>8}\n", "pass", "dtype", "shape",
             "thr", "median", "GFLOP/s", "peak", "standard", "ratio");
}

void print_row(std::FILE* out, const BenchResult& result, const Json& record) {
  const Timing& ours = result.timings.front();
  // An emulator's time is not a device's; a device's peak is not measured here.
  const bool emulated = result.device == to_string(DeviceChoice::kEmulator);
  const bool on_cpu = result.device.empty();
  const std::string speed = emulated ? "-" : fmt::format("{:.1f}", record["gflops"].get<double>());
  const double share = 100 * record["fraction_of_peak"].get<double>();
  std::string standard = result.skipped;
  std::string ratio = "-";
  if (result.timings.size() > 1) {
    standard = seconds_words(result.timings[1].median_s);
    ratio = fmt::format("{:.2f}x", result.timings[1].median_s / ours.median_s);
  }
  fmt::print(out, "{:<9}{:<6}{:<36}{:>3}{:>12}{:>10}{:>8}{:>12}{:>8}\n",
             record["pass"].get<std::string>(), record["dtype"].get<std::string>(),
             sizes_words(record), record["threads"].get<int64_t>(), seconds_words(ours.median_s),
             speed, on_cpu ? fmt::format("{:.1f}%", share) : "-", standard, ratio);
  std::fflush(out);
}

std::string command_line(const Words& words) {
  std::string text = "attentile bench";
  for (const std::string& word : words) text += " " + word;
  return text;
}

}  // namespace

Exit bench(const Words& words, const Streams& streams) {
  Arguments arguments("bench", "Times against standard attention, in percent of the peak.");
  declare_bench(arguments);
  if (!parse_or_help(arguments, words, streams)) return Exit::kDone;
  const BenchRequest request = read_bench(arguments);
  if (request.json) check_output("--json", *request.json);

  const InterruptGuard guard;
  ProgressBar bar(streams.err, "bench");
  Json records = Json::array();
  for (size_t i = 0; i < request.cases.size(); ++i) {
    const double cases = static_cast<double>(request.cases.size());
    const BenchResult result = measure(
        request.cases[i], request, {.bar = bar, .begin = static_cast<double>(i), .cases = cases});
    const size_t first = records.size();
    for (const Timing& timing : result.timings) records.push_back(to_record(result, timing));
    bar.wipe();
    if (i == 0) print_heading(streams.out);
    print_row(streams.out, result, records[first]);
  }
  if (request.json) {
    Json file = file_head(command_line(words));
    file["records"] = std::move(records);
    write_text_file("--json", *request.json, to_text(file));
  }
  return Exit::kDone;
}

}  // namespace attentile::cli

// SPDX-License-Identifier: Apache-2.0
// `attentile report`: a self-contained HTML page from a bench file.
#include "cli/bench_file.h"
#include "cli/commands.h"
#include "cli/output_file.h"
#include "cli/report_charts.h"
#include "cli/svg.h"
#include "io/text.h"

namespace attentile::cli {
namespace {

constexpr const char* kStyle = R"(
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64em; margin: 2em auto; padding: 0 1em;
       color: #24292f; }
h1 { margin-bottom: .2em; }
dl { display: grid; grid-template-columns: max-content auto; gap: .1em 1.2em; color: #57606a; }
dd { margin: 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: .25em .8em; text-align: right; border-bottom: 1px solid #d0d7de; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
figure { margin: 1.5em 0; }
svg { max-width: 100%; height: auto; }
)";

std::string head_list(const BenchFile& file) {
  std::string items;
  for (const char* field : {"machine", "compiler", "version", "commit", "date", "command"}) {
    if (!file.head.contains(field)) continue;
    const Json& value = file.head[field];
    const std::string text = value.is_string() ? value.get<std::string>() : value.dump();
    items += fmt::format("<dt>{}</dt><dd>{}</dd>\n", field, escape_xml(text));
  }
  return "<dl>\n" + items + "</dl>\n";
}

std::string record_table(const std::vector<Json>& records) {
  std::string rows;
  for (const Json& record : records) {
    rows +=
        fmt::format("<tr><td>{}</td><td>{}</td><td>{}</td><td>{:.1f}</td><td>{:.1f} %</td></tr>\n",
                    escape_xml(record["name"].get<std::string>()), escape_xml(case_words(record)),
                    seconds_words(record["median_s"].get<double>()), record["gflops"].get<double>(),
                    100 * record["fraction_of_peak"].get<double>());
  }
  return "<table><tr><th>name</th><th>case</th><th>median</th><th>GFLOP/s</th><th>of "
         "peak</th></tr>\n" +
         rows + "</table>\n";
}

std::string to_html(const BenchFile& file) {
  std::string figures = "<figure>" + draw_speed_bars(file.records) + "</figure>\n";
  for (const std::string& chart : draw_time_curves(file.records)) {
    figures += "<figure>" + chart + "</figure>\n";
  }
  return fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<title>Attentile benchmark</title>\n<style>{}</style></head><body>\n"
      "<h1>Attentile benchmark</h1>\n{}{}<h2>Records</h2>\n{}</body></html>\n",
      kStyle, head_list(file), figures, record_table(file.records));
}

}  // namespace

Exit report(const Words& words, const Streams& streams) {
  Arguments arguments("report", "A self-contained HTML page from a bench file.");
  arguments.positional("BENCH.json", "what bench --json wrote");
  arguments.value("--out", "FILE.html", "default: the name of the input with .html");
  if (!parse_or_help(arguments, words, streams)) return Exit::kDone;
  const std::string* input = arguments.find("BENCH.json");
  if (input == nullptr) wrong_request("BENCH.json: not given, expected a file that bench wrote");
  constexpr std::string_view kEnding = ".json";
  std::string output = *input;
  if (output.ends_with(kEnding)) output.resize(output.size() - kEnding.size());
  output += ".html";
  if (const std::string* text = arguments.find("--out")) output = *text;
  check_output("--out", output, {*input});
  write_text_file("--out", output, to_html(read_bench_file(*input)));
  fmt::print(streams.out, "written: {}\n", io::printable_path(output));
  return Exit::kDone;
}

}  // namespace attentile::cli

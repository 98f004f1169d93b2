// SPDX-License-Identifier: Apache-2.0
// `attentile report`: a self-contained HTML page from a bench file, and its charts as SVG files.
#include <cctype>
#include <filesystem>

#include "cli/bench_file.h"
#include "cli/commands.h"
#include "cli/output_file.h"
#include "cli/report_charts.h"
#include "cli/report_tables.h"
#include "io/text.h"

namespace attentile::cli {
namespace {

constexpr const char* kStyle = R"(
body { font: 15px/1.5 system-ui, sans-serif; max-width: 80em; margin: 2em auto; padding: 0 1em;
       color: #24292f; }
h1 { margin-bottom: .2em; }
dl { display: grid; grid-template-columns: max-content auto; gap: .1em 1.2em; color: #57606a; }
dd { margin: 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px;
        margin: .5em 0 1.5em; }
th, td { padding: .25em .8em; text-align: right; border-bottom: 1px solid #d0d7de; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
summary { font-size: 17px; font-weight: 600; cursor: pointer; margin: .6em 0; }
main { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1.5em; }
figure { margin: 0; }
figure.wide { grid-column: 1 / -1; }
svg { max-width: 100%; height: auto; }
.missed { background: #ffebe9; }
)";

std::vector<NamedChart> draw_all(const std::vector<Json>& records) {
  std::vector<NamedChart> charts;
  for (const auto draw : {draw_rooflines, draw_heat_maps, draw_length_curves, draw_decode_curves,
                          draw_speed_bars, draw_time_curves}) {
    for (NamedChart& chart : draw(records)) charts.push_back(std::move(chart));
  }
  return charts;
}

std::string to_html(const BenchFile& file, const std::vector<NamedChart>& charts) {
  std::string figures;
  for (const NamedChart& chart : charts) {
    figures +=
        fmt::format("<figure{}>{}</figure>\n", chart.wide ? " class=\"wide\"" : "", chart.svg);
  }
  return fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<title>Attentile benchmark</title>\n<style>{}</style></head><body>\n"
      "<h1>Attentile benchmark</h1>\n{}<main>\n{}</main>\n{}{}{}</body></html>\n",
      kStyle, head_list(file), figures, cell_tables(file), unmeasured_table(file),
      record_table(file));
}

// A file name for any chart: names in bench files come from anywhere.
std::string chart_path(const std::string& folder, const NamedChart& chart) {
  std::string name;
  for (const char c : chart.file.substr(0, 60)) {
    name += std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '-';
  }
  return (std::filesystem::path(folder) / (name + ".svg")).string();
}

}  // namespace

Exit report(const Words& words, const Streams& streams) {
  Arguments arguments("report", "A self-contained HTML page from a bench file.");
  arguments.positional("BENCH.json", "what bench --json or ./dev bench wrote");
  arguments.value("--out", "FILE.html", "default: the name of the input with .html");
  arguments.value("--svg-dir", "DIR", "write each chart there too, as NAME.svg");
  if (!parse_or_help(arguments, words, streams)) return Exit::kDone;
  const std::string* input = arguments.find("BENCH.json");
  if (input == nullptr) wrong_request("BENCH.json: not given, expected a file that bench wrote");
  constexpr std::string_view kEnding = ".json";
  std::string output = *input;
  if (output.ends_with(kEnding)) output.resize(output.size() - kEnding.size());
  output += ".html";
  if (const std::string* text = arguments.find("--out")) output = *text;
  check_output("--out", output, {*input});
  const std::string* folder = arguments.find("--svg-dir");

  const BenchFile file = read_bench_file(*input);
  const std::vector<NamedChart> charts = draw_all(file.records);
  if (folder != nullptr) {
    for (const NamedChart& chart : charts) {
      check_output("--svg-dir", chart_path(*folder, chart), {*input, output});
    }
  }
  write_text_file("--out", output, to_html(file, charts));
  fmt::print(streams.out, "written: {}\n", io::printable_path(output));
  if (folder == nullptr) return Exit::kDone;
  for (const NamedChart& chart : charts) {
    const std::string path = chart_path(*folder, chart);
    write_text_file("--svg-dir", path, chart.svg);
    fmt::print(streams.out, "written: {}\n", io::printable_path(path));
  }
  return Exit::kDone;
}

}  // namespace attentile::cli

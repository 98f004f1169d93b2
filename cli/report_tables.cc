// SPDX-License-Identifier: Apache-2.0
#include "cli/report_tables.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "cli/report_records.h"
#include "cli/svg.h"

namespace attentile::cli {
namespace {

// A field's text, "" for anything else: heads come from anywhere.
std::string text_or_empty(const Json& entry, const char* field) {
  if (!entry.is_object() || !entry.contains(field) || !entry[field].is_string()) return "";
  return escape_xml(entry[field].get<std::string>());
}

std::string figure(const Json& cell, const char* field) {
  if (!cell.is_object() || !cell.contains(field) || !cell[field].is_number()) return "";
  const double value = cell[field].get<double>();
  const std::string unit = text_or_empty(cell, "unit");
  if (unit == "s") return seconds_words(value);
  return unit.ends_with("speedup") ? fmt::format("{:.2f}x", value) : fmt::format("{:.3f}", value);
}

// A list of the head by its name; empty if it is none.
const Json& list_of(const BenchFile& file, const char* name) {
  static const Json kEmpty = Json::array();
  const auto found = file.head.find(name);
  return found != file.head.end() && found->is_array() ? *found : kEmpty;
}

std::string cell_row(const Json& cell) {
  const std::string verdict = text_or_empty(cell, "verdict");
  const bool missed = verdict == "MISSED";
  return fmt::format(
      "<tr{}><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
      missed ? " class=\"missed\"" : "", text_or_empty(cell, "row"), text_or_empty(cell, "cell"),
      figure(cell, "measured"), figure(cell, "must"), figure(cell, "aim"), verdict);
}

}  // namespace

std::string head_list(const BenchFile& file) {
  std::string items;
  for (const char* field :
       {"machine", "compiler", "version", "commit", "date", "command", "foreign_load"}) {
    if (!file.head.contains(field)) continue;
    const Json& value = file.head[field];
    const std::string text = value.is_string() ? value.get<std::string>() : value.dump();
    items += fmt::format("<dt>{}</dt><dd>{}</dd>\n", field, escape_xml(text));
  }
  return "<dl>\n" + items + "</dl>\n";
}

std::string cell_tables(const BenchFile& file) {
  std::vector<std::pair<std::string, std::string>> tables;  // name, rows
  for (const Json& cell : list_of(file, "cells")) {
    const std::string name = text_or_empty(cell, "table");
    if (name == "grid") continue;  // the heat maps show it
    auto found = std::find_if(tables.begin(), tables.end(),
                              [&](const auto& table) { return table.first == name; });
    if (found == tables.end()) found = tables.insert(tables.end(), {name, ""});
    found->second += cell_row(cell);
  }
  std::string html;
  for (const auto& [name, rows] : tables) {
    html += fmt::format(
        "<details open><summary>Table: {}</summary>\n<table><tr><th>row</th><th>case</th>"
        "<th>measured</th><th>must</th><th>aim</th><th>verdict</th></tr>\n{}</table></details>\n",
        name, rows);
  }
  return html.empty() ? "" : "<h2>Figures and targets</h2>\n" + html;
}

std::string unmeasured_table(const BenchFile& file) {
  std::string rows;
  for (const Json& entry : list_of(file, "unmeasured")) {
    rows += fmt::format("<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
                        text_or_empty(entry, "name"), text_or_empty(entry, "case"),
                        text_or_empty(entry, "table"), text_or_empty(entry, "reason"));
  }
  if (rows.empty()) return "";
  return "<details><summary>Not measured, and why</summary>\n<table><tr><th>name</th><th>case</th>"
         "<th>table</th><th>reason</th></tr>\n" +
         rows + "</table></details>\n";
}

std::string record_table(const BenchFile& file) {
  std::string rows;
  for (const Json& record : file.records) {
    rows +=
        fmt::format("<tr><td>{}</td><td>{}</td><td>{}</td><td>{:.1f}</td><td>{:.1f} %</td></tr>\n",
                    escape_xml(text_of(record, "name")), escape_xml(case_words(record)),
                    seconds_words(number_of(record, "median_s")), number_of(record, "gflops"),
                    100 * number_of(record, "fraction_of_peak"));
  }
  return "<details open><summary>Records</summary>\n<table><tr><th>name</th><th>case</th>"
         "<th>median</th><th>GFLOP/s</th><th>of peak</th></tr>\n" +
         rows + "</table></details>\n";
}

}  // namespace attentile::cli

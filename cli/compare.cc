// SPDX-License-Identifier: Apache-2.0
// `attentile compare`: two bench files against each other, record by record.
#include <algorithm>
#include <map>

#include "cli/bench_file.h"
#include "cli/build_info.h"
#include "cli/commands.h"
#include "cli/numbers.h"
#include "cli/output_file.h"
#include "io/text.h"

namespace attentile::cli {
namespace {

struct Pair {
  Json before;
  Json after;
  double ratio = 1;  // of the medians, after / before: above 1 is slower
};

std::string name_words(const Json& record) {
  return io::printable(record["name"].get<std::string>(), 30);
}

struct Comparison {
  std::vector<Pair> pairs;
  size_t only_before = 0;
  size_t only_after = 0;
};

// A case measured twice leaves open which of the times is meant.
void refuse_repeated(const BenchFile& file) {
  std::map<std::string, size_t> first;
  for (size_t i = 0; i < file.records.size(); ++i) {
    const auto [found, fresh] = first.emplace(case_key(file.records[i]), i);
    if (fresh) continue;
    wrong_request("{}: record {} repeats record {}, {} of {}, expected each case once",
                  io::printable_path(file.path), i, found->second, name_words(file.records[i]),
                  case_words(file.records[i]));
  }
}

// Keeps the records of the contenders named in a list with commas.
void keep_names(BenchFile& file, const std::string& names) {
  const auto is_named = [&](const Json& record) {
    const std::string name = "," + record["name"].get<std::string>() + ",";
    return ("," + names + ",").find(name) != std::string::npos;
  };
  std::erase_if(file.records, [&](const Json& record) { return !is_named(record); });
}

Comparison match(const BenchFile& before, const BenchFile& after) {
  refuse_repeated(before);
  refuse_repeated(after);
  std::map<std::string, Json> known;
  for (const Json& record : before.records) known[case_key(record)] = record;
  Comparison comparison;
  for (const Json& record : after.records) {
    const auto found = known.find(case_key(record));
    if (found == known.end()) {
      ++comparison.only_after;
      continue;
    }
    const double ratio = record["median_s"].get<double>() / found->second["median_s"].get<double>();
    comparison.pairs.push_back({std::move(found->second), record, ratio});
    known.erase(found);
  }
  comparison.only_before = known.size();
  return comparison;
}

// The case and, where the file has tables, its table.
std::string full_words(const Json& record) {
  const std::string table = record["table"].get<std::string>();
  return case_words(record) + (table.empty() ? "" : ", " + io::printable(table, 20));
}

void print_table(std::FILE* out, const Comparison& comparison, double limit) {
  size_t name_width = 12;
  size_t case_width = 48;
  for (const Pair& pair : comparison.pairs) {
    name_width = std::max(name_width, name_words(pair.after).size() + 2);
    case_width = std::max(case_width, full_words(pair.after).size() + 2);
  }
  fmt::print(out, "{:<{}}{:<{}}{:>12}{:>12}{:>9}\n", "name", name_width, "case", case_width,
             "before", "after", "change");
  for (const Pair& pair : comparison.pairs) {
    fmt::print(out, "{:<{}}{:<{}}{:>12}{:>12}{:>+8.1f}%{}\n", name_words(pair.after), name_width,
               full_words(pair.after), case_width,
               seconds_words(pair.before["median_s"].get<double>()),
               seconds_words(pair.after["median_s"].get<double>()), 100 * (pair.ratio - 1),
               pair.ratio > 1 + limit ? "  slower" : "");
  }
  fmt::print(out, "{} compared, {} only in the first file, {} only in the second\n",
             comparison.pairs.size(), comparison.only_before, comparison.only_after);
}

Json to_json(const Comparison& comparison, double limit, const std::string& command) {
  Json file = file_head(command);
  file["fail_above"] = limit;
  file["only_before"] = comparison.only_before;
  file["only_after"] = comparison.only_after;
  file["pairs"] = Json::array();
  for (const Pair& pair : comparison.pairs) {
    file["pairs"].push_back(
        {{"ratio", pair.ratio}, {"before", pair.before}, {"after", pair.after}});
  }
  return file;
}

}  // namespace

Exit compare(const Words& words, const Streams& streams) {
  Arguments arguments("compare", "Two bench files against each other: time after / time before.");
  arguments.positional("BEFORE.json", "what bench --json wrote first");
  arguments.positional("AFTER.json", "what it wrote later");
  arguments.value("--fail-above", "PERCENT", "exit 1 if a median grew by more; default 5%");
  arguments.value("--name", "NAMES", "only these contenders, with commas; default all");
  arguments.value("--json", "FILE", "write the comparison there");
  if (!parse_or_help(arguments, words, streams)) return Exit::kDone;
  std::vector<std::string> paths;
  for (const char* name : {"BEFORE.json", "AFTER.json"}) {
    const std::string* path = arguments.find(name);
    if (path == nullptr) wrong_request("{}: not given, expected a file that bench wrote", name);
    paths.push_back(*path);
  }
  double limit = 0.05;
  if (const std::string* text = arguments.find("--fail-above")) {
    limit = parse_percent("--fail-above", *text);
    if (limit < 0) wrong_request("--fail-above: {}, expected at least 0%", *text);
  }
  const std::string* json = arguments.find("--json");
  if (json != nullptr) check_output("--json", *json, paths);

  BenchFile before = read_bench_file(paths[0]);
  BenchFile after = read_bench_file(paths[1]);
  if (const std::string* names = arguments.find("--name")) {
    for (BenchFile* file : {&before, &after}) keep_names(*file, *names);
  }
  const Comparison comparison = match(before, after);
  if (comparison.pairs.empty()) {
    wrong_request("AFTER.json: no record of {} is in {} too, expected a case in common",
                  in_quotes(paths[0]), in_quotes(paths[1]));
  }
  print_table(streams.out, comparison, limit);
  if (json != nullptr) {
    std::string command = "attentile compare";
    for (const std::string& word : words) command += " " + word;
    write_text_file("--json", *json, to_text(to_json(comparison, limit, command)));
  }
  for (const Pair& pair : comparison.pairs) {
    if (pair.ratio > 1 + limit) return Exit::kCheckFailed;
  }
  return Exit::kDone;
}

}  // namespace attentile::cli

// SPDX-License-Identifier: Apache-2.0
// Reads bench files, for compare and report: {"records": [...]} or JSON lines, one record a line.
#pragma once

#include <string>
#include <vector>

#include "cli/facts.h"

namespace attentile::cli {

struct BenchFile {
  std::string path;
  Json head = Json::object();  // version, commit, machine, ...; empty for JSON lines without one
  // Each has the fields that are read here, with values in range; those of options that older files
  // lack are filled in.
  std::vector<Json> records;
};

BenchFile read_bench_file(const std::string& path);

// The problem that was measured, and for which table of ./dev bench: equal for records whose times
// may be held against each other.
std::string problem_key(const Json& record);
// The same and who was measured.
std::string case_key(const Json& record);

// For people: "1x1024x1024 h9/3 d64 causal".
std::string sizes_words(const Json& record);
// " causal softcap 30": the options, each after a blank.
std::string option_words(const Json& record);
// "forward f32 1x1024x1024 h9/3 d64 causal, 2 threads".
std::string case_words(const Json& record);

}  // namespace attentile::cli

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
  std::vector<Json> records;   // each has the fields that are read here, with the right types
};

BenchFile read_bench_file(const std::string& path);

// What was measured, without times: equal for records that may be compared.
std::string case_key(const Json& record);
// The same for people: "forward f32 1x1024x1024 h9/3 d64 causal, 2 threads".
std::string case_words(const Json& record);

}  // namespace attentile::cli

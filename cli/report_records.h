// SPDX-License-Identifier: Apache-2.0
// What every chart asks of bench records.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "cli/facts.h"

namespace attentile::cli {

inline std::string text_of(const Json& record, const char* field) {
  return record[field].get<std::string>();
}
inline int64_t integer_of(const Json& record, const char* field) {
  return record[field].get<int64_t>();
}
inline double number_of(const Json& record, const char* field) {
  return record[field].get<double>();
}
// 0 where the field is absent or no number.
inline double number_or_zero(const Json& record, const char* field) {
  return record.contains(field) && record[field].is_number() ? number_of(record, field) : 0;
}

// In the order in which they first appear; a name's place is its colour in every chart.
inline std::vector<std::string> names_of(const std::vector<Json>& records) {
  std::vector<std::string> names;
  for (const Json& record : records) {
    const std::string name = text_of(record, "name");
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
  return names;
}

inline size_t index_of(const std::vector<std::string>& names, const std::string& name) {
  return static_cast<size_t>(std::find(names.begin(), names.end(), name) - names.begin());
}

inline int64_t most_threads(const std::vector<Json>& records) {
  int64_t most = 0;
  for (const Json& record : records) most = std::max(most, integer_of(record, "threads"));
  return most;
}

inline bool is_decode(const Json& record) {
  return record["pass"] == "forward" && record["seqlen_q"] < record["seqlen_k"];
}

// A plain square problem, as charts over the length draw it.
inline bool is_square(const Json& record) {
  return record["seqlen_q"] == record["seqlen_k"] && !record["varlen"].get<bool>() &&
         record["seqlen_q"] != 0;
}

}  // namespace attentile::cli

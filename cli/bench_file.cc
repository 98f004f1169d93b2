// SPDX-License-Identifier: Apache-2.0
// Bench files come from anywhere, so every field that is used later is checked here.
#include "cli/bench_file.h"

#include <cmath>
#include <cstddef>

#include "cli/error.h"
#include "io/byte_source.h"
#include "io/text.h"

namespace attentile::cli {
namespace {

constexpr const char* kTexts[] = {"name", "pass", "dtype", "layout", "device"};
constexpr const char* kIntegers[] = {"batch",        "seqlen_q", "seqlen_k",   "num_heads_q",
                                     "num_heads_kv", "head_dim", "head_dim_v", "threads"};
constexpr const char* kFlags[] = {"causal", "varlen"};
constexpr const char* kNumbers[] = {"median_s", "gflops", "peak_gflops", "fraction_of_peak"};

std::string read_text(const std::string& path) {
  constexpr uint64_t kMaxBytes = 256u << 20;
  std::unique_ptr<io::ByteSource> source = take(io::open_file(path));
  if (source->size() > kMaxBytes) {
    wrong_request("{}: {} bytes, expected a bench file of at most {}", io::printable_path(path),
                  source->size(), kMaxBytes);
  }
  std::string text(static_cast<size_t>(source->size()), '\0');
  require_ok(source->read(0, text.size(), text.data()));
  return text;
}

// Objects nested this deep are no bench file.
Json parse(const std::string& text) {
  const auto shallow = [](int depth, Json::parse_event_t, Json&) { return depth < 16; };
  return Json::parse(text, shallow, false);
}

void check_record(const std::string& path, size_t index, const Json& record) {
  const auto refuse = [&](const char* field, const char* expected) {
    wrong_request("{}: record {} has no usable {}, expected {}", io::printable_path(path), index,
                  field, expected);
  };
  if (!record.is_object()) {
    wrong_request("{}: record {} is no JSON object", io::printable_path(path), index);
  }
  for (const char* field : kTexts) {
    if (!record.contains(field) || !record[field].is_string()) refuse(field, "a text");
  }
  for (const char* field : kIntegers) {
    if (!record.contains(field) || !record[field].is_number_integer()) refuse(field, "an integer");
  }
  for (const char* field : kFlags) {
    if (!record.contains(field) || !record[field].is_boolean()) refuse(field, "true or false");
  }
  for (const char* field : kNumbers) {
    if (!record.contains(field) || !record[field].is_number()) refuse(field, "a number");
  }
  if (!(record["median_s"].get<double>() > 0)) refuse("median_s", "a positive number");
}

// JSON lines: objects with "records" or, without "name", are heads; the others are records.
void parse_lines(const std::string& text, BenchFile& file) {
  size_t line_number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    Json value = parse(line);
    if (!value.is_object()) {
      wrong_request("{}: line {} is no JSON object, expected bench records",
                    io::printable_path(file.path), line_number);
    }
    if (value.contains("name")) {
      file.records.push_back(std::move(value));
    } else {
      file.head.update(value);
    }
  }
}

}  // namespace

BenchFile read_bench_file(const std::string& path) {
  BenchFile file;
  file.path = path;
  const std::string text = read_text(path);
  Json whole = parse(text);
  if (whole.is_object() && whole.contains("records") && whole["records"].is_array()) {
    for (Json& record : whole["records"]) file.records.push_back(std::move(record));
    whole.erase("records");
    file.head = std::move(whole);
  } else {
    parse_lines(text, file);
  }
  if (file.records.empty()) {
    wrong_request("{}: holds no records, expected a file that bench wrote",
                  io::printable_path(path));
  }
  for (size_t i = 0; i < file.records.size(); ++i) check_record(path, i, file.records[i]);
  return file;
}

std::string case_key(const Json& record) {
  std::string key;
  for (const char* field : kTexts) key += record[field].get<std::string>() + "|";
  for (const char* field : kIntegers) key += record[field].dump() + "|";
  for (const char* field : kFlags) key += record[field].dump() + "|";
  return key;
}

std::string case_words(const Json& record) {
  const auto text = [&](const char* field) {
    return io::printable(record[field].get<std::string>());
  };
  const auto number = [&](const char* field) { return record[field].get<int64_t>(); };
  std::string words = fmt::format(
      "{} {} {}x{}x{} h{}/{} d{}", text("pass"), text("dtype"), number("batch"), number("seqlen_q"),
      number("seqlen_k"), number("num_heads_q"), number("num_heads_kv"), number("head_dim"));
  if (number("head_dim_v") != number("head_dim")) words += fmt::format("/{}", number("head_dim_v"));
  if (record["varlen"].get<bool>()) words += " varlen";
  if (record["causal"].get<bool>()) words += " causal";
  if (text("layout") != "bshd") words += " " + text("layout");
  return words + fmt::format(", {} thread{}", number("threads"), number("threads") == 1 ? "" : "s");
}

}  // namespace attentile::cli

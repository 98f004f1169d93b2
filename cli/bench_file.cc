// SPDX-License-Identifier: Apache-2.0
// Bench files come from anywhere, so every field that is used later is checked here.
#include "cli/bench_file.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "cli/error.h"
#include "cli/numbers.h"
#include "io/byte_source.h"
#include "io/text.h"

namespace attentile::cli {
namespace {

constexpr size_t kMaxRecords = 10'000;
constexpr size_t kMaxSeqlens = 4096;
constexpr const char* kTexts[] = {"pass", "dtype", "layout", "device"};
constexpr const char* kSizes[] = {"batch",        "seqlen_q", "seqlen_k",   "num_heads_q",
                                  "num_heads_kv", "head_dim", "head_dim_v", "threads"};
constexpr const char* kFlags[] = {"causal", "varlen"};
constexpr const char* kRates[] = {"gflops", "peak_gflops", "fraction_of_peak"};
constexpr const char* kOptions[] = {"window_left",   "window_right", "softcap",
                                    "softmax_scale", "alignment",    "position_offset",
                                    "seqlens",       "feature",      "table"};
// Wider than anything that is measured, narrow enough for every chart.
constexpr double kMinSeconds = 1e-9;
constexpr double kMaxSeconds = 1e9;
constexpr double kMaxRate = 1e15;

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

bool is_integer(const Json& value, int64_t min, int64_t max) {
  if (!value.is_number_integer()) return false;
  if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
    return false;
  }
  return value.get<int64_t>() >= min && value.get<int64_t>() <= max;
}

bool is_real(const Json& value, double min, double max) {
  return value.is_number() && value.get<double>() >= min && value.get<double>() <= max;
}

bool are_seqlens(const Json& value) {
  if (value.is_null()) return true;
  return value.is_array() && value.size() <= kMaxSeqlens &&
         std::all_of(value.begin(), value.end(),
                     [](const Json& length) { return is_integer(length, 0, INT32_MAX); });
}

// One record's fields, each named in the sentence that refuses it.
class Record {
 public:
  Record(const std::string& path, size_t index, Json& record)
      : path_(path), index_(index), record_(record) {}

  void check() {
    if (!record_.is_object()) {
      wrong_request("{}: record {} is no JSON object", io::printable_path(path_), index_);
    }
    need("name", field("name").is_string(), "a text");
    for (const char* name : kTexts) need(name, field(name).is_string(), "a text");
    for (const char* name : kSizes) {
      need(name, is_integer(field(name), 0, kMaxSize),
           fmt::format("an integer from 0 to {}", kMaxSize));
    }
    for (const char* name : kFlags) need(name, field(name).is_boolean(), "true or false");
    need("median_s", is_real(field("median_s"), kMinSeconds, kMaxSeconds),
         fmt::format("a number from {:g} to {:g}", kMinSeconds, kMaxSeconds));
    for (const char* name : kRates) {
      need(name, is_real(field(name), 0, kMaxRate),
           fmt::format("a number from 0 to {:g}", kMaxRate));
    }
    check_options();
  }

 private:
  void check_options() {
    const double head_dim = std::max(record_["head_dim"].get<double>(), 1.0);
    fill_in("window_left", -1);
    fill_in("window_right", record_["causal"].get<bool>() ? 0 : -1);
    fill_in("softcap", 0.0);
    fill_in("softmax_scale", 1 / std::sqrt(head_dim));
    fill_in("alignment", "bottom_right");
    fill_in("position_offset", nullptr);
    fill_in("seqlens", nullptr);
    fill_in("feature", "");
    fill_in("table", "");
    for (const char* name : {"window_left", "window_right"}) {
      need(name, is_integer(field(name), -1, INT64_MAX), "an integer of at least -1");
    }
    constexpr double kLargest = std::numeric_limits<double>::max();
    need("softcap", is_real(field("softcap"), 0, kLargest), "a number of at least 0");
    need("softmax_scale", field("softmax_scale").is_number(), "a number");
    need("alignment", field("alignment") == "bottom_right" || field("alignment") == "top_left",
         "bottom_right or top_left");
    need("feature", field("feature").is_string(), "a text");
    need("table", field("table").is_string(), "a text");
    const Json& offset = field("position_offset");
    need("position_offset", offset.is_null() || is_integer(offset, INT64_MIN, INT64_MAX),
         "null or an integer");
    need("seqlens", are_seqlens(field("seqlens")),
         fmt::format("null or at most {} lengths", kMaxSeqlens));
  }

  const Json& field(const char* name) const {
    static const Json kAbsent;
    return record_.contains(name) ? record_[name] : kAbsent;
  }

  void fill_in(const char* name, const Json& value) {
    if (!record_.contains(name)) record_[name] = value;
  }

  void need(const char* name, bool usable, std::string_view expected) const {
    if (usable) return;
    wrong_request("{}: record {} has no usable {}, expected {}", io::printable_path(path_), index_,
                  name, expected);
  }

  const std::string& path_;
  size_t index_;
  Json& record_;
};

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
  if (file.records.size() > kMaxRecords) {
    wrong_request("{}: holds {} records, expected at most {}", io::printable_path(path),
                  file.records.size(), kMaxRecords);
  }
  for (size_t i = 0; i < file.records.size(); ++i) Record(path, i, file.records[i]).check();
  return file;
}

std::string problem_key(const Json& record) {
  std::string key;
  for (const char* field : kTexts) key += record[field].get<std::string>() + "|";
  for (const char* field : kSizes) key += record[field].dump() + "|";
  for (const char* field : kFlags) key += record[field].dump() + "|";
  if (record.value("atomic_dq", false)) key += "atomic_dq|";
  for (const char* field : kOptions) {
    // 30 and 30.0 are one value.
    const Json& value = record[field];
    key += (value.is_number_float() ? fmt::format("{}", value.get<double>()) : value.dump()) + "|";
  }
  return key;
}

std::string case_key(const Json& record) {
  return record["name"].get<std::string>() + "|" + problem_key(record);
}

std::string option_words(const Json& record) {
  const auto integer = [&](const char* field) { return record[field].get<int64_t>(); };
  const auto real = [&](const char* field) { return record[field].get<double>(); };
  std::string words;
  if (record["varlen"].get<bool>()) words += " varlen";
  if (record["seqlens"].is_array()) {
    int64_t total = 0;
    for (const Json& length : record["seqlens"]) total += length.get<int64_t>();
    words += fmt::format(" of {}", total);
  }
  const bool causal = record["causal"].get<bool>();
  if (causal) words += " causal";
  if (integer("window_left") != -1 || (!causal && integer("window_right") != -1)) {
    words += fmt::format(" window {},{}", integer("window_left"), integer("window_right"));
  }
  if (real("softcap") != 0) words += fmt::format(" softcap {}", real("softcap"));
  const double usual = 1 / std::sqrt(std::max(real("head_dim"), 1.0));
  if (std::abs(real("softmax_scale") - usual) > 1e-12) {
    words += fmt::format(" scale {}", real("softmax_scale"));
  }
  if (record["alignment"] == "top_left") words += " top_left";
  if (record["position_offset"].is_number()) {
    words += fmt::format(" offset {}", integer("position_offset"));
  }
  const std::string layout = record["layout"].get<std::string>();
  if (layout != "bshd") words += " " + io::printable(layout, 20);
  if (record.value("atomic_dq", false)) words += " atomic dq";
  const std::string feature = record.value("feature", std::string());
  if (!feature.empty()) words += " " + io::printable(feature, 20);
  return words;
}

std::string sizes_words(const Json& record) {
  const auto number = [&](const char* field) { return record[field].get<int64_t>(); };
  std::string words =
      fmt::format("{}x{}x{} h{}/{} d{}", number("batch"), number("seqlen_q"), number("seqlen_k"),
                  number("num_heads_q"), number("num_heads_kv"), number("head_dim"));
  if (number("head_dim_v") != number("head_dim")) words += fmt::format("/{}", number("head_dim_v"));
  return words + option_words(record);
}

std::string case_words(const Json& record) {
  const auto text = [&](const char* field) {
    return io::printable(record[field].get<std::string>(), 20);
  };
  const int64_t threads = record["threads"].get<int64_t>();
  return fmt::format("{} {} {}, {} thread{}", text("pass"), text("dtype"), sizes_words(record),
                     threads, threads == 1 ? "" : "s");
}

}  // namespace attentile::cli

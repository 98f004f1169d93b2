// SPDX-License-Identifier: Apache-2.0
// Curves of the tables of ./dev bench: time and memory against length, decoding over the cache.
#include <fmt/format.h>

#include <map>

#include "cli/chart.h"
#include "cli/report_charts.h"
#include "cli/report_records.h"
#include "io/text.h"

namespace attentile::cli {
namespace {

using Points = std::map<double, double>;  // y by x
using Curves = std::map<size_t, Points>;  // by name

std::vector<ChartPoint> to_points(const Points& points) {
  std::vector<ChartPoint> result;
  for (const auto& [x, y] : points) {
    if (is_drawable(x) && is_drawable(y)) result.push_back({x, y});
  }
  return result;
}

void add_series(LogChart& chart, const Curves& curves, const std::vector<std::string>& names) {
  for (const auto& [name, points] : curves) {
    chart.series.push_back(
        {.name = names[name], .color = series_color(name), .points = to_points(points)});
  }
}

std::string threads_words(const Json& record) {
  const int64_t threads = integer_of(record, "threads");
  return fmt::format("{} thread{}", threads, threads == 1 ? "" : "s");
}

// A decoding case without its cache: what a family has in common.
std::string family_words(const Json& record) {
  return fmt::format("{}, batch {}, {}/{} heads, head_dim {}, {} new token{}, {}",
                     io::printable(text_of(record, "dtype"), 20), integer_of(record, "batch"),
                     integer_of(record, "num_heads_q"), integer_of(record, "num_heads_kv"),
                     integer_of(record, "head_dim"), integer_of(record, "seqlen_q"),
                     integer_of(record, "seqlen_q") == 1 ? "" : "s", threads_words(record));
}

std::string family_file(const Json& record) {
  return fmt::format("decode-{}-h{}-{}-d{}-new{}-b{}", text_of(record, "dtype"),
                     integer_of(record, "num_heads_q"), integer_of(record, "num_heads_kv"),
                     integer_of(record, "head_dim"), integer_of(record, "seqlen_q"),
                     integer_of(record, "batch"));
}

struct DecodeFamily {
  std::string file;
  Curves curves;
  Points stream;
};

}  // namespace

std::vector<NamedChart> draw_length_curves(const std::vector<Json>& records) {
  const std::vector<std::string> names = names_of(records);
  std::map<size_t, std::map<double, std::pair<double, double>>> seconds;  // forward, backward
  Curves memory;
  std::string what;
  for (const Json& record : records) {
    if (record["table"] != "lengths") continue;
    const size_t name = index_of(names, text_of(record, "name"));
    const double seqlen = number_of(record, "seqlen_q");
    auto& [forward, backward] = seconds[name][seqlen];
    (record["pass"] == "backward" ? backward : forward) = number_of(record, "median_s");
    const double bytes = number_or_zero(record, "peak_bytes");
    if (bytes > 0) memory[name][seqlen] = bytes;
    what = fmt::format("forward + backward, {}, {} heads, head_dim {}, batch {}, {}",
                       io::printable(text_of(record, "dtype"), 20),
                       integer_of(record, "num_heads_q"), integer_of(record, "head_dim"),
                       integer_of(record, "batch"), threads_words(record));
  }
  Curves both;
  for (const auto& [name, points] : seconds) {
    for (const auto& [seqlen, pair] : points) {
      if (pair.first > 0 && pair.second > 0) both[name][seqlen] = pair.first + pair.second;
    }
  }
  LogChart time{.title = "Time against sequence length",
                .subtitle = what,
                .x_label = "sequence length, tokens",
                .y_label = "time",
                .x_words = count_words,
                .y_words = tick_seconds,
                .series = {}};
  LogChart bytes = time;
  bytes.title = "Peak memory against sequence length";
  bytes.subtitle += "; inputs and results included";
  bytes.y_label = "memory";
  bytes.y_words = tick_bytes;
  add_series(time, both, names);
  add_series(bytes, memory, names);
  std::vector<NamedChart> charts;
  for (NamedChart chart : {NamedChart{"length-time", draw_log_chart(time)},
                           NamedChart{"length-memory", draw_log_chart(bytes)}}) {
    if (!chart.svg.empty()) charts.push_back(std::move(chart));
  }
  return charts;
}

std::vector<NamedChart> draw_decode_curves(const std::vector<Json>& records) {
  const std::vector<std::string> names = names_of(records);
  const int64_t threads = most_threads(records);
  std::map<std::string, DecodeFamily> families;
  for (const Json& record : records) {
    const double speed = number_or_zero(record, "bytes_per_s");
    if (!is_decode(record) || speed <= 0 || integer_of(record, "threads") != threads) continue;
    DecodeFamily& family = families[family_words(record)];
    family.file = family_file(record);
    const double cache = number_of(record, "seqlen_k");
    family.curves[index_of(names, text_of(record, "name"))][cache] = speed * 1e-9;
    const double stream = number_or_zero(record, "stream_bytes_per_s");
    if (stream > 0) family.stream[cache] = stream * 1e-9;
  }
  std::vector<NamedChart> charts;
  for (const auto& [words, family] : families) {
    LogChart chart{.title = "Decoding: K and V read per second",
                   .subtitle = words,
                   .x_label = "tokens in the cache",
                   .y_label = "GB/s of K and V",
                   .x_words = count_words,
                   .y_words = plain_words,
                   .series = {}};
    add_series(chart, family.curves, names);
    chart.series.push_back({.name = "streaming read of as many bytes",
                            .color = kInk,
                            .points = to_points(family.stream),
                            .stroke = Stroke::kDashes,
                            .marks = Marks::kNone});
    const bool is_curve = std::any_of(family.curves.begin(), family.curves.end(),
                                      [](const auto& curve) { return curve.second.size() > 1; });
    if (is_curve) charts.push_back({family.file, draw_log_chart(chart)});
  }
  return charts;
}

}  // namespace attentile::cli

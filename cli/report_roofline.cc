// SPDX-License-Identifier: Apache-2.0
// Rooflines: what the arithmetic and the memory of this machine allow, and who reaches what.
#include <fmt/format.h>

#include <array>
#include <map>

#include "cli/chart.h"
#include "cli/report_charts.h"
#include "cli/report_records.h"

namespace attentile::cli {
namespace {

constexpr double kBestShare = 0.98;  // of the largest cache's bytes still counts as the largest

double value_bytes(const std::string& dtype) {
  if (dtype == "f64") return 8;
  return dtype == "f32" ? 4 : 2;
}

// Flops per byte if q, k, v and out each cross the memory bus once.
double intensity_of(const Json& record) {
  const double queries = number_of(record, "seqlen_q") * number_of(record, "num_heads_q");
  const double keys = number_of(record, "seqlen_k") * number_of(record, "num_heads_kv");
  const double values =
      (queries + keys) * (number_of(record, "head_dim") + number_of(record, "head_dim_v"));
  const double bytes = number_of(record, "batch") * values * value_bytes(text_of(record, "dtype"));
  return number_of(record, "gflops") * 1e9 * number_of(record, "median_s") / bytes;
}

bool is_shown(const Json& record, const std::string& dtype, int64_t threads) {
  const std::string table = text_of(record, "table");
  return record["pass"] == "forward" && record["dtype"] == dtype && !record["varlen"].get<bool>() &&
         (table.empty() || table == "grid" || table == "decode") &&
         text_of(record, "feature").empty() && integer_of(record, "threads") == threads &&
         is_drawable(intensity_of(record)) && is_drawable(number_of(record, "gflops"));
}

// Bytes per second of a streaming read: of the smallest and of the largest cache that was read.
struct Streams {
  double near = 0, near_bytes = 1e300;
  double far = 0, far_bytes = 0;
};

Streams streams_of(const std::vector<Json>& records, int64_t threads) {
  Streams streams;
  for (const Json& record : records) {
    const double speed = number_or_zero(record, "stream_bytes_per_s");
    if (!is_drawable(speed) || integer_of(record, "threads") != threads) continue;
    const double bytes = number_or_zero(record, "bytes_per_s") * number_of(record, "median_s");
    if (bytes < streams.near_bytes) streams.near = speed, streams.near_bytes = bytes;
    if (bytes * kBestShare > streams.far_bytes) streams.far = speed, streams.far_bytes = bytes;
  }
  return streams;
}

// The line of a memory roof from `low` to where it meets the peak.
ChartSeries memory_roof(double bytes_per_s, double low, double peak) {
  const double meets = peak * 1e9 / bytes_per_s;
  const double begin = std::min(low, meets / 2);
  return {.name = "",
          .color = kInk,
          .points = {{begin, begin * bytes_per_s * 1e-9}, {meets, peak}},
          .stroke = Stroke::kDashes,
          .marks = Marks::kNone,
          .label = fmt::format("{:.0f} GB/s", bytes_per_s * 1e-9)};
}

// The best of each octave of intensity, by name: what the points of one place hide of each other,
// head dimensions and masks, is in the heat maps.
struct Best {
  using Places = std::map<int, ChartPoint>;
  std::map<size_t, Places> prefill;
  std::map<size_t, Places> decode;
  double low = 1e300, high = 0, peak = 0;

  void include(const Json& record, size_t name) {
    const ChartPoint point{intensity_of(record), number_of(record, "gflops")};
    Places& places = (is_decode(record) ? decode : prefill)[name];
    ChartPoint& best = places[static_cast<int>(std::floor(2 * std::log2(point.x)))];
    if (point.y > best.y) best = point;
    low = std::min(low, point.x);
    high = std::max(high, point.x);
    peak = std::max(peak, number_of(record, "peak_gflops"));
  }
};

void add_places(LogChart& chart, const std::map<size_t, Best::Places>& all,
                const std::vector<std::string>& names, const ChartSeries& style) {
  for (const auto& [name, places] : all) {
    ChartSeries series = style;
    series.name = names[name];
    series.color = series_color(name);
    for (const auto& [octave, point] : places) series.points.push_back(point);
    chart.series.push_back(std::move(series));
  }
}

NamedChart draw_roofline(const std::vector<Json>& records, const std::string& dtype) {
  const std::vector<std::string> names = names_of(records);
  const int64_t threads = most_threads(records);
  Best best;
  for (const Json& record : records) {
    if (is_shown(record, dtype, threads)) {
      best.include(record, index_of(names, text_of(record, "name")));
    }
  }
  LogChart chart{
      .title = fmt::format("Roofline, {}, {} thread{}", dtype, threads, threads == 1 ? "" : "s"),
      .subtitle =
          "dots: forward; rings: decoding; dashes: the peak and streaming reads "
          "of the smallest and largest cache",
      .x_label = "useful flops per byte of q, k, v and out",
      .y_label = "useful GFLOP/s",
      .x_words = plain_words,
      .y_words = plain_words,
      .x_doubles = false,
      .series = {}};
  if (is_drawable(best.peak)) {
    const Streams streams = streams_of(records, threads);
    if (streams.near > 0) {
      chart.series.push_back(memory_roof(streams.near, best.low, best.peak));
      chart.series.push_back(memory_roof(streams.far, best.low, best.peak));
    }
    chart.series.push_back({.name = "",
                            .color = kInk,
                            .points = {{best.low, best.peak}, {best.high, best.peak}},
                            .stroke = Stroke::kDashes,
                            .marks = Marks::kNone,
                            .label = fmt::format("peak {:.0f} GFLOP/s", best.peak)});
  }
  add_places(chart, best.prefill, names, {.name = "", .color = kInk});
  add_places(chart, best.decode, names,
             {.name = "", .color = kInk, .stroke = Stroke::kNone, .marks = Marks::kRings});
  for (ChartSeries& series : chart.series) {
    // Who prefills and decodes has one entry.
    const bool both =
        series.marks == Marks::kRings && best.prefill.contains(index_of(names, series.name));
    series.in_legend = !both;
  }
  return {"roofline-" + dtype, draw_log_chart(chart)};
}

}  // namespace

std::vector<NamedChart> draw_rooflines(const std::vector<Json>& records) {
  std::vector<NamedChart> charts;
  for (const char* dtype : {"f32", "bf16", "f16"}) {
    NamedChart chart = draw_roofline(records, dtype);
    if (!chart.svg.empty()) charts.push_back(std::move(chart));
  }
  return charts;
}

}  // namespace attentile::cli

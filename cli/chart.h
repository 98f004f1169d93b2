// SPDX-License-Identifier: Apache-2.0
// Charts with two logarithmic axes, and what all charts of a report share: colours, legends.
#pragma once

#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include "cli/svg.h"

namespace attentile::cli {

inline constexpr std::string_view kInk = "#24292f";
inline constexpr std::string_view kSoft = "#57606a";
inline constexpr std::string_view kGrid = "#e4e8ec";

// The colour of the n-th name, out of a set that colour-blind readers can tell apart.
std::string_view series_color(size_t n);

struct LegendEntry {
  std::string name;
  std::string_view color;
};

// The legend's rows from (x, y) downward, none wider than `width`. Returns their height, which is
// known without drawing: svg may be null.
double draw_legend(Svg* svg, const Box& place, const std::vector<LegendEntry>& entries);

struct LogAxis {
  double low;
  double high;
  double begin;
  double length;  // negative: upward
  double at(double value) const {
    return begin + length * std::log(value / low) / std::log(high / low);
  }
};

struct ChartPoint {
  double x = 0;
  double y = 0;
};

enum class Stroke { kLine, kDashes, kNone };
enum class Marks { kDots, kRings, kNone };

struct ChartSeries {
  std::string name;
  std::string_view color;
  std::vector<ChartPoint> points = {};  // positive, by x
  Stroke stroke = Stroke::kLine;
  Marks marks = Marks::kDots;
  std::string label = {};  // written at the last point, in place of a legend entry
  bool in_legend = true;
};

struct LogChart {
  std::string title;
  std::string subtitle;
  std::string x_label;
  std::string y_label;
  std::string (*x_words)(double);
  std::string (*y_words)(double);
  bool x_doubles = true;  // grid lines at powers of 2, else at 1, 2, 5 times powers of ten
  std::vector<ChartSeries> series;
};

// "" if no series has a point.
std::string draw_log_chart(const LogChart& chart);

// Whether a logarithmic axis has a place for the value: positive, and nothing that the ends of the
// floating-point range could swallow.
inline bool is_drawable(double value) {
  return value > 1e-30 && value < 1e30;
}

// "4k", "100 ms", "1.5 GiB", "250 GB/s", "0.5".
std::string count_words(double count);
std::string tick_seconds(double seconds);
std::string tick_bytes(double bytes);
std::string plain_words(double value);

}  // namespace attentile::cli

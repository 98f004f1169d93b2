// SPDX-License-Identifier: Apache-2.0
// Charts as inline SVG. Colours are a set that colour-blind readers can tell apart.
#include "cli/report_charts.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "cli/bench_file.h"
#include "cli/svg.h"
#include "io/text.h"

namespace attentile::cli {
namespace {

constexpr std::string_view kInk = "#24292f";
constexpr std::string_view kGrid = "#e4e8ec";

std::string text_of(const Json& record, const char* field) {
  return record[field].get<std::string>();
}
int64_t integer_of(const Json& record, const char* field) {
  return record[field].get<int64_t>();
}
double number_of(const Json& record, const char* field) {
  return record[field].get<double>();
}

std::vector<std::string> names_of(const std::vector<Json>& records) {
  std::vector<std::string> names;
  for (const Json& record : records) {
    const std::string name = text_of(record, "name");
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
  return names;
}

size_t index_of(const std::vector<std::string>& names, const std::string& name) {
  return static_cast<size_t>(std::find(names.begin(), names.end(), name) - names.begin());
}

// The names with these numbers.
void draw_name_legend(Svg& svg, double x, double y, const std::vector<std::string>& names,
                      const std::vector<size_t>& shown) {
  for (size_t n : shown) {
    const std::string name = io::printable(names[n], 40);
    svg.rect({x, y - 10, 14, 12}, series_color(n));
    svg.text(x + 20, y, name);
    x += 40 + 8.5 * static_cast<double>(name.size());
  }
}

// 1, 2 or 5 times a power of ten, so that at most `count` steps cover `range`.
double nice_step(double range, int count) {
  const double rough = range / count;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  for (double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= rough) return factor * power;
  }
  return 10 * power;
}

// Of the peak; 0 where that was not measured.
double percent_of(double gflops, double peak) {
  constexpr double kSlowestPeak = 1e-9;
  return peak < kSlowestPeak ? 0 : 100 * gflops / peak;
}

struct Group {
  std::string words;
  double peak = 0;
  std::vector<std::pair<size_t, double>> bars;  // name, GFLOP/s
};

std::vector<Group> group_bars(const std::vector<Json>& records,
                              const std::vector<std::string>& names) {
  std::vector<Group> groups;
  std::map<std::string, size_t> known;
  for (const Json& record : records) {
    const auto [found, fresh] = known.emplace(problem_key(record), groups.size());
    if (fresh) groups.push_back({.words = case_words(record), .bars = {}});
    Group& group = groups[found->second];
    group.peak = std::max(group.peak, number_of(record, "peak_gflops"));
    group.bars.emplace_back(index_of(names, text_of(record, "name")), number_of(record, "gflops"));
  }
  return groups;
}

struct Point {
  double seqlen;
  double seconds;
};
using Curves = std::map<size_t, std::vector<Point>>;  // by name

// A family's key: the case without its sequence lengths.
std::map<std::string, Curves> families(const std::vector<Json>& records,
                                       const std::vector<std::string>& names) {
  std::map<std::string, Curves> result;
  for (const Json& record : records) {
    if (record["seqlen_q"] != record["seqlen_k"] || record["varlen"].get<bool>()) continue;
    if (record["seqlen_q"] == 0) continue;  // not on a logarithmic axis
    std::string dims = fmt::format("{}", integer_of(record, "head_dim"));
    if (record["head_dim_v"] != record["head_dim"]) {
      dims += fmt::format("/{}", integer_of(record, "head_dim_v"));
    }
    const std::string options = option_words(record);
    const std::string key =
        fmt::format("{} {}, batch {}, {}/{} heads, head_dim {}{}{}, {} threads",
                    text_of(record, "pass"), text_of(record, "dtype"), integer_of(record, "batch"),
                    integer_of(record, "num_heads_q"), integer_of(record, "num_heads_kv"), dims,
                    options.empty() ? "" : ",", options, integer_of(record, "threads"));
    result[key][index_of(names, text_of(record, "name"))].push_back(
        {number_of(record, "seqlen_k"), number_of(record, "median_s")});
  }
  std::erase_if(result, [](const auto& family) {
    return std::all_of(family.second.begin(), family.second.end(),
                       [](const auto& curve) { return curve.second.size() < 3; });
  });
  for (auto& [key, curves] : result) {
    for (auto& [name, points] : curves) {
      std::sort(points.begin(), points.end(),
                [](const Point& a, const Point& b) { return a.seqlen < b.seqlen; });
    }
  }
  return result;
}

// "100 ms"
std::string tick_words(double seconds) {
  if (seconds < 0.9e-3) return fmt::format("{:.3g} us", seconds * 1e6);
  if (seconds < 0.9) return fmt::format("{:.3g} ms", seconds * 1e3);
  return fmt::format("{:.3g} s", seconds);
}

struct LogAxis {
  double low;
  double high;
  double begin;
  double length;  // negative: upward
  double at(double value) const {
    return begin + length * std::log(value / low) / std::log(high / low);
  }
};

std::string draw_family(const std::string& title, const Curves& curves,
                        const std::vector<std::string>& names) {
  double x_low = 1e300, x_high = 0, y_low = 1e300, y_high = 0;
  for (const auto& [name, points] : curves) {
    for (const Point& point : points) {
      x_low = std::min(x_low, point.seqlen);
      x_high = std::max(x_high, point.seqlen);
      y_low = std::min(y_low, point.seconds);
      y_high = std::max(y_high, point.seconds);
    }
  }
  const double y_floor = std::pow(10, std::floor(std::log10(y_low)));
  const double y_ceiling = std::pow(10, std::floor(std::log10(y_high)) + 1);
  const LogAxis x{x_low, std::max(x_high, 2 * x_low), 92, 548};
  const LogAxis y{y_floor, y_ceiling, 330, -250};
  Svg svg(700, 390);
  svg.text(92, 26, "Time against sequence length", {.size = 16, .bold = true});
  svg.text(92, 46, title, {.size = 12, .color = "#57606a"});
  for (double tick = y_floor; tick <= y_ceiling * 1.001; tick *= 10) {
    svg.line(92, y.at(tick), 640, y.at(tick), kGrid);
    svg.text(84, y.at(tick) + 4, tick_words(tick), {.size = 11, .anchor = "end"});
  }
  for (double tick = 1; tick <= x.high * 1.001; tick *= 2) {
    if (tick < x.low * 0.999) continue;
    svg.line(x.at(tick), 80, x.at(tick), 330, kGrid);
    svg.text(x.at(tick), 348, fmt::format("{:.0f}", tick), {.size = 11, .anchor = "middle"});
  }
  svg.rect({92, 80, 548, 250}, "none", "stroke=\"#24292f\"");
  for (const auto& [name, points] : curves) {
    std::string path;
    for (const Point& point : points) {
      path += fmt::format("{:.1f},{:.1f} ", x.at(point.seqlen), y.at(point.seconds));
      svg.raw(fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.5\" fill=\"{}\"/>\n",
                          x.at(point.seqlen), y.at(point.seconds), series_color(name)));
    }
    svg.raw(
        fmt::format("<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>\n",
                    path, series_color(name)));
  }
  svg.text(366, 372, "sequence length, tokens", {.anchor = "middle"});
  svg.text(24, 205, "median time", {.anchor = "middle", .rotate = -90});
  std::vector<size_t> shown;
  for (const auto& [name, points] : curves) shown.push_back(name);
  draw_name_legend(svg, 92, 68, names, shown);
  return svg.finish();
}

}  // namespace

std::string_view series_color(size_t n) {
  constexpr std::string_view kColors[] = {"#0072b2", "#e69f00", "#009e73",
                                          "#cc79a7", "#56b4e9", "#d55e00"};
  return kColors[n % 6];
}

std::string draw_speed_bars(const std::vector<Json>& records) {
  const std::vector<std::string> names = names_of(records);
  const std::vector<Group> groups = group_bars(records, names);
  double top = 1;
  size_t bars = 0;
  size_t longest = 0;
  for (const Group& group : groups) {
    longest = std::max(longest, group.words.size());
    top = std::max(top, group.peak);
    for (const auto& [name, gflops] : group.bars) top = std::max(top, gflops);
    bars += group.bars.size();
  }
  const double left = 30 + 7.3 * static_cast<double>(longest);
  constexpr double kWidth = 470, kBar = 17, kGap = 14, kTop = 84;
  const double height =
      static_cast<double>(bars) * kBar + static_cast<double>(groups.size()) * kGap;
  Svg svg(left + kWidth + 90, kTop + height + 60);
  svg.text(20, 28, "Useful GFLOP/s; the dark mark is the peak measured in the same process",
           {.size = 16, .bold = true});
  std::vector<size_t> shown(names.size());
  std::iota(shown.begin(), shown.end(), size_t{0});
  draw_name_legend(svg, 20, 56, names, shown);
  const double step = nice_step(top, 8);
  for (double tick = 0; tick <= top * 1.0001; tick += step) {
    const double x = left + kWidth * tick / top;
    svg.line(x, kTop, x, kTop + height, kGrid);
    svg.text(x, kTop + height + 18, fmt::format("{:.6g}", tick), {.size = 11, .anchor = "middle"});
  }
  svg.text(left + kWidth / 2, kTop + height + 42, "GFLOP/s", {.anchor = "middle"});
  double y = kTop + kGap / 2;
  for (const Group& group : groups) {
    const double group_height = static_cast<double>(group.bars.size()) * kBar;
    svg.text(left - 10, y + group_height / 2 + 4, group.words, {.size = 12, .anchor = "end"});
    for (size_t i = 0; i < group.bars.size(); ++i) {
      const auto& [name, gflops] = group.bars[i];
      const double bar_y = y + static_cast<double>(i) * kBar;
      const double width = kWidth * std::max(gflops, 0.0) / top;
      svg.rect({left, bar_y + 1, width, kBar - 2}, series_color(name));
      svg.text(left + width + 6, bar_y + 13,
               fmt::format("{:.1f} ({:.0f} %)", gflops, percent_of(gflops, group.peak)),
               {.size = 11});
    }
    const double peak_x = left + kWidth * group.peak / top;
    svg.line(peak_x, y, peak_x, y + group_height, kInk, 2);
    y += group_height + kGap;
  }
  return svg.finish();
}

std::vector<std::string> draw_time_curves(const std::vector<Json>& records) {
  const std::vector<std::string> names = names_of(records);
  std::vector<std::string> charts;
  for (const auto& [title, curves] : families(records, names)) {
    charts.push_back(draw_family(title, curves, names));
  }
  return charts;
}

}  // namespace attentile::cli

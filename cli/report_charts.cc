// SPDX-License-Identifier: Apache-2.0
// Bars of GFLOP/s, and time against sequence length for whatever families a file holds.
#include "cli/report_charts.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "cli/bench_file.h"
#include "cli/chart.h"
#include "cli/report_records.h"
#include "cli/svg.h"

namespace attentile::cli {
namespace {

// 1, 2 or 5 times a power of ten, so that at most `count` steps cover `range`.
double nice_step(double range, int count) {
  const double rough = range / count;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  for (double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= rough) return factor * power;
  }
  return 10 * power;
}

// Files of ./dev bench have tables, whose families the other charts show.
bool has_table(const Json& record) {
  return !text_of(record, "table").empty();
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
    if (has_table(record) && record["table"] != "peak") continue;
    const auto [found, fresh] = known.emplace(problem_key(record), groups.size());
    if (fresh) groups.push_back({.words = case_words(record), .bars = {}});
    Group& group = groups[found->second];
    group.peak = std::max(group.peak, number_of(record, "peak_gflops"));
    group.bars.emplace_back(index_of(names, text_of(record, "name")), number_of(record, "gflops"));
  }
  return groups;
}

using Curves = std::map<size_t, std::vector<ChartPoint>>;  // by name

// A family's key: the case without its sequence lengths.
std::map<std::string, Curves> families(const std::vector<Json>& records,
                                       const std::vector<std::string>& names) {
  std::map<std::string, Curves> result;
  for (const Json& record : records) {
    if (!is_square(record) || has_table(record)) continue;
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
                [](const ChartPoint& a, const ChartPoint& b) { return a.x < b.x; });
    }
  }
  return result;
}

}  // namespace

std::vector<NamedChart> draw_speed_bars(const std::vector<Json>& records) {
  const std::vector<std::string> names = names_of(records);
  const std::vector<Group> groups = group_bars(records, names);
  if (groups.empty()) return {};
  double top = 1;
  size_t bars = 0;
  size_t longest = 0;
  std::set<size_t> shown;
  for (const Group& group : groups) {
    longest = std::max(longest, group.words.size());
    top = std::max(top, group.peak);
    for (const auto& [name, gflops] : group.bars) {
      top = std::max(top, gflops);
      shown.insert(name);
    }
    bars += group.bars.size();
  }
  const double left = 30 + 7.3 * static_cast<double>(longest);
  constexpr double kWidth = 470, kBar = 17, kGap = 14;
  std::vector<LegendEntry> legend;
  for (size_t name : shown) legend.push_back({names[name], series_color(name)});
  const Box place{20, 44, left + kWidth, 0};
  const double chart_top = 60 + draw_legend(nullptr, place, legend);
  const double height =
      static_cast<double>(bars) * kBar + static_cast<double>(groups.size()) * kGap;
  Svg svg(left + kWidth + 90, chart_top + height + 60);
  svg.text(20, 28, "Useful GFLOP/s; the dark mark is the peak measured in the same process",
           {.size = 16, .bold = true});
  draw_legend(&svg, place, legend);
  const double step = nice_step(top, 8);
  for (double tick = 0; tick <= top * 1.0001; tick += step) {
    const double x = left + kWidth * tick / top;
    svg.line(x, chart_top, x, chart_top + height, kGrid);
    svg.text(x, chart_top + height + 18, fmt::format("{:.6g}", tick),
             {.size = 11, .anchor = "middle"});
  }
  svg.text(left + kWidth / 2, chart_top + height + 42, "GFLOP/s", {.anchor = "middle"});
  double y = chart_top + kGap / 2;
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
  return {{"speed", svg.finish(), true}};
}

std::vector<NamedChart> draw_time_curves(const std::vector<Json>& records) {
  const std::vector<std::string> names = names_of(records);
  std::vector<NamedChart> charts;
  for (const auto& [title, curves] : families(records, names)) {
    LogChart chart{.title = "Time against sequence length",
                   .subtitle = title,
                   .x_label = "sequence length, tokens",
                   .y_label = "median time",
                   .x_words = count_words,
                   .y_words = tick_seconds,
                   .series = {}};
    for (const auto& [name, points] : curves) {
      chart.series.push_back({.name = names[name], .color = series_color(name), .points = points});
    }
    charts.push_back({fmt::format("time-{}", charts.size() + 1), draw_log_chart(chart)});
  }
  return charts;
}

}  // namespace attentile::cli

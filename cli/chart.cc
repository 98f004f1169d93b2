// SPDX-License-Identifier: Apache-2.0
#include "cli/chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "io/text.h"

namespace attentile::cli {
namespace {

constexpr double kLeft = 92, kWidth = 640, kHeight = 300, kRight = 40, kBottom = 66;
constexpr double kLegendRow = 20;
constexpr double kCharWidth = 8.2;  // of 13 px text, generously

struct Range {
  double low = 1e300;
  double high = 0;
  void include(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
};

// The least 1, 2 or 5 times a power of ten that is at least `value`, or the largest at most it.
double nice_at_least(double value) {
  const double power = std::pow(10, std::floor(std::log10(value)));
  for (double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= value * (1 - 1e-9)) return factor * power;
  }
  return 10 * power;
}
double nice_at_most(double value) {
  return 1 / nice_at_least(1 / value);
}

// Where grid lines go: powers of ten, with 2 and 5 between them if few fit; about ten in all.
std::vector<double> decimal_ticks(double low, double high) {
  const double decades = std::log10(high / low);
  const int stride = std::max(1, static_cast<int>(decades / 10));
  std::vector<double> ticks;
  for (int power = static_cast<int>(std::floor(std::log10(low) + 1e-9));
       power <= std::log10(high) + 1e-9; power += stride) {
    for (double factor : {1.0, 2.0, 5.0}) {
      const double tick = factor * std::pow(10, power);
      if (factor > 1 && decades > 3.3) continue;
      if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push_back(tick);
    }
  }
  return ticks;
}

std::vector<double> doubling_ticks(double low, double high) {
  const double doublings = std::log2(high / low);
  const int stride = std::max(1, static_cast<int>(std::ceil(doublings / 12)));
  std::vector<double> ticks;
  for (double power = std::floor(std::log2(low) + 1e-9); power <= std::log2(high) + 1e-9;
       power += stride) {
    const double tick = std::exp2(power);
    if (tick >= low * 0.999) ticks.push_back(tick);
  }
  return ticks;
}

void draw_series(Svg& svg, const ChartSeries& series, const LogAxis& x, const LogAxis& y) {
  std::string path;
  for (const ChartPoint& point : series.points) {
    path += fmt::format("{:.1f},{:.1f} ", x.at(point.x), y.at(point.y));
    if (series.marks == Marks::kNone) continue;
    svg.raw(fmt::format(
        "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.5\" fill=\"{}\" stroke=\"{}\" "
        "stroke-width=\"1.5\"/>\n",
        x.at(point.x), y.at(point.y),
        series.marks == Marks::kRings ? std::string_view("#ffffff") : series.color, series.color));
  }
  if (series.stroke != Stroke::kNone) {
    svg.raw(fmt::format(
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"{}/>\n", path,
        series.color, series.stroke == Stroke::kDashes ? " stroke-dasharray=\"6 4\"" : ""));
  }
  if (!series.label.empty() && !series.points.empty()) {
    const ChartPoint& last = series.points.back();
    const bool at_edge = last.x > 0.9 * x.high;
    svg.text(x.at(last.x) + (at_edge ? -4 : 2), y.at(last.y) - 6, series.label,
             {.size = 11, .anchor = at_edge ? "end" : "start", .color = series.color});
  }
}

}  // namespace

std::string_view series_color(size_t n) {
  constexpr std::string_view kColors[] = {"#0072b2", "#e69f00", "#009e73", "#cc79a7",
                                          "#56b4e9", "#d55e00", "#555555", "#882255",
                                          "#999933", "#332288", "#a0522d", "#44aa99"};
  return kColors[n % std::size(kColors)];
}

double draw_legend(Svg* svg, const Box& place, const std::vector<LegendEntry>& entries) {
  double x = place.x;
  double y = place.y;
  for (const LegendEntry& entry : entries) {
    const std::string name = io::printable(entry.name, 40);
    const double width = 40 + kCharWidth * static_cast<double>(name.size());
    if (x > place.x && x + width > place.x + place.width) {
      x = place.x;
      y += kLegendRow;
    }
    if (svg != nullptr) {
      svg->rect({x, y + 4, 14, 12}, entry.color);
      svg->text(x + 20, y + 14, name);
    }
    x += width;
  }
  return entries.empty() ? 0 : y + kLegendRow - place.y;
}

std::string draw_log_chart(const LogChart& chart) {
  Range xs, ys;
  std::vector<LegendEntry> legend;
  for (const ChartSeries& series : chart.series) {
    for (const ChartPoint& point : series.points) {
      xs.include(point.x);
      ys.include(point.y);
    }
    if (series.label.empty() && series.in_legend) legend.push_back({series.name, series.color});
  }
  if (xs.high == 0) return "";
  const double top = 62 + draw_legend(nullptr, {kLeft, 0, kWidth, 0}, legend);
  const LogAxis x{xs.low, std::max(xs.high, 2 * xs.low), kLeft, kWidth};
  const double y_low = nice_at_most(ys.low);
  const LogAxis y{y_low, std::max(nice_at_least(ys.high * 1.1), 10 * y_low), top + kHeight,
                  -kHeight};
  Svg svg(kLeft + kWidth + kRight, top + kHeight + kBottom);
  svg.text(kLeft, 26, chart.title, {.size = 16, .bold = true});
  svg.text(kLeft, 46, chart.subtitle, {.size = 12, .color = kSoft});
  draw_legend(&svg, {kLeft, 54, kWidth, 0}, legend);
  for (double tick : decimal_ticks(y.low, y.high)) {
    svg.line(kLeft, y.at(tick), kLeft + kWidth, y.at(tick), kGrid);
    svg.text(kLeft - 8, y.at(tick) + 4, chart.y_words(tick), {.size = 11, .anchor = "end"});
  }
  for (double tick :
       chart.x_doubles ? doubling_ticks(x.low, x.high) : decimal_ticks(x.low, x.high)) {
    svg.line(x.at(tick), top, x.at(tick), top + kHeight, kGrid);
    svg.text(x.at(tick), top + kHeight + 18, chart.x_words(tick), {.size = 11, .anchor = "middle"});
  }
  svg.rect({kLeft, top, kWidth, kHeight}, "none", fmt::format("stroke=\"{}\"", kInk));
  for (const ChartSeries& series : chart.series) draw_series(svg, series, x, y);
  svg.text(kLeft + kWidth / 2, top + kHeight + 44, chart.x_label, {.anchor = "middle"});
  svg.text(24, top + kHeight / 2, chart.y_label, {.anchor = "middle", .rotate = -90});
  return svg.finish();
}

std::string count_words(double count) {
  if (count >= 1024 && std::fmod(count, 1024) == 0) return fmt::format("{:.0f}k", count / 1024);
  return fmt::format("{:.0f}", count);
}

std::string tick_seconds(double seconds) {
  if (seconds < 0.9e-6) return fmt::format("{:.3g} ns", seconds * 1e9);
  if (seconds < 0.9e-3) return fmt::format("{:.3g} us", seconds * 1e6);
  if (seconds < 0.9) return fmt::format("{:.3g} ms", seconds * 1e3);
  return fmt::format("{:.3g} s", seconds);
}

std::string tick_bytes(double bytes) {
  if (bytes >= 0.9e9) return fmt::format("{:.3g} GB", bytes * 1e-9);
  if (bytes >= 0.9e6) return fmt::format("{:.3g} MB", bytes * 1e-6);
  return fmt::format("{:.3g} kB", bytes * 1e-3);
}

std::string plain_words(double value) {
  return fmt::format("{:.6g}", value);
}

}  // namespace attentile::cli

// SPDX-License-Identifier: Apache-2.0
// Heat maps: how many times as long as attentile a contender takes, for every length and head_dim.
#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <set>
#include <tuple>

#include "cli/bench_file.h"
#include "cli/chart.h"
#include "cli/report_charts.h"
#include "cli/report_records.h"
#include "io/text.h"

namespace attentile::cli {
namespace {

constexpr double kCellWidth = 52, kCellHeight = 22, kGap = 34, kMargin = 20, kLabels = 52;
constexpr size_t kPanelsAcross = 4;

struct Panel {
  std::string words;
  std::map<std::pair<int64_t, int64_t>, double> ratios;  // by seqlen, head_dim
};

// By contender, then by pass, dtype and mask, in the order of a reader.
using PanelKey = std::tuple<bool, size_t, std::string, bool>;
using Panels = std::map<PanelKey, Panel>;
using Maps = std::map<std::string, Panels>;

PanelKey panel_key(const Json& record) {
  constexpr std::string_view kOrder[] = {"f32", "bf16", "f16"};
  const std::string dtype = text_of(record, "dtype");
  const auto place = std::find(std::begin(kOrder), std::end(kOrder), dtype) - std::begin(kOrder);
  return {record["pass"] == "backward", static_cast<size_t>(place), dtype,
          record["causal"].get<bool>()};
}

std::string panel_words(const Json& record) {
  return fmt::format("{} {} {}", text_of(record, "pass"), text_of(record, "dtype"),
                     record["causal"].get<bool>() ? "causal" : "full");
}

Maps collect(const std::vector<Json>& records) {
  std::map<std::string, double> ours;
  const auto is_mapped = [](const Json& record) {
    return is_square(record) && text_of(record, "feature").empty() &&
           (text_of(record, "table") == "grid" || text_of(record, "table").empty());
  };
  for (const Json& record : records) {
    if (record["name"] == "attentile" && is_mapped(record)) {
      ours[problem_key(record)] = number_of(record, "median_s");
    }
  }
  Maps maps;
  for (const Json& record : records) {
    const std::string name = text_of(record, "name");
    if (name == "attentile" || !is_mapped(record)) continue;
    const auto found = ours.find(problem_key(record));
    if (found == ours.end()) continue;
    const std::pair place{integer_of(record, "seqlen_q"), integer_of(record, "head_dim")};
    // The first of several batches, head counts or thread counts.
    Panel& panel = maps[name][panel_key(record)];
    panel.words = panel_words(record);
    panel.ratios.emplace(place, number_of(record, "median_s") / found->second);
  }
  return maps;
}

struct Extent {
  std::vector<int64_t> seqlens;
  std::vector<int64_t> head_dims;
  double width() const { return kLabels + kCellWidth * static_cast<double>(head_dims.size()); }
  double height() const { return 44 + kCellHeight * static_cast<double>(seqlens.size()); }
};

Extent extent_of(const Panels& panels) {
  std::set<int64_t> seqlens, head_dims;
  for (const auto& [key, panel] : panels) {
    for (const auto& [place, ratio] : panel.ratios) {
      seqlens.insert(place.first);
      head_dims.insert(place.second);
    }
  }
  return {{seqlens.begin(), seqlens.end()}, {head_dims.begin(), head_dims.end()}};
}

// White at 1, blue where attentile is faster, red where it is slower; full at 8 times.
std::string heat_color(double ratio) {
  const double heat = std::clamp(std::log2(ratio) / 3, -1.0, 1.0);
  const double strength = std::abs(heat);
  const int red = static_cast<int>(255 - strength * (heat > 0 ? 222 : 38));
  const int green = static_cast<int>(255 - strength * (heat > 0 ? 153 : 190));
  const int blue = static_cast<int>(255 - strength * (heat > 0 ? 83 : 198));
  return fmt::format("#{:02x}{:02x}{:02x}", red, green, blue);
}

void draw_panel(Svg& svg, const Box& place, const Panel& panel, const Extent& extent) {
  svg.text(place.x + kLabels, place.y + 14, panel.words, {.size = 12, .bold = true});
  double x = place.x + kLabels;
  for (int64_t head_dim : extent.head_dims) {
    svg.text(x + kCellWidth / 2, place.y + 34, fmt::format("d{}", head_dim),
             {.size = 11, .anchor = "middle", .color = kSoft});
    x += kCellWidth;
  }
  double y = place.y + 40;
  for (int64_t seqlen : extent.seqlens) {
    svg.text(place.x + kLabels - 6, y + 15, fmt::format("{}", seqlen),
             {.size = 11, .anchor = "end", .color = kSoft});
    x = place.x + kLabels;
    for (int64_t head_dim : extent.head_dims) {
      const auto found = panel.ratios.find({seqlen, head_dim});
      if (found != panel.ratios.end()) {
        const double ratio = found->second;
        svg.rect({x, y, kCellWidth - 1, kCellHeight - 1}, heat_color(ratio));
        const bool dark = ratio > 4.5 || ratio < 0.2;
        svg.text(x + kCellWidth / 2, y + 15,
                 ratio < 99.95 ? fmt::format("{:.{}f}", ratio, ratio < 9.95 ? 2 : 1)
                               : fmt::format("{:.3g}", ratio),
                 {.size = 11, .anchor = "middle", .color = dark ? "#ffffff" : kInk});
      }
      x += kCellWidth;
    }
    y += kCellHeight;
  }
}

std::string draw_map(const std::string& name, const Panels& panels) {
  const Extent extent = extent_of(panels);
  const size_t across = std::min(kPanelsAcross, panels.size());
  const size_t down = (panels.size() + kPanelsAcross - 1) / kPanelsAcross;
  const double width = static_cast<double>(across) * (extent.width() + kGap) + 2 * kMargin;
  Svg svg(std::max(width, 640.0), 70 + static_cast<double>(down) * (extent.height() + kGap));
  svg.text(kMargin, 28, "Time of " + io::printable(name, 40) + " over attentile's",
           {.size = 16, .bold = true});
  svg.text(kMargin, 48,
           "sequence length down, head_dim across; blue: attentile is faster, red: it is slower",
           {.size = 12, .color = kSoft});
  size_t i = 0;
  for (const auto& [key, panel] : panels) {
    const size_t column = i % kPanelsAcross;
    const size_t row = i / kPanelsAcross;
    const double x = kMargin + static_cast<double>(column) * (extent.width() + kGap);
    const double y = 66 + static_cast<double>(row) * (extent.height() + kGap);
    draw_panel(svg, {x, y, 0, 0}, panel, extent);
    ++i;
  }
  return svg.finish();
}

}  // namespace

std::vector<NamedChart> draw_heat_maps(const std::vector<Json>& records) {
  std::vector<NamedChart> charts;
  for (const auto& [name, panels] : collect(records)) {
    charts.push_back({"ratio-" + name, draw_map(name, panels), true});
  }
  return charts;
}

}  // namespace attentile::cli

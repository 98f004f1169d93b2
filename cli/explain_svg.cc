// SPDX-License-Identifier: Apache-2.0
// Heat map on a logarithmic scale from 10^-4 to 1, the tile grid over it: hidden tiles hatched,
// partial ones outlined, full ones left as they are.
#include "cli/explain_svg.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cli/png.h"
#include "cli/svg.h"

namespace attentile::cli {
namespace {

constexpr double kSide = 640;  // of the longer axis of the map
constexpr double kLeft = 84;
constexpr double kTop = 104;
constexpr double kDecades = 4;
constexpr std::string_view kPartialColor = "#d9480f";
constexpr std::string_view kGridColor = "#8b949e";
constexpr std::string_view kSoft = "#57606a";

// White to dark blue-violet, by linear pieces.
Color ramp(double t) {
  constexpr double kStops[][3] = {{255, 255, 255}, {222, 235, 247}, {158, 202, 225},
                                  {66, 146, 198},  {8, 81, 156},    {20, 20, 80}};
  const double position = std::clamp(t, 0.0, 1.0) * 5;
  const int index = std::min(static_cast<int>(position), 4);
  const double fraction = position - index;
  const auto mix = [&](int channel) {
    const double value =
        kStops[index][channel] * (1 - fraction) + kStops[index + 1][channel] * fraction;
    return static_cast<uint8_t>(value + 0.5);
  };
  return {mix(0), mix(1), mix(2)};
}

// 0 for probabilities below 10^-4, 1 for 1.
double strength(double probability) {
  return probability <= 0 ? 0 : std::clamp(1 + std::log10(probability) / kDecades, 0.0, 1.0);
}

std::string data_uri(const HeatMap& map) {
  IndexedImage image;
  image.width = static_cast<int>(map.columns);
  image.height = static_cast<int>(map.rows);
  for (size_t i = 0; i < 256; ++i) image.palette[i] = ramp(static_cast<double>(i) / 255);
  for (double cell : map.cells) {
    image.pixels.push_back(static_cast<uint8_t>(255 * strength(cell) + 0.5));
  }
  return "data:image/png;base64," + base64(encode_png(image));
}

struct Frame {
  double width;
  double height;
  double x(double fraction) const { return kLeft + fraction * width; }
  double y(double fraction) const { return kTop + fraction * height; }
};

void draw_map(Svg& svg, const Frame& frame, const HeatMap& map) {
  svg.raw(
      fmt::format("<image x=\"{}\" y=\"{}\" width=\"{:.2f}\" height=\"{:.2f}\" "
                  "preserveAspectRatio=\"none\" image-rendering=\"pixelated\" "
                  "style=\"image-rendering:crisp-edges;image-rendering:pixelated\" "
                  "xlink:href=\"{}\"/>\n",
                  kLeft, kTop, frame.width, frame.height, data_uri(map)));
}

void draw_tiles(Svg& svg, const Frame& frame, const Explanation& e) {
  svg.raw(
      "<defs><pattern id=\"hidden\" width=\"7\" height=\"7\" patternUnits=\"userSpaceOnUse\" "
      "patternTransform=\"rotate(45)\"><rect width=\"7\" height=\"7\" fill=\"#eaeef2\"/>"
      "<line x1=\"0\" y1=\"0\" x2=\"0\" y2=\"7\" stroke=\"#c3cad2\" stroke-width=\"2\"/>"
      "</pattern></defs>\n");
  const auto box = [&](int64_t q, int64_t k) -> Box {
    const double x0 =
        frame.x(static_cast<double>(k * e.tiling.tile_n) / static_cast<double>(e.seqlen_k));
    const double x1 = frame.x(std::min(
        1.0, static_cast<double>((k + 1) * e.tiling.tile_n) / static_cast<double>(e.seqlen_k)));
    const double y0 =
        frame.y(static_cast<double>(q * e.tiling.tile_m) / static_cast<double>(e.seqlen_q));
    const double y1 = frame.y(std::min(
        1.0, static_cast<double>((q + 1) * e.tiling.tile_m) / static_cast<double>(e.seqlen_q)));
    return {x0, y0, x1 - x0, y1 - y0};
  };
  const auto draw = [&](TileClass wanted, std::string_view fill, std::string_view stroke) {
    for (int64_t q = 0; q < e.grid.tiles_q; ++q) {
      for (int64_t k = 0; k < e.grid.tiles_k; ++k) {
        if (e.grid.at(q, k) == wanted) svg.rect(box(q, k), fill, stroke);
      }
    }
  };
  draw(TileClass::kHidden, "url(#hidden)", "stroke=\"#d0d7de\" stroke-width=\"0.6\"");
  draw(TileClass::kFull, "none", fmt::format("stroke=\"{}\" stroke-width=\"0.6\"", kGridColor));
  draw(TileClass::kPartial, "none", fmt::format("stroke=\"{}\" stroke-width=\"2\"", kPartialColor));
}

// A round step that gives four to nine ticks.
int64_t tick_step(int64_t length) {
  int64_t step = 1;
  while (length / step > 8) step *= 2;
  return step;
}

void draw_axes(Svg& svg, const Frame& frame, const Explanation& e) {
  svg.rect({kLeft, kTop, frame.width, frame.height}, "none", "stroke=\"#24292f\"");
  const double bottom = kTop + frame.height;
  for (int64_t j = 0; j <= e.seqlen_k; j += tick_step(e.seqlen_k)) {
    const double x = frame.x(static_cast<double>(j) / static_cast<double>(e.seqlen_k));
    svg.line(x, bottom, x, bottom + 5, "#24292f");
    svg.text(x, bottom + 20, fmt::format("{}", j), {.size = 12, .anchor = "middle"});
  }
  for (int64_t i = 0; i <= e.seqlen_q; i += tick_step(e.seqlen_q)) {
    const double y = frame.y(static_cast<double>(i) / static_cast<double>(e.seqlen_q));
    svg.line(kLeft - 5, y, kLeft, y, "#24292f");
    svg.text(kLeft - 9, y + 4, fmt::format("{}", i), {.size = 12, .anchor = "end"});
  }
  svg.text(kLeft + frame.width / 2, bottom + 44, "key j (token position)",
           {.size = 14, .anchor = "middle"});
  svg.text(26, kTop + frame.height / 2, "query i (token position)",
           {.size = 14, .anchor = "middle", .rotate = -90});
}

void draw_color_scale(Svg& svg, double x, double y, double height) {
  svg.text(x, y - 12, "attention weight", {.size = 13, .bold = true});
  constexpr int kSteps = 64;
  for (int i = 0; i < kSteps; ++i) {
    const Color color = ramp((i + 0.5) / kSteps);
    svg.rect({x, y + height * (kSteps - 1 - i) / kSteps, 18, height / kSteps + 0.5},
             fmt::format("#{:02x}{:02x}{:02x}", color.red, color.green, color.blue));
  }
  svg.rect({x, y, 18, height}, "none", "stroke=\"#57606a\"");
  constexpr const char* kLabels[] = {"1", "0.1", "0.01", "0.001", "0.0001 or less"};
  for (int i = 0; i <= 4; ++i) {
    const double at = y + height * i / 4;
    svg.line(x + 18, at, x + 23, at, "#57606a");
    svg.text(x + 28, at + 4, kLabels[i], {.size = 12});
  }
}

void draw_legend(Svg& svg, double x, double y, const TileGrid& grid) {
  svg.text(x, y, "tiles", {.size = 13, .bold = true});
  const auto entry = [&](int row, std::string_view fill, std::string_view stroke,
                         std::string_view words) {
    const double top = y + 14 + 30 * row;
    svg.rect({x, top, 20, 20}, fill, stroke);
    svg.text(x + 30, top + 15, words);
  };
  entry(0, "#ffffff", "stroke=\"#8b949e\"", fmt::format("full: {}", grid.full));
  entry(1, "#ffffff", "stroke=\"#d9480f\" stroke-width=\"2\"",
        fmt::format("partly visible: {}", grid.partial));
  entry(2, "url(#hidden)", "stroke=\"#d0d7de\"", fmt::format("hidden: {}", grid.hidden));
}

}  // namespace

std::string draw_explanation(const Explanation& e) {
  const auto longest = static_cast<double>(std::max<int64_t>({e.seqlen_q, e.seqlen_k, 1}));
  const Frame frame{std::max(kSide * static_cast<double>(e.seqlen_k) / longest, 120.0),
                    std::max(kSide * static_cast<double>(e.seqlen_q) / longest, 120.0)};
  const double side_x = kLeft + frame.width + 32;
  Svg svg(std::max(side_x + 190, 860.0), std::max(kTop + frame.height + 66, kTop + 420));
  svg.text(kLeft, 34, e.title, {.size = 19, .bold = true});
  svg.text(kLeft, 58, e.subtitle, {.size = 13, .color = kSoft});
  const int64_t tiles = e.grid.tiles_q * e.grid.tiles_k;
  const double visible =
      tiles == 0 ? 0
                 : 100.0 * static_cast<double>(tiles - e.grid.hidden) / static_cast<double>(tiles);
  svg.text(kLeft, 78,
           fmt::format("Tiles of {} x {}: {:.0f} % hold a visible pair. Evaluated in float64, "
                       "independent of the kernels and their tiles.",
                       e.tiling.tile_m, e.tiling.tile_n, visible),
           {.size = 13, .color = kSoft});
  if (!e.map.cells.empty()) draw_map(svg, frame, e.map);
  draw_tiles(svg, frame, e);
  if (e.seqlen_q > 0 && e.seqlen_k > 0) draw_axes(svg, frame, e);
  draw_color_scale(svg, side_x, kTop + 16, 220);
  draw_legend(svg, side_x, kTop + 290, e.grid);
  return svg.finish();
}

}  // namespace attentile::cli

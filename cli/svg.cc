// SPDX-License-Identifier: Apache-2.0
// SVG text out of simple shapes.
#include "cli/svg.h"

#include <fmt/format.h>

#include "io/text.h"

namespace attentile::cli {

std::string escape_xml(std::string_view text) {
  std::string escaped;
  for (char c : io::printable(text, 1000)) {
    switch (c) {
      case '&': escaped += "&amp;"; break;
      case '<': escaped += "&lt;"; break;
      case '>': escaped += "&gt;"; break;
      case '"': escaped += "&quot;"; break;
      default: escaped += c;
    }
  }
  return escaped;
}

Svg::Svg(double width, double height) : width_(width), height_(height) {
  rect({0, 0, width, height}, "#ffffff");
}

void Svg::rect(const Box& box, std::string_view fill, std::string_view extra) {
  body_ += fmt::format(
      "<rect x=\"{:.2f}\" y=\"{:.2f}\" width=\"{:.2f}\" height=\"{:.2f}\" "
      "fill=\"{}\" {}/>\n",
      box.x, box.y, box.width, box.height, fill, extra);
}

void Svg::line(double x1, double y1, double x2, double y2, std::string_view color, double width) {
  body_ += fmt::format(
      "<line x1=\"{:.2f}\" y1=\"{:.2f}\" x2=\"{:.2f}\" y2=\"{:.2f}\" "
      "stroke=\"{}\" stroke-width=\"{}\"/>\n",
      x1, y1, x2, y2, color, width);
}

void Svg::text(double x, double y, std::string_view words, const TextStyle& style) {
  std::string extra;
  if (style.bold) extra += " font-weight=\"bold\"";
  if (style.rotate != 0) {
    extra += fmt::format(" transform=\"rotate({} {:.2f} {:.2f})\"", style.rotate, x, y);
  }
  body_ += fmt::format(
      "<text x=\"{:.2f}\" y=\"{:.2f}\" font-size=\"{}\" text-anchor=\"{}\" "
      "fill=\"{}\"{}>{}</text>\n",
      x, y, style.size, style.anchor, style.color, extra, escape_xml(words));
}

void Svg::raw(std::string_view markup) {
  body_ += markup;
}

std::string Svg::finish() const {
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" xmlns:xlink=\"http://www.w3.org/1999/xlink\" "
      "width=\"{0:.0f}\" height=\"{1:.0f}\" viewBox=\"0 0 {0:.0f} {1:.0f}\" "
      "font-family=\"DejaVu Sans, Helvetica, Arial, sans-serif\">\n{2}</svg>\n",
      width_, height_, body_);
}

}  // namespace attentile::cli

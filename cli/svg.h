// SPDX-License-Identifier: Apache-2.0
// A drawing: lines, boxes, text and pictures, written as SVG. Coordinates are pixels, y downward.
#pragma once

#include <string>
#include <string_view>

namespace attentile::cli {

// For text and attributes: & < > " and control characters.
std::string escape_xml(std::string_view text);

struct Box {
  double x = 0;
  double y = 0;
  double width = 0;
  double height = 0;
};

struct TextStyle {
  double size = 13;
  std::string_view anchor = "start";  // start, middle, end
  std::string_view color = "#24292f";
  bool bold = false;
  double rotate = 0;  // degrees
};

class Svg {
 public:
  Svg(double width, double height);

  void rect(const Box& box, std::string_view fill, std::string_view extra = "");
  void line(double x1, double y1, double x2, double y2, std::string_view color, double width = 1);
  void text(double x, double y, std::string_view words, const TextStyle& style = {});
  // Anything else; the caller escapes.
  void raw(std::string_view markup);

  std::string finish() const;

 private:
  double width_;
  double height_;
  std::string body_;
};

}  // namespace attentile::cli

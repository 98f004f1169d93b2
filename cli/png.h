// SPDX-License-Identifier: Apache-2.0
// A PNG file with a palette, as small as an encoder without compression can be: enough to put a
// heat map into an SVG.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace attentile::cli {

struct Color {
  uint8_t red = 0;
  uint8_t green = 0;
  uint8_t blue = 0;
};

struct IndexedImage {
  int width = 0;
  int height = 0;
  std::array<Color, 256> palette = {};
  std::vector<uint8_t> pixels;  // [height][width], indices into the palette
};

std::string encode_png(const IndexedImage& image);
std::string base64(std::string_view bytes);

}  // namespace attentile::cli

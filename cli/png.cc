// SPDX-License-Identifier: Apache-2.0
// PNG (ISO/IEC 15948): signature, IHDR, PLTE, one IDAT whose zlib stream holds stored blocks, IEND.
#include "cli/png.h"

#include <algorithm>

namespace attentile::cli {
namespace {

void append_u32(std::string& bytes, uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(value >> shift);
}

uint32_t crc32(std::string_view bytes) {
  uint32_t crc = 0xFFFFFFFFu;
  for (char c : bytes) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (0xEDB88320u & (0u - (crc & 1u)));
  }
  return ~crc;
}

uint32_t adler32(std::string_view bytes) {
  uint32_t a = 1;
  uint32_t b = 0;
  for (char c : bytes) {
    a = (a + static_cast<unsigned char>(c)) % 65521;
    b = (b + a) % 65521;
  }
  return b << 16 | a;
}

void append_chunk(std::string& file, std::string_view type, std::string_view data) {
  append_u32(file, static_cast<uint32_t>(data.size()));
  const std::string body = std::string(type) + std::string(data);
  file += body;
  append_u32(file, crc32(body));
}

std::string zlib_stored(std::string_view data) {
  constexpr size_t kMaxBlock = 65535;
  std::string stream = "\x78\x01";
  for (size_t begin = 0; begin < data.size(); begin += kMaxBlock) {
    const size_t size = std::min(kMaxBlock, data.size() - begin);
    stream += begin + size == data.size() ? '\x01' : '\x00';
    for (size_t word : {size, ~size}) {
      stream += static_cast<char>(word & 0xFF);
      stream += static_cast<char>((word >> 8) & 0xFF);
    }
    stream += data.substr(begin, size);
  }
  append_u32(stream, adler32(data));
  return stream;
}

}  // namespace

std::string encode_png(const IndexedImage& image) {
  std::string header;
  append_u32(header, static_cast<uint32_t>(image.width));
  append_u32(header, static_cast<uint32_t>(image.height));
  header += std::string("\x08\x03\x00\x00\x00", 5);  // 8 bits, palette, no interlace

  std::string palette;
  for (const Color& color : image.palette) {
    for (uint8_t value : {color.red, color.green, color.blue}) palette += static_cast<char>(value);
  }
  std::string rows;
  const auto width = static_cast<size_t>(image.width);
  for (size_t y = 0; y < static_cast<size_t>(image.height); ++y) {
    rows += '\0';  // no filter
    for (size_t x = 0; x < width; ++x) rows += static_cast<char>(image.pixels[y * width + x]);
  }
  std::string file = "\x89PNG\r\n\x1a\n";
  append_chunk(file, "IHDR", header);
  append_chunk(file, "PLTE", palette);
  append_chunk(file, "IDAT", zlib_stored(rows));
  append_chunk(file, "IEND", "");
  return file;
}

std::string base64(std::string_view bytes) {
  constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t group = 0;
    for (size_t j = 0; j < 3; ++j) {
      group = group << 8 | (i + j < bytes.size() ? static_cast<unsigned char>(bytes[i + j]) : 0u);
    }
    for (size_t j = 0; j < 4; ++j) {
      text += i + j <= bytes.size() ? kDigits[group >> (18 - 6 * j) & 63] : '=';
    }
  }
  return text;
}

}  // namespace attentile::cli

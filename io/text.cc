// SPDX-License-Identifier: Apache-2.0
// Error sentences of the readers and writers: see text.h.
#include "io/text.h"

#include <fmt/format.h>

#include <cerrno>
#include <system_error>

namespace attentile::io {
namespace {

bool is_continuation(char byte) {
  return (static_cast<unsigned char>(byte) & 0xC0u) == 0x80u;
}

// Bytes of the UTF-8 character at the beginning of text, or 0 if there is none.
size_t utf8_length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const size_t length = byte(0) < 0x80   ? 1
                        : byte(0) < 0xC2 ? 0
                        : byte(0) < 0xE0 ? 2
                        : byte(0) < 0xF0 ? 3
                        : byte(0) < 0xF5 ? 4
                                         : 0;
  if (length == 0 || length > text.size()) return 0;
  for (size_t i = 1; i < length; ++i) {
    if (!is_continuation(text[i])) return 0;
  }
  const bool overlong = (byte(0) == 0xE0 && byte(1) < 0xA0) || (byte(0) == 0xF0 && byte(1) < 0x90);
  const bool surrogate = byte(0) == 0xED && byte(1) > 0x9F;
  const bool beyond = byte(0) == 0xF4 && byte(1) > 0x8F;
  return overlong || surrogate || beyond ? 0 : length;
}

}  // namespace

std::string printable(std::string_view text, size_t max_bytes) {
  const bool cut = text.size() > max_bytes;
  if (cut) {
    size_t end = max_bytes;
    while (end > 0 && is_continuation(text[end])) --end;
    text = text.substr(0, end);
  }
  std::string line;
  line.reserve(text.size() + 3);
  while (!text.empty()) {
    const unsigned value = static_cast<unsigned char>(text.front());
    const size_t length = utf8_length(text);
    if (value == '\n') {
      line += "\\n";
    } else if (value == '\t') {
      line += "\\t";
    } else if (value < 0x20 || value == 0x7F || length == 0) {
      line += fmt::format("\\x{:02x}", value);
    } else {
      line += text.substr(0, length);
    }
    text.remove_prefix(length == 0 ? 1 : length);
  }
  if (cut) line += "...";
  return line;
}

std::string printable_path(std::string_view path) {
  return printable(path, path.size());
}

std::string shape_text(std::span<const int64_t> shape) {
  std::string text = "[";
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    if (axis > 0) text += ", ";
    text += fmt::format("{}", shape[axis]);
  }
  return text + "]";
}

std::string bytes_text(uint64_t count) {
  return fmt::format("{} byte{}", count, count == 1 ? "" : "s");
}

Status bad_content(std::string_view subject, std::string_view what) {
  return {StatusCode::kInvalidArgument, fmt::format("{}: {}", printable_path(subject), what)};
}

Status system_failure(std::string_view subject, std::string_view what, int error_number) {
  StatusCode code = StatusCode::kUnavailable;
  switch (error_number) {
    case ENOENT:
    case ENOTDIR:
    case EISDIR:
    case ELOOP:
    case ENXIO:  // a socket's name
    case ENAMETOOLONG: code = StatusCode::kInvalidArgument; break;
    case ENOMEM: code = StatusCode::kOutOfMemory; break;
    default: break;
  }
  return {code, fmt::format("{}: {}: {}", printable_path(subject), what,
                            std::generic_category().message(error_number))};
}

Status out_of_memory(std::string_view subject, uint64_t num_bytes) {
  return {StatusCode::kOutOfMemory, fmt::format("{}: {} of memory could not be allocated",
                                                printable_path(subject), bytes_text(num_bytes))};
}

}  // namespace attentile::io

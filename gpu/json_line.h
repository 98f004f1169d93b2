// SPDX-License-Identifier: Apache-2.0
// What the check programs say: a JSON object a line, on stdout.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <map>
#include <string>

namespace attentile::gpu {

class JsonLine {
 public:
  JsonLine& text(const char* key, const std::string& value) { return raw(key, quoted(value)); }
  JsonLine& whole(const char* key, int64_t value) { return raw(key, std::to_string(value)); }
  // JSON has no infinity and no NaN: they are null.
  JsonLine& real(const char* key, double value) {
    char digits[32] = "null";
    if (std::isfinite(value)) std::snprintf(digits, sizeof digits, "%.6g", value);
    return raw(key, digits);
  }
  JsonLine& counts(const char* key, const std::map<std::string, int64_t>& values) {
    JsonLine inner;
    for (const auto& [name, count] : values) inner.whole(name.c_str(), count);
    return raw(key, "{" + inner.line_ + "}");
  }
  // At once, so that what follows cannot take it along.
  void print() const {
    std::printf("{%s}\n", line_.c_str());
    std::fflush(stdout);
  }

 private:
  JsonLine& raw(const char* key, const std::string& value) {
    line_ += (line_.empty() ? "" : ", ") + quoted(key) + ": " + value;
    return *this;
  }
  static std::string quoted(const std::string& text) {
    std::string found = "\"";
    for (const char c : text) {
      char escaped[8];
      if (static_cast<unsigned char>(c) < 0x20) {
        std::snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned>(c));
        found += escaped;
      } else {
        if (c == '"' || c == '\\') found += '\\';
        found += c;
      }
    }
    return found + "\"";
  }

  std::string line_;
};

// A failed check, and the arguments with which the program does it alone. Returns 1, the program's
// exit status.
inline int fail(const std::string& cell, const std::string& what, const std::string& again) {
  JsonLine().text("failure", cell).text("what", what).text("again", again).print();
  return 1;
}

}  // namespace attentile::gpu

// SPDX-License-Identifier: Apache-2.0
// Strict number parsing on std::from_chars, which knows no locale and reads no more than a number.
#include "cli/numbers.h"

#include <charconv>
#include <cmath>
#include <system_error>

#include "cli/error.h"
#include "io/text.h"

namespace attentile::cli {
namespace {

std::string range_words(IntRange range) {
  constexpr IntRange kAll;
  if (range.min == kAll.min && range.max == kAll.max) return "a 64-bit integer";
  if (range.max == kAll.max) return fmt::format("at least {}", range.min);
  return fmt::format("{} to {}", range.min, range.max);
}

}  // namespace

std::string in_quotes(std::string_view text) {
  return "'" + io::printable(text, 60) + "'";
}

int64_t parse_int(std::string_view name, std::string_view text, IntRange range) {
  int64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error == std::errc::result_out_of_range && stop == end) {
    wrong_request("{}: {} does not fit in 64 bits, expected {}", name, in_quotes(text),
                  range_words(range));
  }
  if (error != std::errc() || stop != end) {
    wrong_request("{}: {} is not an integer, expected {}", name, in_quotes(text),
                  range_words(range));
  }
  if (value < range.min || value > range.max) {
    wrong_request("{}: {}, expected {}", name, value, range_words(range));
  }
  return value;
}

uint64_t parse_uint64(std::string_view name, std::string_view text) {
  uint64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end) {
    wrong_request("{}: {}, expected an integer from 0 to 18446744073709551615", name,
                  in_quotes(text));
  }
  return value;
}

double parse_real(std::string_view name, std::string_view text) {
  double value = 0.0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error == std::errc::result_out_of_range && stop == end) {
    wrong_request("{}: {} does not fit in float64, expected a finite number", name,
                  in_quotes(text));
  }
  if (error != std::errc() || stop != end) {
    wrong_request("{}: {} is not a number, expected a finite number", name, in_quotes(text));
  }
  if (!std::isfinite(value)) {
    wrong_request("{}: {}, expected a finite number", name, in_quotes(text));
  }
  return value;
}

double parse_percent(std::string_view name, std::string_view text) {
  if (text.ends_with('%')) text.remove_suffix(1);
  return parse_real(name, text) / 100.0;
}

std::vector<int64_t> parse_int_list(std::string_view name, std::string_view text,
                                    const ListFormat& format, IntRange range) {
  std::vector<int64_t> values;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    if (values.size() == format.max_count) {
      wrong_request("{}: {} has more than {} numbers, expected {}", name, in_quotes(text),
                    format.max_count, format.pattern);
    }
    values.push_back(parse_int(name, text.substr(begin, end - begin), range));
    begin = end + 1;
  }
  if (values.size() < format.min_count) {
    wrong_request("{}: {} has {} number{}, expected {}", name, in_quotes(text), values.size(),
                  values.size() == 1 ? "" : "s", format.pattern);
  }
  return values;
}

std::string bytes_words(double bytes) {
  if (bytes < 1024) return fmt::format("{:.0f} bytes", bytes);
  const char* units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  int unit = -1;
  do {
    bytes /= 1024;
    ++unit;
  } while (bytes >= 1024 && unit < 5);
  return fmt::format("{:.{}f} {}", bytes, bytes < 10 ? 2 : 1, units[unit]);
}

}  // namespace attentile::cli

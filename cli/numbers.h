// SPDX-License-Identifier: Apache-2.0
// Numbers as users type them, read strictly: the whole text, in range, finite, or an Error that
// names the option. No locale, no leading blanks or '+', no trailing junk.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

namespace attentile::cli {

struct IntRange {
  int64_t min = std::numeric_limits<int64_t>::min();
  int64_t max = std::numeric_limits<int64_t>::max();
};

inline constexpr int64_t kMaxSize = int64_t{1} << 40;  // of one dimension

int64_t parse_int(std::string_view name, std::string_view text, IntRange range = {});
uint64_t parse_uint64(std::string_view name, std::string_view text);

// A finite number.
double parse_real(std::string_view name, std::string_view text);

// A percentage, with or without its sign: "5%" and "5" are 0.05.
double parse_percent(std::string_view name, std::string_view text);

// Integers separated by commas, at least min_count and at most max_count of them; `pattern` says
// in the error what was expected ("L,R").
struct ListFormat {
  std::string_view pattern;
  size_t min_count = 1;
  size_t max_count = 1;
};
std::vector<int64_t> parse_int_list(std::string_view name, std::string_view text,
                                    const ListFormat& format, IntRange range);

// `text` in quotes, on one line, cut when long: how a user's word appears in a sentence.
std::string in_quotes(std::string_view text);

// "12.3 MiB", "640 bytes"
std::string bytes_words(double bytes);

}  // namespace attentile::cli

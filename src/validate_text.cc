// SPDX-License-Identifier: Apache-2.0
// See validate_text.h.
#include "validate_text.h"

#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <new>
#include <string>
#include <utility>

namespace attentile::validation {
namespace {

void append_integer(int64_t number, std::string* sentence) {
  char digits[24];
  std::snprintf(digits, sizeof digits, "%" PRId64, number);
  *sentence += digits;
}

void append_real(double number, std::string* sentence) {
  if (std::isnan(number)) {  // printf may show its sign
    *sentence += "nan";
    return;
  }
  char digits[40];
  std::snprintf(digits, sizeof digits, "%.10g", number);
  *sentence += digits;
}

}  // namespace

void Word::append_to(std::string* sentence) const {
  switch (kind_) {
    case Kind::kText: *sentence += text_; return;
    case Kind::kInteger: append_integer(integer_, sentence); return;
    case Kind::kReal: append_real(real_, sentence); return;
    case Kind::kDType:
      if (size_of(dtype_) == 0) {
        append_integer(static_cast<int32_t>(dtype_), sentence);
      } else {
        *sentence += to_string(dtype_);
      }
      return;
    case Kind::kList:
      *sentence += '[';
      for (int i = 0; i < count_; ++i) {
        if (i > 0) *sentence += ", ";
        append_integer(list_[i], sentence);
      }
      *sentence += ']';
      return;
  }
}

Status describe(StatusCode code, const char* pattern, std::initializer_list<Word> words) {
  std::string sentence;
  try {
    const Word* next = words.begin();
    for (const char* at = pattern; *at != '\0'; ++at) {
      if (at[0] == '{' && at[1] == '}' && next != words.end()) {
        next->append_to(&sentence);
        ++next;
        ++at;
      } else {
        sentence += *at;
      }
    }
  } catch (const std::bad_alloc&) {
    sentence = std::string();
  }
  return {code, std::move(sentence)};
}

}  // namespace attentile::validation

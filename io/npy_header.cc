// SPDX-License-Identifier: Apache-2.0
// A parser for exactly the dict literals that describe an array: see npy_header.h. Python's grammar
// beyond that (escapes, comments, other types, expressions) is refused.
#include "io/npy_header.h"

#include <fmt/format.h>

#include <limits>
#include <optional>

#include "io/tensor_file.h"
#include "io/text.h"

namespace attentile::io {
namespace {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kFloat64,
                             DType::kInt32,   DType::kUInt8,   DType::kBool};
constexpr const char* kReadable = "one of <f4, <f2, <f8, <i4, |u1 and |b1 is expected";

// Why this descr cannot be read, as a remark in brackets; empty if there is nothing to add.
std::string_view remark_on(std::string_view descr) {
  const char order = descr.empty() ? '\0' : descr.front();
  const bool has_order = order == '<' || order == '>' || order == '|' || order == '=';
  const std::string_view kind = has_order ? descr.substr(1) : descr;
  if (kind.starts_with('O')) return " (Python objects)";
  if (kind.starts_with('V')) return " (raw bytes; .npy has no name for bfloat16)";
  if (order == '>') return " (big-endian)";
  return "";
}

class DictParser {
 public:
  DictParser(std::string_view text, const std::string& file_name)
      : text_(text), file_name_(file_name) {}

  Result<NpyHeader> parse() {
    if (parse_dict()) return header_;
    return status_;
  }

 private:
  bool fail(std::string_view what) {
    status_ = bad_content(file_name_, what);
    return false;
  }
  bool fail_here(std::string_view expected) {
    if (at_ >= text_.size())
      return fail(fmt::format("the header ends where {} is expected", expected));
    return fail(fmt::format("the header has '{}' at byte {}, but {} is expected",
                            printable(text_.substr(at_, 1)), at_ + 1, expected));
  }
  void skip_spaces() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != text_.npos) ++at_;
  }
  // Takes the character after any spaces, if it is this one.
  bool take(char wanted) {
    skip_spaces();
    if (at_ >= text_.size() || text_[at_] != wanted) return false;
    ++at_;
    return true;
  }
  bool take_word(std::string_view word) {
    skip_spaces();
    if (!text_.substr(at_).starts_with(word)) return false;
    at_ += word.size();
    return true;
  }

  bool parse_dict();
  bool parse_entry();
  bool parse_string(std::string_view expected, std::string_view* value);
  bool parse_descr();
  bool parse_order();
  bool parse_shape();
  bool parse_size();

  std::string_view text_;
  const std::string& file_name_;
  size_t at_ = 0;
  Status status_;
  NpyHeader header_;
  bool has_descr_ = false;
  bool has_order_ = false;
  bool has_shape_ = false;
};

bool DictParser::parse_dict() {
  if (!take('{')) return fail_here("'{'");
  while (!take('}')) {
    if (!parse_entry()) return false;
    if (take(',')) continue;
    if (take('}')) break;
    return fail_here("',' or '}'");
  }
  skip_spaces();
  if (at_ != text_.size()) return fail_here("nothing more");
  if (!has_descr_) return fail("the header has no key 'descr'");
  if (!has_order_) return fail("the header has no key 'fortran_order'");
  if (!has_shape_) return fail("the header has no key 'shape'");
  return true;
}

bool DictParser::parse_entry() {
  std::string_view key;
  if (!parse_string("a key in quotes", &key)) return false;
  bool* seen = nullptr;
  if (key == "descr") seen = &has_descr_;
  if (key == "fortran_order") seen = &has_order_;
  if (key == "shape") seen = &has_shape_;
  if (seen == nullptr) {
    return fail(
        fmt::format("the header has the key '{}', but only descr, fortran_order and shape "
                    "are expected",
                    printable(key)));
  }
  if (*seen) return fail(fmt::format("the header has the key '{}' twice", key));
  *seen = true;
  if (!take(':')) return fail_here("':'");
  if (seen == &has_descr_) return parse_descr();
  return seen == &has_order_ ? parse_order() : parse_shape();
}

// A string without escapes, in either kind of quotes.
bool DictParser::parse_string(std::string_view expected, std::string_view* value) {
  skip_spaces();
  const char quote = at_ < text_.size() ? text_[at_] : '\0';
  if (quote != '\'' && quote != '"') return fail_here(expected);
  const size_t begin = ++at_;
  while (at_ < text_.size() && text_[at_] != quote) {
    const unsigned char byte = static_cast<unsigned char>(text_[at_]);
    if (byte == '\\' || byte < 0x20) return fail_here("a string without escapes");
    ++at_;
  }
  if (at_ == text_.size()) return fail_here("the end of a string");
  *value = text_.substr(begin, at_ - begin);
  ++at_;
  return true;
}

bool DictParser::parse_descr() {
  if (take('[') || take('(') || take('{')) {
    return fail(fmt::format("descr is a structured type, but {}", kReadable));
  }
  std::string_view descr;
  if (!parse_string("a dtype in quotes", &descr)) return false;
  for (const DType dtype : kDTypes) {
    if (descr != npy_descr(dtype)) continue;
    header_.dtype = dtype;
    return true;
  }
  return fail(
      fmt::format("descr is '{}'{}, but {}", printable(descr, 40), remark_on(descr), kReadable));
}

bool DictParser::parse_order() {
  if (take_word("True")) {
    header_.fortran_order = true;
    return true;
  }
  return take_word("False") || fail_here("True or False");
}

// (), (2,), (2, 3), (2, 3,)
bool DictParser::parse_shape() {
  if (!take('(')) return fail_here("a tuple of sizes");
  bool comma = true;
  while (!take(')')) {
    if (!comma) return fail_here("',' or ')'");
    if (header_.shape.size() == kMaxFileRank) {
      return fail(fmt::format("shape has more than {} dimensions", kMaxFileRank));
    }
    if (!parse_size()) return false;
    comma = take(',');
  }
  if (header_.shape.size() == 1 && !comma) {
    return fail(fmt::format("shape is ({}), but a tuple is expected", header_.shape[0]));
  }
  return true;
}

bool DictParser::parse_size() {
  skip_spaces();
  const size_t begin = at_;
  int64_t size = 0;
  bool fits = true;
  for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
    fits = fits && !__builtin_mul_overflow(size, int64_t{10}, &size) &&
           !__builtin_add_overflow(size, int64_t{text_[at_] - '0'}, &size);
  }
  const std::string_view digits = text_.substr(begin, at_ - begin);
  if (digits.empty()) return fail_here("a size");
  if (digits.size() > 1 && digits.front() == '0') {
    return fail(fmt::format("shape holds {}, but a number without leading zeros is expected",
                            printable(digits, 40)));
  }
  if (!fits) {
    return fail(fmt::format("shape holds {}, but at most {} is expected", printable(digits, 40),
                            std::numeric_limits<int64_t>::max()));
  }
  header_.shape.push_back(size);
  return true;
}

}  // namespace

Result<NpyHeader> parse_npy_header(std::string_view text, const std::string& file_name) {
  return DictParser(text, file_name).parse();
}

std::string_view npy_descr(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return "<f4";
    case DType::kFloat16: return "<f2";
    case DType::kFloat64: return "<f8";
    case DType::kInt32: return "<i4";
    case DType::kUInt8: return "|u1";
    case DType::kBool: return "|b1";
    case DType::kBFloat16: break;
  }
  return "";
}

std::string make_npy_preamble(const NpyHeader& header) {
  constexpr size_t kFixedBytes = 10;  // magic, version, length
  constexpr size_t kAlignment = 64;
  const std::string shape =
      fmt::format("{}{}", fmt::join(header.shape, ", "), header.shape.size() == 1 ? "," : "");
  std::string text =
      fmt::format("{{'descr': '{}', 'fortran_order': {}, 'shape': ({}), }}",
                  npy_descr(header.dtype), header.fortran_order ? "True" : "False", shape);
  const size_t total = (kFixedBytes + text.size() + 1 + kAlignment - 1) / kAlignment * kAlignment;
  text.resize(total - kFixedBytes - 1, ' ');
  text += '\n';
  std::string preamble("\x93NUMPY\x01\x00", 8);
  preamble += static_cast<char>(text.size() & 0xFFu);
  preamble += static_cast<char>(text.size() >> 8);
  return preamble + text;
}

}  // namespace attentile::io

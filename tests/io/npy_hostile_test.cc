// SPDX-License-Identifier: Apache-2.0
// Files that look like .npy and are not: each is refused, from memory and from disk, with its exact
// sentence.
#include <gtest/gtest.h>

#include <ostream>

#include "io/npy.h"
#include "io_test_util.h"

namespace attentile::io::test {
namespace {

const char* const kReadable = ", but one of <f4, <f2, <f8, <i4, |u1 and |b1 is expected";

// A float32 array of shape (1,), unless said otherwise.
std::string file_of(const std::string& descr, const std::string& order = "False",
                    const std::string& shape = "(1,)", const std::string& data = "abcd") {
  return npy_file(
      "{'descr': " + descr + ", 'fortran_order': " + order + ", 'shape': " + shape + ", }\n", data);
}

std::string with_shape(const std::string& shape) {
  return file_of("'<f4'", "False", shape);
}

std::vector<Hostile> preamble_files() {
  const std::string magic = "\x93NUMPY";
  const std::string no_magic = "the file does not begin with \\x93NUMPY";
  const auto version = [&](char major, char minor) {
    return magic + std::string{major, minor} + std::string(200, ' ');
  };
  return {
      {"empty_file", "", "the file is empty"},
      {"one_byte", "\x93", "the file has 1 byte, which ends before its header"},
      {"magic_only", magic, "the file has 6 bytes, which ends before its header"},
      {"magic_and_version", magic + std::string("\1\0", 2),
       "the file has 8 bytes, which ends before its header"},
      {"half_a_length", magic + std::string("\1\0v", 3),
       "the file has 9 bytes, which ends before its header"},
      {"half_a_long_length", magic + std::string("\2\0v\0\0", 5),
       "the file has 11 bytes, which ends before its header"},
      {"no_magic", "not an array file", no_magic},
      {"wrong_first_byte", "\x92NUMPY" + std::string(100, ' '), no_magic},
      {"wrong_magic_and_short", "x", no_magic},
      {"zip_archive", "PK\3\4" + std::string(100, ' '), no_magic},
      {"version_0", version(0, 0), "version is 0.0, but 1.0, 2.0 or 3.0 is expected"},
      {"version_1_1", version(1, 1), "version is 1.1, but 1.0, 2.0 or 3.0 is expected"},
      {"version_4", version(4, 0), "version is 4.0, but 1.0, 2.0 or 3.0 is expected"},
      {"version_255", version('\xFF', '\xFF'),
       "version is 255.255, but 1.0, 2.0 or 3.0 is expected"},
      {"length_beyond_file", magic + std::string("\1\0\xFF\xFF{}", 6),
       "header length is 65535, but the file has 12 bytes"},
      {"long_length_beyond_limit", magic + std::string("\2\0\xFF\xFF\xFF\xFF{}", 8),
       "header length is 4294967295, but at most 65536 is allowed"},
      {"header_over_64_kib",
       npy_file(
           "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }" + std::string(65480, ' '),
           "abcd", 2),
       "header length is 65537, but at most 65536 is allowed"},
      {"header_empty", npy_file(""), "the header ends where '{' is expected"},
  };
}

std::vector<Hostile> dict_files() {
  const auto header = [](const std::string& text) { return npy_file(text, "abcd"); };
  const std::string descr = "'descr': '<f4'";
  const std::string order = "'fortran_order': False";
  const std::string shape = "'shape': (1,)";
  const auto keys = [&](const std::string& all) { return header("{" + all + "}"); };
  const std::string comma = ", ";
  return {
      {"not_a_dict", header("(1,)"), "the header has '(' at byte 1, but '{' is expected"},
      {"dict_not_closed", header("{" + descr), "the header ends where ',' or '}' is expected"},
      {"dict_empty", header("{}"), "the header has no key 'descr'"},
      {"no_descr", keys(order + comma + shape), "the header has no key 'descr'"},
      {"no_order", keys(descr + comma + shape), "the header has no key 'fortran_order'"},
      {"no_shape", keys(descr + comma + order), "the header has no key 'shape'"},
      {"descr_twice", keys(descr + comma + descr), "the header has the key 'descr' twice"},
      {"order_twice", keys(order + comma + order), "the header has the key 'fortran_order' twice"},
      {"shape_twice", keys(shape + comma + shape), "the header has the key 'shape' twice"},
      {"other_key", keys("'strides': (1,)"),
       "the header has the key 'strides', but only descr, fortran_order and shape are expected"},
      {"empty_key", keys("'': 1"),
       "the header has the key '', but only descr, fortran_order and shape are expected"},
      {"key_without_quotes", keys("descr: '<f4'"),
       "the header has 'd' at byte 2, but a key in quotes is expected"},
      {"key_with_prefix", keys("b'descr': '<f4'"),
       "the header has 'b' at byte 2, but a key in quotes is expected"},
      {"key_with_escape", keys("'d\\x65scr': '<f4'"),
       "the header has '\\' at byte 4, but a string without escapes is expected"},
      {"string_with_newline", keys("'des\ncr': '<f4'"),
       "the header has '\\n' at byte 6, but a string without escapes is expected"},
      {"string_not_closed", header("{'descr"),
       "the header ends where the end of a string is expected"},
      {"quotes_mixed", keys("'descr\": 1"),
       "the header ends where the end of a string is expected"},
      {"no_colon", keys("'descr' '<f4'"), "the header has ''' at byte 10, but ':' is expected"},
      {"no_value", keys("'descr':"),
       "the header has '}' at byte 10, but a dtype in quotes is expected"},
      {"no_comma", keys(descr + " " + order),
       "the header has ''' at byte 17, but ',' or '}' is expected"},
      {"two_commas", keys(descr + ",,"),
       "the header has ',' at byte 17, but a key in quotes is expected"},
      {"comma_only", keys(","), "the header has ',' at byte 2, but a key in quotes is expected"},
      {"text_after_dict", header("{" + descr + comma + order + comma + shape + "} x"),
       "the header has 'x' at byte 57, but nothing more is expected"},
      {"nul_after_dict",
       header("{" + descr + comma + order + comma + shape + std::string("}\0\0", 3)),
       "the header has '\\x00' at byte 56, but nothing more is expected"},
      {"nested_dict", keys("'descr': {'descr': '<f4'}"),
       std::string("descr is a structured type") + kReadable},
      {"depth_bomb", keys("'shape': " + std::string(60000, '(')),
       "the header has '(' at byte 12, but a size is expected"},
      {"expression", keys("'shape': (2*3,)"),
       "the header has '*' at byte 13, but ',' or ')' is expected"},
      {"not_ascii", header("\xFF"), "the header has '\\xff' at byte 1, but '{' is expected"},
  };
}

std::vector<Hostile> value_files() {
  const std::string maximum = ", but at most 9223372036854775807 is expected";
  const auto descr = [](const std::string& text, const std::string& remark = "") {
    return "descr is '" + text + "'" + remark + kReadable;
  };
  const std::string objects = " (Python objects)";
  const std::string raw = " (raw bytes; .npy has no name for bfloat16)";
  const std::string structured = std::string("descr is a structured type") + kReadable;
  std::string rank_33 = "(";
  for (int i = 0; i < 33; ++i) rank_33 += "1,";
  return {
      {"object", file_of("'|O'"), descr("|O", objects)},
      {"object_without_order", file_of("'O'"), descr("O", objects)},
      {"object_8", file_of("'O8'"), descr("O8", objects)},
      {"void_2", file_of("'|V2'"), descr("|V2", raw)},
      {"bfloat16_as_void", file_of("'<V2'"), descr("<V2", raw)},
      {"structured_list", file_of("[('a', '<f4')]"), structured},
      {"structured_tuple", file_of("('<f4', (2,))"), structured},
      {"big_endian_f4", file_of("'>f4'"), descr(">f4", " (big-endian)")},
      {"big_endian_f2", file_of("'>f2'"), descr(">f2", " (big-endian)")},
      {"big_endian_i4", file_of("'>i4'"), descr(">i4", " (big-endian)")},
      {"native_order", file_of("'=f4'"), descr("=f4")},
      {"no_order_f4", file_of("'f4'"), descr("f4")},
      {"int64", file_of("'<i8'"), descr("<i8")},
      {"unicode", file_of("'<U1'"), descr("<U1")},
      {"complex", file_of("'<c8'"), descr("<c8")},
      {"datetime", file_of("'<M8[ns]'"), descr("<M8[ns]")},
      {"descr_empty", file_of("''"), descr("")},
      {"descr_long", file_of("'" + std::string(1000, 'x') + "'"),
       descr(std::string(40, 'x') + "...")},
      {"descr_not_utf8", file_of("'\xFF'"), descr("\\xff")},
      {"descr_number", file_of("4"),
       "the header has '4' at byte 11, but a dtype in quotes is expected"},
      {"descr_none", file_of("None"),
       "the header has 'N' at byte 11, but a dtype in quotes is expected"},
      {"order_lower_case", file_of("'<f4'", "false"),
       "the header has 'f' at byte 35, but True or False is expected"},
      {"order_number", file_of("'<f4'", "0"),
       "the header has '0' at byte 35, but True or False is expected"},
      {"order_longer_word", file_of("'<f4'", "Falsehood"),
       "the header has 'h' at byte 40, but ',' or '}' is expected"},
      {"shape_number", with_shape("1"),
       "the header has '1' at byte 51, but a tuple of sizes is expected"},
      {"shape_list", with_shape("[1]"),
       "the header has '[' at byte 51, but a tuple of sizes is expected"},
      {"shape_number_in_brackets", with_shape("(1)"), "shape is (1), but a tuple is expected"},
      {"shape_comma_only", with_shape("(,)"),
       "the header has ',' at byte 52, but a size is expected"},
      {"shape_two_commas", with_shape("(1,,2)"),
       "the header has ',' at byte 54, but a size is expected"},
      {"shape_without_comma", with_shape("(1 2)"),
       "the header has '2' at byte 54, but ',' or ')' is expected"},
      {"shape_negative", with_shape("(-1,)"),
       "the header has '-' at byte 52, but a size is expected"},
      {"shape_plus", with_shape("(+1,)"), "the header has '+' at byte 52, but a size is expected"},
      {"shape_float", with_shape("(1.0,)"),
       "the header has '.' at byte 53, but ',' or ')' is expected"},
      {"shape_exponent", with_shape("(1e0,)"),
       "the header has 'e' at byte 53, but ',' or ')' is expected"},
      {"shape_python_2_long", with_shape("(1L,)"),
       "the header has 'L' at byte 53, but ',' or ')' is expected"},
      {"shape_hexadecimal", with_shape("(0x1,)"),
       "the header has 'x' at byte 53, but ',' or ')' is expected"},
      {"shape_leading_zero", with_shape("(01,)"),
       "shape holds 01, but a number without leading zeros is expected"},
      {"shape_underscore", with_shape("(1_0,)"),
       "the header has '_' at byte 53, but ',' or ')' is expected"},
      {"shape_string", with_shape("('1',)"),
       "the header has ''' at byte 52, but a size is expected"},
      {"shape_none", with_shape("(None,)"),
       "the header has 'N' at byte 52, but a size is expected"},
      {"shape_2_to_63", with_shape("(9223372036854775808,)"),
       "shape holds 9223372036854775808" + maximum},
      {"shape_many_digits", with_shape("(" + std::string(5000, '9') + ",)"),
       "shape holds " + std::string(40, '9') + "..." + maximum},
      {"rank_33", with_shape(rank_33 + ")"), "shape has more than 32 dimensions"},
      {"product_overflows_to_0", with_shape("(4294967296, 4294967296)"),
       "shape is [4294967296, 4294967296], but its size in bits must be below 2^63"},
      {"product_overflows_to_4", with_shape("(4611686018427387905, 4)"),
       "shape is [4611686018427387905, 4], but its size in bits must be below 2^63"},
      {"zero_hides_overflow", with_shape("(0, 9223372036854775807, 2)"),
       "shape is [0, 9223372036854775807, 2], but its size in bits must be below 2^63"},
      {"far_too_large", with_shape("(274877906944,)"),
       "float32 of shape [274877906944] takes 1099511627776 bytes, but the file holds 4 bytes "
       "after its header"},
      {"truncated", with_shape("(2,)"),
       "float32 of shape [2] takes 8 bytes, but the file holds 4 bytes after its header"},
      {"no_data", file_of("'<f4'", "False", "(1,)", ""),
       "float32 of shape [1] takes 4 bytes, but the file holds 0 bytes after its header"},
      {"one_byte_short", file_of("'<f4'", "False", "()", "abc"),
       "float32 of shape [] takes 4 bytes, but the file holds 3 bytes after its header"},
      {"trailing_bytes", file_of("'<f4'", "False", "(1,)", "abcde"),
       "float32 of shape [1] takes 4 bytes, but the file holds 5 bytes after its header (trailing "
       "bytes)"},
      {"trailing_bytes_of_empty", file_of("'|u1'", "True", "(3, 0)", "x"),
       "uint8 of shape [3, 0] takes 0 bytes, but the file holds 1 byte after its header (trailing "
       "bytes)"},
  };
}

class NpyHostile : public ::testing::TestWithParam<Hostile> {};

TEST_P(NpyHostile, IsRefusedWithItsSentence) {
  const Hostile& hostile = GetParam();
  const Result<Tensor> parsed = parse_npy(as_bytes(hostile.bytes), "in");
  EXPECT_EQ(parsed.status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(parsed.status().message(), "in: " + hostile.sentence);

  const TempDir directory;
  const std::string path = directory.file("in.npy");
  write_all(path, hostile.bytes);
  const Result<Tensor> read = read_npy(path);
  EXPECT_EQ(read.status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(read.status().message(), path + ": " + hostile.sentence);
}

std::string name_of(const ::testing::TestParamInfo<Hostile>& info) {
  return info.param.name;
}

INSTANTIATE_TEST_SUITE_P(Preamble, NpyHostile, ::testing::ValuesIn(preamble_files()), name_of);
INSTANTIATE_TEST_SUITE_P(Dict, NpyHostile, ::testing::ValuesIn(dict_files()), name_of);
INSTANTIATE_TEST_SUITE_P(Value, NpyHostile, ::testing::ValuesIn(value_files()), name_of);

TEST(NpyHostile, TruncatedAnywhere) {
  const std::string good = file_of("'<f4'");
  ASSERT_TRUE(parse_npy(as_bytes(good)).ok());
  for (size_t length = 0; length < good.size(); ++length) {
    EXPECT_FALSE(parse_npy(as_bytes(good.substr(0, length))).ok()) << length;
  }
  EXPECT_FALSE(parse_npy(as_bytes(good + "x")).ok());
}

}  // namespace
}  // namespace attentile::io::test

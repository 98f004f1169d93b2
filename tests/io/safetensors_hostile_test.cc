// SPDX-License-Identifier: Apache-2.0
// Files that look like .safetensors and are not: each is refused, from memory and from disk, with
// its exact sentence.
#include <gtest/gtest.h>

#include <algorithm>
#include <ostream>

#include "io/safetensors.h"
#include "io_test_util.h"

namespace attentile::io::test {
namespace {

const char* const kFourBytes = "abcd";

// One tensor 'q' with this object as its description, and four bytes of data.
std::string with_q(const std::string& object) {
  return safetensors_file("{\"q\":" + object + "}", kFourBytes);
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" +
         offsets + "}";
}

std::string file_of(const std::string& entries, const std::string& data = kFourBytes) {
  return safetensors_file("{" + entries + "}", data);
}

std::string repeated(const std::string& text, int count) {
  std::string all;
  for (int i = 0; i < count; ++i) all += text;
  return all;
}

const char* const kInteger = "but a whole number from 0 to 9223372036854775807 is expected";
const char* const kDTypes = "but F32, F16, BF16, F64, I32, U8 or BOOL is expected";
const char* const kBeginEnd = "but a begin and an end are expected";

std::string q(const std::string& what) {
  return "tensor 'q': " + what;
}

std::vector<Hostile> header_files() {
  const std::string good = entry("q", "F32", "[1]", "[0,4]");
  return {
      {"empty_file", "", "the file is empty"},
      {"one_byte", "a", "the file has 1 byte, but a safetensors file has at least 8"},
      {"seven_bytes", "abcdefg", "the file has 7 bytes, but a safetensors file has at least 8"},
      {"length_only_zero", little_endian(0, 8),
       "the header is empty, but a JSON object is expected"},
      {"length_beyond_file", little_endian(100, 8) + "{}",
       "header length is 100, but the file has 10 bytes"},
      {"length_one_too_long", little_endian(3, 8) + "{}",
       "header length is 3, but the file has 10 bytes"},
      {"length_huge", little_endian(99999999999, 8) + std::string(112, ' '),
       "header length is 99999999999, but the file has 120 bytes"},
      {"length_all_ones", little_endian(UINT64_MAX, 8) + "{}",
       "header length is 18446744073709551615, but the file has 10 bytes"},
      {"length_overflows_when_8_is_added", little_endian(UINT64_MAX - 7, 8) + "{}",
       "header length is 18446744073709551608, but the file has 10 bytes"},
      {"length_big_endian", std::string("\0\0\0\0\0\0\0\x02{}", 10),
       "header length is 144115188075855872, but the file has 10 bytes"},
      {"begins_with_space", safetensors_file(" {}"), "the header does not begin with '{'"},
      {"begins_with_byte_order_mark", safetensors_file("\xEF\xBB\xBF{}"),
       "the header does not begin with '{'"},
      {"is_an_array", safetensors_file("[]"), "the header does not begin with '{'"},
      {"is_a_number", safetensors_file("7"), "the header does not begin with '{'"},
      {"not_closed", safetensors_file("{"), "the header is not valid JSON at byte 2"},
      {"two_objects", safetensors_file("{}{}"), "the header is not valid JSON at byte 3"},
      {"text_after_object", safetensors_file("{} x"), "the header is not valid JSON at byte 4"},
      {"nul_after_object", safetensors_file(std::string("{}\0\0", 4)),
       "the header is not valid JSON at byte 3"},
      {"nul_hides_text", safetensors_file(std::string("{}\0,,,", 6)),
       "the header is not valid JSON at byte 3"},
      {"comment", safetensors_file("{/*x*/}"), "the header is not valid JSON at byte 2"},
      {"trailing_comma", file_of(good + ","), "the header is not valid JSON at byte 55"},
      {"single_quotes", safetensors_file("{'q':1}"), "the header is not valid JSON at byte 2"},
      {"bare_word", safetensors_file("{q:1}"), "the header is not valid JSON at byte 2"},
      {"not_utf8", safetensors_file("{\"\xFF\":1}"), "the header is not valid JSON at byte 3"},
      {"overlong_utf8", safetensors_file("{\"\xC0\xAF\":1}"),
       "the header is not valid JSON at byte 3"},
      {"lone_surrogate", safetensors_file(R"({"\ud800":1})"),
       "the header is not valid JSON at byte 9"},
      {"newline_in_name", safetensors_file("{\"a\nb\":1}"),
       "the header is not valid JSON at byte 4"},
      {"leading_zero", with_q(R"({"dtype":"F32","shape":[01],"data_offsets":[0,4]})"),
       "the header is not valid JSON at byte 31"},
      {"nan_literal", with_q(R"({"dtype":"F32","shape":[NaN],"data_offsets":[0,4]})"),
       "the header is not valid JSON at byte 30"},
      {"number_beyond_double", with_q(R"({"dtype":"F32","shape":[1e999],"data_offsets":[0,4]})"),
       "the header is not valid JSON at byte 34"},
      {"name_twice", file_of(good + "," + good), q("the name appears twice in the header")},
      {"name_twice_by_escape", file_of(good + R"(,"\u0071":{})"),
       q("the name appears twice in the header")},
      {"depth_bomb_objects", safetensors_file(repeated("{\"a\":", 100000)),
       "tensor 'a': the key 'a' is not one of dtype, shape and data_offsets"},
      {"depth_bomb_arrays", safetensors_file("{\"a\":" + repeated("[", 100000)),
       "tensor 'a': it is an array, but an object of dtype, shape and data_offsets is expected"},
      {"depth_bomb_in_shape", with_q(R"({"shape":)" + repeated("[", 100000)),
       q(std::string("shape holds an array, ") + kInteger)},
      {"depth_bomb_in_metadata",
       safetensors_file(R"({"__metadata__":)" + repeated("{\"a\":", 100000)),
       "__metadata__: 'a' is an object, but a string is expected"},
  };
}

std::vector<Hostile> metadata_files() {
  const auto metadata = [](const std::string& value) {
    return safetensors_file("{\"__metadata__\":" + value + "}");
  };
  const std::string object = "but an object of strings is expected";
  return {
      {"metadata_null", metadata("null"), "__metadata__: it is null, " + object},
      {"metadata_string", metadata("\"x\""), "__metadata__: it is a string, " + object},
      {"metadata_array", metadata("[]"), "__metadata__: it is an array, " + object},
      {"metadata_number", metadata("-3"), "__metadata__: it is -3, " + object},
      {"metadata_holds_number", metadata(R"({"a":5})"),
       "__metadata__: 'a' is 5, but a string is expected"},
      {"metadata_holds_float", metadata(R"({"a":0.5})"),
       "__metadata__: 'a' is 0.5, but a string is expected"},
      {"metadata_holds_true", metadata(R"({"a":true})"),
       "__metadata__: 'a' is true, but a string is expected"},
      {"metadata_holds_null", metadata(R"({"a":null})"),
       "__metadata__: 'a' is null, but a string is expected"},
      {"metadata_holds_object", metadata(R"({"a":{}})"),
       "__metadata__: 'a' is an object, but a string is expected"},
      {"metadata_holds_array", metadata(R"({"a":["b"]})"),
       "__metadata__: 'a' is an array, but a string is expected"},
      {"metadata_key_twice", metadata(R"({"a":"b","a":"b"})"),
       "__metadata__: the key 'a' appears twice"},
      {"metadata_twice", safetensors_file(R"({"__metadata__":{},"__metadata__":{}})"),
       "__metadata__: it appears twice in the header"},
  };
}

std::vector<Hostile> description_files() {
  const std::string object = "but an object of dtype, shape and data_offsets is expected";
  const std::string array = "but an array of whole numbers is expected";
  return {
      {"tensor_is_number", with_q("5"), q("it is 5, " + object)},
      {"tensor_is_null", with_q("null"), q("it is null, " + object)},
      {"tensor_is_false", with_q("false"), q("it is false, " + object)},
      {"tensor_is_string", with_q("\"F32\""), q("it is a string, " + object)},
      {"tensor_is_array", with_q("[]"), q("it is an array, " + object)},
      {"tensor_is_empty_object", with_q("{}"), q("dtype is missing")},
      {"no_shape", with_q(R"({"dtype":"F32","data_offsets":[0,4]})"), q("shape is missing")},
      {"no_offsets", with_q(R"({"dtype":"F32","shape":[1]})"), q("data_offsets is missing")},
      {"unknown_key", with_q(R"({"dtype":"F32","strides":[1]})"),
       q("the key 'strides' is not one of dtype, shape and data_offsets")},
      {"dtype_twice", with_q(R"({"dtype":"F32","dtype":"F32"})"), q("dtype appears twice")},
      {"shape_twice", with_q(R"({"shape":[1],"shape":[1]})"), q("shape appears twice")},
      {"offsets_twice", with_q(R"({"data_offsets":[0,4],"data_offsets":[0,4]})"),
       q("data_offsets appears twice")},
      {"dtype_is_number", with_q(R"({"dtype":32})"), q("dtype is 32, but a string is expected")},
      {"dtype_is_array", with_q(R"({"dtype":["F32"]})"),
       q("dtype is an array, but a string is expected")},
      {"shape_is_number", with_q(R"({"shape":1})"), q("shape is 1, " + array)},
      {"shape_is_string", with_q(R"({"shape":"1"})"), q("shape is a string, " + array)},
      {"shape_is_object", with_q(R"({"shape":{"a":1}})"), q("shape is an object, " + array)},
      {"offsets_are_null", with_q(R"({"data_offsets":null})"), q("data_offsets is null, " + array)},
      {"shape_holds_negative", with_q(R"({"shape":[-1]})"),
       q(std::string("shape holds -1, ") + kInteger)},
      {"shape_holds_minus_zero", with_q(R"({"shape":[-0]})"),
       q(std::string("shape holds -0, ") + kInteger)},
      {"shape_holds_float", with_q(R"({"shape":[1.0]})"),
       q(std::string("shape holds 1.0, ") + kInteger)},
      {"shape_holds_exponent", with_q(R"({"shape":[1e0]})"),
       q(std::string("shape holds 1e0, ") + kInteger)},
      {"shape_holds_2_to_63", with_q(R"({"shape":[9223372036854775808]})"),
       q(std::string("shape holds 9223372036854775808, ") + kInteger)},
      {"shape_holds_2_to_64", with_q(R"({"shape":[18446744073709551616]})"),
       q(std::string("shape holds 18446744073709551616, ") + kInteger)},
      {"shape_holds_500_digits", with_q(R"({"shape":[)" + std::string(300, '9') + "]}"),
       q("shape holds " + std::string(40, '9') + "..., " + kInteger)},
      {"shape_holds_string", with_q(R"({"shape":["1"]})"),
       q(std::string("shape holds a string, ") + kInteger)},
      {"shape_holds_true", with_q(R"({"shape":[true]})"),
       q(std::string("shape holds true, ") + kInteger)},
      {"shape_holds_null", with_q(R"({"shape":[null]})"),
       q(std::string("shape holds null, ") + kInteger)},
      {"rank_33", with_q(R"({"shape":[1)" + repeated(",1", 32) + "]}"),
       q("shape has more than 32 dimensions")},
      {"offsets_hold_negative", with_q(R"({"data_offsets":[-4,0]})"),
       q(std::string("data_offsets holds -4, ") + kInteger)},
      {"offsets_hold_float", with_q(R"({"data_offsets":[0,4.5]})"),
       q(std::string("data_offsets holds 4.5, ") + kInteger)},
      {"offsets_hold_2_to_64_minus_1", with_q(R"({"data_offsets":[0,18446744073709551615]})"),
       q(std::string("data_offsets holds 18446744073709551615, ") + kInteger)},
      {"offsets_empty", with_q(R"({"data_offsets":[]})"),
       q(std::string("data_offsets has 0 numbers, ") + kBeginEnd)},
      {"offsets_one", with_q(R"({"data_offsets":[0]})"),
       q(std::string("data_offsets has 1 number, ") + kBeginEnd)},
      {"offsets_three", with_q(R"({"data_offsets":[0,4,4]})"),
       q(std::string("data_offsets has more than 2 numbers, ") + kBeginEnd)},
  };
}

std::vector<Hostile> layout_files() {
  const std::string eight = "abcdefgh";
  return {
      {"dtype_unknown", file_of(entry("q", "F31", "[1]", "[0,4]")),
       q("dtype is 'F31', ") + kDTypes},
      {"dtype_lower_case", file_of(entry("q", "f32", "[1]", "[0,4]")),
       q("dtype is 'f32', ") + kDTypes},
      {"dtype_empty", file_of(entry("q", "", "[1]", "[0,4]")), q("dtype is '', ") + kDTypes},
      {"dtype_not_ours", file_of(entry("q", "I16", "[2]", "[0,4]")),
       q("dtype is 'I16', ") + kDTypes},
      {"dtype_float8", file_of(entry("q", "F8_E4M3", "[4]", "[0,4]")),
       q("dtype is 'F8_E4M3', ") + kDTypes},
      {"begin_after_end", file_of(entry("q", "F32", "[1]", "[4,0]")),
       q("data_offsets are [4, 0], but the begin must not exceed the end")},
      {"end_beyond_file", file_of(entry("q", "F32", "[2]", "[0,8]")),
       q("data_offsets end at 8, but the file holds 4 bytes of data")},
      {"end_far_beyond_file", file_of(entry("q", "U8", "[1099511627776]", "[0,1099511627776]")),
       q("data_offsets end at 1099511627776, but the file holds 4 bytes of data")},
      {"no_data", file_of(entry("q", "F32", "[1]", "[0,4]"), ""),
       q("data_offsets end at 4, but the file holds 0 bytes of data")},
      {"shape_too_small", file_of(entry("q", "F16", "[1]", "[0,4]")),
       q("data_offsets span 4 bytes, but F16 of shape [1] takes 2 bytes")},
      {"shape_too_large", file_of(entry("q", "F64", "[1]", "[0,4]")),
       q("data_offsets span 4 bytes, but F64 of shape [1] takes 8 bytes")},
      {"rank_0_too_small", file_of(entry("q", "U8", "[]", "[0,4]")),
       q("data_offsets span 4 bytes, but U8 of shape [] takes 1 byte")},
      {"zero_size_with_bytes", file_of(entry("q", "F32", "[0,5]", "[0,4]")),
       q("data_offsets span 4 bytes, but F32 of shape [0, 5] takes 0 bytes")},
      {"product_overflows_to_4", file_of(entry("q", "U8", "[4611686018427387905,4]", "[0,4]")),
       q("shape is [4611686018427387905, 4], but its size in bits must be below 2^63")},
      {"product_overflows_to_0", file_of(entry("q", "F32", "[4294967296,4294967296]", "[0,0]")),
       q("shape is [4294967296, 4294967296], but its size in bits must be below 2^63")},
      {"item_size_overflows", file_of(entry("q", "F64", "[2305843009213693952]", "[0,0]")),
       q("shape is [2305843009213693952], but its size in bits must be below 2^63")},
      {"zero_hides_overflow",
       file_of(entry("q", "U8", "[0,9223372036854775807,9223372036854775807]", "[0,0]")),
       q("shape is [0, 9223372036854775807, 9223372036854775807], but its size in bits must be "
         "below 2^63")},
      {"hole_at_the_start", file_of(entry("q", "U8", "[3]", "[1,4]")),
       q("its data begins at 1, but the tensors before it end at 0 (a hole)")},
      {"hole_between",
       file_of(entry("a", "U8", "[2]", "[0,2]") + "," + entry("q", "U8", "[1]", "[3,4]")),
       q("its data begins at 3, but the tensors before it end at 2 (a hole)")},
      {"overlap",
       file_of(entry("a", "U8", "[3]", "[0,3]") + "," + entry("q", "U8", "[2]", "[2,4]")),
       q("its data begins at 2, but the tensors before it end at 3 (an overlap)")},
      {"same_bytes_twice",
       file_of(entry("a", "F32", "[1]", "[0,4]") + "," + entry("q", "F32", "[1]", "[0,4]")),
       q("its data begins at 0, but the tensors before it end at 4 (an overlap)")},
      {"empty_tensor_inside_another",
       file_of(entry("a", "F32", "[1]", "[0,4]") + "," + entry("q", "F32", "[0]", "[2,2]")),
       q("its data begins at 2, but the tensors before it end at 4 (an overlap)")},
      {"trailing_bytes", file_of(entry("q", "F32", "[1]", "[0,4]"), eight),
       "the tensors end at byte 4 of the data, but the file holds 8 bytes of data (trailing "
       "bytes)"},
      {"trailing_bytes_without_tensors", safetensors_file("{}", "x"),
       "the tensors end at byte 0 of the data, but the file holds 1 byte of data (trailing bytes)"},
      {"name_with_control_characters", file_of(entry(R"(a\n\u0001\"b)", "F31", "[1]", "[0,4]")),
       "tensor 'a\\n\\x01\"b': dtype is 'F31', " + std::string(kDTypes)},
      {"long_name", file_of(entry(std::string(5000, 'n'), "F31", "[1]", "[0,4]")),
       "tensor '" + std::string(100, 'n') + "...': dtype is 'F31', " + kDTypes},
      {"four_bit_odd", file_of(entry("x", "F4", "[7]", "[0,4]")),
       "tensor 'x': data_offsets span 4 bytes, but F4 of shape [7] takes 28 bits"},
  };
}

class SafetensorsHostile : public ::testing::TestWithParam<Hostile> {};

TEST_P(SafetensorsHostile, IsRefusedWithItsSentence) {
  const Hostile& hostile = GetParam();
  // Only 'x' is exempt from being wanted: an unknown dtype is then no fault.
  const std::set<std::string> all_but_x = {"q", "a", "a\n\x01\"b", std::string(5000, 'n')};
  const Result<TensorMap> parsed = parse_safetensors(as_bytes(hostile.bytes), &all_but_x, "in");
  EXPECT_EQ(parsed.status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(parsed.status().message(), "in: " + hostile.sentence);

  const TempDir directory;
  const std::string path = directory.file("in.safetensors");
  write_all(path, hostile.bytes);
  const Result<TensorMap> read = read_safetensors(path, &all_but_x);
  EXPECT_EQ(read.status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(read.status().message(), path + ": " + hostile.sentence);
}

std::string name_of(const ::testing::TestParamInfo<Hostile>& info) {
  return info.param.name;
}

INSTANTIATE_TEST_SUITE_P(Header, SafetensorsHostile, ::testing::ValuesIn(header_files()), name_of);
INSTANTIATE_TEST_SUITE_P(Metadata, SafetensorsHostile, ::testing::ValuesIn(metadata_files()),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Description, SafetensorsHostile, ::testing::ValuesIn(description_files()),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Layout, SafetensorsHostile, ::testing::ValuesIn(layout_files()), name_of);

// Every proper prefix of a good file is refused, and so is the file with a byte more.
TEST(SafetensorsHostile, TruncatedAnywhere) {
  const std::string good = file_of(entry("k", "F16", "[1]", "[0,2]") + "," +
                                   entry("q", "F16", "[1,1]", "[2,4]") + R"(,"__metadata__":{})");
  ASSERT_TRUE(parse_safetensors(as_bytes(good)).ok());
  for (size_t length = 0; length < good.size(); ++length) {
    EXPECT_FALSE(parse_safetensors(as_bytes(good.substr(0, length))).ok()) << length;
  }
  EXPECT_FALSE(parse_safetensors(as_bytes(good + "x")).ok());
}

}  // namespace
}  // namespace attentile::io::test

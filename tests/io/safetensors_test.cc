// SPDX-License-Identifier: Apache-2.0
// .safetensors files that are good: byte literals read, every dtype written and read back, strided
// and empty tensors, tensors that nobody asked for, metadata.
#include "io/safetensors.h"

#include <gtest/gtest.h>

#include <numeric>

#include "io_test_util.h"

namespace attentile::io::test {
namespace {

constexpr DType kAllDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64,
                                DType::kInt32,   DType::kUInt8,   DType::kBool};

// A tensor whose bytes count up from `first`.
Tensor counting_tensor(DType dtype, std::vector<int64_t> shape, int first = 0) {
  Result<Tensor> tensor = make_tensor(dtype, std::move(shape));
  EXPECT_TRUE(tensor.ok()) << tensor.status().message();
  for (size_t i = 0; i < tensor->buffer.size(); ++i) {
    tensor->buffer.data()[i] = static_cast<std::byte>(static_cast<size_t>(first) + i);
  }
  return std::move(*tensor);
}

TEST(Safetensors, ReadsByteLiteral) {
  const std::string bytes =
      safetensors_file(R"({"__metadata__":{"made":"by hand"},)"
                       R"("k":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
                       R"("q":{"data_offsets":[8,10],"shape":[],"dtype":"BF16"}}  )",
                       std::string("\x00\x00\x80\x3f\x00\x00\x00\xc0\x80\x3f", 10));
  const Result<TensorMap> tensors = parse_safetensors(as_bytes(bytes));
  ASSERT_TRUE(tensors.ok()) << tensors.status().message();
  ASSERT_EQ(tensors->size(), 2u);
  const Tensor& k = tensors->at("k");
  EXPECT_EQ(k.dtype, DType::kFloat32);
  EXPECT_EQ(k.shape, (std::vector<int64_t>{2, 1}));
  const auto* values = reinterpret_cast<const float*>(k.buffer.data());
  EXPECT_EQ(values[0], 1.0f);
  EXPECT_EQ(values[1], -2.0f);
  const Tensor& q = tensors->at("q");
  EXPECT_EQ(q.dtype, DType::kBFloat16);
  EXPECT_TRUE(q.shape.empty());
  EXPECT_EQ(q.num_elements(), 1);
  EXPECT_EQ(contents_of(q), "\x80\x3f");
}

TEST(Safetensors, ReadsHeaderWithoutTensors) {
  EXPECT_TRUE(parse_safetensors(as_bytes(safetensors_file("{}")))->empty());
  EXPECT_TRUE(parse_safetensors(as_bytes(safetensors_file("{ \t\r\n}  \n")))->empty());
  EXPECT_TRUE(parse_safetensors(as_bytes(safetensors_file(R"({"__metadata__":{}})")))->empty());
}

TEST(Safetensors, OrderOfNamesAndOfBytesNeedNotAgree) {
  const std::string bytes =
      safetensors_file(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]},)"
                       R"("e":{"dtype":"F64","shape":[0],"data_offsets":[2,2]},)"
                       R"("b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
                       "wxyz");
  const Result<TensorMap> tensors = parse_safetensors(as_bytes(bytes));
  ASSERT_TRUE(tensors.ok()) << tensors.status().message();
  EXPECT_EQ(contents_of(tensors->at("a")), "yz");
  EXPECT_EQ(contents_of(tensors->at("b")), "wx");
  EXPECT_EQ(contents_of(tensors->at("e")), "");
}

TEST(Safetensors, OtherTensorsAreIgnoredWhateverTheirDType) {
  const std::string bytes =
      safetensors_file(R"({"q":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                       R"("ids":{"dtype":"I64","shape":[1],"data_offsets":[1,9]},)"
                       R"("w4":{"dtype":"F4","shape":[4],"data_offsets":[9,11]},)"
                       R"("w6":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[11,14]},)"
                       R"("new":{"dtype":"F2_E1M0","shape":[16],"data_offsets":[14,18]}})",
                       "abcdefghijklmnopqr");
  const std::set<std::string> names = {"q", "k"};
  const Result<TensorMap> tensors = parse_safetensors(as_bytes(bytes), &names);
  ASSERT_TRUE(tensors.ok()) << tensors.status().message();
  ASSERT_EQ(tensors->size(), 1u);
  EXPECT_EQ(contents_of(tensors->at("q")), "a");

  const std::set<std::string> none;
  EXPECT_TRUE(parse_safetensors(as_bytes(bytes), &none)->empty());
  EXPECT_EQ(parse_safetensors(as_bytes(bytes)).status().message(),
            "safetensors: tensor 'ids': dtype is 'I64', but F32, F16, BF16, F64, I32, U8 or BOOL "
            "is expected");
}

TEST(Safetensors, RankAboveFourIsReadButHasNoView) {
  const std::string bytes =
      safetensors_file(R"({"q":{"dtype":"U8","shape":[1,1,1,1,2],"data_offsets":[0,2]}})", "ab");
  const Result<TensorMap> tensors = parse_safetensors(as_bytes(bytes));
  ASSERT_TRUE(tensors.ok()) << tensors.status().message();
  const Result<TensorView> view = tensors->at("q").view("q");
  EXPECT_EQ(view.status().code(), StatusCode::kUnsupported);
  EXPECT_EQ(view.status().message(), "q: rank is 5, but at most 4 is supported");
}

TEST(Safetensors, RoundTripOfEveryDTypeAndRank) {
  const std::vector<std::vector<int64_t>> shapes = {
      {}, {1}, {5}, {2, 3}, {3, 1, 2}, {1, 2, 1}, {2, 2, 3, 2}, {0}, {2, 0, 3}, {0, 0, 0, 0}};
  TensorMap written;
  for (const DType dtype : kAllDTypes) {
    for (const auto& shape : shapes) {
      const int number = static_cast<int>(written.size());
      const std::string name = std::string(to_string(dtype)) + " " + std::to_string(number);
      written.emplace(name, counting_tensor(dtype, shape, number));
    }
  }
  written.emplace("", counting_tensor(DType::kUInt8, {3}));
  written.emplace("na\"m\\e \n\x01 \u00e9", counting_tensor(DType::kUInt8, {3}));
  const TempDir directory;
  const std::string path = directory.file("all.safetensors");
  const Status status = write_safetensors(path, written, {{"text", "a\n\"b\""}, {"", "\u00e9"}});
  ASSERT_TRUE(status.ok()) << status.message();

  const Result<TensorMap> read = read_safetensors(path);
  ASSERT_TRUE(read.ok()) << read.status().message();
  ASSERT_EQ(read->size(), written.size());
  for (const auto& [name, tensor] : written) {
    const Tensor& copy = read->at(name);
    EXPECT_EQ(copy.dtype, tensor.dtype) << name;
    EXPECT_EQ(copy.shape, tensor.shape) << name;
    EXPECT_EQ(contents_of(copy), contents_of(tensor)) << name;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(copy.buffer.data()) % 64, 0u) << name;
  }
  EXPECT_EQ(directory.names(), std::vector<std::string>{"all.safetensors"});
}

TEST(Safetensors, WritesTheseBytes) {
  const TempDir directory;
  const std::string path = directory.file("out.safetensors");
  TensorMap tensors;
  tensors.emplace("keep", counting_tensor(DType::kUInt8, {3}, 'a'));
  tensors.emplace("out", counting_tensor(DType::kFloat32, {1, 1}, 'A'));
  ASSERT_TRUE(write_safetensors(path, tensors, {{"by", "me"}}).ok());
  // Wider elements first; the header is padded with spaces to a multiple of 8.
  const std::string json =
      R"({"__metadata__":{"by":"me"},"out":{"dtype":"F32","shape":[1, 1],"data_offsets":[0,4]},)"
      R"("keep":{"dtype":"U8","shape":[3],"data_offsets":[4,7]}})";
  const std::string padding((8 - json.size() % 8) % 8, ' ');
  EXPECT_EQ(read_all(path), safetensors_file(json + padding, "ABCDabc"));
}

TEST(Safetensors, StridedViewsAreGathered) {
  std::vector<int32_t> values(2 * 3 * 4);
  std::iota(values.begin(), values.end(), 0);
  TensorView transposed = contiguous_view(values.data(), DType::kInt32, {2, 3, 4});
  std::swap(transposed.shape[0], transposed.shape[2]);
  std::swap(transposed.stride[0], transposed.stride[2]);
  TensorView backward = contiguous_view(values.data() + 23, DType::kInt32, {24});
  backward.stride[0] = -1;
  TensorView same = contiguous_view(values.data() + 7, DType::kInt32, {2, 2});
  same.stride[0] = same.stride[1] = 0;
  TensorView size_one = contiguous_view(values.data(), DType::kInt32, {1, 4, 1});
  size_one.stride[0] = -77;  // ignored, as is the other one
  size_one.stride[2] = 99;
  const TempDir directory;
  const std::string path = directory.file("out.safetensors");
  const Status status = write_safetensors(
      path, std::map<std::string, TensorView>{
                {"b", backward}, {"o", size_one}, {"s", same}, {"t", transposed}});
  ASSERT_TRUE(status.ok()) << status.message();
  const Result<TensorMap> read = read_safetensors(path);
  ASSERT_TRUE(read.ok()) << read.status().message();
  const auto element = [&](const char* name, int i) {
    return reinterpret_cast<const int32_t*>(read->at(name).buffer.data())[i];
  };
  EXPECT_EQ(read->at("t").shape, (std::vector<int64_t>{4, 3, 2}));
  for (int i = 0; i < 24; ++i) {
    EXPECT_EQ(element("b", i), 23 - i);
    EXPECT_EQ(element("t", i), values[static_cast<size_t>(i % 2 * 12 + i / 2 % 3 * 4 + i / 6)]);
  }
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(element("s", i), 7);
    EXPECT_EQ(element("o", i), i);
  }
}

// Longer than the piece in which a strided tensor is written, for every element size.
TEST(Safetensors, LongStridedViews) {
  constexpr int64_t kRows = 700;
  constexpr int64_t kColumns = 501;
  const TempDir directory;
  for (const DType dtype : {DType::kUInt8, DType::kFloat16, DType::kFloat32, DType::kFloat64}) {
    const Tensor tensor = counting_tensor(dtype, {kRows, kColumns});
    TensorView view = *tensor.view();
    std::swap(view.shape[0], view.shape[1]);
    std::swap(view.stride[0], view.stride[1]);
    const std::string path = directory.file("out.safetensors");
    ASSERT_TRUE(write_safetensors(path, std::map<std::string, TensorView>{{"t", view}}).ok());
    const std::string copy = contents_of(read_safetensors(path)->at("t"));
    std::string expected;
    const std::string original = contents_of(tensor);
    const size_t item = static_cast<size_t>(size_of(dtype));
    for (size_t column = 0; column < kColumns; ++column) {
      for (size_t row = 0; row < kRows; ++row) {
        expected += original.substr((row * kColumns + column) * item, item);
      }
    }
    EXPECT_TRUE(copy == expected) << to_string(dtype);
  }
}

TEST(Safetensors, WhatCannotBeWrittenIsNamed) {
  const TempDir directory;
  const std::string path = directory.file("out.safetensors");
  const float value = 0;
  const auto sentence = [&](const std::string& name, const TensorView& view,
                            const Metadata& metadata = {}) {
    const Status status =
        write_safetensors(path, std::map<std::string, TensorView>{{name, view}}, metadata);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message().substr(0, path.size() + 2), path + ": ");
    return status.message().substr(std::min(path.size() + 2, status.message().size()));
  };
  const TensorView good = contiguous_view(&value, DType::kFloat32, {1});
  TensorView bad = good;
  EXPECT_EQ(sentence("q", TensorView{}), "tensor 'q': the view is absent");
  bad.rank = 5;
  EXPECT_EQ(sentence("q", bad), "tensor 'q': rank is 5, but 0 to 4 is expected");
  bad = good;
  bad.device = Device::kCuda;
  EXPECT_EQ(sentence("q", bad), "tensor 'q': it is not in the CPU's memory");
  bad = good;
  bad.dtype = static_cast<DType>(77);
  EXPECT_EQ(sentence("q", bad), "tensor 'q': dtype is 77, which is not a dtype");
  bad = good;
  bad.shape[0] = -1;
  EXPECT_EQ(sentence("q", bad), "tensor 'q': shape is [-1], which is not the shape of an array");
  bad = contiguous_view(nullptr, DType::kFloat32, {2});
  EXPECT_EQ(sentence("q", bad), "tensor 'q': data is null");
  EXPECT_EQ(sentence("__metadata__", good),
            "tensor '__metadata__': the name is reserved by the format");
  EXPECT_EQ(sentence("\xFFq", good), "tensor '\\xffq': the name is not valid UTF-8");
  EXPECT_EQ(sentence("q", good, {{"a", "\xC0"}}), "__metadata__: '\\xc0' is not valid UTF-8");
  EXPECT_EQ(sentence("q", good, {{"\xC0", "a"}}), "__metadata__: '\\xc0' is not valid UTF-8");
  EXPECT_EQ(sentence("q", good, {{"a", std::string(100'000'000, ' ')}}),
            "header length is 100000080, but at most 100000000 is allowed");

  TensorMap high_rank;
  high_rank.emplace("q", counting_tensor(DType::kUInt8, {1, 1, 1, 1, 1}));
  EXPECT_EQ(write_safetensors(path, high_rank).message(),
            path + ": tensor 'q': rank is 5, but at most 4 is supported");
  EXPECT_TRUE(directory.names().empty());
}

// The largest header is read; a byte more is not, although the file is long enough.
TEST(Safetensors, HeaderLimit) {
  const TempDir directory;
  const std::string path = directory.file("in.safetensors");
  write_all(path, little_endian(100'000'001, 8) + "{}");
  std::filesystem::resize_file(path, 100'000'009);
  EXPECT_EQ(read_safetensors(path).status().message(),
            path + ": header length is 100000001, but at most 100000000 is allowed");
  write_all(path, safetensors_file("{" + std::string(99'999'998, ' ') + "}"));
  EXPECT_TRUE(read_safetensors(path).ok());
}

TEST(Tensor, SizesAreChecked) {
  EXPECT_EQ(make_tensor(DType::kFloat32, {-1}, "q").status().message(),
            "q: shape [-1] is not the shape of an array that fits in memory");
  EXPECT_EQ(make_tensor(DType::kUInt8, {INT64_MAX, INT64_MAX}, "q").status().code(),
            StatusCode::kInvalidArgument);
  const Result<Tensor> empty = make_tensor(DType::kFloat64, {3, 0});
  ASSERT_TRUE(empty.ok());
  EXPECT_EQ(empty->buffer.data(), nullptr);
  EXPECT_EQ(empty->view()->stride[0], 1);
}

}  // namespace
}  // namespace attentile::io::test

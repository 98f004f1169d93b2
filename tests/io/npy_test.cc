// SPDX-License-Identifier: Apache-2.0
// .npy files that are good: byte for byte what NumPy 2.4 writes, the three versions, the liberties
// that the format allows, column-major arrays, and the writer.
#include "io/npy.h"

#include <gtest/gtest.h>

#include <cstring>

#include "io_test_util.h"

namespace attentile::io::test {
namespace {

const char* const kTwoFloats = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }";

// The preamble as NumPy writes it: spaces and a newline up to a multiple of 64.
std::string as_numpy(std::string dict, const std::string& data) {
  dict.resize((10 + dict.size() + 1 + 63) / 64 * 64 - 10 - 1, ' ');
  return npy_file(dict + "\n", data);
}

std::string dict_of(const std::string& descr, const std::string& order, const std::string& shape) {
  return "{'descr': '" + descr + "', 'fortran_order': " + order + ", 'shape': " + shape + ", }";
}

// numpy.save of array([[1.5, -2]], float32)
TEST(Npy, ReadsByteLiteral) {
  const std::string file = std::string("\x93NUMPY\x01\x00v\x00", 10) + kTwoFloats +
                           "                                                          \n" +
                           std::string("\x00\x00\xc0?\x00\x00\x00\xc0", 8);
  ASSERT_EQ(file.size(), 136u);
  const Result<Tensor> tensor = parse_npy(as_bytes(file));
  ASSERT_TRUE(tensor.ok()) << tensor.status().message();
  EXPECT_EQ(tensor->dtype, DType::kFloat32);
  EXPECT_EQ(tensor->shape, (std::vector<int64_t>{1, 2}));
  float values[2];
  std::memcpy(values, tensor->buffer.data(), sizeof values);
  EXPECT_EQ(values[0], 1.5f);
  EXPECT_EQ(values[1], -2.0f);
}

TEST(Npy, EveryVersionAndSpelling) {
  const std::string data = "abcdefgh";
  const std::string dicts[] = {
      kTwoFloats,
      "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2)}",
      "{'shape':(1,2,),'fortran_order':False,'descr':'<f4'}\n",
      "  {\n\"descr\" :\t\"<f4\" , \"fortran_order\" : False , \"shape\" : ( 1 , 2 ) , }  \r\n",
      "{'descr': '<f4', 'fortran_order': True, 'shape': (1, 2), }",
  };
  for (const std::string& dict : dicts) {
    for (const char major : {'\1', '\2', '\3'}) {
      const std::string file = npy_file(dict, data, major);
      const Result<Tensor> tensor = parse_npy(as_bytes(file));
      ASSERT_TRUE(tensor.ok()) << tensor.status().message() << dict;
      EXPECT_EQ(tensor->shape, (std::vector<int64_t>{1, 2}));
      EXPECT_EQ(contents_of(*tensor), data);
    }
  }
}

TEST(Npy, EveryDType) {
  const std::pair<const char*, DType> descrs[] = {
      {"<f4", DType::kFloat32}, {"<f2", DType::kFloat16}, {"<f8", DType::kFloat64},
      {"<i4", DType::kInt32},   {"|u1", DType::kUInt8},   {"|b1", DType::kBool}};
  for (const auto& [descr, dtype] : descrs) {
    const std::string data(static_cast<size_t>(3 * size_of(dtype)), 'x');
    const Result<Tensor> tensor =
        parse_npy(as_bytes(as_numpy(dict_of(descr, "False", "(3,)"), data)));
    ASSERT_TRUE(tensor.ok()) << tensor.status().message();
    EXPECT_EQ(tensor->dtype, dtype);
    EXPECT_EQ(contents_of(*tensor), data);
    const Result<Tensor> scalar = parse_npy(
        as_bytes(as_numpy(dict_of(descr, "False", "()"), data.substr(0, data.size() / 3))));
    ASSERT_TRUE(scalar.ok()) << scalar.status().message();
    EXPECT_EQ(scalar->num_elements(), 1);
    const Result<Tensor> empty =
        parse_npy(as_bytes(as_numpy(dict_of(descr, "True", "(4, 0)"), "")));
    ASSERT_TRUE(empty.ok()) << empty.status().message();
    EXPECT_EQ(empty->num_elements(), 0);
  }
}

TEST(Npy, ColumnMajorArrivesRowMajor) {
  // Element (i, j, k) of shape (2, 3, 4) holds 12 i + 4 j + k; its place in the file is i + 2 j + 6
  // k.
  std::string data(24, '\0');
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 3; ++j) {
      for (int k = 0; k < 4; ++k) {
        data[static_cast<size_t>(i + 2 * j + 6 * k)] = static_cast<char>(12 * i + 4 * j + k);
      }
    }
  }
  const std::string file = as_numpy(dict_of("|u1", "True", "(2, 3, 4)"), data);
  const Result<Tensor> tensor = parse_npy(as_bytes(file));
  ASSERT_TRUE(tensor.ok()) << tensor.status().message();
  EXPECT_EQ(tensor->shape, (std::vector<int64_t>{2, 3, 4}));
  for (int i = 0; i < 24; ++i) {
    EXPECT_EQ(static_cast<int>(tensor->buffer.data()[i]), i);
  }
  // numpy.asfortranarray([[0, 1, 2], [3, 4, 5]], int32)
  const std::string int_data("\0\0\0\0\3\0\0\0\1\0\0\0\4\0\0\0\2\0\0\0\5\0\0\0", 24);
  const Result<Tensor> ints =
      parse_npy(as_bytes(as_numpy(dict_of("<i4", "True", "(2, 3)"), int_data)));
  ASSERT_TRUE(ints.ok()) << ints.status().message();
  for (int i = 0; i < 6; ++i) {
    EXPECT_EQ(reinterpret_cast<const int32_t*>(ints->buffer.data())[i], i);
  }
}

TEST(Npy, RankAboveFourIsReadButHasNoView) {
  std::string shape = "(2";
  for (int i = 1; i < 32; ++i) shape += ", 1";
  const Result<Tensor> tensor =
      parse_npy(as_bytes(as_numpy(dict_of("|u1", "True", shape + ")"), "ab")));
  ASSERT_TRUE(tensor.ok()) << tensor.status().message();
  EXPECT_EQ(tensor->shape.size(), 32u);
  EXPECT_EQ(contents_of(*tensor), "ab");
  EXPECT_EQ(tensor->view("q").status().message(), "q: rank is 32, but at most 4 is supported");
}

TEST(Npy, WritesWhatNumpyWrites) {
  const TempDir directory;
  const std::string path = directory.file("out.npy");
  const std::string data = "abcdefghijklmnopqrstuvwx";
  const std::vector<std::pair<TensorView, std::string>> cases = {
      {contiguous_view(data.data(), DType::kFloat32, {1, 2}), kTwoFloats},
      {contiguous_view(data.data(), DType::kFloat16, {}), dict_of("<f2", "False", "()")},
      {contiguous_view(data.data(), DType::kUInt8, {7}), dict_of("|u1", "False", "(7,)")},
      {contiguous_view(nullptr, DType::kFloat64, {0, 3}), dict_of("<f8", "False", "(0, 3)")},
      {contiguous_view(data.data(), DType::kBool, {1, 2, 3, 4}),
       dict_of("|b1", "False", "(1, 2, 3, 4)")},
  };
  for (const auto& [view, dict] : cases) {
    const Status status = write_npy(path, view);
    ASSERT_TRUE(status.ok()) << status.message();
    int64_t num_bytes = size_of(view.dtype);
    for (int axis = 0; axis < view.rank; ++axis) num_bytes *= view.shape[axis];
    EXPECT_EQ(read_all(path), as_numpy(dict, data.substr(0, static_cast<size_t>(num_bytes))));
    EXPECT_TRUE(read_npy(path).ok());
  }
}

TEST(Npy, WritesStridedViews) {
  const TempDir directory;
  const std::string path = directory.file("out.npy");
  const std::string data = "abcdef";
  TensorView view = contiguous_view(data.data(), DType::kUInt8, {3, 2});
  view.stride[0] = 1;
  view.stride[1] = 3;
  ASSERT_TRUE(write_npy(path, view).ok());
  EXPECT_EQ(contents_of(*read_npy(path)), "adbecf");
}

TEST(Npy, WhatCannotBeWrittenIsNamed) {
  const TempDir directory;
  const std::string path = directory.file("out.npy");
  const uint16_t value = 0;
  EXPECT_EQ(write_npy(path, contiguous_view(&value, DType::kBFloat16, {1})).message(),
            path + ": dtype is bfloat16, but .npy has no name for it");
  EXPECT_EQ(write_npy(path, TensorView{}).message(), path + ": the view is absent");
  EXPECT_TRUE(directory.names().empty());
}

}  // namespace
}  // namespace attentile::io::test

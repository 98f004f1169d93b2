// SPDX-License-Identifier: Apache-2.0
// DenseTensor: a row-major tensor that owns its bytes. Tests keep the values of a case in these;
// what a kernel sees is a PlacedTensor with other strides.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "attentile/tensor.h"
#include "dtype.h"

namespace attentile::testing {

struct DenseTensor {
  DType dtype = DType::kFloat32;
  bool present = false;
  std::vector<int64_t> shape;
  std::vector<char> bytes;

  DenseTensor() = default;
  bool operator==(const DenseTensor&) const = default;
  DenseTensor(DType dtype_of_elements, std::vector<int64_t> sizes)
      : dtype(dtype_of_elements), present(true), shape(std::move(sizes)) {
    bytes.resize(static_cast<size_t>(count() * size_of(dtype)));
  }

  int rank() const { return static_cast<int>(shape.size()); }
  int64_t count() const {
    if (!present) return 0;
    int64_t product = 1;
    for (int64_t size : shape) product *= size;
    return product;
  }
  double get(int64_t index) const { return load_as_double(bytes.data(), dtype, index); }
  void set(int64_t index, double value) {
    if (dtype == DType::kInt32) {
      const int32_t whole = static_cast<int32_t>(value);
      std::memcpy(bytes.data() + index * 4, &whole, 4);
    } else if (dtype == DType::kUInt8 || dtype == DType::kBool) {
      bytes[static_cast<size_t>(index)] = static_cast<char>(value);
    } else {
      store_from_double(bytes.data(), dtype, index, value);
    }
  }
  // Row-major index of up to four coordinates.
  int64_t index(int64_t a, int64_t b = 0, int64_t c = 0, int64_t d = 0) const {
    const int64_t coordinates[4] = {a, b, c, d};
    int64_t flat = 0;
    for (int axis = 0; axis < rank(); ++axis) {
      flat = flat * shape[static_cast<size_t>(axis)] + coordinates[axis];
    }
    return flat;
  }
  double at(int64_t a, int64_t b = 0, int64_t c = 0, int64_t d = 0) const {
    return get(index(a, b, c, d));
  }
  void put(double value, int64_t a, int64_t b = 0, int64_t c = 0, int64_t d = 0) {
    set(index(a, b, c, d), value);
  }
  void fill(double value) {
    for (int64_t i = 0; i < count(); ++i) set(i, value);
  }
  // A contiguous view; absent when the tensor is.
  TensorView view() const;
};

inline TensorView DenseTensor::view() const {
  TensorView view;
  if (!present) return view;
  view.data = const_cast<char*>(bytes.data());
  view.dtype = dtype;
  view.rank = rank();
  int64_t stride = 1;
  for (int axis = rank() - 1; axis >= 0; --axis) {
    view.shape[axis] = shape[static_cast<size_t>(axis)];
    view.stride[axis] = stride;
    stride *= view.shape[axis] > 0 ? view.shape[axis] : 1;
  }
  return view;
}

// "[2, 3]", for messages.
inline std::string to_string(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  }
  return text + "]";
}

// Coordinates of a flat row-major index, as "[1, 0, 5]".
inline std::string coordinates_text(const std::vector<int64_t>& shape, int64_t flat) {
  std::vector<int64_t> coordinates(shape.size());
  for (size_t axis = shape.size(); axis-- > 0;) {
    coordinates[axis] = flat % shape[axis];
    flat /= shape[axis];
  }
  return to_string(coordinates);
}

}  // namespace attentile::testing

// SPDX-License-Identifier: Apache-2.0
// TensorView: a non-owning, strided view of memory that somebody else owns. It has the fields of a
// DLTensor and nothing more; strides count elements, may be zero or negative, and are ignored where
// the dimension's size is at most 1.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace attentile {

enum class DType : int32_t {
  kFloat32 = 0,
  kFloat16 = 1,
  kBFloat16 = 2,
  kFloat64 = 3,
  kInt32 = 4,
  kUInt8 = 5,
  kBool = 6,  // one byte, zero or non-zero
};

enum class Device : int32_t { kCpu = 0, kCuda = 1 };

// Bytes of one element; 0 for a value that is no DType.
constexpr int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return 4;
    case DType::kFloat16: return 2;
    case DType::kBFloat16: return 2;
    case DType::kFloat64: return 8;
    case DType::kInt32: return 4;
    case DType::kUInt8: return 1;
    case DType::kBool: return 1;
  }
  return 0;
}

constexpr const char* to_string(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return "float32";
    case DType::kFloat16: return "float16";
    case DType::kBFloat16: return "bfloat16";
    case DType::kFloat64: return "float64";
    case DType::kInt32: return "int32";
    case DType::kUInt8: return "uint8";
    case DType::kBool: return "bool";
  }
  return "unknown";
}

constexpr const char* to_string(Device device) {
  switch (device) {
    case Device::kCpu: return "cpu";
    case Device::kCuda: return "cuda";
  }
  return "unknown";
}

inline constexpr int kMaxRank = 4;

// A view that was default-constructed is absent: the optional tensor was not given.
struct TensorView {
  void* data = nullptr;  // may be null only when the view has no elements
  DType dtype = DType::kFloat32;
  Device device = Device::kCpu;
  int32_t rank = -1;  // -1: absent; else 0..kMaxRank
  int64_t shape[kMaxRank] = {};
  int64_t stride[kMaxRank] = {};  // in elements

  constexpr bool present() const { return rank != -1; }
};

// A contiguous (row-major) view. Inputs are never written, so a const pointer is accepted. Strides
// that no machine has room for stay at the largest int64: every call refuses such a view.
inline TensorView contiguous_view(const void* data, DType dtype,
                                  std::initializer_list<int64_t> shape) {
  TensorView view;
  view.data = const_cast<void*>(data);
  view.dtype = dtype;
  view.rank = static_cast<int32_t>(shape.size());
  int axis = 0;
  for (int64_t size : shape) {
    if (axis < kMaxRank) view.shape[axis] = size;
    ++axis;
  }
  int64_t stride = 1;
  for (int i = (view.rank < kMaxRank ? view.rank : kMaxRank) - 1; i >= 0; --i) {
    view.stride[i] = stride;
    const int64_t size = view.shape[i] > 0 ? view.shape[i] : 1;
    stride = stride > INT64_MAX / size ? INT64_MAX : stride * size;
  }
  return view;
}

}  // namespace attentile

// SPDX-License-Identifier: Apache-2.0
#include "tensor.h"

#include <nanobind/stl/string.h>

#include <cstdint>
#include <optional>
#include <string>

namespace attentile::python {

// DLPack 1.x, DLPackExchangeAPI: what a tensor type offers in __dlpack_c_exchange_api__.
struct ExchangeTable {
  uint32_t major;
  uint32_t minor;
  ExchangeTable* previous;
  void* managed_tensor_allocator;
  void* managed_tensor_from_object;
  void* managed_tensor_to_object;
  int (*tensor_from_object)(void* object, nb::dlpack::dltensor* out);
  int (*current_work_stream)(int device_type, int32_t device_id, void** stream);
};

namespace {

constexpr uint8_t kInt = 0, kUInt = 1, kFloat = 2, kBFloat = 4, kBool = 6;
constexpr int kCpuDevice = 1, kCudaDevice = 2;

std::string quoted(nb::handle object) {
  return nb::cast<std::string>(nb::str(object));
}

[[noreturn]] void refuse(const char* name, const std::string& was, const char* expected) {
  const std::string text = std::string(name) + ": was " + was + ", expected " + expected;
  throw nb::type_error(text.c_str());
}

std::string type_words(nb::handle object) {
  std::string words = "a " + nb::cast<std::string>(nb::type_name(object.type()));
  if (nb::hasattr(object, "dtype")) words += " of dtype " + quoted(object.attr("dtype"));
  return words;
}

std::optional<DType> from_dlpack(nb::dlpack::dtype dtype) {
  if (dtype.lanes != 1) return std::nullopt;
  switch (dtype.code) {
    case kFloat:
      if (dtype.bits == 16) return DType::kFloat16;
      if (dtype.bits == 32) return DType::kFloat32;
      if (dtype.bits == 64) return DType::kFloat64;
      return std::nullopt;
    case kBFloat: return dtype.bits == 16 ? std::optional(DType::kBFloat16) : std::nullopt;
    case kInt: return dtype.bits == 32 ? std::optional(DType::kInt32) : std::nullopt;
    case kUInt:
      if (dtype.bits == 8) return DType::kUInt8;
      return std::nullopt;
    case kBool: return dtype.bits == 8 ? std::optional(DType::kBool) : std::nullopt;
    default: return std::nullopt;
  }
}

std::optional<DType> from_name(const std::string& name) {
  for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64,
                      DType::kInt32, DType::kUInt8, DType::kBool}) {
    if (name == to_string(dtype)) return dtype;
  }
  return std::nullopt;
}

constexpr const char* kDTypesExpected =
    "one of dtype float32, float16, bfloat16, float64 (int32 for indices, bool or uint8 for masks)";

TensorView view_of(const char* name, const nb::dlpack::dltensor& t, nb::handle object) {
  const std::optional<DType> dtype = from_dlpack(t.dtype);
  if (!dtype && nb::hasattr(object, "dtype")) {
    refuse(name, "of dtype " + quoted(object.attr("dtype")), kDTypesExpected);
  }
  if (!dtype) {
    refuse(name,
           "of DLPack type " + std::to_string(t.dtype.code) + " with " +
               std::to_string(t.dtype.bits) + " bits",
           kDTypesExpected);
  }
  TensorView view;
  view.data = static_cast<char*>(t.data) + t.byte_offset;
  if (t.data == nullptr) view.data = nullptr;
  view.dtype = *dtype;
  view.rank = t.ndim;
  for (int i = 0; i < t.ndim && i < kMaxRank; ++i) view.shape[i] = t.shape[i];
  if (t.strides != nullptr) {
    for (int i = 0; i < t.ndim && i < kMaxRank; ++i) view.stride[i] = t.strides[i];
    return view;
  }
  int64_t stride = 1;
  for (int i = (t.ndim < kMaxRank ? t.ndim : kMaxRank) - 1; i >= 0; --i) {
    view.stride[i] = stride;
    stride *= view.shape[i] > 0 ? view.shape[i] : 1;
  }
  return view;
}

// The function table of object's type, or null. The last type asked is remembered: it is torch's.
ExchangeTable* exchange_table(nb::handle object) {
  static PyTypeObject* last_type = nullptr;
  static ExchangeTable* last_table = nullptr;
  auto* type = reinterpret_cast<PyTypeObject*>(object.type().ptr());
  if (type == last_type) return last_table;
  ExchangeTable* table = nullptr;
  if (nb::hasattr(nb::handle(reinterpret_cast<PyObject*>(type)), "__dlpack_c_exchange_api__")) {
    nb::object capsule = object.type().attr("__dlpack_c_exchange_api__");
    table = static_cast<ExchangeTable*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (table == nullptr) throw nb::python_error();
    if (table->major != 1 || table->tensor_from_object == nullptr) table = nullptr;
  }
  Py_INCREF(reinterpret_cast<PyObject*>(type));  // or another type might take its address
  Py_XDECREF(reinterpret_cast<PyObject*>(last_type));
  last_type = type;
  last_table = table;
  return table;
}

void require_device(const char* name, nb::handle object) {
  const std::string device = quoted(object.attr("device"));
  if (device != "cpu" && device.rfind("cuda", 0) != 0) {
    refuse(name, "on device " + device, "the CPU or a GPU of CUDA");
  }
}

// (dtype name, shape), of a GPU with "cuda" as a third.
TensorView described(const char* name, nb::handle object) {
  const auto tuple = nb::borrow<nb::tuple>(object);
  std::string dtype_name, device;
  nb::tuple shape;
  const size_t parts = tuple.size();
  if (parts < 2 || parts > 3 || !nb::try_cast(tuple[0], dtype_name) ||
      !nb::try_cast(tuple[1], shape) || (parts == 3 && !nb::try_cast(tuple[2], device))) {
    refuse(name, quoted(object), "an array, or a (dtype name, shape) pair");
  }
  const std::optional<DType> dtype = from_name(dtype_name);
  if (!dtype) refuse(name, "of dtype " + dtype_name, kDTypesExpected);
  int64_t sizes[kMaxRank] = {};
  if (shape.size() > kMaxRank) refuse(name, "of rank " + std::to_string(shape.size()), "at most 4");
  for (size_t i = 0; i < shape.size(); ++i) {
    if (!nb::try_cast(shape[i], sizes[i])) refuse(name, "of shape " + quoted(shape), "integers");
  }
  TensorView view = contiguous_view(nullptr, *dtype, {});
  view.device = device == "cuda" ? Device::kCuda : Device::kCpu;
  view.rank = static_cast<int32_t>(shape.size());
  int64_t stride = 1;
  for (int i = view.rank - 1; i >= 0; --i) {
    view.shape[i] = sizes[i];
    view.stride[i] = stride;
    if (sizes[i] > 0 && stride <= INT64_MAX / sizes[i]) stride *= sizes[i];
  }
  return view;
}

// NumPy knows bfloat16 by ml_dtypes, and neither its buffer protocol nor its DLPack takes that.
bool is_numpy_bfloat16(nb::handle object) {
  return nb::hasattr(object, "__array_interface__") && quoted(object.attr("dtype")) == "bfloat16";
}

template <class Array>
bool borrow(nb::handle object, Array& array, bool* bfloat16) {
  if (nb::try_cast(object, array)) return true;
  if (!is_numpy_bfloat16(object)) return false;
  *bfloat16 = true;
  return nb::try_cast(object.attr("view")("uint16"), array);
}

}  // namespace

nb::ndarray<nb::ro, nb::device::cpu>& Borrowed::hold() {
  if (count_ == kMost) throw nb::value_error("call: more tensors than a call has");
  return held_[count_++];
}

void Borrowed::note_device(const char* name, const ExchangeTable& table, int32_t device) {
  if (device_ == device) return;
  if (device_ >= 0) {
    refuse(name, "on device cuda:" + std::to_string(device),
           ("cuda:" + std::to_string(device_) + ", where the tensors before it are").c_str());
  }
  device_ = device;
  if (table.current_work_stream == nullptr) return;
  if (table.current_work_stream(kCudaDevice, device, &stream_) != 0) throw nb::python_error();
}

TensorView Borrowed::through_dlpack(const char* name, nb::handle object, bool written) {
  nb::ndarray<nb::ro, nb::device::cpu>& array = hold();
  bool bfloat16 = false;
  if (written) {
    nb::ndarray<nb::device::cpu> writable;
    // An array of JAX passes for writable, and is not.
    if (nb::hasattr(object, "addressable_shards") || !borrow(object, writable, &bfloat16)) {
      refuse(name, type_words(object), "an array in CPU memory that can be written");
    }
    array = nb::ndarray<nb::ro, nb::device::cpu>(writable);
  } else if (!borrow(object, array, &bfloat16)) {
    refuse(name, type_words(object),
           "an array in CPU memory, of float32, float16, bfloat16 or float64 (int32 for indices, "
           "bool or uint8 for masks) in this machine's byte order");
  }
  nb::dlpack::dltensor t;
  t.data = const_cast<void*>(array.data());
  t.ndim = static_cast<int32_t>(array.ndim());
  t.dtype = bfloat16 ? nb::dlpack::dtype{kBFloat, 16, 1} : array.dtype();
  t.shape = const_cast<int64_t*>(array.shape_ptr());
  t.strides = const_cast<int64_t*>(array.stride_ptr());
  return view_of(name, t, object);
}

TensorView Borrowed::read(const char* name, nb::handle object) {
  if (object.is_none()) return {};
  if (ExchangeTable* table = exchange_table(object)) {
    nb::dlpack::dltensor t;
    if (table->tensor_from_object(object.ptr(), &t) != 0) {
      PyErr_Clear();
      require_device(name, object);
      refuse(
          name,
          "of dtype " + quoted(object.attr("dtype")) + " and layout " +
              quoted(object.attr("layout")),
          "a dense tensor of floating-point numbers (int32 for indices, bool or uint8 for masks)");
    }
    TensorView view = view_of(name, t, object);
    if (t.device.device_type == kCudaDevice) {
      view.device = Device::kCuda;
      note_device(name, *table, t.device.device_id);
    } else if (t.device.device_type != kCpuDevice) {
      refuse(name, "on device " + quoted(object.attr("device")), "the CPU or a GPU of CUDA");
    }
    has_tabled_ = true;
    return view;
  }
  if (nb::isinstance<nb::tuple>(object)) return described(name, object);
  return through_dlpack(name, object, false);
}

TensorView Borrowed::write(const char* name, nb::handle object) {
  const bool plain =
      object.is_none() || exchange_table(object) || nb::isinstance<nb::tuple>(object);
  return plain ? read(name, object) : through_dlpack(name, object, true);
}

}  // namespace attentile::python

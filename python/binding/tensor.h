// SPDX-License-Identifier: Apache-2.0
// Python objects as TensorViews, without copies: torch tensors through their type's DLPack function
// table (a C call, no capsule), on a GPU too, NumPy arrays through the buffer protocol, everything
// else through
// __dlpack__. bfloat16 arrays of NumPy (ml_dtypes) have no buffer protocol and are viewed as
// uint16.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "attentile/tensor.h"

namespace attentile::python {

namespace nb = nanobind;

struct ExchangeTable;

// What keeps the memory of views alive for the length of a call.
class Borrowed {
 public:
  // The view of object, named name in errors; absent for None. A (dtype name, shape) tuple
  // describes a tensor that has no memory, for plans. Throws TypeError.
  TensorView read(const char* name, nb::handle object);
  // Likewise for memory that is written: refuses arrays that are immutable.
  TensorView write(const char* name, nb::handle object);
  // Whether a tensor came by a function table, as torch's do.
  bool has_tabled() const { return has_tabled_; }
  // The GPU that tensors lie on, -1 if they lie in CPU memory, and its current stream by the
  // framework that they came from.
  int32_t device() const { return device_; }
  void* stream() const { return stream_; }

 private:
  static constexpr int kMost = 32;
  nb::ndarray<nb::ro, nb::device::cpu>& hold();
  TensorView through_dlpack(const char* name, nb::handle object, bool written);
  void note_device(const char* name, const ExchangeTable& table, int32_t device);

  nb::ndarray<nb::ro, nb::device::cpu> held_[kMost];
  int count_ = 0;
  bool has_tabled_ = false;
  int32_t device_ = -1;
  void* stream_ = nullptr;
};

// [batch, heads, seqlen, dim] told as [batch, seqlen, heads, dim].
inline TensorView heads_second(TensorView view) {
  if (view.rank != 4) return view;
  const int64_t size = view.shape[1], stride = view.stride[1];
  view.shape[1] = view.shape[2];
  view.stride[1] = view.stride[2];
  view.shape[2] = size;
  view.stride[2] = stride;
  return view;
}

}  // namespace attentile::python

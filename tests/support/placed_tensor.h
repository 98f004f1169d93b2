// SPDX-License-Identifier: Apache-2.0
// PlacedTensor: the values of a DenseTensor laid out in guarded memory with strides of its own.
// Every byte between the elements is NaN (inputs) or a canary (outputs), and after a call check()
// tells whether anything but the elements of an output was written.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "attentile/tensor.h"
#include "support/dense_tensor.h"
#include "support/guarded_buffer.h"
#include "support/random.h"

namespace attentile::testing {

// Strides in elements and where element (0, 0, ...) lies; extent is the elements spanned.
struct Layout {
  std::vector<int64_t> stride;
  int64_t origin = 0;
  int64_t extent = 0;
};

Layout contiguous_layout(const std::vector<int64_t>& shape);

// A random order of the dimensions in memory, gaps between their rows, some of them running
// backwards; the stride of a dimension of size 1 is nonsense, as it must not matter. A dimension in
// zero_stride (a bit per axis) gets stride 0.
Layout random_layout(const std::vector<int64_t>& shape, Random& random, uint32_t zero_stride = 0);

enum class Role { kInput, kOutput };

class PlacedTensor {
 public:
  PlacedTensor() = default;
  // An absent dense tensor gives an absent view. Values of an output are not copied: its elements
  // begin as NaN (whole numbers: 0xEE).
  PlacedTensor(const DenseTensor& dense, const Layout& layout, Role role,
               GuardedBuffer::Flush flush = GuardedBuffer::Flush::kAfter);

  const TensorView& view() const { return view_; }
  bool present() const { return view_.present(); }
  // The elements, row-major.
  DenseTensor read() const;
  // Overwrites the elements; an input stays an input. The gaps are left alone.
  void write(const DenseTensor& dense);
  // From now on the elements are an input (out and lse, once the backward pass reads them).
  void freeze();
  // What was touched that should not have been, or nothing.
  std::optional<std::string> check() const;

 private:
  template <class Visit>
  void for_each_run(Visit visit) const;

  Role role_ = Role::kInput;
  TensorView view_;
  std::vector<int64_t> shape_;
  GuardedBuffer buffer_;
  std::vector<char> expected_;  // the buffer as it must look afterwards, elements of outputs aside
};

}  // namespace attentile::testing

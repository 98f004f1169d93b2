// SPDX-License-Identifier: Apache-2.0
// StridedReader: walks a strided array in row-major order and copies its elements, in pieces of any
// length, to contiguous memory. The writers use it for views with strides, the .npy reader for
// column-major files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "attentile/tensor.h"

namespace attentile::io {

class StridedReader {
 public:
  // Strides count elements; the arrays have the same length. Nothing is read here.
  StridedReader(const void* data, int64_t item_bytes, std::span<const int64_t> shape,
                std::span<const int64_t> stride);
  // view must be present and on the CPU.
  explicit StridedReader(const TensorView& view);

  int64_t num_elements() const { return num_elements_; }
  bool contiguous() const { return contiguous_; }

  // Copies the next `count` elements; no more than are left.
  void read(int64_t count, std::byte* destination);

 private:
  void advance(int64_t run);

  const std::byte* position_;
  int64_t item_bytes_;
  int64_t num_elements_ = 1;
  bool contiguous_ = true;
  std::vector<int64_t> shape_;  // dimensions of size 1 dropped; never empty
  std::vector<int64_t> stride_bytes_;
  std::vector<int64_t> index_;
};

}  // namespace attentile::io

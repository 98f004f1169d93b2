// SPDX-License-Identifier: Apache-2.0
// Row-major copies of strided arrays: see strided_reader.h.
#include "io/strided_reader.h"

#include <algorithm>
#include <cstring>

namespace attentile::io {
namespace {

template <class Word>
void copy_words(const std::byte* source, int64_t stride_bytes, int64_t count,
                std::byte* destination) {
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(destination + i * static_cast<int64_t>(sizeof(Word)), source + i * stride_bytes,
                sizeof(Word));
  }
}

void copy_run(const std::byte* source, int64_t stride_bytes, int64_t item_bytes, int64_t count,
              std::byte* destination) {
  if (stride_bytes == item_bytes) {
    std::memcpy(destination, source, static_cast<size_t>(count * item_bytes));
    return;
  }
  switch (item_bytes) {
    case 1: return copy_words<uint8_t>(source, stride_bytes, count, destination);
    case 2: return copy_words<uint16_t>(source, stride_bytes, count, destination);
    case 4: return copy_words<uint32_t>(source, stride_bytes, count, destination);
    default: return copy_words<uint64_t>(source, stride_bytes, count, destination);
  }
}

}  // namespace

StridedReader::StridedReader(const void* data, int64_t item_bytes, std::span<const int64_t> shape,
                             std::span<const int64_t> stride)
    : position_(static_cast<const std::byte*>(data)), item_bytes_(item_bytes) {
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    num_elements_ *= shape[axis];
    if (shape[axis] == 1) continue;
    shape_.push_back(shape[axis]);
    stride_bytes_.push_back(stride[axis] * item_bytes);
  }
  if (shape_.empty()) {
    shape_.push_back(1);
    stride_bytes_.push_back(item_bytes);
  }
  index_.resize(shape_.size());
  int64_t expected = item_bytes;
  for (size_t axis = shape_.size(); num_elements_ > 0 && axis-- > 0;) {
    contiguous_ = contiguous_ && stride_bytes_[axis] == expected;
    expected *= shape_[axis];
  }
}

StridedReader::StridedReader(const TensorView& view)
    : StridedReader(view.data, size_of(view.dtype),
                    std::span(view.shape, static_cast<size_t>(view.rank)),
                    std::span(view.stride, static_cast<size_t>(view.rank))) {}

void StridedReader::read(int64_t count, std::byte* destination) {
  if (contiguous_ && count > 0) {
    std::memcpy(destination, position_, static_cast<size_t>(count * item_bytes_));
    position_ += count * item_bytes_;
    return;
  }
  while (count > 0) {
    const int64_t run = std::min(count, shape_.back() - index_.back());
    copy_run(position_, stride_bytes_.back(), item_bytes_, run, destination);
    destination += run * item_bytes_;
    count -= run;
    advance(run);
  }
}

// Moves on by `run` elements of the innermost dimension, at most to its end.
void StridedReader::advance(int64_t run) {
  size_t axis = shape_.size() - 1;
  index_[axis] += run;
  position_ += run * stride_bytes_[axis];
  while (index_[axis] == shape_[axis] && axis > 0) {
    position_ -= shape_[axis] * stride_bytes_[axis];
    index_[axis] = 0;
    --axis;
    ++index_[axis];
    position_ += stride_bytes_[axis];
  }
}

}  // namespace attentile::io

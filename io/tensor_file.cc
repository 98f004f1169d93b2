// SPDX-License-Identifier: Apache-2.0
// Owning tensors: see tensor_file.h.
#include "io/tensor_file.h"

#include <fmt/format.h>

#include <limits>
#include <utility>

#include "io/text.h"

namespace attentile::io {

std::optional<AlignedBuffer> AlignedBuffer::allocate(size_t num_bytes) {
  AlignedBuffer buffer;
  if (num_bytes == 0) return buffer;
  void* const bytes = ::operator new(num_bytes, kAlignment, std::nothrow);
  if (bytes == nullptr) return std::nullopt;
  buffer.bytes_.reset(static_cast<std::byte*>(bytes));
  buffer.size_ = num_bytes;
  return buffer;
}

int64_t Tensor::num_elements() const {
  return static_cast<int64_t>(buffer.size()) / size_of(dtype);
}

Result<TensorView> Tensor::view(std::string_view name) const {
  if (shape.size() > static_cast<size_t>(kMaxRank)) {
    return Status(StatusCode::kUnsupported,
                  fmt::format("{}: rank is {}, but at most {} is supported", printable_path(name),
                              shape.size(), kMaxRank));
  }
  TensorView view;
  view.data = const_cast<std::byte*>(buffer.data());
  view.dtype = dtype;
  view.rank = static_cast<int32_t>(shape.size());
  int64_t stride = 1;
  for (int axis = view.rank - 1; axis >= 0; --axis) {
    const int64_t size = shape[static_cast<size_t>(axis)];
    view.shape[axis] = size;
    view.stride[axis] = stride;
    stride *= size > 0 ? size : 1;
  }
  return view;
}

std::optional<uint64_t> checked_num_bits(std::span<const int64_t> shape, uint64_t item_bits) {
  uint64_t product = item_bits;
  bool empty = false;
  for (const int64_t size : shape) {
    if (size < 0) return std::nullopt;
    if (size == 0) {
      empty = true;
    } else if (__builtin_mul_overflow(product, static_cast<uint64_t>(size), &product)) {
      return std::nullopt;
    }
  }
  if (product > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
  return empty ? 0 : product;
}

Result<Tensor> make_tensor(DType dtype, std::vector<int64_t> shape, std::string_view name) {
  const std::optional<uint64_t> num_bits =
      checked_num_bits(shape, static_cast<uint64_t>(size_of(dtype)) * 8);
  if (!num_bits) {
    return bad_content(name,
                       fmt::format("shape {} is not the shape of an array that fits in memory",
                                   shape_text(shape)));
  }
  std::optional<AlignedBuffer> buffer = AlignedBuffer::allocate(*num_bits / 8);
  if (!buffer) return out_of_memory(name, *num_bits / 8);
  return Tensor{dtype, std::move(shape), std::move(*buffer)};
}

}  // namespace attentile::io

// SPDX-License-Identifier: Apache-2.0
// Tensor: an array in memory that owns its bytes, as read from a file or about to be written to
// one. The library itself works on TensorViews; this is how the tools and the tests get memory to
// view.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "attentile/status.h"
#include "attentile/tensor.h"

namespace attentile::io {

// The highest rank that a file may hold. A TensorView has at most kMaxRank (4) dimensions.
inline constexpr size_t kMaxFileRank = 32;

// Bytes at a 64-byte boundary; not initialised; movable, not copyable.
class AlignedBuffer {
 public:
  static constexpr std::align_val_t kAlignment{64};

  AlignedBuffer() = default;
  // nullopt when the memory cannot be had. A buffer of no bytes has a null pointer.
  static std::optional<AlignedBuffer> allocate(size_t num_bytes);

  std::byte* data() { return bytes_.get(); }
  const std::byte* data() const { return bytes_.get(); }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(std::byte* bytes) const { ::operator delete(bytes, kAlignment); }
  };
  std::unique_ptr<std::byte, Free> bytes_;
  size_t size_ = 0;
};

// Row-major and contiguous: buffer.size() is the product of shape times size_of(dtype).
struct Tensor {
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;
  AlignedBuffer buffer;

  int64_t num_elements() const;

  // A view of the bytes, valid while the tensor lives. kUnsupported when the rank is above
  // kMaxRank; the sentence then begins with `name`.
  Result<TensorView> view(std::string_view name = "tensor") const;
};

using TensorMap = std::map<std::string, Tensor>;

// shape x item_bits, or nullopt if a size is negative or the product does not fit in 63 bits. Sizes
// of zero count as one in that check, so that strides computed from the shape cannot overflow.
std::optional<uint64_t> checked_num_bits(std::span<const int64_t> shape, uint64_t item_bits);

// A tensor of this shape with uninitialised contents. Errors begin with `name`.
Result<Tensor> make_tensor(DType dtype, std::vector<int64_t> shape,
                           std::string_view name = "tensor");

}  // namespace attentile::io

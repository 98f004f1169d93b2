// SPDX-License-Identifier: Apache-2.0
// Layouts and the placement of values in guarded memory.
#include "support/placed_tensor.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace attentile::testing {
namespace {

// NaN in every floating format, -1 as an index, visible as a mask.
constexpr int kPoisonByte = 0xFF;
// Between the elements of an output: no NaN, so that a NaN written there is seen too.
constexpr int kCanaryByte = 0xA5;
constexpr int kUnwrittenByte = 0xEE;

bool is_floating(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kFloat64 || dtype == DType::kFloat16 ||
         dtype == DType::kBFloat16;
}

}  // namespace

Layout contiguous_layout(const std::vector<int64_t>& shape) {
  Layout layout;
  layout.stride.resize(shape.size());
  layout.extent = 1;
  for (size_t axis = shape.size(); axis-- > 0;) {
    layout.stride[axis] = layout.extent;
    layout.extent *= shape[axis];
  }
  return layout;
}

Layout random_layout(const std::vector<int64_t>& shape, Random& random, uint32_t zero_stride) {
  const size_t rank = shape.size();
  std::vector<size_t> order(rank);  // outermost first
  std::iota(order.begin(), order.end(), size_t{0});
  const bool last_inside = random.chance(0.6);
  if (rank > 0) {
    if (last_inside) order.pop_back();
    if (random.chance(0.7)) random.shuffle(order);
    if (last_inside) order.push_back(rank - 1);
  }
  Layout layout;
  layout.stride.assign(rank, 0);
  const bool empty = std::find(shape.begin(), shape.end(), 0) != shape.end();
  int64_t span = 1;  // elements that the dimensions inside span
  for (size_t position = rank; position-- > 0;) {
    const size_t axis = order[position];
    if (shape[axis] <= 1) {
      layout.stride[axis] = random.pick<int64_t>({0, 1, -7, 3331333, 99990001});
      continue;
    }
    if ((zero_stride >> axis & 1u) != 0) continue;
    const bool innermost = span == 1;
    int64_t step = span;
    if (!innermost && random.chance(0.5)) step += random.integer(1, 9);
    if (innermost && !last_inside && random.chance(0.3)) step = random.integer(2, 3);
    const bool backwards = random.chance(0.12);
    layout.stride[axis] = backwards ? -step : step;
    if (backwards) layout.origin += (shape[axis] - 1) * step;
    span += (shape[axis] - 1) * step;
  }
  layout.extent = empty ? 0 : span;
  if (empty) layout.origin = 0;
  return layout;
}

PlacedTensor::PlacedTensor(const DenseTensor& dense, const Layout& layout, Role role,
                           GuardedBuffer::Flush flush)
    : role_(role), shape_(dense.shape) {
  if (!dense.present) return;
  const int64_t item = size_of(dense.dtype);
  buffer_ = GuardedBuffer(layout.extent * item, flush);
  view_.dtype = dense.dtype;
  view_.rank = dense.rank();
  view_.data = buffer_.valid() ? buffer_.data() + layout.origin * item : nullptr;
  for (int axis = 0; axis < view_.rank; ++axis) {
    view_.shape[axis] = dense.shape[static_cast<size_t>(axis)];
    view_.stride[axis] = layout.stride[static_cast<size_t>(axis)];
  }
  const size_t bytes = static_cast<size_t>(buffer_.size());
  if (bytes == 0) return;
  std::memset(buffer_.data(), role == Role::kInput ? kPoisonByte : kCanaryByte, bytes);
  if (role == Role::kInput) {
    write(dense);
    return;
  }
  expected_.assign(buffer_.data(), buffer_.data() + bytes);
  const int unwritten = is_floating(dense.dtype) ? kPoisonByte : kUnwrittenByte;
  for_each_run([&](char* address, int64_t, int64_t run) {
    std::memset(address, unwritten, static_cast<size_t>(run * item));
  });
}

// visit(address, index of the first, count) for each run of elements that lie side by side.
template <class Visit>
void PlacedTensor::for_each_run(Visit visit) const {
  int64_t total = 1;
  for (int64_t size : shape_) total *= size;
  if (total == 0) return;
  const int64_t item = size_of(view_.dtype);
  size_t rank = shape_.size();  // of what is walked over
  int64_t run = 1;
  while (rank > 0 && (shape_[rank - 1] == 1 || view_.stride[rank - 1] == run)) {
    run *= shape_[--rank];
  }
  std::vector<int64_t> coordinate(rank, 0);
  char* address = static_cast<char*>(view_.data);
  for (int64_t flat = 0;; flat += run) {
    visit(address, flat, run);
    size_t axis = rank;
    while (axis-- > 0) {
      const int64_t step = shape_[axis] > 1 ? view_.stride[axis] * item : 0;
      address += step;
      if (++coordinate[axis] < shape_[axis]) break;
      address -= step * shape_[axis];
      coordinate[axis] = 0;
    }
    if (axis == static_cast<size_t>(-1)) return;
  }
}

DenseTensor PlacedTensor::read() const {
  if (!present()) return {};
  DenseTensor dense(view_.dtype, shape_);
  const int64_t item = size_of(view_.dtype);
  for_each_run([&](const char* address, int64_t flat, int64_t run) {
    std::memcpy(dense.bytes.data() + flat * item, address, static_cast<size_t>(run * item));
  });
  return dense;
}

void PlacedTensor::write(const DenseTensor& dense) {
  const int64_t item = size_of(view_.dtype);
  for_each_run([&](char* address, int64_t flat, int64_t run) {
    std::memcpy(address, dense.bytes.data() + flat * item, static_cast<size_t>(run * item));
  });
  expected_.assign(buffer_.data(), buffer_.data() + buffer_.size());
}

void PlacedTensor::freeze() {
  role_ = Role::kInput;
  expected_.assign(buffer_.data(), buffer_.data() + buffer_.size());
}

std::optional<std::string> PlacedTensor::check() const {
  if (!present() || buffer_.size() == 0) return std::nullopt;
  const size_t bytes = static_cast<size_t>(buffer_.size());
  if (role_ == Role::kInput) {
    if (std::memcmp(buffer_.data(), expected_.data(), bytes) == 0) return std::nullopt;
    return "an input was written";
  }
  std::vector<char> now(buffer_.data(), buffer_.data() + bytes);
  const int64_t item = size_of(view_.dtype);
  for_each_run([&](const char* address, int64_t, int64_t run) {
    const int64_t at = address - buffer_.data();
    std::memcpy(now.data() + at, expected_.data() + at, static_cast<size_t>(run * item));
  });
  const auto damaged = std::mismatch(now.begin(), now.end(), expected_.begin()).first;
  if (damaged != now.end()) {
    return "byte " + std::to_string(damaged - now.begin()) + " between the elements was written";
  }
  return std::nullopt;
}

}  // namespace attentile::testing

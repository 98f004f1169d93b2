// SPDX-License-Identifier: Apache-2.0
// See validate_view.h.
#include "validate_view.h"

#include <cstdint>
#include <limits>

#include "validate_text.h"

namespace attentile::validation {
namespace {

constexpr int64_t kMaxBytes = std::numeric_limits<int64_t>::max();

Status check_type(const Argument& argument) {
  const TensorView& view = *argument.view;
  if (view.rank < 0 || view.rank > kMaxRank) {
    return invalid("{}: rank is {}, but it must be in [0, {}]", argument.name, view.rank, kMaxRank);
  }
  if (size_of(view.dtype) == 0) {
    return invalid("{}: dtype is {}, but it must be in [0, {}]", argument.name, view.dtype,
                   static_cast<int32_t>(DType::kBool));
  }
  if (view.device != Device::kCpu && view.device != Device::kCuda) {
    return invalid("{}: device is {}, but it must be 0 (cpu) or 1 (cuda)", argument.name,
                   static_cast<int32_t>(view.device));
  }
  return {};
}

// Bytes before and after element 0, and of all elements, all below 2^63.
Status measure(const Argument& argument, int64_t* before, int64_t* after) {
  const TensorView& view = *argument.view;
  int64_t bytes = size_of(view.dtype);
  for (int i = 0; i < view.rank; ++i) {
    if (view.shape[i] < 0) {
      return invalid("{}: shape is {}, but no size may be negative", argument.name, shape_of(view));
    }
    if (view.shape[i] > 0 && __builtin_mul_overflow(bytes, view.shape[i], &bytes)) {
      return invalid("{}: shape is {} of {}, but the elements must be fewer than 2^63 bytes",
                     argument.name, shape_of(view), view.dtype);
    }
  }
  *before = 0;
  *after = size_of(view.dtype);
  if (is_empty(view)) return {};
  for (int i = 0; i < view.rank; ++i) {
    if (view.shape[i] <= 1) continue;
    int64_t reach = 0;
    int64_t* side = view.stride[i] < 0 ? before : after;
    bool overflow = __builtin_mul_overflow(view.shape[i] - 1, view.stride[i], &reach);
    overflow = overflow || __builtin_mul_overflow(reach, size_of(view.dtype), &reach);
    overflow = overflow || (reach < 0 ? __builtin_sub_overflow(*side, reach, side)
                                      : __builtin_add_overflow(*side, reach, side));
    if (overflow) *side = kMaxBytes;
    if (overflow || *before > kMaxBytes - *after) {
      return invalid(
          "{}: strides are {} with shape {} of {}, but the view must span fewer than "
          "2^63 bytes",
          argument.name, strides_of(view), shape_of(view), view.dtype);
    }
  }
  return {};
}

Status check_address(const Argument& argument, int64_t before, int64_t after) {
  const TensorView& view = *argument.view;
  if (view.data == nullptr) {
    return invalid("{}: data is null, but shape {} has elements", argument.name, shape_of(view));
  }
  const auto address = reinterpret_cast<uintptr_t>(view.data);
  const auto alignment = static_cast<uintptr_t>(size_of(view.dtype));
  if (address % alignment != 0) {
    return invalid("{}: data is {} bytes past a multiple of {}, but {} must be aligned to {} bytes",
                   argument.name, address % alignment, alignment, view.dtype, alignment);
  }
  if (static_cast<uintptr_t>(before) > address ||
      static_cast<uintptr_t>(after) > std::numeric_limits<uintptr_t>::max() - address) {
    return invalid(
        "{}: strides are {} with shape {} of {}, but from its data that leaves the "
        "address space",
        argument.name, strides_of(view), shape_of(view), view.dtype);
  }
  return {};
}

// "[batch, seqlen_q, num_heads_q, head_dim]"
struct LabelText {
  char text[128];
  explicit LabelText(std::initializer_list<Size> sizes) {
    char* at = text;
    const auto put = [&](const char* word) {
      while (*word != '\0' && at < text + sizeof text - 1) *at++ = *word++;
    };
    put("[");
    for (const Size& size : sizes) {
      if (&size != sizes.begin()) put(", ");
      put(size.label);
    }
    put("]");
    *at = '\0';
  }
};

}  // namespace

Status check_view(const Argument& argument, Check check) {
  if (Status status = check_type(argument); !status.ok()) return status;
  int64_t before = 0;
  int64_t after = 0;
  if (Status status = measure(argument, &before, &after); !status.ok()) return status;
  const bool read_here = argument.use == Use::kIndices && argument.view->device == Device::kCpu;
  if ((check == Check::kPlan && !read_here) || is_empty(*argument.view)) return {};
  return check_address(argument, before, after);
}

Status require(const Argument& argument, const char* reason) {
  if (!argument.absent()) return {};
  return invalid("{}: is missing, but {}", argument.name, reason);
}

Status expect_shape(const Argument& argument, std::initializer_list<Size> sizes) {
  const TensorView& view = *argument.view;
  if (view.rank != static_cast<int32_t>(sizes.size())) {
    return invalid("{}: rank is {}, but it must be {}: {}", argument.name, view.rank, sizes.size(),
                   LabelText(sizes).text);
  }
  const int64_t* actual = view.shape;
  for (const Size& expected : sizes) {
    const int64_t size = *actual++;
    if (expected.size == kAnySize || size == expected.size) continue;
    return invalid("{}: {} is {}, but {} has {} {}", argument.name, expected.label, size,
                   expected.owner, expected.label, expected.size);
  }
  return {};
}

Status expect_dtype(const Argument& argument, DType dtype, const char* owner) {
  if (argument.view->dtype == dtype) return {};
  if (owner == nullptr) {
    return invalid("{}: dtype is {}, but it must be {}", argument.name, argument.view->dtype,
                   dtype);
  }
  return invalid("{}: dtype is {}, but {} has dtype {}", argument.name, argument.view->dtype, owner,
                 dtype);
}

Status expect_mask_dtype(const Argument& argument) {
  const DType dtype = argument.view->dtype;
  if (dtype == DType::kBool || dtype == DType::kUInt8) return {};
  return invalid("{}: dtype is {}, but it must be bool or uint8", argument.name, dtype);
}

Array4 make_array(const TensorView& view, std::initializer_list<int> axes) {
  Array4 array = {.data = static_cast<char*>(view.data), .dtype = view.dtype, .present = true};
  if (is_empty(view)) return array;
  int64_t* stride = array.stride;
  for (int axis : axes) {
    *stride++ = axis >= 0 && view.shape[axis] > 1 ? view.stride[axis] : 0;
  }
  return array;
}

IndexArray make_index_array(const TensorView& view) {
  return {.data = static_cast<const int32_t*>(view.data),
          .stride = view.shape[0] > 1 ? view.stride[0] : 0};
}

Status broadcast(const Argument& argument, const int64_t (&target)[4], const char* target_text,
                 Array4* array) {
  const TensorView& view = *argument.view;
  const int first = 4 - view.rank;
  for (int i = 0; i < view.rank; ++i) {
    if (view.shape[i] == 1 || view.shape[i] == target[first + i]) continue;
    return invalid("{}: shape is {}, but it must broadcast to {} = {}", argument.name,
                   shape_of(view), target_text, Word(target, 4));
  }
  *array = make_array(view, {-first, 1 - first, 2 - first, 3 - first});
  return {};
}

}  // namespace attentile::validation

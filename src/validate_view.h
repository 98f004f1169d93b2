// SPDX-License-Identifier: Apache-2.0
// What is checked of a view whatever it is for, and the two ways to ask for a shape: exact sizes,
// or sizes that broadcast by NumPy's rules.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "attentile/status.h"
#include "attentile/tensor.h"
#include "overlap.h"
#include "problem.h"
#include "validate.h"

namespace attentile::validation {

// How a call uses an argument.
enum class Use {
  kRead,     // an input
  kIndices,  // integers that steer the call: on the CPU read here, even for a plan
  kWritten,  // an output
};

// A named view. absent() ones are skipped by every check but `require`.
struct Argument {
  const char* name;
  const TensorView* view;
  Use use = Use::kRead;

  bool absent() const { return !view->present(); }
};

// Rank, dtype, device, sizes, extent; for kCall also null, alignment and the address space.
Status check_view(const Argument& argument, Check check);

Status require(const Argument& argument, const char* reason);

inline constexpr int64_t kAnySize = -1;

// One expected dimension: what it is called, its size and the argument that has that size.
struct Size {
  const char* label;
  int64_t size = kAnySize;
  const char* owner = nullptr;
};

// Rank and every size.
Status expect_shape(const Argument& argument, std::initializer_list<Size> sizes);

// The view's dtype is `dtype`, as that of the argument `owner` (null: by itself).
Status expect_dtype(const Argument& argument, DType dtype, const char* owner);
Status expect_mask_dtype(const Argument& argument);

// The view as an array: axis i of the array is axes[i] of the view, -1 for none. Strides are 0
// where there is nothing to step over: no axis, a size of at most 1, an empty view.
Array4 make_array(const TensorView& view, std::initializer_list<int> axes);
IndexArray make_index_array(const TensorView& view);

// Broadcasts the view to `target` by NumPy's rules; target_text names the four sizes.
Status broadcast(const Argument& argument, const int64_t (&target)[4], const char* target_text,
                 Array4* array);

}  // namespace attentile::validation

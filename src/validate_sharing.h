// SPDX-License-Identifier: Apache-2.0
// Outputs must be memory of their own. Bounding boxes settle nearly every pair; the exact search of
// overlap.h decides the rest, so views that interleave in one buffer pass.
#pragma once

#include "attentile/status.h"
#include "validate_view.h"

namespace attentile::validation {

// The bytes from a view's lowest to past its highest element; empty views have begin == end.
struct ByteRange {
  uintptr_t begin = 0;
  uintptr_t end = 0;

  bool meets(const ByteRange& other) const { return begin < other.end && other.begin < end; }
};

// Of a view that check_view passed with Check::kCall.
ByteRange byte_range_of(const TensorView& view);

// Two indices of an output share memory.
Status check_distinct(const Argument& output);

// An output and another argument share memory. Worth asking only where their byte ranges meet.
Status check_disjoint(const Argument& output, const Argument& other);

}  // namespace attentile::validation

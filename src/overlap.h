// SPDX-License-Identifier: Apache-2.0
// Do strided views share memory? The exact answer, which bounding boxes cannot give: the columns of
// a packed [q k v] buffer interleave without touching. Two indices meet when a sum of steps, each
// taken a bounded number of times, falls into a short interval; that bounded Diophantine question
// is answered by a search over the steps from the longest to the shortest. What the shorter steps
// can still reach, and the divisor they have in common, cut the search: layouts that are nested, as
// all usual ones are, look at two candidates per step at most.
//
// Two cases get a cautious answer, "they overlap", instead of an exact one: a search of more than
// 2^20 candidates, which takes steps made for it, and a view longer than any address space (2^96
// bytes).
#pragma once

#include "attentile/tensor.h"

namespace attentile {

// Whether some size is 0. The strides of an empty view mean nothing and may be anything.
bool is_empty(const TensorView& view);

// Whether two different indices of the view share a byte. Any strides, 0 and negative too; sizes of
// at most 1 are ignored and an empty view never overlaps. The view must have a rank of 0 to
// kMaxRank, sizes >= 0 and a known dtype; its data is not looked at.
bool self_overlaps(const TensorView& view);

// Whether an index of a and an index of b share a byte; data is taken as an address and not read.
bool overlaps(const TensorView& a, const TensorView& b);

}  // namespace attentile

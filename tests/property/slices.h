// SPDX-License-Identifier: Apache-2.0
// Parts of a case: the same problem restricted to some batch entries, heads or keys, with every
// tensor cut accordingly. The library promises that such parts have the bits of the whole.
#pragma once

#include <cstdint>

#include "conformance/case.h"

namespace attentile::property {

using conformance::Case;
using conformance::Results;
using conformance::Values;
using testing::DenseTensor;

// begin .. begin + count - 1 along one axis.
DenseTensor slice(const DenseTensor& tensor, int axis, int64_t begin, int64_t count);

// A problem with several tiles in each direction and a seeded choice of features; never varlen,
// paged or broadcast over batch and heads unless asked. bias and mask have full shape. few_queries:
// up to 8, over keys in several pieces.
Case feature_case(uint64_t seed, DType dtype, bool few_queries = false);

// A case and its values.
struct Part {
  Case c;
  Values values;
};

// Batch entries [begin, begin + count) of a case that is not varlen.
Part batch_part(const Case& c, const Values& values, int64_t begin, int64_t count);
// KV heads [begin, begin + count) with their query heads.
Part head_part(const Case& c, const Values& values, int64_t begin, int64_t count);
// Keys [begin, begin + count), by an explicit position offset and key_base; no block mask.
Part key_part(const Case& c, const Values& values, int64_t begin, int64_t count);
// Sequence b of a varlen case as a batch of one.
Part sequence_part(const Case& c, const Values& values, int64_t b);

// The matching parts of results.
Results batch_results(const Case& c, const Results& whole, int64_t begin, int64_t count);
Results head_results(const Case& c, const Results& whole, int64_t begin, int64_t count);
Results sequence_results(const Case& c, const Results& whole, int64_t b);

}  // namespace attentile::property

// SPDX-License-Identifier: Apache-2.0
// What the edge tests share: the calls and comparisons of the conformance table under short names.
#pragma once

#include <limits>

#include "conformance/call_testing.h"

namespace attentile::edge {

using conformance::accurate;
using conformance::all_finite;
using conformance::all_zero;
using conformance::base_case;
using conformance::Case;
using conformance::Fill;
using conformance::for_each_target;
using conformance::Results;
using conformance::run_call;
using conformance::same_bits;
using conformance::Target;
using conformance::Tier;
using conformance::Values;
using testing::DenseTensor;

inline constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

// q = (1, 0, ...), k_j = (logit_j, 0, ...), scale 1: the logits are what we say.
inline Values with_logits(const Case& c, double (*logit)(int64_t j)) {
  Values values = make_values(c);
  values.q.fill(0.0);
  values.k.fill(0.0);
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t i = 0; i < c.seqlen_q; ++i) {
      for (int64_t h = 0; h < c.num_heads_q; ++h) values.q.put(1.0, b, i, h, 0);
    }
    for (int64_t j = 0; j < c.seqlen_k; ++j) {
      for (int64_t h = 0; h < c.num_heads_kv; ++h) values.k.put(logit(j), b, j, h, 0);
    }
  }
  return values;
}

}  // namespace attentile::edge

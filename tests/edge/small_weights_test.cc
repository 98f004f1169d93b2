// SPDX-License-Identifier: Apache-2.0
// Weights and shares of a row so small that their factors are subnormal numbers, and still count.
#include "edge/edge.h"

namespace attentile::edge {
namespace {

Case forward_case() {
  Case c = base_case(DType::kFloat32);
  c.backward = false;
  c.softmax_scale = 1.0;
  c.fill = Fill::kPeaked;  // not N(0, 1): no ceilings
  return c;
}

TEST(SubnormalWeight, BesideALargeValueCounts) {
  for (int64_t queries : {1, 17}) {
    Case c = forward_case();
    c.seqlen_q = queries;
    c.seqlen_k = 64;
    Values values = with_logits(c, [](int64_t j) { return j == 0 ? 0.0 : -89.0; });
    values.v.fill(1e37);
    for (int64_t b = 0; b < c.batch; ++b) {
      for (int64_t h = 0; h < c.num_heads_kv; ++h) {
        for (int64_t d = 0; d < c.head_dim_v; ++d) values.v.put(0.0, b, 0, h, d);
      }
    }
    for_each_target([&](const Target& target) {
      EXPECT_TRUE(accurate(c, values, run_call(c, values, target)));
    });
  }
}

// l is a thousand times what it would be relative to the largest logit, and the keys' share of the
// row's weight is small.
TEST(Sink, FarAheadOfKeysWithAStaleMaximum) {
  for (int64_t queries : {4, 17}) {
    Case c = forward_case();
    c.seqlen_q = queries;
    c.seqlen_k = 1024;
    c.sink = true;
    Values values = with_logits(c, [](int64_t j) { return j < 64 ? -6.9 : 0.0; });
    values.v.fill(1.0);
    values.sink.fill(86.0);
    for_each_target([&](const Target& target) {
      EXPECT_TRUE(accurate(c, values, run_call(c, values, target)));
    });
  }
}

}  // namespace
}  // namespace attentile::edge

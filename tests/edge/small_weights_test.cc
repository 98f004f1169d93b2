// SPDX-License-Identifier: Apache-2.0
// Weights and shares of a row so small that their factors are subnormal numbers, and still count.
#include <cmath>

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

TEST(SubnormalWeight, BesideALargeValueCountsInFloat64) {
  for (int64_t queries : {1, 17}) {
    Case c = forward_case();
    c.dtype = DType::kFloat64;
    c.seqlen_q = queries;
    c.seqlen_k = 64;
    Values values = with_logits(c, [](int64_t j) { return j == 0 ? 0.0 : -715.0; });
    values.v.fill(1e305);
    for (int64_t b = 0; b < c.batch; ++b) {
      for (int64_t h = 0; h < c.num_heads_kv; ++h) {
        for (int64_t d = 0; d < c.head_dim_v; ++d) values.v.put(0.0, b, 0, h, d);
      }
    }
    for_each_target([&](const Target& target) {
      const Results results = run_call(c, values, target);
      EXPECT_GT(results.out.at(0, queries - 1, 0, 0), 0.0);
    });
  }
}

// An infinite value spoils its column; whether it does so beside subnormal weights or not, the
// columns beside it keep their bits.
TEST(SubnormalWeight, BesideAnInfiniteValue) {
  Case c = forward_case();
  c.seqlen_q = 64;
  c.seqlen_k = 64;
  const Values plain = with_logits(c, [](int64_t j) { return j == 0 ? 0.0 : -87.0 - 0.2 * j; });
  Values spoilt = plain;
  spoilt.v.put(kInfinity, 0, 5, 0, 0);
  for_each_target([&](const Target& target) {
    const Results expected = run_call(c, plain, target);
    const Results got = run_call(c, spoilt, target);
    for (int64_t i = 0; i < c.seqlen_q; ++i) {
      EXPECT_FALSE(std::isfinite(got.out.at(0, i, 0, 0))) << i;
      for (int64_t d = 1; d < c.head_dim_v; ++d) {
        EXPECT_EQ(expected.out.at(0, i, 0, d), got.out.at(0, i, 0, d)) << i << " " << d;
      }
    }
  });
}

// A tile is full or partly hidden by the pattern of all rows that share it.
TEST(SubnormalWeight, TakesNoBitsFromTheRowsBeside) {
  Case c = forward_case();
  c.seqlen_q = 64;
  c.seqlen_k = 256;
  c.block_mask_heads = 1;
  c.block_size_q = 16;
  c.block_size_k = 256;
  Values values = with_logits(
      c, [](int64_t j) { return j == 0 ? 0.0 : -88.0 - 0.05 * static_cast<double>(j); });
  for (int64_t j = 0; j < c.seqlen_k; ++j) {
    for (int64_t b = 0; b < c.batch; ++b) {
      for (int64_t h = 0; h < c.num_heads_kv; ++h) {
        for (int64_t d = 0; d < c.head_dim_v; ++d) {
          const double sign = (j * 7 + d * 3) % 5 < 2 ? -1.0 : 1.0;
          values.v.put(j == 0 ? 1e-3 : sign * (4e37 + 1e35 * static_cast<double>(j + d)), b, j, h,
                       d);
        }
      }
    }
  }
  values.block_mask.fill(1.0);
  Values other = values;
  other.block_mask.put(0.0, 0, 1, 0);
  for_each_target([&](const Target& target) {
    const Results all = run_call(c, values, target);
    const Results some = run_call(c, other, target);
    for (int64_t i = 0; i < 16; ++i) {
      for (int64_t d = 0; d < c.head_dim_v; ++d) {
        EXPECT_EQ(all.out.at(0, i, 0, d), some.out.at(0, i, 0, d)) << i << " " << d;
      }
    }
  });
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

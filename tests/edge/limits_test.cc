// SPDX-License-Identifier: Apache-2.0
// The other rows of the edge-value table: rows without a visible key, sizes of zero, sinks, logits
// of -inf and of up to 1e30, scales of zero and below, everything dropped.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "edge/edge.h"

namespace attentile::edge {
namespace {

void expect_hidden_row(const Case& c, const Results& r, int64_t b, int64_t h, int64_t i) {
  EXPECT_EQ(r.lse.at(b, h, i), -kInfinity) << b << " " << h << " " << i;
  for (int64_t d = 0; d < c.head_dim_v; ++d) ASSERT_EQ(r.out.at(b, i, h, d), 0.0);
  if (!c.backward) return;
  for (int64_t d = 0; d < c.head_dim; ++d) ASSERT_EQ(r.dq.at(b, i, h, d), 0.0);
}

// --- rows without a visible key ------------------------------------------------------------------

struct Change {
  const char* name;
  void (*apply)(Case& c);
};

const Change kHidingAll[] = {
    {"no_keys", [](Case& c) { c.seqlen_k = 0; }},
    {"nothing_used", [](Case& c) { c.seqused_k = {0, 0}; }},
    {"mask", [](Case& c) { c.mask = {true, DType::kBool, {1}}; }},
    {"causal_far_away",
     [](Case& c) {
       c.causal = true;
       c.position_offset = -1000;
     }},
    {"window_far_away",
     [](Case& c) {
       c.window_left = c.window_right = 5;
       c.position_offset = 1000000;
     }},
    {"infinite_offset",
     [](Case& c) {
       c.causal = true;
       c.position_offset = std::numeric_limits<int64_t>::min();
     }},
    {"block_mask",
     [](Case& c) {
       c.block_mask_heads = 1;
       c.block_size_q = 64;
       c.block_size_k = 128;
     }},
};

class HiddenRows : public ::testing::TestWithParam<int> {};

TEST_P(HiddenRows, AreZeroWithLseMinusInfinity) {
  for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64}) {
    Case c = base_case(dtype);
    c.dlse = true;
    kHidingAll[GetParam()].apply(c);
    Values values = make_values(c);
    if (values.mask.present) values.mask.fill(0.0);
    if (values.block_mask.present) values.block_mask.fill(0.0);
    for_each_target([&](const Target& target) {
      const Results r = run_call(c, values, target);
      for (int64_t b = 0; b < c.batch; ++b) {
        for (int64_t h = 0; h < c.num_heads_q; ++h) {
          for (int64_t i = 0; i < c.seqlen_q; ++i) expect_hidden_row(c, r, b, h, i);
        }
      }
      EXPECT_TRUE(all_zero(r.dk)) << "dk";
      EXPECT_TRUE(all_zero(r.dv)) << "dv";
    });
  }
}

TEST_P(HiddenRows, WithASinkHaveItsLse) {
  Case c = base_case(DType::kFloat32);
  c.dlse = c.sink = c.dsink = true;
  kHidingAll[GetParam()].apply(c);
  Values values = make_values(c);
  if (values.mask.present) values.mask.fill(0.0);
  if (values.block_mask.present) values.block_mask.fill(0.0);
  for_each_target([&](const Target& target) {
    const Results r = run_call(c, values, target);
    EXPECT_TRUE(all_zero(r.out));
    EXPECT_TRUE(all_zero(r.dq));
    EXPECT_TRUE(all_zero(r.dk));
    EXPECT_TRUE(all_zero(r.dv));
    for (int64_t h = 0; h < c.num_heads_q; ++h) {
      double dlse_sum = 0.0;
      double magnitude = 0.0;
      for (int64_t b = 0; b < c.batch; ++b) {
        for (int64_t i = 0; i < c.seqlen_q; ++i) {
          EXPECT_NEAR(r.lse.at(b, h, i), values.sink.at(h), 1e-6);
          dlse_sum += values.dlse.at(b, h, i);
          magnitude += std::fabs(values.dlse.at(b, h, i));
        }
      }
      EXPECT_NEAR(r.dsink.at(h), dlse_sum, 1e-6 * magnitude);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Edge, HiddenRows,
                         ::testing::Range(0, static_cast<int>(std::size(kHidingAll))),
                         [](const auto& parameter) {
                           return std::string(kHidingAll[parameter.param].name);
                         });

TEST(SomeHiddenRows, AreZeroAmongOthers) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    Case c = base_case(dtype);
    c.causal = true;
    c.position_offset = -5;  // queries 0..4 see nothing
    const Values values = make_values(c);
    for_each_target([&](const Target& target) {
      const Results r = run_call(c, values, target);
      for (int64_t i = 0; i < 5; ++i) expect_hidden_row(c, r, 1, 2, i);
      EXPECT_TRUE(accurate(c, values, r));
    });
  }
}

// --- sizes of zero -------------------------------------------------------------------------------

const Change kEmpty[] = {
    {"batch", [](Case& c) { c.batch = 0; }},
    {"seqlen_q", [](Case& c) { c.seqlen_q = 0; }},
    {"heads", [](Case& c) { c.num_heads_q = 0; }},
    {"all_heads", [](Case& c) { c.num_heads_q = c.num_heads_kv = 0; }},
    {"seqlen_k", [](Case& c) { c.seqlen_k = 0; }},
    {"seqlen_q_and_k", [](Case& c) { c.seqlen_q = c.seqlen_k = 0; }},
    {"varlen_all_empty",
     [](Case& c) {
       c.varlen = true;
       c.lengths_q = c.lengths_k = {0, 0};
       c.seqlen_q = c.seqlen_k = 0;
     }},
    {"varlen_queries_empty",
     [](Case& c) {
       c.varlen = true;
       c.lengths_q = {0, 0};
       c.lengths_k = {9, 4};
       c.seqlen_q = 0;
       c.seqlen_k = 9;
     }},
};

class EmptySizes : public ::testing::TestWithParam<int> {};

TEST_P(EmptySizes, SucceedAndWriteZeros) {
  for (bool with_extras : {false, true}) {
    Case c = base_case(DType::kFloat32);
    kEmpty[GetParam()].apply(c);
    if (with_extras && c.num_heads_q > 0) {
      c.sink = c.dsink = true;
      c.bias = {true, DType::kFloat32, {1}};
      c.dbias = true;
    }
    const Values values = make_values(c);
    for_each_target([&](const Target& target) {
      const Results r = run_call(c, values, target);
      EXPECT_TRUE(all_zero(r.out));
      EXPECT_TRUE(all_zero(r.dq));
      EXPECT_TRUE(all_zero(r.dk));
      EXPECT_TRUE(all_zero(r.dv));
      EXPECT_TRUE(all_zero(r.dbias));  // true of an absent one
      EXPECT_TRUE(accurate(c, values, r));
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Edge, EmptySizes, ::testing::Range(0, static_cast<int>(std::size(kEmpty))),
                         [](const auto& parameter) {
                           return std::string(kEmpty[parameter.param].name);
                         });

// --- logits --------------------------------------------------------------------------------------

struct Logits {
  const char* name;
  double (*logit)(int64_t j);
  bool gradients;  // small enough for accurate ones
  DType dtypes[3];
};

const Logits kLogits[] = {
    {"all_below_minus_1e5",
     [](int64_t j) { return -100000.0 - static_cast<double>(j % 7); },
     false,
     {DType::kFloat32, DType::kFloat64, DType::kFloat32}},
    {"all_above_1e5",
     [](int64_t j) { return 100000.0 + static_cast<double>(j % 5); },
     false,
     {DType::kFloat32, DType::kFloat64, DType::kFloat32}},
    {"all_minus_1e30",
     [](int64_t) { return -0x1p100; },
     false,
     {DType::kFloat32, DType::kFloat64, DType::kBFloat16}},
    {"all_1e30",
     [](int64_t) { return 0x1p100; },
     false,
     {DType::kFloat32, DType::kFloat64, DType::kBFloat16}},
    {"one_1e30_ahead",
     [](int64_t j) { return j == 50 ? 0x1p100 : 0x1p99; },
     false,
     {DType::kFloat32, DType::kFloat64, DType::kBFloat16}},
    {"from_minus_1e30_to_1e30",
     [](int64_t j) { return j % 2 == 0 ? -0x1p100 : 0x1p100; },
     false,
     {DType::kFloat32, DType::kFloat64, DType::kBFloat16}},
    {"rising",
     [](int64_t j) { return static_cast<double>(j) * 1000.0; },
     false,
     {DType::kFloat32, DType::kFloat64, DType::kFloat32}},
    {"falling",
     [](int64_t j) { return -1000.0 * static_cast<double>(j); },
     false,
     {DType::kFloat32, DType::kFloat64, DType::kFloat32}},
    {"around_minus_120",
     [](int64_t j) { return -120.0 - static_cast<double>(j % 3); },
     true,
     {DType::kFloat32, DType::kFloat16, DType::kBFloat16}},
    {"around_1e4",
     [](int64_t j) { return 10000.0 - 8.0 * static_cast<double>(j % 4); },
     true,
     {DType::kFloat32, DType::kFloat16, DType::kFloat64}},
    {"exp_underflows",
     [](int64_t j) { return j == 0 ? 0.0 : -104.0; },
     true,
     {DType::kFloat32, DType::kFloat16, DType::kBFloat16}},
    {"zero",
     [](int64_t) { return 0.0; },
     true,
     {DType::kFloat32, DType::kFloat16, DType::kBFloat16}},
};

class LargeLogits : public ::testing::TestWithParam<int> {};

TEST_P(LargeLogits, GiveTheCorrectSoftmax) {
  const Logits& logits = kLogits[GetParam()];
  for (DType dtype : logits.dtypes) {
    for (bool causal : {false, true}) {
      SCOPED_TRACE(std::string(to_string(dtype)) + (causal ? " causal" : ""));
      Case c = base_case(dtype);
      c.softmax_scale = 1.0;
      c.causal = causal;
      c.fill = Fill::kPeaked;  // not N(0, 1): no ceilings
      const Values values = with_logits(c, logits.logit);
      for_each_target([&](const Target& target) {
        const Results r = run_call(c, values, target);
        Case judged = c;
        judged.backward = logits.gradients;
        EXPECT_TRUE(accurate(judged, values, r));
        EXPECT_TRUE(all_finite(r.dq)) << "dq";
        EXPECT_TRUE(all_finite(r.dk)) << "dk";
        EXPECT_TRUE(all_finite(r.dv)) << "dv";
        // Weights never above 1: no dv beyond the sum of |dout| over the group's rows.
        double bound = 0.0;
        for (int64_t i = 0; i < values.dout.count(); ++i) {
          bound += std::fabs(values.dout.get(i));
        }
        for (int64_t i = 0; i < r.dv.count(); ++i) ASSERT_LE(std::fabs(r.dv.get(i)), bound);
      });
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Edge, LargeLogits,
                         ::testing::Range(0, static_cast<int>(std::size(kLogits))),
                         [](const auto& parameter) {
                           return std::string(kLogits[parameter.param].name);
                         });

TEST(MinusInfinity, InTheBiasIsWeightZero) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat64}) {
    Case c = base_case(dtype);
    c.bias = {true, DType::kFloat32, {c.seqlen_q, c.seqlen_k}};
    c.dbias = true;
    Values values = make_values(c);
    for (int64_t i = 0; i < c.seqlen_q; ++i) {
      for (int64_t j = 0; j < c.seqlen_k; ++j) {
        if ((i * 7 + j) % 3 == 0 || i == 9) values.bias.put(-kInfinity, i, j);
      }
    }
    for_each_target([&](const Target& target) {
      const Results r = run_call(c, values, target);
      EXPECT_TRUE(accurate(c, values, r));
      for (int64_t h = 0; h < c.num_heads_q; ++h) expect_hidden_row(c, r, 1, h, 9);
      for (int64_t j = 0; j < c.seqlen_k; ++j) EXPECT_EQ(r.dbias.at(9, j), 0.0) << j;
    });
  }
}

// Fully padded rows: the lowest number added to every logit, twice to some, which overflows.
TEST(MinusInfinity, BesideTheLowestNumberIsWeightZero) {
  constexpr int64_t kRow = 5;
  for (int64_t seqlen_k : {40, 75}) {
    for (bool sink : {false, true}) {
      Case c = base_case(DType::kFloat32);
      c.seqlen_k = seqlen_k;
      c.sink = c.dsink = sink;
      c.bias = {true, DType::kFloat32, {c.batch, c.num_heads_q, c.seqlen_q, c.seqlen_k}};
      c.dbias = true;
      Values values = make_values(c);
      if (sink) values.sink.fill(-3e38);
      for (int64_t j = 0; j < seqlen_k; ++j) {
        const double padding = j % 2 == 0 ? std::numeric_limits<float>::lowest() : -kInfinity;
        values.bias.put(padding, 0, 1, kRow, j);
      }
      for_each_target([&](const Target& target) {
        const Results r = run_call(c, values, target);
        for (const DenseTensor* result : {&r.out, &r.dq, &r.dk, &r.dv, &r.dbias}) {
          EXPECT_TRUE(all_finite(*result));
        }
        for (int64_t j = 1; j < seqlen_k; j += 2) {
          EXPECT_EQ(r.dbias.at(0, 1, kRow, j), 0.0) << j;
        }
      });
    }
  }
}

TEST(MinusInfinity, EverywhereWithASinkLeavesTheSink) {
  Case c = base_case(DType::kFloat32);
  c.bias = {true, DType::kFloat32, {1}};
  c.sink = c.dsink = c.dbias = true;
  Values values = make_values(c);
  values.bias.fill(-kInfinity);
  for_each_target([&](const Target& target) {
    const Results r = run_call(c, values, target);
    EXPECT_TRUE(all_zero(r.out));
    EXPECT_TRUE(all_zero(r.dq));
    EXPECT_TRUE(all_zero(r.dbias));
    EXPECT_NEAR(r.lse.at(0, 2, 3), values.sink.at(2), 1e-6);
  });
}

// --- scale, dropout, sinks -----------------------------------------------------------------------

const Change kScales[] = {
    {"zero", [](Case& c) { c.softmax_scale = 0.0; }},
    {"negative_zero", [](Case& c) { c.softmax_scale = -0.0; }},
    {"minus_one", [](Case& c) { c.softmax_scale = -1.0; }},
    {"tiny", [](Case& c) { c.softmax_scale = 1e-30; }},
    {"large", [](Case& c) { c.softmax_scale = 40.0; }},
    {"negative_causal_softcap",
     [](Case& c) {
       c.softmax_scale = -0.5;
       c.causal = true;
       c.softcap = 2.0;
     }},
    {"softcap_tiny", [](Case& c) { c.softcap = 1e-3; }},
    {"softcap_huge", [](Case& c) { c.softcap = 1e6; }},
    {"softcap_beyond_float", [](Case& c) { c.softcap = 1e39; }},
    {"softcap_far_beyond_float", [](Case& c) { c.softcap = 1e300; }},
    {"softcap_below_float", [](Case& c) { c.softcap = 1e-46; }},
    {"softcap_saturates",
     [](Case& c) {
       c.softcap = 5.0;
       c.softmax_scale = 50.0;
     }},
    {"dropout_one",
     [](Case& c) {
       c.dropout_p = 1.0;
       c.keep = true;
     }},
    {"dropout_below_resolution",
     [](Case& c) {
       c.dropout_p = 0x1p-18;
       c.keep = true;
     }},
    {"dropout_almost_one",
     [](Case& c) {
       c.dropout_p = 0.999;
       c.keep = true;
     }},
    {"one_key", [](Case& c) { c.seqlen_k = 1; }},
    {"one_query", [](Case& c) { c.seqlen_q = 1; }},
    {"one_of_each", [](Case& c) { c.seqlen_q = c.seqlen_k = c.head_dim = c.head_dim_v = 1; }},
};

class Scalars : public ::testing::TestWithParam<int> {};

TEST_P(Scalars, AreServedExactly) {
  for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64}) {
    SCOPED_TRACE(to_string(dtype));
    Case c = base_case(dtype);
    c.fill = Fill::kPeaked;
    kScales[GetParam()].apply(c);
    const Values values = make_values(c);
    for_each_target([&](const Target& target) {
      const Results r = run_call(c, values, target);
      EXPECT_TRUE(accurate(c, values, r));
      if (c.dropout_p == 1.0) {
        EXPECT_TRUE(all_zero(r.out));
        EXPECT_TRUE(all_zero(r.dv));
      }
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Edge, Scalars, ::testing::Range(0, static_cast<int>(std::size(kScales))),
                         [](const auto& parameter) {
                           return std::string(kScales[parameter.param].name);
                         });

// A logit so far above a tile seen before that the remainder of its exponent is meaningless, and
// makes the factor 2^f exactly 0.
TEST(LargeLogit, AfterATileOfSmallOnes) {
  Case c = base_case(DType::kFloat32);
  c.softmax_scale = 1.0625;
  c.fill = Fill::kPeaked;
  c.seqlen_k = 130;
  const Values values = with_logits(c, [](int64_t j) { return j == 70 ? 66962100.0 : 0.0; });
  for_each_target([&](const Target& target) {
    const Results r = run_call(c, values, target);
    for (int64_t i = 0; i < r.lse.count(); ++i) ASSERT_NEAR(r.lse.get(i), 71147231.25, 16.0) << i;
  });
}

TEST(Sink, OutweighsTheKeysOfBFloat16) {
  for (double sink : {80.0, 88.0, 92.0}) {
    SCOPED_TRACE(sink);
    Case c = base_case(DType::kBFloat16);
    c.sink = c.dsink = true;
    Values values = make_values(c);
    values.sink.fill(sink);
    for_each_target([&](const Target& target) {
      EXPECT_TRUE(accurate(c, values, run_call(c, values, target)));
    });
  }
}

TEST(Sink, FarAheadOrFarBehind) {
  for (double sink : {-3e38, -1e30, -1e4, 0.0, 88.0, 1e4, 1e30, 3e38, -kInfinity}) {
    SCOPED_TRACE(sink);
    Case c = base_case(DType::kFloat32);
    c.sink = c.dsink = c.dlse = true;
    c.causal = true;
    c.bias = {true, DType::kFloat32, {c.seqlen_k}};
    Values values = make_values(c);
    values.sink.fill(sink);
    values.bias.put(-kInfinity, 2);
    for_each_target([&](const Target& target) {
      Case judged = c;
      judged.backward = judged.dlse = judged.dsink = std::fabs(sink) <= 1e4;
      const Results r = run_call(c, values, target);
      EXPECT_TRUE(accurate(judged, values, r));
      EXPECT_TRUE(all_finite(r.dq));
      EXPECT_TRUE(all_finite(r.dsink));
    });
  }
}

}  // namespace
}  // namespace attentile::edge

// SPDX-License-Identifier: Apache-2.0
// Dead rows: those that see no key, and those whose every visible logit is -inf. Their out and
// their gradients are 0, and nothing they hold (dout, dlse) or see (values) reaches any result: NaN
// and infinity there change no bit. With a sink, dsink receives dlse and nothing else.
#include <algorithm>
#include <string>
#include <vector>

#include "edge/edge.h"

namespace attentile::edge {
namespace {

struct Change {
  const char* name;
  void (*apply)(Case& c);
};

void expect_dead_row(const Case& c, const Values& values, const Results& r, int64_t b, int64_t h,
                     int64_t i) {
  EXPECT_EQ(r.lse.at(b, h, i), c.sink ? values.sink.at(h) : -kInfinity)
      << b << " " << h << " " << i;
  for (int64_t d = 0; d < c.head_dim_v; ++d) ASSERT_EQ(r.out.at(b, i, h, d), 0.0) << d;
  for (int64_t d = 0; d < c.head_dim; ++d) ASSERT_EQ(r.dq.at(b, i, h, d), 0.0) << d;
  for (int64_t j = 0; j < c.seqlen_k; ++j) ASSERT_EQ(r.dbias.at(b, h, i, j), 0.0) << j;
}

// --- every visible logit -inf --------------------------------------------------------------------

const Change kShapes[] = {
    {"whole", [](Case&) {}},
    {"one_tile", [](Case& c) { c.seqlen_k = 40; }},
    {"long", [](Case& c) { c.seqlen_k = 140; }},
    {"one_query", [](Case& c) { c.seqlen_q = 1; }},
    {"causal", [](Case& c) { c.causal = true; }},
    {"masked",
     [](Case& c) { c.mask = {true, DType::kBool, {c.batch, 1, c.seqlen_q, c.seqlen_k}}; }},
    {"dropped",
     [](Case& c) {
       c.dropout_p = 0.4;
       c.dropout_seed = 11;
     }},
    {"capped", [](Case& c) { c.softcap = 3.0; }},
    {"sunk", [](Case& c) { c.sink = c.dsink = true; }},
    {"sunk_one_tile",
     [](Case& c) {
       c.sink = c.dsink = true;
       c.seqlen_k = 40;
     }},
};

class MinusInfinityRows : public ::testing::TestWithParam<int> {};

// Of the query heads 0 and 1, which share a KV head, every row is dead in batch entry 0; of head 3
// one row in entry 1.
constexpr int64_t kDeadHeads = 2;
constexpr int64_t kLoneHead = 3;
constexpr int64_t kLoneRow = 20;

Values with_dead_rows(const Case& c) {
  Values values = make_values(c);
  for (int64_t h = 0; h < c.num_heads_q; ++h) {
    for (int64_t i = 0; i < c.seqlen_q; ++i) {
      for (int64_t j = 0; j < c.seqlen_k; ++j) {
        if (h < kDeadHeads) values.bias.put(-kInfinity, 0, h, i, j);
        if (h == kLoneHead && i == kLoneRow) values.bias.put(-kInfinity, 1, h, i, j);
      }
    }
  }
  return values;
}

Values with_poison(const Case& c, const Values& clean, double poison) {
  Values values = clean;
  for (int64_t d = 0; d < c.head_dim_v; ++d) {
    values.v.put(poison, 0, c.seqlen_k / 2, 0, d);
    values.v.put(-poison, 0, 0, 0, d);
    for (int64_t i = 0; i < c.seqlen_q; ++i) {
      for (int64_t h = 0; h < kDeadHeads; ++h) values.dout.put(poison, 0, i, h, d);
    }
    if (c.seqlen_q > kLoneRow) values.dout.put(poison, 1, kLoneRow, kLoneHead, d);
  }
  for (int64_t i = 0; i < c.seqlen_q; ++i) {
    for (int64_t h = 0; h < kDeadHeads; ++h) values.dlse.put(poison, 0, h, i);
  }
  if (c.seqlen_q > kLoneRow) values.dlse.put(poison, 1, kLoneHead, kLoneRow);
  return values;
}

// Which receives dlse.
Results without_dsink(Results results) {
  results.dsink = {};
  return results;
}

TEST_P(MinusInfinityRows, TakeNoPart) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat64}) {
    Case c = base_case(dtype);
    kShapes[GetParam()].apply(c);
    c.bias = {true, DType::kFloat32, {c.batch, c.num_heads_q, c.seqlen_q, c.seqlen_k}};
    c.dbias = c.dlse = true;
    const Values clean = with_dead_rows(c);
    for_each_target([&](const Target& target) {
      const Results expected = run_call(c, clean, target);
      EXPECT_TRUE(accurate(c, clean, expected));
      for (double poison : {kNaN, kInfinity}) {
        SCOPED_TRACE(std::string(to_string(dtype)) + " " + std::to_string(poison));
        const Results got = run_call(c, with_poison(c, clean, poison), target);
        EXPECT_TRUE(same_bits(without_dsink(expected), without_dsink(got)));
        for (int64_t h = 0; h < kDeadHeads; ++h) {
          for (int64_t i = 0; i < c.seqlen_q; ++i) expect_dead_row(c, clean, got, 0, h, i);
        }
        if (c.seqlen_q > kLoneRow) expect_dead_row(c, clean, got, 1, kLoneHead, kLoneRow);
      }
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Edge, MinusInfinityRows,
                         ::testing::Range(0, static_cast<int>(std::size(kShapes))),
                         [](const auto& parameter) {
                           return std::string(kShapes[parameter.param].name);
                         });

// --- rows whose weight is all the sink's ---------------------------------------------------------

// Their weights are tiny and not 0, so dropped pairs keep their dS beside a row that is NaN.
TEST(SunkRows, KeepTheGradientOfDroppedPairsBesideANaN) {
  Case c = base_case(DType::kFloat32);
  c.causal = c.sink = c.dsink = c.dlse = true;
  c.dropout_p = 0.4;
  c.dropout_seed = 11;
  Values clean = make_values(c);
  clean.sink.fill(30.0);
  Values values = clean;
  for (int64_t d = 0; d < c.head_dim; ++d) values.q.put(kNaN, 0, 0, 0, d);
  for_each_target([&](const Target& target) {
    const Results expected = run_call(c, clean, target);
    const Results got = run_call(c, values, target);
    ASSERT_EQ(expected.lse.at(0, 0, 1), 30.0);
    for (int64_t j = c.seqlen_k - c.seqlen_q + 1; j < c.seqlen_k; ++j) {  // not seen by row 0
      for (int64_t d = 0; d < c.head_dim; ++d) {
        ASSERT_EQ(expected.dk.at(0, j, 0, d), got.dk.at(0, j, 0, d)) << j << " " << d;
      }
    }
  });
}

// --- rows that see no key, with a sink -----------------------------------------------------------

const Change kHiding[] = {
    {"some_rows", [](Case& c) { c.position_offset = -5; }},
    {"some_rows_one_tile",
     [](Case& c) {
       c.seqlen_k = 40;
       c.position_offset = -5;
     }},
    {"some_rows_long",
     [](Case& c) {
       c.seqlen_k = 140;
       c.position_offset = -17;
     }},
    {"all_rows", [](Case& c) { c.position_offset = -1000; }},
};

class HiddenRowsWithASink : public ::testing::TestWithParam<int> {};

int64_t hidden_rows(const Case& c) {
  return std::min(c.seqlen_q, -*c.position_offset);
}

TEST_P(HiddenRowsWithASink, GiveItDlseAlone) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat64}) {
    for (bool dlse : {false, true}) {
      Case c = base_case(dtype);
      c.causal = c.sink = c.dsink = true;
      c.dlse = dlse;
      kHiding[GetParam()].apply(c);
      const Values clean = make_values(c);
      for_each_target([&](const Target& target) {
        const Results expected = run_call(c, clean, target);
        for (double poison : {kNaN, kInfinity}) {
          SCOPED_TRACE(std::string(to_string(dtype)) + " " + std::to_string(poison));
          Values values = clean;
          for (int64_t i = 0; i < hidden_rows(c); ++i) {
            for (int64_t d = 0; d < c.head_dim_v; ++d) values.dout.put(poison, 1, i, 2, d);
          }
          const Results got = run_call(c, values, target);
          EXPECT_TRUE(same_bits(expected, got));
          EXPECT_TRUE(all_finite(got.dsink));
          EXPECT_TRUE(accurate(c, values, got));
        }
      });
    }
  }
}

TEST_P(HiddenRowsWithASink, OfMinusInfinityGiveItNothing) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat64}) {
    Case c = base_case(dtype);
    c.causal = c.sink = c.dsink = c.dlse = true;
    kHiding[GetParam()].apply(c);
    Values values = make_values(c);
    values.sink.fill(-kInfinity);
    for_each_target([&](const Target& target) {
      const Results r = run_call(c, values, target);
      for (int64_t h = 0; h < c.num_heads_q; ++h) EXPECT_EQ(r.dsink.at(h), 0.0) << h;
      EXPECT_EQ(r.lse.at(1, 2, 0), -kInfinity);
      EXPECT_TRUE(all_finite(r.dq));
      EXPECT_TRUE(all_finite(r.dk));
      EXPECT_TRUE(all_finite(r.dv));
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Edge, HiddenRowsWithASink,
                         ::testing::Range(0, static_cast<int>(std::size(kHiding))),
                         [](const auto& parameter) {
                           return std::string(kHiding[parameter.param].name);
                         });

}  // namespace
}  // namespace attentile::edge

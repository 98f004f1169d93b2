// SPDX-License-Identifier: Apache-2.0
// The oracle on cases worked out by hand, and the edge values of contract section 3.
#include "reference/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "dtype.h"
#include "reference/random_problem.h"

namespace attentile::reference {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

// One head, head_dim 1, scale 1: S_ij = q_i k_j.
struct Scalar : TestProblem {
  Scalar(std::vector<double> queries, std::vector<double> key_list, std::vector<double> values)
      : TestProblem({1, static_cast<int64_t>(queries.size()), static_cast<int64_t>(key_list.size()),
                     1, 1, 1, 1}) {
    Random random(1);
    fill(&random);
    q = queries;
    k = key_list;
    v = values;
    std::fill(dout.begin(), dout.end(), 1.0);
    problem.q.data = reinterpret_cast<char*>(q.data());
    problem.k.data = reinterpret_cast<char*>(k.data());
    problem.v.data = reinterpret_cast<char*>(v.data());
  }
};

bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0);
}

bool same_bits(const ExactResult& a, const ExactResult& b) {
  return same_bits(a.out.value, b.out.value) && same_bits(a.lse.value, b.lse.value) &&
         same_bits(a.dq.value, b.dq.value) && same_bits(a.dk.value, b.dk.value) &&
         same_bits(a.dv.value, b.dv.value) && same_bits(a.dbias.value, b.dbias.value) &&
         same_bits(a.dsink.value, b.dsink.value);
}

TEST(ByHand, TwoKeysWithWeightsOneAndThreeQuarters) {
  const Scalar test({1}, {0, std::log(3.0)}, {4, 8});  // weights 1/4 and 3/4
  const ExactResult exact = test.exact();
  EXPECT_NEAR(exact.out.at(0, 0, 0, 0), 7, 1e-15);
  EXPECT_NEAR(exact.lse.at(0, 0, 0, 0), std::log(4.0), 1e-15);
  EXPECT_NEAR(exact.dv.at(0, 0, 0, 0), 0.25, 1e-16);
  EXPECT_NEAR(exact.dv.at(0, 1, 0, 0), 0.75, 1e-16);
  // dS = P (v - out) = (1/4)(-3), (3/4)(1)
  EXPECT_NEAR(exact.dk.at(0, 0, 0, 0), -0.75, 1e-15);
  EXPECT_NEAR(exact.dk.at(0, 1, 0, 0), 0.75, 1e-15);
  EXPECT_NEAR(exact.dq.at(0, 0, 0, 0), 0.75 * std::log(3.0), 1e-15);
}

TEST(ByHand, SoftcapThenBiasThenAlibi) {
  Scalar test({3}, {2, 2}, {1, 5});
  test.problem.softcap = 2;
  Random random(1);
  test.add_bias(&random, 1, 1, 1, 2);
  test.bias = {0.5, -0.25};
  test.problem.bias.data = reinterpret_cast<char*>(test.bias.data());
  test.slopes = {0.125f};
  test.problem.alibi_slopes = array4(test.slopes.data(), DType::kFloat32, 1, 1, 0, 0);
  // bottom_right: query 0 stands at key 1, so the distances are 1 and 0.
  const double capped = 2 * std::tanh(3.0);
  const double s0 = capped + 0.5 - 0.125;
  const double s1 = capped - 0.25;
  const double p0 = 1 / (1 + std::exp(s1 - s0));
  const ExactResult exact = test.exact();
  EXPECT_NEAR(exact.out.at(0, 0, 0, 0), p0 + 5 * (1 - p0), 1e-14);
  EXPECT_NEAR(exact.lse.at(0, 0, 0, 0), std::log(std::exp(s0) + std::exp(s1)), 1e-14);
  const double ds0 = p0 * (1 - (p0 + 5 * (1 - p0)));
  EXPECT_NEAR(exact.dbias.at(0, 0, 0, 0), ds0, 1e-14);
  const double slope_of_cap = 1 - std::tanh(3.0) * std::tanh(3.0);
  EXPECT_NEAR(exact.dk.at(0, 0, 0, 0), ds0 * slope_of_cap * 3, 1e-14);
}

TEST(ByHand, SinkTakesWeightAndGivesNothing) {
  Scalar test({0}, {0}, {6});
  Random random(1);
  test.add_sink(&random);
  test.sink[0] = std::log(2.0);  // weights 1/3 and sink 2/3
  const ExactResult exact = test.exact();
  EXPECT_NEAR(exact.out.at(0, 0, 0, 0), 2, 1e-15);
  EXPECT_NEAR(exact.lse.at(0, 0, 0, 0), std::log(3.0), 1e-15);
  EXPECT_NEAR(exact.dsink.at(0, 0, 0, 0), -2.0 / 3 * 2, 1e-15);
}

TEST(ByHand, CausalAlignments) {
  // Equal logits: out is the mean of the visible values.
  Scalar test({0, 0}, {0, 0, 0, 0}, {1, 2, 4, 8});
  test.problem.window_right = 0;
  EXPECT_DOUBLE_EQ(test.exact().out.at(0, 0, 0, 0), 7.0 / 3);
  EXPECT_DOUBLE_EQ(test.exact().out.at(0, 1, 0, 0), 15.0 / 4);
  test.problem.alignment = Alignment::kTopLeft;
  EXPECT_DOUBLE_EQ(test.exact().out.at(0, 0, 0, 0), 1);
  EXPECT_DOUBLE_EQ(test.exact().out.at(0, 1, 0, 0), 1.5);
  test.problem.window_left = 0;
  EXPECT_DOUBLE_EQ(test.exact().out.at(0, 1, 0, 0), 2);
  test.problem.has_position_offset = true;
  test.problem.position_offset = 2;
  EXPECT_DOUBLE_EQ(test.exact().out.at(0, 1, 0, 0), 8);
}

TEST(ByHand, HeadsShareTheirKvHead) {
  TestProblem test({1, 1, 1, 4, 2, 1, 1});
  Random random(1);
  test.fill(&random);
  test.v = {10, 20};
  test.problem.v.data = reinterpret_cast<char*>(test.v.data());
  const ExactResult exact = test.exact();
  EXPECT_EQ(exact.out.value, (std::vector<double>{10, 10, 20, 20}));
  EXPECT_DOUBLE_EQ(exact.dv.at(0, 0, 0, 0), test.dout[0] + test.dout[1]);
  EXPECT_DOUBLE_EQ(exact.dv.at(0, 0, 1, 0), test.dout[2] + test.dout[3]);
}

TEST(ByHand, DropoutScalesKeptWeightsAndLeavesLse) {
  Scalar test({0}, std::vector<double>(64, 0), std::vector<double>(64, 1));
  test.problem.dropout = make_dropout(0.5, 1, 2);
  test.problem.dropout.num_heads_q = 1;
  int kept = 0;
  for (int64_t j = 0; j < 64; ++j) kept += test.problem.dropout.keep(0, 0, 0, j) ? 1 : 0;
  const ExactResult exact = test.exact();
  EXPECT_DOUBLE_EQ(exact.out.at(0, 0, 0, 0), 2.0 * kept / 64);
  EXPECT_DOUBLE_EQ(exact.lse.at(0, 0, 0, 0), std::log(64.0));
  test.problem.dropout = make_dropout(1, 1, 2);
  EXPECT_EQ(test.exact().out.at(0, 0, 0, 0), 0);
}

TEST(EdgeValues, HiddenRows) {
  Scalar test({1, 1, 1}, {1, 2}, {3, 4});
  test.problem.window_right = 0;  // bottom_right, offset -1: query 0 sees nothing
  Random random(1);
  test.add_dlse(&random);
  const ExactResult exact = test.exact();
  EXPECT_EQ(exact.out.at(0, 0, 0, 0), 0);
  EXPECT_EQ(exact.lse.at(0, 0, 0, 0), -kInf);
  EXPECT_EQ(exact.dq.at(0, 0, 0, 0), 0);
  EXPECT_EQ(exact.lse.at(0, 0, 1, 0), 1);
  test.add_sink(&random);
  const ExactResult with_sink = test.exact();
  EXPECT_EQ(with_sink.out.at(0, 0, 0, 0), 0);
  EXPECT_EQ(with_sink.lse.at(0, 0, 0, 0), test.sink[0]);
  EXPECT_EQ(with_sink.dq.at(0, 0, 0, 0), 0);
}

TEST(EdgeValues, HiddenRowGivesDlseToTheSink) {
  Scalar test({1}, {1}, {3});
  test.problem.has_position_offset = true;
  test.problem.position_offset = -5;
  test.problem.window_right = 0;
  Random random(1);
  test.add_dlse(&random);
  test.add_sink(&random);
  EXPECT_EQ(test.exact().dsink.at(0, 0, 0, 0), test.dlse[0]);
  test.sink[0] = -kInf;
  EXPECT_EQ(test.exact().lse.at(0, 0, 0, 0), -kInf);
  EXPECT_EQ(test.exact().dsink.at(0, 0, 0, 0), 0);
}

TEST(EdgeValues, EveryLogitMinusInfinity) {
  Scalar test({1}, {-kInf, -kInf}, {3, 4});
  const ExactResult exact = test.exact();
  EXPECT_EQ(exact.out.at(0, 0, 0, 0), 0);
  EXPECT_EQ(exact.lse.at(0, 0, 0, 0), -kInf);
  for (const ExactArray* gradient : {&exact.dq, &exact.dk, &exact.dv}) {
    for (const double value : gradient->value) EXPECT_EQ(value, 0);
  }
}

TEST(EdgeValues, SomeLogitsMinusInfinityWeighNothing) {
  const Scalar test({1}, {-kInf, 2}, {3, 4});
  EXPECT_EQ(test.exact().out.at(0, 0, 0, 0), 4);
  EXPECT_EQ(test.exact().lse.at(0, 0, 0, 0), 2);
}

TEST(EdgeValues, LogitPlusInfinityIsNan) {
  const Scalar test({1}, {kInf, 2}, {3, 4});
  EXPECT_TRUE(std::isnan(test.exact().out.at(0, 0, 0, 0)));
  EXPECT_TRUE(std::isnan(test.exact().lse.at(0, 0, 0, 0)));
}

TEST(EdgeValues, SeqlenKZero) {
  TestProblem test({2, 3, 0, 2, 1, 4, 4});
  Random random(1);
  test.fill(&random);
  test.add_sink(&random);
  const ExactResult exact = test.exact();
  for (const double value : exact.out.value) EXPECT_EQ(value, 0);
  for (int64_t h = 0; h < 2; ++h) EXPECT_EQ(exact.lse.at(1, h, 2, 0), test.sink[h]);
  test.problem.sink.present = false;
  for (const double value : test.exact().lse.value) EXPECT_EQ(value, -kInf);
}

// Writes through run_backward into poisoned arrays, to see what is written.
TEST(EdgeValues, NothingToSumIsWrittenAsZero) {
  struct Shape {
    int64_t batch, seqlen_q, heads_q, heads_kv;
  };
  for (const Shape& shape : {Shape{0, 3, 2, 1}, Shape{2, 0, 2, 1}, Shape{2, 3, 0, 1}}) {
    TestProblem test({shape.batch, shape.seqlen_q, 4, shape.heads_q, shape.heads_kv, 2, 3});
    Random random(1);
    test.fill(&random);
    test.add_bias(&random, 1, 1, 1, 4);
    test.add_sink(&random);
    std::vector<double> dk(test.k.size(), NAN), dv(test.v.size(), NAN), dbias(4, NAN),
        dsink(2, NAN);
    Problem& p = test.problem;
    p.dk = p.k;
    p.dk.data = reinterpret_cast<char*>(dk.data());
    p.dv = p.v;
    p.dv.data = reinterpret_cast<char*>(dv.data());
    p.dbias = p.bias;
    p.dbias.data = reinterpret_cast<char*>(dbias.data());
    p.dsink = array4(dsink.data(), DType::kFloat64, 1, 0, 0, 0);
    ASSERT_TRUE(run_backward(p, {}).ok());
    for (const auto* list : {&dk, &dv, &dbias}) {
      for (const double value : *list) EXPECT_EQ(value, 0);
    }
    for (int64_t h = 0; h < shape.heads_q; ++h) EXPECT_EQ(dsink[h], 0);
  }
}

TEST(EdgeValues, KeysBeyondTheUsedLength) {
  TestProblem test({2, 3, 5, 2, 1, 4, 4});
  Random random(1);
  test.fill(&random);
  test.used_k = {2, 0};
  test.problem.seqused_k = {test.used_k.data(), 1};
  const ExactResult before = test.exact();
  for (int64_t j = 2; j < 5; ++j) EXPECT_EQ(before.dk.at(0, j, 0, 1), 0);
  for (int64_t j = 0; j < 5; ++j) EXPECT_EQ(before.dv.at(1, j, 0, 3), 0);
  EXPECT_NE(before.dk.at(0, 1, 0, 1), 0);
  for (size_t n = 2 * 4; n < test.k.size(); ++n) test.k[n] = test.v[n] = NAN;
  EXPECT_TRUE(same_bits(before, test.exact()));
}

TEST(EdgeValues, HiddenElementsHaveNoEffect) {
  int hidden = 0;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    const std::unique_ptr<TestProblem> test = random_problem(seed);
    Problem& p = test->problem;
    const ExactResult before = test->exact();
    // A key is hidden from all when its dv is exactly 0: dout is dense. Not with dropout.
    if (p.dropout.enabled) continue;
    for (int64_t row = 0; row < p.total_k; ++row) {
      for (int64_t head = 0; head < p.num_heads_kv; ++head) {
        const size_t index = static_cast<size_t>(row * p.num_heads_kv + head);
        if (before.dv.value[index * static_cast<size_t>(p.head_dim_v)] != 0) continue;
        ++hidden;
        for (int64_t c = 0; c < p.head_dim; ++c)
          test->k[index * p.head_dim + c] = c % 2 ? NAN : kInf;
        for (int64_t c = 0; c < p.head_dim_v; ++c) test->v[index * p.head_dim_v + c] = NAN;
      }
    }
    EXPECT_TRUE(same_bits(before, test->exact())) << seed << test->features;
  }
  EXPECT_GT(hidden, 100);
}

TEST(EdgeValues, NanInAVisibleValueStaysInItsColumn) {
  TestProblem test({1, 4, 4, 1, 1, 2, 3});
  Random random(1);
  test.fill(&random);
  test.problem.window_right = 0;
  const ExactResult before = test.exact();
  test.v[2 * 3 + 1] = NAN;  // key 2, column 1: seen by queries 2 and 3
  const ExactResult after = test.exact();
  EXPECT_TRUE(same_bits(before.lse.value, after.lse.value));
  for (int64_t i = 0; i < 4; ++i) {
    for (int64_t c = 0; c < 3; ++c) {
      if (i >= 2 && c == 1) {
        EXPECT_TRUE(std::isnan(after.out.at(0, i, 0, c)));
      } else {
        EXPECT_EQ(after.out.at(0, i, 0, c), before.out.at(0, i, 0, c));
      }
    }
  }
  for (int64_t i = 0; i < 2; ++i) EXPECT_EQ(after.dq.at(0, i, 0, 0), before.dq.at(0, i, 0, 0));
  EXPECT_EQ(after.dv.at(0, 0, 0, 0), before.dv.at(0, 0, 0, 0));
  EXPECT_TRUE(std::isnan(after.dk.condition[3 * 2 - 1]));
}

// An infinite gradient of lse or out may spread NaN to all that its row sees, and to no more; the
// conditions say where.
TEST(EdgeValues, InfiniteIncomingGradientsTaintTheirRow) {
  for (const bool of_lse : {true, false}) {
    TestProblem test({1, 3, 3, 1, 1, 2, 2});
    Random random(1);
    test.fill(&random);
    test.add_dlse(&random);
    test.add_sink(&random);
    test.problem.window_right = 0;
    const ExactResult before = test.exact();
    (of_lse ? test.dlse[1] : test.dout[2]) = kInf;  // query 1: sees keys 0 and 1
    const ExactResult after = test.exact();
    for (int64_t c = 0; c < 2; ++c) {
      EXPECT_TRUE(std::isnan(after.dq.condition[2 * 1 + c])) << of_lse;
      EXPECT_TRUE(std::isnan(after.dk.condition[2 * 0 + c]));
      EXPECT_TRUE(std::isnan(after.dk.condition[2 * 1 + c]));
      EXPECT_TRUE(std::isnan(after.dv.condition[2 * 1 + c]));
      EXPECT_EQ(after.dk.condition[2 * 2 + c], before.dk.condition[2 * 2 + c]);
      for (int64_t i : {0, 2}) {
        EXPECT_EQ(after.dq.condition[2 * i + c], before.dq.condition[2 * i + c]);
        EXPECT_EQ(after.dq.at(0, i, 0, c), before.dq.at(0, i, 0, c));
      }
    }
    EXPECT_TRUE(std::isnan(after.dsink.condition[0]));
  }
}

TEST(EdgeValues, NanAtAWeightOfZeroCountsAsSeen) {
  Scalar test({1}, {-kInf, 2}, {NAN, 4});
  EXPECT_TRUE(std::isnan(test.exact().out.at(0, 0, 0, 0)));
  EXPECT_EQ(test.exact().lse.at(0, 0, 0, 0), 2);
  Scalar dropped({1}, {1}, {NAN});
  dropped.problem.dropout = make_dropout(1, 0, 0);
  EXPECT_TRUE(std::isnan(dropped.exact().out.at(0, 0, 0, 0)));
}

TEST(EdgeValues, NanInKeyOrQueryOrBias) {
  TestProblem test({1, 3, 3, 1, 1, 2, 2});
  Random random(1);
  test.fill(&random);
  test.problem.window_right = 0;
  const ExactResult before = test.exact();
  test.k[2 * 1] = NAN;  // key 1: queries 1 and 2
  const ExactResult after = test.exact();
  EXPECT_EQ(after.out.at(0, 0, 0, 1), before.out.at(0, 0, 0, 1));
  for (int64_t i = 1; i < 3; ++i) {
    EXPECT_TRUE(std::isnan(after.lse.at(0, 0, i, 0)));
    for (int64_t c = 0; c < 2; ++c) EXPECT_TRUE(std::isnan(after.out.at(0, i, 0, c)));
  }
  EXPECT_EQ(after.dq.at(0, 0, 0, 0), before.dq.at(0, 0, 0, 0));
}

TEST(EdgeValues, HugeLogits) {
  for (const double size : {1e5, 1e30}) {
    for (const double sign : {1.0, -1.0}) {
      const Scalar test({sign * size}, {1, 1, 2}, {3, 5, 7});
      const ExactResult exact = test.exact();
      EXPECT_EQ(exact.out.at(0, 0, 0, 0), sign > 0 ? 7 : 4);
      EXPECT_DOUBLE_EQ(exact.lse.at(0, 0, 0, 0), sign > 0 ? 2 * size : -size + std::log(2.0));
    }
  }
}

TEST(EdgeValues, ScaleZeroAndNegative) {
  Scalar test({2}, {1, 3}, {3, 5});
  test.problem.softmax_scale = 0;
  EXPECT_EQ(test.exact().out.at(0, 0, 0, 0), 4);
  EXPECT_EQ(test.exact().dq.at(0, 0, 0, 0), 0);
  test.problem.softmax_scale = -1;
  EXPECT_GT(4, test.exact().out.at(0, 0, 0, 0));
}

// Pages, cache rows and left padding are other places for the same keys.
TEST(Layouts, PagedAndCachedKeysEqualPlainOnes) {
  constexpr int64_t kBatch = 2, kSeqlenK = 7, kHeads = 2, kDim = 3, kPage = 3;
  TestProblem plain({kBatch, 4, kSeqlenK, 4, kHeads, kDim, kDim});
  Random random(5);
  plain.fill(&random);
  plain.problem.backward = false;
  plain.problem.window_right = 0;
  const ExactResult expected = plain.exact();

  constexpr int64_t kRow = kHeads * kDim;
  const std::vector<int32_t> table = {4, 0, 5, 1, 3, 2};
  const std::vector<int32_t> used = {kSeqlenK, kSeqlenK};
  std::vector<double> pages_k(6 * kPage * kRow, NAN), pages_v(6 * kPage * kRow, NAN);
  std::vector<double> cache_k(4 * 10 * kRow, NAN), cache_v(4 * 10 * kRow, NAN);
  const std::vector<int32_t> rows = {3, 1};
  const std::vector<int32_t> leftpad = {2, 3};
  const std::vector<int32_t> cache_used = {9, 10};  // the padding counts
  for (int64_t b = 0; b < kBatch; ++b) {
    for (int64_t j = 0; j < kSeqlenK; ++j) {
      for (int64_t c = 0; c < kRow; ++c) {
        const int64_t from = (b * kSeqlenK + j) * kRow + c;
        const int64_t page = (table[b * 3 + j / kPage] * kPage + j % kPage) * kRow + c;
        const int64_t cached = (rows[b] * 10 + leftpad[b] + j) * kRow + c;
        pages_k[page] = cache_k[cached] = plain.k[from];
        pages_v[page] = cache_v[cached] = plain.v[from];
      }
    }
  }
  Problem paged = plain.problem;
  paged.page_size = kPage;
  paged.block_table = table.data();
  paged.block_table_stride[0] = 3;
  paged.block_table_stride[1] = 1;
  paged.max_seqlen_k = 9;
  paged.seqused_k = {used.data(), 1};
  paged.k = array4(pages_k.data(), DType::kFloat64, kPage * kRow, kRow, kDim, 1);
  paged.v = array4(pages_v.data(), DType::kFloat64, kPage * kRow, kRow, kDim, 1);
  EXPECT_TRUE(same_bits(expected, TestProblem::exact_of(paged, 1)));

  Problem cached = plain.problem;
  cached.max_seqlen_k = 10;
  cached.cache_batch_idx = {rows.data(), 1};
  cached.leftpad_k = {leftpad.data(), 1};
  cached.seqused_k = {cache_used.data(), 1};
  cached.k = array4(cache_k.data(), DType::kFloat64, 10 * kRow, kRow, kDim, 1);
  cached.v = array4(cache_v.data(), DType::kFloat64, 10 * kRow, kRow, kDim, 1);
  EXPECT_TRUE(same_bits(expected, TestProblem::exact_of(cached, 1)));
}

TEST(Determinism, BitsDoNotDependOnThreads) {
  for (uint64_t seed = 0; seed < 24; ++seed) {
    const std::unique_ptr<TestProblem> test = random_problem(seed);
    const ExactResult one = test->exact(1);
    ASSERT_TRUE(one.out.present);
    for (const int threads : {2, 5}) EXPECT_TRUE(same_bits(one, test->exact(threads))) << seed;
  }
}

TEST(Execution, PollStopsTheCall) {
  TestProblem test({4, 200, 300, 4, 2, 16, 16});
  Random random(1);
  test.fill(&random);
  ExecutionContext context;
  context.num_threads = 2;
  context.poll = [](void* calls, double fraction) {
    EXPECT_GE(fraction, 0);
    EXPECT_LE(fraction, 1);
    return ++*static_cast<int*>(calls) >= 2 ? 1 : 0;
  };
  int calls = 0;
  context.poll_data = &calls;
  ExactResult result;
  EXPECT_EQ(compute_exact(test.problem, context, &result).code(), StatusCode::kCancelled);
  EXPECT_EQ(calls, 2);
}

TEST(Storage, ResultsAreRoundedOnce) {
  TestProblem test({1, 3, 5, 2, 1, 4, 6});
  Random random(1);
  test.fill(&random);
  const ExactResult exact = test.exact();
  Problem p = test.problem;
  std::vector<uint16_t> out(3 * 2 * 6);
  std::vector<float> lse(2 * 3);
  p.out = array4(out.data(), DType::kBFloat16, 36, 12, 6, 1);
  p.lse = array4(lse.data(), DType::kFloat32, 6, 3, 1, 0);
  ASSERT_TRUE(run_forward(p, {}).ok());
  for (size_t n = 0; n < out.size(); ++n) EXPECT_EQ(out[n], double_to_bfloat16(exact.out.value[n]));
  for (size_t n = 0; n < lse.size(); ++n) {
    EXPECT_EQ(lse[n], static_cast<float>(exact.lse.value[n]));
  }
}

}  // namespace
}  // namespace attentile::reference

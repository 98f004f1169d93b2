// SPDX-License-Identifier: Apache-2.0
// The backward kernels on the emulator, property by property: every class of head_dim, bits that
// depend on neither schedule nor layout nor neighbours, NaN and infinity that reach whom they may
// and nobody else, rows and keys without gradients, exact counts.
#include <gmock/gmock.h>

#include <cmath>
#include <limits>

#include "conformance/call.h"
#include "conformance/call_testing.h"
#include "cuda/backward_entry.h"
#include "cuda/emulator_entry.h"
#include "cuda/make_backward_params.h"
#include "cuda/support.h"

namespace attentile::cuda::test {
namespace {

using conformance::accurate;
using conformance::all_zero;
using conformance::base_case;
using conformance::Case;
using conformance::Placement;
using conformance::Results;
using conformance::same_bits;
using conformance::Values;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity64 = std::numeric_limits<double>::infinity();

struct Run {
  Results results;
  Report report;  // of the backward pass
};

Run run(const Case& c, const Values& values, const Options& options = {},
        Placement placement = Placement::kContiguous) {
  conformance::PlacedCall call(c, values, empty_results(c, values), c.seed, placement);
  Run run;
  Status status = emulate_forward(call.inputs(), call.outputs(), options_of(c), options);
  EXPECT_TRUE(status.ok()) << status.message();
  call.freeze_outputs();
  status = emulate_backward({call.inputs(), call.outputs(), call.gradients()}, options_of(c),
                            options, &run.report);
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(call.damage(), "");
  run.results = call.results();
  return run;
}

// Causal, GQA, two tiles of queries and three of keys, none of them whole; dlse, sink.
Case causal_case(int64_t head_dim = 64) {
  Case c = base_case(DType::kBFloat16);
  c.causal = true;
  c.seqlen_q = 140;
  c.seqlen_k = 150;
  c.head_dim = c.head_dim_v = head_dim;
  c.dlse = c.sink = c.dsink = true;
  return c;
}

// Of one KV head, softcap where 3 divides head_dim, narrower values where 5 does.
void expect_accurate_in_any_layout(int64_t head_dim, DType dtype) {
  Case c = causal_case(head_dim);
  c.dtype = dtype;
  c.batch = c.num_heads_kv = 1;
  c.num_heads_q = 2;
  c.head_dim_v = head_dim % 5 == 0 ? head_dim / 2 : head_dim;
  c.softcap = head_dim % 3 == 0 ? 5.0 : 0.0;
  const Values values = make_values(c);
  const Results packed = run(c, values).results;
  EXPECT_TRUE(accurate(c, values, packed)) << describe(c);
  const Results strided = run(c, values, {}, Placement::kRandom).results;
  EXPECT_TRUE(same_bits(packed, strided)) << describe(c);
}

TEST(Backward, EveryHeadDim) {
  for (const int64_t head_dim : {1, 31, 40, 72, 100, 136, 200, 256}) {
    expect_accurate_in_any_layout(head_dim, head_dim % 8 == 0 ? DType::kFloat16 : DType::kBFloat16);
  }
}

TEST(Backward, EveryHeadDimOfFloat32) {
  for (const int64_t head_dim : {1, 33, 100, 256}) {
    expect_accurate_in_any_layout(head_dim, DType::kFloat32);
  }
}

TEST(Backward, BitsDependOnNeitherScheduleNorCompletionNorOrder) {
  Case c = causal_case(32);
  c.batch = 1;
  c.seqlen_q = 70;
  c.dropout_p = 0.3;
  c.key_base = 5;
  c.bias = {true, DType::kBFloat16, {1, 1, c.seqlen_k}};
  c.dbias = true;
  const Values values = make_values(c);
  const Results expected = run(c, values).results;
  EXPECT_TRUE(accurate(c, values, expected));
  for (const Schedule schedule : kSchedules) {
    for (const Completion completion : kCompletions) {
      for (const BlockOrder order : kBlockOrders) {
        const Options options = {
            .schedule = schedule, .completion = completion, .block_order = order, .seed = 5};
        EXPECT_TRUE(same_bits(expected, run(c, values, options).results));
      }
    }
  }
}

TEST(Backward, BitsOfFloat32DependOnNeitherScheduleNorOrder) {
  Case c = causal_case(32);
  c.dtype = DType::kFloat32;
  c.batch = c.num_heads_kv = 1;
  c.num_heads_q = 2;
  c.seqlen_q = 70;
  c.seqlen_k = 50;
  const Values values = make_values(c);
  const auto expected = run(c, values);
  EXPECT_TRUE(accurate(c, values, expected.results));
  for (const Schedule schedule : kSchedules) {
    for (const BlockOrder order : kBlockOrders) {
      const Options options = {.schedule = schedule,
                               .completion = kCompletions[static_cast<size_t>(order) % 3],
                               .block_order = order,
                               .seed = 5};
      EXPECT_TRUE(same_bits(expected.results, run(c, values, options).results));
    }
  }
}

// Rows of few keys whose lse cannot resolve their logits: delta goes by the weights as they are.
TEST(Backward, RowsOfFewKeysWithVeryNegativeLogits) {
  const Case c = conformance::make_case(2482);
  const Values values = make_values(c);
  EXPECT_TRUE(accurate(c, values, run(c, values).results)) << describe(c);
}

// An lse of -inf says that the row saw nothing, whatever keys are here: it weighs nothing, as a row
// without dout does.
TEST(Backward, ARowThatSawNothingElsewhereWeighsNothing) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat32}) {
    Case c = base_case(dtype);
    c.batch = c.num_heads_q = c.num_heads_kv = 1;
    c.seqlen_q = c.seqlen_k = 70;
    const auto results = [&](bool saw_nothing) {
      Values values = make_values(c);
      for (int64_t d = 0; d < c.head_dim_v; ++d) values.dout.put(0.0, 0, 33, 0, d);
      if (saw_nothing) values.dout.put(1.0, 0, 33, 0, 3);
      conformance::PlacedCall call(c, values, empty_results(c, values), c.seed,
                                   Placement::kContiguous);
      EXPECT_TRUE(emulate_forward(call.inputs(), call.outputs(), options_of(c), {}).ok());
      if (saw_nothing) {
        static_cast<float*>(call.outputs().lse.data)[33] = -std::numeric_limits<float>::infinity();
      }
      const Status status =
          emulate_backward({call.inputs(), call.outputs(), call.gradients()}, options_of(c), {});
      EXPECT_TRUE(status.ok()) << status.message();
      return call.results();
    };
    const Results got = results(true);
    for (int64_t d = 0; d < c.head_dim; ++d) EXPECT_EQ(got.dq.at(0, 33, 0, d), 0.0);
    EXPECT_TRUE(same_bits(got, results(false), [](const std::string& name, const auto&) {
      return name == "lse" || name == "out";
    }));
  }
}

// Keys of one logit: whatever an lse that cannot resolve it says, each weighs no more than 1.
TEST(Backward, WeightsOfHugeLogitsAreAtMostOne) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (const double logit : {1e4, 4e7, -1e8, 1e20}) {
      Case c = base_case(dtype);
      c.batch = c.num_heads_q = c.num_heads_kv = 1;
      c.seqlen_q = 3;
      c.seqlen_k = 10;
      c.head_dim = c.head_dim_v = 1;
      c.softmax_scale = 1.0;
      Values values = make_values(c);
      for (int64_t i = 0; i < c.seqlen_q; ++i) values.q.put(1.0, 0, i, 0, 0);
      for (int64_t j = 0; j < c.seqlen_k; ++j) values.k.put(logit, 0, j, 0, 0);
      for (int64_t i = 0; i < c.seqlen_q; ++i) values.dout.put(1.0, 0, i, 0, 0);
      const Results got = run(c, values).results;
      for (int64_t j = 0; j < c.seqlen_k; ++j) {
        EXPECT_GE(got.dv.at(0, j, 0, 0), 0.0) << logit;
        EXPECT_LE(got.dv.at(0, j, 0, 0), 3.0) << logit;
      }
    }
  }
}

TEST(Backward, HardwareSumsAreAccurateToo) {
  Case c = causal_case();
  c.batch = 1;
  const Values values = make_values(c);
  for (const int arch : {80, 90}) {
    const Options options = {.mma = MmaModel::kHardware, .arch = arch};
    EXPECT_TRUE(accurate(c, values, run(c, values, options).results)) << arch;
  }
}

// Whether what may differ after query (b, h, i) has changed does: dq of that query, dk and dv of
// the keys it sees, dsink of its head.
bool reached(const Case& c, const Values& values, const std::string& name,
             const std::vector<int64_t>& at, const std::vector<int64_t>& query) {
  const int64_t b = query[0], h = query[1], i = query[2];
  if (name == "dsink") return at[0] == h;
  if (name == "dq") return at[0] == b && at[2] == h && at[1] == i;
  if (name == "out") return at[0] == b && at[2] == h && at[1] == i;
  if (name == "lse") return at[0] == b && at[1] == h && at[2] == i;
  return at[0] == b && at[2] == h / 2 && visible(c, values, b, h, i, at[1]);
}

TEST(Backward, AQueryReachesWhatItSeesAndNothingElse) {
  const std::vector<int64_t> query = {1, 2, 77};
  for (const int64_t head_dim : {64, 128}) {
    Case c = causal_case(head_dim);
    const Values values = make_values(c);
    const Results clean = run(c, values).results;
    for (const double special : {30.0, kNaN, kInfinity64}) {
      if (head_dim != 64 && !std::isnan(special)) continue;
      for (const bool in_dout : {false, true}) {
        Values tainted = values;
        (in_dout ? tainted.dout : tainted.q).put(special, 1, 77, 2, 3);
        const Results got = run(c, tainted).results;
        EXPECT_TRUE(same_bits(
            clean, got,
            [&](const auto& name, const auto& at) { return reached(c, values, name, at, query); }))
            << special << in_dout;
        if (!std::isnan(special)) continue;
        EXPECT_TRUE(std::isnan(got.dq.at(1, 77, 2, 0)));
        EXPECT_TRUE(std::isnan(got.dk.at(1, 60, 1, 0)));
        EXPECT_TRUE(std::isnan(got.dv.at(1, 60, 1, 3)));
      }
    }
  }
}

// Key 44 reaches, through the queries that see it, all the keys those see.
TEST(Backward, AKeyReachesWhoSeesIt) {
  constexpr int64_t kKey = 44;
  for (const int kind : {0, 1, 2, 3}) {
    const bool masked = kind == 1;
    Case c = causal_case();
    c.alignment = Alignment::kTopLeft;
    c.batch = 1;
    c.window_left = 20;
    if (kind == 2) {
      c.dtype = DType::kFloat32;
      c.head_dim = c.head_dim_v = 20;
      c.seqlen_q = c.seqlen_k = 70;
    }
    if (masked) c.mask = {true, DType::kBool, {c.seqlen_q, c.seqlen_k}};
    if (kind == 3) c.softcap = 5;  // K is read once more, before it is cleared
    const Values values = make_values(c);
    const Results clean = run(c, values).results;
    EXPECT_TRUE(accurate(c, values, clean));
    for (const double special : {kNaN, kInfinity64, -kInfinity64}) {
      for (const bool in_v : {false, true}) {
        if (in_v && kind == 3) continue;
        Values tainted = values;
        (in_v ? tainted.v : tainted.k).put(special, 0, kKey, 1, 3);
        EXPECT_TRUE(same_bits(clean, run(c, tainted).results,
                              [&](const auto& name, const auto& at) {
                                for (int64_t h = 2; h < 4; ++h) {
                                  for (int64_t i = 0; i < c.seqlen_q; ++i) {
                                    if (!visible(c, values, 0, h, i, kKey)) continue;
                                    if (reached(c, values, name, at, {0, h, i})) return true;
                                  }
                                }
                                return false;
                              }))
            << special << in_v << kind;
      }
    }
  }
}

TEST(Backward, WhatNobodySeesHasNoEffectAndNoGradient) {
  for (const int kind : {0, 1, 2, 3}) {
    Case c = causal_case(96);
    if (kind == 0) c.position_offset = -40;
    if (kind == 1) c.window_left = 9;
    if (kind == 2) c.mask = {true, DType::kBool, {c.batch, 1, 1, c.seqlen_k}};
    if (kind == 3) c.seqused_k = {100, 0};
    const Values values = make_values(c);
    const Results clean = run(c, values).results;
    EXPECT_TRUE(accurate(c, values, clean)) << describe(c);
    for (const double poison : {kNaN, kInfinity64}) {
      EXPECT_TRUE(same_bits(clean, run(c, poisoned(c, values, poison)).results)) << describe(c);
    }
    if (kind == 0) EXPECT_EQ(clean.dq.at(0, 39, 1, 2), 0.0);
    if (kind == 3) EXPECT_EQ(clean.dk.at(0, 100, 1, 2), 0.0);
    if (kind == 3) EXPECT_EQ(clean.dv.at(1, 0, 1, 2), 0.0);
  }
}

// No query heads, whose keys and values have gradients all the same.
TEST(Backward, WithoutQueryHeadsIsZero) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat32}) {
    Case c = causal_case();
    c.dtype = dtype;
    c.num_heads_q = 0;
    c.dlse = c.sink = c.dsink = false;
    const Results got = run(c, make_values(c)).results;
    EXPECT_TRUE(all_zero(got.dk) && all_zero(got.dv));
  }
}

TEST(Backward, NothingToSumIsZero) {
  for (const bool no_keys : {false, true}) {
    Case c = causal_case();
    (no_keys ? c.seqlen_k : c.seqlen_q) = 0;
    c.bias = {true, DType::kFloat32, {1, c.num_heads_q, 1, 1}};
    c.dbias = true;
    c.dlse = false;
    const Results got = run(c, make_values(c)).results;
    EXPECT_TRUE(all_zero(got.dq) && all_zero(got.dk) && all_zero(got.dv));
    EXPECT_TRUE(all_zero(got.dbias) && all_zero(got.dsink));
  }
}

// dbias over every choice of dimensions that are summed, with elements that no pair reaches.
TEST(Backward, BiasGradientOfEveryShape) {
  for (int summed = 0; summed < 16; ++summed) {
    Case c = causal_case(32);
    c.seqlen_k = 100;
    const auto size = [&](int axis, int64_t whole) { return summed >> axis & 1 ? 1 : whole; };
    c.bias = {true,
              summed % 3 == 0 ? DType::kFloat32 : DType::kBFloat16,
              {size(0, c.batch), size(1, c.num_heads_q), size(2, c.seqlen_q), size(3, c.seqlen_k)}};
    c.dbias = true;
    c.softcap = summed % 2 == 0 ? 3.0 : 0.0;
    c.seqused_k = {70, 100};
    const Values values = make_values(c);
    EXPECT_TRUE(accurate(c, values, run(c, values).results)) << describe(c);
  }
}

// From the problem and the limits alone.
TEST(Backward, RefusesByNameAndTellsItsWorkspace) {
  Problem p;
  p.dtype = DType::kFloat64;
  p.head_dim = p.head_dim_v = 64;
  EXPECT_THAT(check_backward(p).message(), ::testing::HasSubstr("q: is float64"));
  p.dtype = DType::kFloat32;
  p.head_dim = 65;
  EXPECT_TRUE(check_backward(p).ok());
  EXPECT_THAT(check_backward(p, {.num_sms = 128, .shared_bytes_per_block = 99 * 1024}).message(),
              ::testing::HasSubstr("114960 bytes"));
  p.head_dim = 64;
  EXPECT_TRUE(check_backward(p, {.num_sms = 128, .shared_bytes_per_block = 99 * 1024}).ok());
  p.dtype = DType::kFloat16;
  EXPECT_TRUE(check_backward(p, {.num_sms = 128, .shared_bytes_per_block = 99 * 1024}).ok());
  p.head_dim = 129;
  EXPECT_TRUE(check_backward(p).ok());
  EXPECT_THAT(check_backward(p, {.num_sms = 128, .shared_bytes_per_block = 99 * 1024}).message(),
              ::testing::HasSubstr("115232 bytes"));
  p.head_dim = 257;
  EXPECT_EQ(check_backward(p).code(), StatusCode::kUnsupported);
  p.head_dim = 64;
  p.batch = 3;
  p.num_heads_q = 4;
  p.max_seqlen_q = 5;
  EXPECT_EQ(backward_workspace_bytes(p), 3 * 4 * 5 * 12);
  p.varlen = true;
  p.total_q = 7;
  EXPECT_EQ(backward_workspace_bytes(p), 4 * 7 * 12);
}

// Whole tiles, so that every count is known; prints them for docs/kernels/backward_sm80.md.
TEST(Backward, CountsAndNoBankConflicts) {
  for (const int64_t head_dim : {32, 64, 96, 128, 192, 256}) {
    Case c = base_case(DType::kBFloat16);
    c.batch = 1;
    c.num_heads_q = c.num_heads_kv = 1;
    c.seqlen_q = 128;
    c.seqlen_k = 256;
    c.head_dim = c.head_dim_v = head_dim;
    const Report report = run(c, make_values(c)).report;
    const uint64_t d = static_cast<uint64_t>(head_dim);
    EXPECT_EQ(report.total.bank_conflicts, 0u) << head_dim;
    // dq: S, dP, dQ; dk and dv: S, dP, dV, dK.
    EXPECT_EQ(report.total.mma, 7 * 128 * 256 * d / (16 * 8 * 16));
    print_counts(head_dim, report);
  }
}

}  // namespace
}  // namespace attentile::cuda::test

// SPDX-License-Identifier: Apache-2.0
// The forward kernel on the emulator, property by property: every class of head_dim, bits that
// depend on neither schedule nor layout nor neighbours, NaN and infinity that reach whom they must
// and nobody else, rows that see nothing, shared memory without conflicts, and exact counts.
#include <cmath>
#include <limits>

#include "conformance/call.h"
#include "conformance/call_testing.h"
#include "cuda/emulator_entry.h"
#include "cuda/support.h"

namespace attentile::cuda::test {
namespace {

using conformance::accurate;
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
  Report report;
};

Run run(const Case& c, const Values& values, const Options& options = {},
        Placement placement = Placement::kContiguous) {
  conformance::PlacedCall call(c, values, empty_results(c, values), c.seed, placement);
  Run run;
  const Status status =
      emulate_forward(call.inputs(), call.outputs(), options_of(c), options, &run.report);
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(call.damage(), "");
  run.results = call.results();
  return run;
}

Case forward_case(DType dtype = DType::kBFloat16) {
  Case c = base_case(dtype);
  c.backward = false;
  return c;
}

// Causal, GQA, two tiles of queries and three of keys, none of them whole.
Case causal_case(int64_t head_dim = 64) {
  Case c = forward_case();
  c.causal = true;
  c.seqlen_q = 140;
  c.seqlen_k = 150;
  c.head_dim = c.head_dim_v = head_dim;
  return c;
}

TEST(Forward, EveryHeadDim) {
  for (const int64_t head_dim : {1, 8, 31, 32, 40, 64, 72, 96, 100, 128, 136, 192, 200, 256}) {
    for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
      for (const bool capped : {false, true}) {
        const bool two_kernels = head_dim > 64 && head_dim <= 128;
        if (!capped && !two_kernels) continue;
        Case c = causal_case(head_dim);
        c.dtype = dtype;
        c.batch = 1;
        c.num_heads_q = c.num_heads_kv = 1;
        c.head_dim_v = head_dim % 3 == 0 ? head_dim / 3 : head_dim;
        c.softcap = capped ? 5.0 : 0.0;
        const Values values = make_values(c);
        const Results contiguous = run(c, values).results;
        EXPECT_TRUE(accurate(c, values, contiguous)) << describe(c);
        const Results strided = run(c, values, {}, Placement::kRandom).results;
        EXPECT_TRUE(same_bits(contiguous, strided)) << describe(c);
      }
    }
  }
}

TEST(Forward, BitsDependOnNeitherScheduleNorCompletionNorOrder) {
  for (const bool dropped : {false, true}) {
    Case c = causal_case();
    c.seqlen_q = 70;
    c.batch = 1;
    c.num_heads_q = c.num_heads_kv = 2;
    c.dropout_p = dropped ? 0.3 : 0.0;
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
}

// Only what surrounds a row may change: other rows, heads and batch entries.
TEST(Forward, ARowDependsOnNoNeighbour) {
  const Case c = causal_case(128);
  const Values values = make_values(c);
  Values others = values;
  for (int64_t i = 0; i < c.seqlen_q; i += 2) {
    for (int64_t d = 0; d < c.head_dim; ++d) others.q.put(30.0, 1, i, 2, d);
  }
  EXPECT_TRUE(same_bits(run(c, values).results, run(c, others).results,
                        [](const std::string& name, const std::vector<int64_t>& at) {
                          const int64_t row = name == "out" ? at[1] : at[2];
                          const int64_t head = name == "out" ? at[2] : at[1];
                          return at[0] == 1 && head == 2 && row % 2 == 0;
                        }));
}

TEST(Forward, HardwareSumsAreAccurateToo) {
  const Case c = causal_case();
  const Values values = make_values(c);
  for (const int arch : {80, 90}) {
    const Options options = {.mma = MmaModel::kHardware, .arch = arch};
    EXPECT_TRUE(accurate(c, values, run(c, values, options).results)) << arch;
  }
}

// A value of key 44 that is not finite changes one column of the rows that see it, and no bit else.
// A sink far above the logits leaves the keys a share that scales whole rows of out: it does not
// bear the error of ex2, which in a sum of many weights cancels.
TEST(Forward, SharesBesideASinkAreAccurateWhateverEx2) {
  for (const Case& named : conformance::named_cases()) {
    if (named.name != "sink_far_above_keys" || named.dtype != DType::kFloat32) continue;
    Case c = named;
    c.backward = false;
    const Values values = make_values(c);
    for (const int ulps : {-2, 0, 2}) {
      EXPECT_TRUE(accurate(c, values, run(c, values, {.ex2_ulps = ulps}).results)) << ulps;
    }
    return;
  }
  FAIL() << "the case is gone";
}

TEST(Forward, SpecialValuesReachWhoSeesThem) {
  constexpr int64_t kKey = 44;
  for (const int64_t head_dim : {64, 128, 200}) {
    for (const double special : {kNaN, kInfinity64, -kInfinity64}) {
      for (const bool masked : {false, true}) {
        Case c = causal_case(head_dim);
        if (head_dim != 128 && std::isinf(special)) continue;
        c.alignment = Alignment::kTopLeft;
        c.batch = 1;
        if (masked) c.mask = {true, DType::kBool, {c.seqlen_q, c.seqlen_k}};
        const Values values = make_values(c);
        Values tainted = values;
        tainted.v.put(special, 0, kKey, 1, 3);
        const Results clean = run(c, values).results;
        const Results got = run(c, tainted).results;
        EXPECT_TRUE(same_bits(clean, got, [&](const auto& name, const auto& at) {
          return name == "out" && at[2] / 2 == 1 && at[3] == 3 &&
                 visible(c, values, 0, at[2], at[1], kKey);
        }));
        for (int64_t i = 0; i < c.seqlen_q; ++i) {
          if (!visible(c, values, 0, 3, i, kKey)) continue;
          const double value = got.out.at(0, i, 3, 3);
          EXPECT_TRUE(std::isnan(special) ? std::isnan(value) : value == special) << i;
        }
      }
    }
  }
}

TEST(Forward, WhatNobodySeesHasNoEffect) {
  for (const int kind : {0, 1, 2, 3}) {
    Case c = causal_case(96);
    c.num_heads_q = 2;
    c.num_heads_kv = 1;
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
  }
}

TEST(Forward, NaNInAQueryOrKeyMakesItsRowsNaN) {
  const Case c = causal_case();
  Values values = make_values(c);
  values.q.put(kNaN, 0, 10, 1, 5);
  values.k.put(kNaN, 1, 149, 0, 7);  // the last query of heads 0 and 1 sees it
  const Results got = run(c, values).results;
  for (int64_t i = 0; i < c.seqlen_q; ++i) {
    EXPECT_EQ(std::isnan(got.lse.at(0, 1, i)), i == 10);
    EXPECT_EQ(std::isnan(got.out.at(0, i, 1, 0)), i == 10);
    EXPECT_EQ(std::isnan(got.lse.at(1, 1, i)), i == c.seqlen_q - 1);
    EXPECT_EQ(std::isnan(got.out.at(1, i, 0, 63)), i == c.seqlen_q - 1);
  }
}

TEST(Forward, RowsThatSeeNothing) {
  for (const bool with_sink : {false, true}) {
    Case c = causal_case();
    c.position_offset = -20;
    c.sink = with_sink;
    const Values values = make_values(c);
    const Results got = run(c, poisoned(c, values)).results;
    EXPECT_TRUE(accurate(c, values, got));
    for (int64_t i = 0; i < 20; ++i) {
      EXPECT_EQ(got.out.at(0, i, 1, 2), 0.0);
      EXPECT_EQ(got.lse.at(0, 1, i), with_sink ? values.sink.at(1) : -kInfinity64);
    }
  }
}

TEST(Forward, NoKeysAtAll) {
  Case c = forward_case();
  c.seqlen_k = 0;
  const Results got = run(c, make_values(c)).results;
  EXPECT_TRUE(conformance::all_zero(got.out));
  EXPECT_EQ(got.lse.at(1, 2, 3), -kInfinity64);
}

TEST(Forward, NothingToDo) {
  for (const int what : {0, 1, 2}) {
    Case c = forward_case();
    if (what == 0) c.batch = 0;
    if (what == 1) c.num_heads_q = c.num_heads_kv = 0;
    if (what == 2) c.seqlen_q = 0;
    EXPECT_EQ(run(c, make_values(c)).report.instructions, 0u) << what;
  }
}

// Logits up to 1e30, all alike but for one row of keys: the largest is subtracted first.
TEST(Forward, LargeLogits) {
  for (const double size : {1e5, 1e15, -1e15}) {
    Case c = forward_case();
    c.softmax_scale = 1.0;
    Values values = make_values(c);
    values.q.fill(0.0);
    values.k.fill(0.0);
    for (int64_t i = 0; i < c.seqlen_q; ++i) values.q.put(std::fabs(size), 0, i, 1, 0);
    for (int64_t j = 0; j < c.seqlen_k; ++j) values.k.put(std::copysign(1e15, size), 0, j, 0, 0);
    EXPECT_TRUE(accurate(c, values, run(c, values).results)) << size;
  }
}

// One kernel for every call: where groups of 32 keys do not begin at key 0, and without dropout.
TEST(Forward, WritesTheKeepMask) {
  for (const double p : {0.0, 0.3}) {
    for (const int64_t key_base : {0, 75}) {
      Case c = forward_case();
      c.keep = true;
      c.dropout_p = p;
      c.key_base = key_base;
      const Values values = make_values(c);
      const Results got = run(c, values, {}, Placement::kRandom).results;
      EXPECT_TRUE(accurate(c, values, got)) << describe(c);
      EXPECT_EQ(conformance::all_zero(got.keep), false);
    }
  }
}

// Whole tiles, so that every count is known; prints them for docs/kernels/forward_sm80.md.
TEST(Forward, CountsAndNoBankConflicts) {
  for (const int64_t head_dim : {32, 64, 96, 128, 192, 256}) {
    Case c = forward_case();
    c.batch = 1;
    c.num_heads_q = c.num_heads_kv = 1;
    c.seqlen_q = 128;
    c.seqlen_k = 192;
    c.head_dim = c.head_dim_v = head_dim;
    const Report report = run(c, make_values(c)).report;
    const uint64_t d = static_cast<uint64_t>(head_dim);
    EXPECT_EQ(report.total.bank_conflicts, 0u) << head_dim;
    EXPECT_EQ(report.total.mma, 2 * 128 * 192 * d / (16 * 8 * 16));
    EXPECT_EQ(report.total.global_read_bytes, 2 * d * (128 + 2 * 192));
    EXPECT_EQ(report.total.global_read_sectors * 32, report.total.global_read_bytes);
    EXPECT_EQ(report.total.global_written_bytes, 128 * (2 * d + 4));
    const auto print = [](uint64_t count) { return static_cast<unsigned long long>(count); };
    std::printf(
        "head_dim %3llu: mma %6llu, ex2 %6llu, wavefronts %6llu, conflicts %llu, read %llu\n",
        print(d), print(report.total.mma), print(report.total.ex2),
        print(report.total.shared_wavefronts), print(report.total.bank_conflicts),
        print(report.total.global_read_bytes));
  }
}

// They multiply q and k, since to skip that takes registers, and no values; whether or not the rows
// end inside a warp's.
TEST(Forward, WarpsWithoutRowsMultiplyNoValues) {
  Case c = forward_case();
  c.batch = 1;
  c.num_heads_q = c.num_heads_kv = 1;
  c.seqlen_k = 192;
  c.head_dim = c.head_dim_v = 64;
  for (const int64_t seqlen_q : {160, 157}) {
    c.seqlen_q = seqlen_q;
    const Report report = run(c, make_values(c)).report;
    EXPECT_EQ(report.total.mma, (256u + 160u) * 192 * 64 / (16 * 8 * 16)) << seqlen_q;
  }
}

}  // namespace
}  // namespace attentile::cuda::test

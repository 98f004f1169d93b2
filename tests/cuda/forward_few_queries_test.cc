// SPDX-License-Identifier: Apache-2.0
// Few queries: heads of a group that share a tile, and keys divided among blocks. The bits of a row
// are those of the kernel for many queries as long as its keys are in one split, and with several
// they depend on their size and on nothing else.
#include <cmath>
#include <limits>

#include "conformance/call.h"
#include "conformance/call_testing.h"
#include "cuda/emulator_entry.h"
#include "cuda/forward_kernels.h"
#include "cuda/make_params.h"
#include "cuda/support.h"
#include "validate.h"

namespace attentile::cuda::test {
namespace {

using conformance::accurate;
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

Run run(const Case& c, const Values& values, const ChangeParams& change = {},
        const Options& options = {}) {
  const Placement placement = options.seed % 2 == 1 ? Placement::kContiguous : Placement::kRandom;
  conformance::PlacedCall call(c, values, empty_results(c, values), c.seed, placement);
  Run run;
  const Status status =
      emulate_forward(call.inputs(), call.outputs(), options_of(c), options, &run.report, change);
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(call.damage(), "");
  run.results = call.results();
  return run;
}

// A few queries of 4 heads in 2 groups, the last ones of 300 keys.
Case decode_case(int64_t head_dim = 40) {
  Case c = conformance::base_case(DType::kBFloat16);
  c.backward = false;
  c.causal = true;
  c.seqlen_q = 5;
  c.seqlen_k = 300;
  c.head_dim = c.head_dim_v = head_dim;
  return c;
}

// Every feature that a kernel looks up by query or head.
Case rich_case(int64_t head_dim, int64_t group_size, int64_t seqlen_q,
               DType dtype = DType::kFloat16) {
  Case c = decode_case(head_dim);
  c.dtype = dtype;
  c.batch = 1;
  c.seqlen_q = seqlen_q;
  c.seqlen_k = 170;
  c.num_heads_q = c.num_heads_kv * group_size;
  c.window_left = 120;
  c.bias = {true, dtype, {c.num_heads_q, c.seqlen_q, c.seqlen_k}};
  c.mask = {true, DType::kBool, {c.num_heads_q, c.seqlen_q, c.seqlen_k}};
  c.alibi_rank = 1;
  c.sink = true;
  c.softcap = 20;
  c.dropout_p = 0.2;
  c.dropout_seed = 9;
  c.key_base = 75;
  c.dropout_num_heads_q = c.num_heads_q;
  return c;
}

TEST(FewQueries, PackedRowsHaveTheBitsOfUnpackedOnes) {
  for (const int64_t head_dim : {24, 40, 100, 200}) {
    for (const int64_t group_size : {1, 3}) {
      for (const int64_t seqlen_q : {1, 70}) {
        const Case c = rich_case(head_dim, group_size, seqlen_q);
        const Values values = make_values(c);
        const Results expected = run(c, values, one_head).results;
        EXPECT_TRUE(accurate(c, values, expected)) << describe(c);
        EXPECT_TRUE(same_bits(expected, run(c, values, packed).results)) << describe(c);
      }
    }
  }
}

TEST(FewQueries, OneSplitHasTheBitsOfNone) {
  for (const int64_t seqlen_k : {0, 1, 130, 300}) {
    Case c = decode_case();
    c.seqlen_k = seqlen_k;
    c.sink = seqlen_k == 130;
    const Values values = make_values(c);
    const Results expected = run(c, values, one_head).results;
    EXPECT_TRUE(same_bits(expected, run(c, values).results)) << seqlen_k;
    const auto among_three = [](ForwardParams& params) { params.num_splits = 3; };
    EXPECT_TRUE(same_bits(expected, run(c, values, among_three).results)) << seqlen_k;
  }
}

TEST(FewQueries, SplitsAreAccurate) {
  for (const int64_t head_dim : {40, 100, 256}) {
    for (const DType dtype : {DType::kFloat16, DType::kFloat32}) {
      const Case c = rich_case(head_dim, head_dim == 100 ? 1 : 4, 7, dtype);
      const Values values = make_values(c);
      EXPECT_TRUE(accurate(c, values, run(c, values, split_by(64)).results)) << describe(c);
      Case plain = decode_case(head_dim);
      const Values plain_values = make_values(plain);
      EXPECT_TRUE(accurate(plain, plain_values, run(plain, plain_values, split_by(128)).results));
    }
  }
}

// More keys than the plan's own split has, on a GPU large or small.
TEST(FewQueries, ThePlanSplitsLongKeys) {
  Case c = decode_case(16);
  c.batch = 1;
  c.seqlen_k = 1300;
  const Values values = make_values(c);
  const auto planned = run(c, values);
  EXPECT_TRUE(accurate(c, values, planned.results));
  EXPECT_TRUE(same_bits(planned.results, run(c, values, split_by(512)).results));
  EXPECT_FALSE(same_bits(planned.results, run(c, values, split_by(1024)).results));
}

TEST(FewQueries, BitsOfSplitsDependOnNeitherScheduleNorLayout) {
  Case c = rich_case(40, 2, 3);
  c.batch = 2;
  const Values values = make_values(c);
  const Results expected = run(c, values, split_by(64)).results;
  uint64_t seed = 2;
  for (const Schedule schedule : kSchedules) {
    for (const BlockOrder order : kBlockOrders) {
      const Options options = {.schedule = schedule,
                               .completion = kCompletions[seed % 3],
                               .block_order = order,
                               .seed = seed++};
      EXPECT_TRUE(same_bits(expected, run(c, values, split_by(64), options).results));
    }
  }
}

// Sequences of many lengths in a batch, with many queries and with few: what one holds changes no
// bit of another.
TEST(FewQueries, ASequenceDependsOnNoOther) {
  Case c = decode_case();
  c.varlen = true;
  c.lengths_q = {3, 90, 1, 0, 16};
  c.batch = 5;
  c.seqlen_q = 90;
  c.seqused_k = {200, 100, 300, 7, 64};
  const Values values = make_values(c);
  const Results together = run(c, values, split_by(64)).results;
  EXPECT_TRUE(accurate(c, values, together));
  Values others = values;
  for (int64_t i = 3; i < 93; ++i) others.q.put(7.0, i, 1, 0);
  EXPECT_TRUE(same_bits(together, run(c, others, split_by(64)).results,
                        [](const std::string& name, const std::vector<int64_t>& at) {
                          const int64_t row = name == "out" ? at[0] : at[1];
                          const int64_t head = name == "out" ? at[1] : at[0];
                          return row >= 3 && row < 93 && head == 1;
                        }));
}

// A value that is not finite reaches the rows that see it, through whichever split it lies in, and
// no bit else: also where its weight is 0, or its split has no other key for the row.
TEST(FewQueries, SpecialValuesReachWhoSeesThem) {
  for (const int64_t key : {10, 130, 298}) {
    for (const double special : {kNaN, kInfinity64}) {
      Case c = decode_case();
      c.batch = 1;
      c.mask = {true, DType::kBool, {c.seqlen_q, c.seqlen_k}};
      const Values values = make_values(c);
      Values tainted = values;
      tainted.v.put(special, 0, key, 1, 3);
      const Results clean = run(c, values, split_by(64)).results;
      const Results got = run(c, tainted, split_by(64)).results;
      EXPECT_TRUE(same_bits(clean, got, [&](const auto& name, const auto& at) {
        return name == "out" && at[2] / 2 == 1 && at[3] == 3 &&
               visible(c, values, 0, at[2], at[1], key);
      }));
      for (int64_t i = 0; i < c.seqlen_q; ++i) {
        if (!visible(c, values, 0, 3, i, key)) continue;
        const double value = got.out.at(0, i, 3, 3);
        EXPECT_TRUE(std::isnan(special) ? std::isnan(value) : value == special) << i;
      }
    }
  }
}

// A bias of -inf hides nothing: a NaN behind it is seen, and a split in which every logit is -inf
// weighs nothing.
TEST(FewQueries, ASplitThatWeighsNothing) {
  Case c = decode_case();
  c.batch = 1;
  c.bias = {true, DType::kFloat32, {1, 1, 1, c.seqlen_k}};
  Values values = make_values(c);
  for (int64_t j = 64; j < 128; ++j) values.bias.put(-kInfinity64, 0, 0, 0, j);
  const Results clean = run(c, values, split_by(64)).results;
  EXPECT_TRUE(accurate(c, values, clean));
  values.v.put(kNaN, 0, 100, 0, 5);
  const Results got = run(c, values, split_by(64)).results;
  const Results unsplit = run(c, values, one_head).results;
  for (int64_t i = 0; i < c.seqlen_q; ++i) {
    for (int64_t d = 0; d < c.head_dim_v; ++d) {
      EXPECT_EQ(std::isnan(got.out.at(0, i, 1, d)), std::isnan(unsplit.out.at(0, i, 1, d)));
      EXPECT_EQ(std::isnan(got.out.at(0, i, 1, d)), d == 5);
    }
  }
}

// More splits than a warp has lanes; beside the logit of a key of any of them 2^x of the others'
// would overflow or vanish.
TEST(FewQueries, TheLargestLogitLiesInAnySplit) {
  Case c = decode_case(16);
  c.batch = 1;
  c.causal = false;
  c.seqlen_k = 64 * 40;
  c.bias = {true, DType::kFloat32, {1, 1, 1, c.seqlen_k}};
  for (const int64_t split : {0, 31, 32, 39}) {
    Values values = make_values(c);
    values.bias.fill(0.0);
    values.bias.put(300.0, 0, 0, 0, 64 * split + 5);
    const Results got = run(c, values, split_by(64)).results;
    EXPECT_TRUE(accurate(c, values, got)) << split;
  }
}

// A mask hides one split from everybody: what its keys and values hold has no effect.
TEST(FewQueries, ASplitThatNobodySees) {
  Case c = decode_case();
  c.batch = 1;
  c.mask = {true, DType::kBool, {c.seqlen_k}};
  Values values = make_values(c);
  for (int64_t j = 64; j < 128; ++j) values.mask.put(0.0, j);
  const Results clean = run(c, values, split_by(64)).results;
  EXPECT_TRUE(accurate(c, values, clean));
  for (const double poison : {kNaN, kInfinity64}) {
    EXPECT_TRUE(same_bits(clean, run(c, poisoned(c, values, poison), split_by(64)).results));
  }
}

TEST(FewQueries, RowsThatSeeNothingInAnySplit) {
  for (const bool with_sink : {false, true}) {
    Case c = decode_case();
    c.sink = with_sink;
    c.mask = {true, DType::kBool, {c.seqlen_q, c.seqlen_k}};
    Values values = make_values(c);
    for (int64_t j = 0; j < c.seqlen_k; ++j) values.mask.put(0.0, 2, j);
    const Results got = run(c, poisoned(c, values, kNaN), split_by(64)).results;
    EXPECT_TRUE(accurate(c, values, got));
    EXPECT_EQ(got.out.at(0, 2, 1, 2), 0.0);
    EXPECT_EQ(got.lse.at(0, 1, 2), with_sink ? values.sink.at(1) : -kInfinity64);
  }
}

// One query of 4 heads that share their keys and values: these are read once.
TEST(FewQueries, PackingReadsKeysOnce) {
  Case c = decode_case(128);
  c.causal = false;
  c.batch = 1;
  c.num_heads_kv = 1;
  c.seqlen_q = 1;
  c.seqlen_k = 1024;
  c.lse = false;
  const Values values = make_values(c);
  const uint64_t key_bytes = 2 * 1024 * 128 * 2;
  const uint64_t query_bytes = 4 * 128 * 2;
  const Report apart = run(c, values, one_head).report;
  const Report together = run(c, values, packed).report;
  const Report split = run(c, values).report;
  EXPECT_EQ(apart.total.global_read_bytes, 4 * key_bytes + query_bytes);
  EXPECT_EQ(together.total.global_read_bytes, key_bytes + query_bytes);
  EXPECT_EQ(split.total.bank_conflicts, 0u);
  const auto print = [](const char* name, const Report& report) {
    std::printf("%-9s read %8llu, written %6llu, mma %6llu\n", name,
                static_cast<unsigned long long>(report.total.global_read_bytes),
                static_cast<unsigned long long>(report.total.global_written_bytes),
                static_cast<unsigned long long>(report.total.mma));
  };
  print("one head", apart);
  print("packed", together);
  print("2 splits", split);
}

// float32 has packed kernels alone, whose bits depend on schedule and layout as little.
TEST(FewQueries, Float32) {
  const Case c = rich_case(100, 2, 20, DType::kFloat32);
  const Values values = make_values(c);
  for (const ChangeParams& change : {ChangeParams(), split_by(64)}) {
    const Results expected = run(c, values, change).results;
    EXPECT_TRUE(accurate(c, values, expected));
    for (uint64_t seed = 2; seed < 6; ++seed) {
      const Options options = {.schedule = kSchedules[seed % 4],
                               .completion = kCompletions[seed % 3],
                               .block_order = kBlockOrders[seed % 3],
                               .seed = seed};
      EXPECT_TRUE(same_bits(expected, run(c, values, change, options).results));
    }
  }
}

TEST(FewQueries, Float32HasNoBankConflicts) {
  for (const int64_t head_dim : {64, 128, 256}) {
    Case c = decode_case(head_dim);
    c.dtype = DType::kFloat32;
    c.batch = 1;
    EXPECT_EQ(run(c, make_values(c)).report.total.bank_conflicts, 0u) << head_dim;
  }
}

TEST(FewQueries, Float32IsolatesSpecialValues) {
  Case c = decode_case(200);
  c.dtype = DType::kFloat32;
  c.batch = 1;
  c.seqlen_q = 40;
  c.seqlen_k = 70;
  c.mask = {true, DType::kBool, {c.seqlen_q, c.seqlen_k}};
  const Values values = make_values(c);
  Values tainted = values;
  tainted.v.put(kNaN, 0, 44, 1, 3);
  EXPECT_TRUE(same_bits(run(c, values).results, run(c, tainted).results,
                        [&](const auto& name, const auto& at) {
                          return name == "out" && at[2] / 2 == 1 && at[3] == 3 &&
                                 visible(c, values, 0, at[2], at[1], 44);
                        }));
}

// Where the large tiles of head_dim 256 do not fit, the small ones serve all sequences.
TEST(FewQueries, SmallTilesServeLittleSharedMemory) {
  Case c = decode_case(256);
  c.batch = 1;
  c.seqlen_q = 140;
  c.seqlen_k = 150;
  const Values values = make_values(c);
  conformance::PlacedCall call(c, values, empty_results(c, values), c.seed);
  const Result<Problem> problem =
      validate_forward(call.inputs(), call.outputs(), options_of(c), Check::kCall);
  ASSERT_TRUE(problem.ok());
  DeviceLimits small = {.shared_bytes_per_block = 99 * 1024};
  EXPECT_TRUE(check_forward(*problem, small).ok());
  EXPECT_EQ((Forward<BFloat16, 256, true>::kSharedBytes), uint32_t{kLargestSharedBytes});
  EXPECT_LE((Forward<BFloat16, 192, true>::kSharedBytes), uint32_t{kSharedBytes});
  EXPECT_LE((Forward<BFloat16, 256, true, true>::kSharedBytes), uint32_t{kSharedBytes});
  EXPECT_LE((Forward<float, 256, true, true>::kSharedBytes), uint32_t{kSharedBytes});
  EXPECT_TRUE(make_forward_params(*problem, small).all_packed);
  EXPECT_FALSE(make_forward_params(*problem).all_packed);
  EXPECT_TRUE(same_bits(run(c, values).results, run(c, values, packed).results));
  small.shared_bytes_per_block = 64 * 1024;
  EXPECT_EQ(check_forward(*problem, small).message(),
            "device: a block has 65536 bytes of shared memory, but the CUDA kernels need 98848");
}

}  // namespace
}  // namespace attentile::cuda::test

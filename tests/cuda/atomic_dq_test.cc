// SPDX-License-Identifier: Apache-2.0
// Option atomic_dq on the emulator: dq summed by atomic additions beside dk and dv. dq is accurate
// under every interleaving, everything else has the bits it has without the option.
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
using conformance::base_case;
using conformance::Case;
using conformance::Placement;
using conformance::Results;
using conformance::same_bits;
using conformance::Values;

struct Run {
  Results results;
  Report report;  // of the backward pass
};

Run run(const Case& c, const Values& values, bool atomic_dq, const Options& device = {},
        Placement placement = Placement::kContiguous) {
  conformance::PlacedCall call(c, values, empty_results(c, values), c.seed, placement);
  Run run;
  AttentionOptions options = options_of(c);
  options.atomic_dq = atomic_dq;
  Status status = emulate_forward(call.inputs(), call.outputs(), options, device);
  EXPECT_TRUE(status.ok()) << status.message();
  call.freeze_outputs();
  status = emulate_backward({call.inputs(), call.outputs(), call.gradients()}, options, device,
                            &run.report);
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(call.damage(), "");
  run.results = call.results();
  return run;
}

bool same_but_dq(const Results& a, const Results& b) {
  return same_bits(a, b, [](const auto& name, const auto&) { return name == "dq"; });
}

// Causal, GQA, three tiles of queries and more of keys, none of them whole; a sink, but no dsink.
Case causal_case(int64_t head_dim) {
  Case c = base_case(DType::kBFloat16);
  c.batch = c.num_heads_kv = 1;
  c.num_heads_q = 2;
  c.causal = true;
  c.seqlen_q = 140;
  c.seqlen_k = 250;
  c.head_dim = c.head_dim_v = head_dim;
  c.dlse = c.sink = true;
  return c;
}

TEST(AtomicDq, EveryHeadDim) {
  for (const int64_t head_dim : {1, 31, 64, 72, 100, 136, 256}) {
    Case c = causal_case(head_dim);
    if (head_dim % 8 == 0) c.dtype = DType::kFloat16;
    c.head_dim_v = head_dim % 5 == 0 ? head_dim / 2 : head_dim;
    c.softcap = head_dim % 3 == 0 ? 5.0 : 0.0;
    const Values values = make_values(c);
    const Results ordered = run(c, values, false).results;
    for (const Placement placement : {Placement::kContiguous, Placement::kRandom}) {
      const Results atomic = run(c, values, true, {}, placement).results;
      EXPECT_TRUE(accurate(c, values, atomic)) << describe(c);
      EXPECT_TRUE(same_but_dq(ordered, atomic)) << describe(c);
    }
  }
}

TEST(AtomicDq, NoInterleavingIsARaceOrLosesAnAddition) {
  Case c = causal_case(32);
  c.seqlen_q = 70;
  c.seqlen_k = 390;
  c.dropout_p = 0.3;
  c.key_base = 5;
  const Values values = make_values(c);
  const auto ordered = run(c, values, false);
  for (const Schedule schedule : kSchedules) {
    for (const BlockOrder order : kBlockOrders) {
      const Options options = {.schedule = schedule, .block_order = order, .seed = 5};
      const auto atomic = run(c, values, true, options);
      EXPECT_TRUE(accurate(c, values, atomic.results));
      EXPECT_TRUE(same_but_dq(ordered.results, atomic.results));
      EXPECT_LT(atomic.report.total.mma, ordered.report.total.mma);
    }
  }
}

// NaN and infinity in a key or value reach the dq of queries that see it and no other.
TEST(AtomicDq, AKeyReachesWhoSeesIt) {
  for (const int64_t head_dim : {64, 128}) {
    Case c = causal_case(head_dim);
    c.alignment = Alignment::kTopLeft;
    c.window_left = 20;
    const Values values = make_values(c);
    for (const double special :
         {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
      for (const bool in_v : {false, true}) {
        Values tainted = values;
        (in_v ? tainted.v : tainted.k).put(special, 0, 44, 0, 3);
        const Results ordered = run(c, tainted, false).results;
        const Results atomic = run(c, tainted, true).results;
        EXPECT_TRUE(same_but_dq(ordered, atomic)) << special << in_v;
        for (int64_t i = 0; i < c.seqlen_q; ++i) {
          const double got = atomic.dq.at(0, i, 1, 5);
          const double wanted = ordered.dq.at(0, i, 1, 5);
          EXPECT_EQ(std::isnan(got), std::isnan(wanted)) << i << special << in_v;
          if (!std::isnan(wanted)) EXPECT_NEAR(got, wanted, 0.01 + 0.02 * std::abs(wanted)) << i;
          if (!visible(c, values, 0, 1, i, 44)) EXPECT_TRUE(std::isfinite(got)) << i << special;
        }
      }
    }
  }
}

// Rows that see nothing, keys that nobody sees, sequences of other lengths, packed or not.
TEST(AtomicDq, RaggedSequences) {
  for (const int kind : {0, 1, 2}) {
    Case c = causal_case(40);
    c.batch = 2;
    if (kind == 0) c.position_offset = -40;
    if (kind == 1) c.seqused_k = {100, 0};
    if (kind == 2) {
      c.varlen = true;
      c.lengths_q = {70, 0};
      c.lengths_k = {90, 160};
      c.seqlen_q = 70;
      c.seqlen_k = 160;
    }
    const Values values = make_values(c);
    const Results atomic = run(c, values, true).results;
    EXPECT_TRUE(accurate(c, values, atomic)) << describe(c);
  }
}

// Where delta takes a pass over all keys anyway, or products are no mma, dq is as without it.
TEST(AtomicDq, OtherCallsKeepTheirBits) {
  for (const bool float32 : {false, true}) {
    Case c = causal_case(16);
    c.seqlen_q = c.seqlen_k = 70;
    c.dsink = !float32;
    if (float32) c.dtype = DType::kFloat32;
    const Values values = make_values(c);
    EXPECT_TRUE(same_bits(run(c, values, false).results, run(c, values, true).results)) << float32;
  }
}

TEST(AtomicDq, TellsItsWorkspace) {
  Problem p;
  p.dtype = DType::kBFloat16;
  p.head_dim = p.head_dim_v = 33;
  p.batch = 3;
  p.num_heads_q = 4;
  p.max_seqlen_q = 5;
  p.atomic_dq = true;
  EXPECT_EQ(backward_workspace_bytes(p), 60 * 12 + 60 * 40 * 4);
  p.max_seqlen_q = 0;
  EXPECT_EQ(backward_workspace_bytes(p), 0);
}

// Whole tiles, so that every count is known; prints them for docs/kernels/backward_sm80.md.
TEST(AtomicDq, CountsAndNoBankConflicts) {
  for (const int64_t head_dim : {32, 64, 96, 128, 192, 256}) {
    Case c = base_case(DType::kBFloat16);
    c.batch = 1;
    c.num_heads_q = c.num_heads_kv = 1;
    c.seqlen_q = 128;
    c.seqlen_k = 256;
    c.head_dim = c.head_dim_v = head_dim;
    const Report report = run(c, make_values(c), true).report;
    EXPECT_EQ(report.total.bank_conflicts, 0u) << head_dim;
    // S, dP, dV, dK, dQ; the keys are too many for delta to be summed.
    EXPECT_EQ(report.total.mma, 5u * 128 * 256 * static_cast<uint64_t>(head_dim) / (16 * 8 * 16));
    print_counts(head_dim, report);
  }
}

}  // namespace
}  // namespace attentile::cuda::test

// SPDX-License-Identifier: Apache-2.0
// Cases of the conformance table under many interleavings: nothing that a GPU is free to choose may
// change a bit. ATTENTILE_FULL: a hundred cases, each under all of 16 schedules x 3 completions of
// copies x 4 orders of blocks; else ten cases, each under its own share of those.
#include <cstdlib>

#include "conformance/call.h"
#include "conformance/call_testing.h"
#include "cuda/backward_entry.h"
#include "cuda/emulator_entry.h"
#include "cuda/support.h"

namespace attentile::cuda::test {
namespace {

using conformance::Case;
using conformance::PlacedCall;
using conformance::Results;
using conformance::Values;

constexpr uint64_t kManySchedules = 16;
constexpr uint64_t kAll = kManySchedules * std::size(kCompletions) * std::size(kBlockOrders);

// The nth of kAll interleavings: three policies without chance, then seeds of the random one.
Options interleaving(uint64_t n) {
  const uint64_t schedule = n % kManySchedules;
  const uint64_t rest = n / kManySchedules;
  constexpr Schedule kWithoutChance[] = {Schedule::kRoundRobin, Schedule::kMostDelayedFirst,
                                         Schedule::kFurthestFirst};
  return {.schedule = schedule < 3 ? kWithoutChance[schedule] : Schedule::kRandom,
          .completion = kCompletions[rest % std::size(kCompletions)],
          .block_order = kBlockOrders[rest / std::size(kCompletions)],
          .seed = n + 1};
}

// Both passes; the status of the first that is not served.
Status run(const Case& c, const Values& values, const Options& options, Results* results) {
  PlacedCall call(c, values, empty_results(c, values), c.seed, conformance::Placement::kContiguous);
  Status status = emulate_forward(call.inputs(), call.outputs(), options_of(c), options);
  if (status.ok() && c.backward) {
    call.freeze_outputs();
    status =
        emulate_backward({call.inputs(), call.outputs(), call.gradients()}, options_of(c), options);
  }
  EXPECT_EQ(call.damage(), "");
  *results = call.results();
  return status;
}

bool is_small(const Case& c) {
  return c.batch * c.num_heads_q * c.seqlen_q * c.seqlen_k < 60'000 && c.head_dim <= 128 &&
         c.head_dim_v <= 128 && c.dtype != DType::kFloat64;
}

TEST(Schedules, NeverChangeABit) {
  const bool full = std::getenv("ATTENTILE_FULL") != nullptr &&
                    std::getenv("ATTENTILE_EMULATED_CELLS") == nullptr;
  const int wanted = full ? 100 : 10;
  const uint64_t step = full ? 1 : 13;  // prime to all three counts
  int cases = 0;
  uint64_t first = 0;
  for (uint64_t seed = 1; cases < wanted; ++seed) {
    const Case c = conformance::make_case(seed);
    if (!is_small(c)) continue;
    const Values values = make_values(c);
    Results expected;
    const Status status = run(c, values, {}, &expected);
    if (status.code() == StatusCode::kUnsupported) continue;
    ASSERT_TRUE(status.ok()) << describe(c) << ": " << status.message();
    ++cases;
    for (uint64_t n = first++ % step; n < kAll; n += step) {
      Results results;
      const Status again = run(c, values, interleaving(n), &results);
      ASSERT_TRUE(again.ok()) << describe(c) << ": " << again.message();
      ASSERT_TRUE(same_bits(expected, results)) << describe(c) << ", interleaving " << n;
    }
  }
}

}  // namespace
}  // namespace attentile::cuda::test

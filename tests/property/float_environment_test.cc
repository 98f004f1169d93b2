// SPDX-License-Identifier: Apache-2.0
// What the calling thread has set for its own arithmetic (rounding, flushing, traps, flags) changes
// no bit of a result and is there again after the call.
#include <cfenv>

#include "conformance/call_testing.h"
#include "property/slices.h"

namespace attentile::property {
namespace {

using conformance::for_each_target;
using conformance::same_bits;
using conformance::Target;

// Everything that is computed from options or few numbers: the default scale, dropout's, slopes,
// sink and its gradient.
Case scalar_case() {
  Case c = conformance::base_case(DType::kFloat32);
  c.head_dim = 23;  // 1 / sqrt(23) is inexact
  c.dropout_p = 0.3;
  c.dropout_seed = 5;
  c.sink = c.dsink = c.dlse = true;
  c.alibi_rank = 1;
  c.softcap = 7.3;
  return c;
}

Results call(const Case& c, const Values& values, const Target& target) {
  Results results = conformance::empty_results(c, values);
  AttentionOptions options = conformance::options_of(c);
  options.algorithm = target.algorithm;
  options.isa = target.isa;
  const AttentionInputs inputs = conformance::inputs_of(values);
  const AttentionOutputs outputs = conformance::outputs_of(results);
  ExecutionContext context;
  context.num_threads = 2;
  Status status = attention_forward(inputs, outputs, options, context);
  if (status.ok()) {
    status = attention_backward(inputs, outputs, conformance::gradients_of(values, results),
                                options, context);
  }
  EXPECT_TRUE(status.ok()) << status.message();
  return results;
}

TEST(FloatEnvironment, RoundingOfTheCallerChangesNoBit) {
  const Case c = scalar_case();
  const Values values = conformance::make_values(c);
  for_each_target([&](const Target& target) {
    const Results expected = call(c, values, target);
    for (const int mode : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
      ASSERT_EQ(std::fesetround(mode), 0);
      const Results got = call(c, values, target);
      const int after = std::fegetround();
      std::fesetround(FE_TONEAREST);
      EXPECT_EQ(after, mode);
      EXPECT_TRUE(same_bits(expected, got)) << "rounding mode " << mode;
    }
  });
}

TEST(FloatEnvironment, RoundingOfTheCallerChangesNoPlan) {
  const Case c = scalar_case();
  const Values values = conformance::make_values(c);
  Results results = conformance::empty_results(c, values);
  const auto flops = [&] {
    const Result<Plan> plan =
        plan_forward(conformance::inputs_of(values), conformance::outputs_of(results),
                     conformance::options_of(c));
    return plan.ok() ? plan->flops : 0.0;
  };
  const double expected = flops();
  std::fesetround(FE_UPWARD);
  const double got = flops();
  std::fesetround(FE_TONEAREST);
  EXPECT_GT(expected, 0.0);
  EXPECT_EQ(expected, got);
}

TEST(FloatEnvironment, FlagsAndTrapsOfTheCallerStay) {
  const Case c = scalar_case();
  const Values values = conformance::make_values(c);
  const auto run = [&] { return call(c, values, {Algorithm::kFlash2, Isa::kAuto}); };
  const Results expected = run();
  std::feclearexcept(FE_ALL_EXCEPT);
  std::feraiseexcept(FE_OVERFLOW);
  Results got = run();
  const int flags = std::fetestexcept(FE_ALL_EXCEPT) & ~FE_INEXACT;  // raising one may raise both
  std::feclearexcept(FE_ALL_EXCEPT);
  EXPECT_EQ(flags, FE_OVERFLOW);
  EXPECT_TRUE(same_bits(expected, got));
#if defined(__GLIBC__)
  if (feenableexcept(FE_INEXACT | FE_INVALID) < 0) return;  // this machine has no traps
  got = run();
  const int traps = fegetexcept();
  fedisableexcept(FE_ALL_EXCEPT);
  EXPECT_EQ(traps, FE_INEXACT | FE_INVALID);
  EXPECT_TRUE(same_bits(expected, got));
#endif
}

#if defined(__SSE2__)
TEST(FloatEnvironment, FlushingOfTheCallerChangesNoBit) {
  Case c = scalar_case();
  c.softmax_scale = 1e-40;  // a subnormal float
  const Values values = conformance::make_values(c);
  for_each_target([&](const Target& target) {
    const Results expected = call(c, values, target);
    const unsigned before = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(before | 0x8040);  // flush to zero, denormals are zero
    const Results got = call(c, values, target);
    const unsigned after = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(before);
    EXPECT_TRUE(same_bits(expected, got));
    EXPECT_EQ(after & 0x8040, 0x8040u);
  });
}
#endif

}  // namespace
}  // namespace attentile::property

// SPDX-License-Identifier: Apache-2.0
// A plan says what the call then does: the bytes that are counted, the pairs that are visible, the
// threads and tiles in use; and it is made in no time, whatever the sizes.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "conformance/call_testing.h"
#include "cpu/cpu_info.h"
#include "support/random.h"

namespace attentile::property {
namespace {

using conformance::base_case;
using conformance::Case;
using conformance::Results;
using conformance::Target;
using conformance::targets;
using conformance::Values;
using testing::DenseTensor;

// --- bytes ---------------------------------------------------------------------------------------

struct Band {
  const char* name;
  bool causal = false;
  int64_t left = -1;
  int64_t right = -1;
  bool top_left = false;
  int64_t offset = 0;  // 0: by the alignment
};

const Band kBands[] = {{.name = "none"},
                       {.name = "causal", .causal = true},
                       {.name = "causal top left", .causal = true, .top_left = true},
                       {.name = "window", .left = 30, .right = 5},
                       {.name = "narrow window", .left = 0, .right = 0},
                       {.name = "left window", .left = 40},
                       {.name = "right window", .right = 12, .top_left = true},
                       {.name = "offset", .causal = true, .offset = -33},
                       {.name = "far offset", .left = 20, .right = 20, .offset = 90}};

enum Features : int { kPlain = 0, kBias = 1, kMask = 2, kPatternOfHeads = 4, kOnePattern = 8 };

// Inputs of one call: q [2, n, 4, 24], two KV heads.
struct Call {
  Call(int64_t seqlen_q, int64_t seqlen_k, int features, DType dtype)
      : q(dtype, {2, seqlen_q, 4, 24}),
        k(dtype, {2, seqlen_k, 2, 24}),
        v(dtype, {2, seqlen_k, 2, 16}),
        out(dtype, {2, seqlen_q, 4, 16}),
        lse(dtype == DType::kFloat64 ? dtype : DType::kFloat32, {2, 4, seqlen_q}) {
    if ((features & kBias) != 0) bias = DenseTensor(DType::kFloat32, {4, 1, seqlen_k});
    if ((features & kMask) != 0) mask = DenseTensor(DType::kUInt8, {2, 1, seqlen_q, seqlen_k});
    const bool one = (features & kOnePattern) != 0;
    if (one || (features & kPatternOfHeads) != 0) {
      const int64_t tiles_q = (seqlen_q + kTileQ - 1) / kTileQ;
      const int64_t tiles_k = (seqlen_k + kTileK - 1) / kTileK;
      pattern = DenseTensor(DType::kUInt8, {one ? 1 : 4, tiles_q, tiles_k});
    }
    testing::Random random(3);
    for (DenseTensor* tensor : {&mask, &pattern}) {
      for (int64_t i = 0; i < tensor->count(); ++i) tensor->set(i, random.uniform() < 0.4 ? 1 : 0);
    }
  }

  static constexpr int64_t kTileQ = 20;
  static constexpr int64_t kTileK = 48;

  AttentionInputs inputs() const {
    AttentionInputs inputs;
    inputs.q = q.view();
    inputs.k = k.view();
    inputs.v = v.view();
    inputs.bias = bias.view();
    inputs.mask = mask.view();
    inputs.block_mask = pattern.view();
    inputs.seqused_k = used.view();
    return inputs;
  }
  AttentionOutputs outputs() const {
    AttentionOutputs outputs;
    outputs.out = out.view();
    outputs.lse = lse.view();
    return outputs;
  }
  AttentionOptions options(const Band& band, const Target& target) const {
    AttentionOptions options;
    options.causal = band.causal;
    options.window_left = band.left;
    options.window_right = band.right;
    if (band.top_left) options.alignment = Alignment::kTopLeft;
    if (band.offset != 0) options.position_offset = band.offset;
    options.algorithm = target.algorithm;
    options.isa = target.isa;
    options.fast_memory_bytes = 8192;  // flash1: 22 keys of 24 dimensions
    if (pattern.present) options.block_size_q = kTileQ;
    if (pattern.present) options.block_size_k = kTileK;
    return options;
  }

  DenseTensor q, k, v, out, lse, bias, mask, pattern, used;
};

const Traffic& traffic_of(const Plan& plan, Algorithm algorithm) {
  return algorithm == Algorithm::kStandard
             ? plan.traffic_standard
             : (algorithm == Algorithm::kFlash1 ? plan.traffic_flash1 : plan.traffic_flash2);
}

void expect_planned_is_counted(const Call& call, const Band& band, const Target& target) {
  const AttentionOptions options = call.options(band, target);
  for (const int threads : {1, 3}) {
    Traffic counted;
    ExecutionContext context;
    context.num_threads = threads;
    context.traffic = &counted;
    const Result<Plan> plan = plan_forward(call.inputs(), call.outputs(), options, context);
    ASSERT_TRUE(plan.ok()) << plan.status().message();
    const Status status = attention_forward(call.inputs(), call.outputs(), options, context);
    ASSERT_TRUE(status.ok()) << status.message();
    const Traffic& planned = traffic_of(*plan, target.algorithm);
    EXPECT_EQ(planned.bytes_read, counted.bytes_read) << threads << " threads";
    EXPECT_EQ(planned.bytes_written, counted.bytes_written) << threads << " threads";
    EXPECT_GT(counted.bytes_read, 0);
  }
}

TEST(PlannedTraffic, IsWhatTheCallCounts) {
  for (const Target& target : targets()) {
    if (target.algorithm == Algorithm::kReference) continue;
    SCOPED_TRACE(conformance::name_of(target));
    for (const Band& band : kBands) {
      for (const int features : {int{kPlain}, int{kBias}, int{kMask}, kBias | kMask,
                                 int{kOnePattern}, kBias | kMask | kPatternOfHeads}) {
        SCOPED_TRACE(std::string(band.name) + ", features " + std::to_string(features));
        expect_planned_is_counted(Call(75, 133, features, DType::kFloat32), band, target);
      }
    }
    for (const DType dtype : {DType::kBFloat16, DType::kFloat64}) {
      SCOPED_TRACE(to_string(dtype));
      expect_planned_is_counted(Call(300, 257, kBias, dtype), kBands[1], target);
      expect_planned_is_counted(Call(1, 513, kPlain, dtype), kBands[3], target);
    }
    Call ragged(75, 133, kBias | kPatternOfHeads, DType::kFloat32);
    ragged.used = DenseTensor(DType::kInt32, {2});
    ragged.used.set(0, 100);
    for (const Band& band : kBands) {
      SCOPED_TRACE(std::string(band.name) + ", used lengths");
      expect_planned_is_counted(ragged, band, target);
    }
  }
}

TEST(PlannedTraffic, APatternWithoutDataCountsAsVisible) {
  Call call(75, 133, kOnePattern, DType::kFloat32);
  const AttentionOptions options = call.options(kBands[0], {Algorithm::kFlash2, Isa::kScalar});
  const auto plan = [&](bool null) {
    AttentionInputs inputs = call.inputs();
    if (null) inputs.block_mask.data = nullptr;
    const Result<Plan> plan = plan_forward(inputs, call.outputs(), options);
    EXPECT_TRUE(plan.ok()) << plan.status().message();
    return plan.ok() ? plan->traffic_flash2.bytes_read : 0;
  };
  EXPECT_LT(plan(false), plan(true));
  for (char& byte : call.pattern.bytes) byte = 1;
  EXPECT_EQ(plan(false), plan(true));
}

// --- pairs ---------------------------------------------------------------------------------------

int64_t visible_by_hand(const Band& band, int64_t seqlen_q, int64_t seqlen_k) {
  const int64_t offset = band.offset != 0 ? band.offset : (band.top_left ? 0 : seqlen_k - seqlen_q);
  int64_t pairs = 0;
  for (int64_t i = 0; i < seqlen_q; ++i) {
    for (int64_t j = 0; j < seqlen_k; ++j) {
      bool visible = !band.causal || j <= i + offset;
      visible = visible && (band.left < 0 || j >= i + offset - band.left);
      visible = visible && (band.right < 0 || j <= i + offset + band.right);
      pairs += visible ? 1 : 0;
    }
  }
  return pairs;
}

TEST(VisiblePairs, AreThoseOfTheDefinition) {
  const Target target = {Algorithm::kFlash2, Isa::kScalar};
  for (const Band& band : kBands) {
    for (const auto& [n, keys] : {std::pair<int64_t, int64_t>{75, 133}, {90, 31}, {1, 7}, {6, 1}}) {
      SCOPED_TRACE(std::string(band.name) + ", " + std::to_string(n) + " x " +
                   std::to_string(keys));
      Call call(n, keys, kPlain, DType::kFloat32);
      const AttentionOptions options = call.options(band, target);
      Result<Plan> plan = plan_forward(call.inputs(), call.outputs(), options);
      ASSERT_TRUE(plan.ok()) << plan.status().message();
      EXPECT_EQ(plan->visible_pairs, 2 * 4 * visible_by_hand(band, n, keys));
      EXPECT_DOUBLE_EQ(plan->flops, 2.0 * (24 + 16) * static_cast<double>(plan->visible_pairs));
      call.used = DenseTensor(DType::kInt32, {2});
      call.used.set(1, static_cast<double>(keys / 2));
      plan = plan_forward(call.inputs(), call.outputs(), options);
      ASSERT_TRUE(plan.ok()) << plan.status().message();
      EXPECT_EQ(plan->visible_pairs, 4 * visible_by_hand(band, n, keys / 2));
    }
  }
}

TEST(VisiblePairs, OfPackedSequences) {
  const int32_t lengths[][2] = {{5, 9}, {0, 4}, {17, 3}, {8, 8}, {3, 0}};
  DenseTensor starts_q(DType::kInt32, {6}), starts_k(DType::kInt32, {6});
  for (int64_t b = 0; b < 5; ++b) {
    starts_q.set(b + 1, starts_q.get(b) + lengths[b][0]);
    starts_k.set(b + 1, starts_k.get(b) + lengths[b][1]);
  }
  AttentionInputs inputs;
  inputs.q = contiguous_view(nullptr, DType::kFloat32, {33, 2, 8});
  inputs.k = inputs.v = contiguous_view(nullptr, DType::kFloat32, {24, 1, 8});
  inputs.cu_seqlens_q = starts_q.view();
  inputs.cu_seqlens_k = starts_k.view();
  AttentionOutputs outputs;
  outputs.out = inputs.q;
  const Call shapes(1, 1, kPlain, DType::kFloat32);
  for (const Band& band : kBands) {
    SCOPED_TRACE(band.name);
    const AttentionOptions options = shapes.options(band, {Algorithm::kFlash2, Isa::kScalar});
    const Result<Plan> plan = plan_forward(inputs, outputs, options);
    ASSERT_TRUE(plan.ok()) << plan.status().message();
    int64_t expected = 0;
    for (const auto& length : lengths) expected += 2 * visible_by_hand(band, length[0], length[1]);
    EXPECT_EQ(plan->visible_pairs, expected);
  }
}

// --- threads
// --------------------------------------------------------------------------------------

TEST(PlannedThreads, AreThoseThatHaveEnoughToDo) {
  ExecutionContext context;
  context.num_threads = 4;
  const auto threads = [&](int64_t n, int64_t heads) {
    AttentionInputs inputs;
    inputs.q = inputs.k = inputs.v = contiguous_view(nullptr, DType::kFloat32, {1, n, heads, 64});
    AttentionOutputs outputs;
    outputs.out = inputs.q;
    const Result<Plan> plan = plan_forward(inputs, outputs, {}, context);
    EXPECT_TRUE(plan.ok()) << plan.status().message();
    return plan.ok() ? plan->threads : -1;
  };
  EXPECT_EQ(threads(1, 4), 1);
  EXPECT_EQ(threads(16, 4), 1);
  EXPECT_EQ(threads(256, 8), 4);
}

// --- sizes beyond any machine --------------------------------------------------------------------

Result<Plan> plan_of_sizes(int64_t n, int64_t keys, int64_t dim, const AttentionOptions& options) {
  AttentionInputs inputs;
  inputs.q = contiguous_view(nullptr, DType::kFloat32, {1, n, 1, dim});
  inputs.k = inputs.v = contiguous_view(nullptr, DType::kFloat32, {1, keys, 1, dim});
  AttentionOutputs outputs;
  outputs.out = inputs.q;
  return plan_forward(inputs, outputs, options);
}

TEST(HugePlan, OfAsManyKeysAsMayBe) {
  const int64_t keys = int64_t{1} << 50;
  AttentionOptions options;
  options.fast_memory_bytes = 64;  // flash1: one key a tile
  const Result<Plan> plan = plan_of_sizes(1, keys, 128, options);
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  EXPECT_EQ(plan->visible_pairs, keys);
  const int64_t state = 130;
  const int64_t pieces = keys / 2048;  // each reads q, and leaves its state to be merged
  EXPECT_EQ(plan->traffic_flash2.bytes_read, 4 * (keys * 256 + pieces * (128 + state)));
  EXPECT_EQ(plan->traffic_flash2.bytes_written, 4 * (pieces * state + 128));
  EXPECT_EQ(plan->traffic_flash1.bytes_read, 4 * (keys * 256 + keys * (128 + state) + state));
  EXPECT_EQ(plan->traffic_flash1.bytes_written, 4 * (state + keys * state + 128));
}

// Nothing overflows on the way (the sanitizers look).
TEST(HugePlan, OfFewQueriesAndManyHeads) {
  const auto plan = [](int64_t batch, int64_t seqlen_q, int64_t heads) {
    AttentionInputs inputs;
    inputs.q = contiguous_view(nullptr, DType::kBFloat16, {batch, seqlen_q, heads, 1});
    inputs.k = inputs.v = contiguous_view(nullptr, DType::kBFloat16, {batch, 0, 1, 1});
    AttentionOutputs outputs;
    outputs.out = inputs.q;
    return plan_forward(inputs, outputs, {});
  };
  EXPECT_TRUE(plan(1, 1, int64_t{1} << 59).ok());
  EXPECT_TRUE(plan(int64_t{1} << 61, 0, 1).ok());
}

TEST(HugePlan, OfBandsOverLongSequences) {
  const int64_t n = int64_t{1} << 29;
  for (const bool causal : {false, true}) {
    AttentionOptions options;
    options.fast_memory_bytes = 64;
    options.causal = causal;
    options.window_left = causal ? -1 : 4095;
    const Result<Plan> plan = plan_of_sizes(n, n, 1, options);
    ASSERT_TRUE(plan.ok()) << plan.status().message();
    const int64_t whole = n * n;
    EXPECT_GE(plan->visible_pairs, whole / 2);
    EXPECT_LE(plan->visible_pairs, whole / 2 + 4096 * n);
    EXPECT_GT(plan->traffic_flash1.bytes_read, plan->traffic_flash2.bytes_read);
    EXPECT_GT(plan->traffic_flash2.bytes_read, 0);
    EXPECT_GT(plan->traffic_standard.bytes_written, 2 * whole);
  }
}

TEST(HugePlan, SaturatesInsteadOfWrapping) {
  AttentionOptions options;
  options.fast_memory_bytes = 4;
  const Result<Plan> plan = plan_of_sizes(int64_t{1} << 7, int64_t{1} << 51, 256, options);
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  EXPECT_GE(plan->traffic_flash1.bytes_read, int64_t{1} << 60);
  EXPECT_GE(plan->traffic_standard.bytes_read, int64_t{1} << 60);
}

// --- words ---------------------------------------------------------------------------------------

bool has_note(const Plan& plan, const std::string& text) {
  return std::any_of(plan.notes.begin(), plan.notes.end(),
                     [&](const std::string& note) { return note.find(text) != std::string::npos; });
}

TEST(PlanNotes, TellThePanelInUse) {
  const Case c = base_case(DType::kFloat32);
  for (const int64_t rows : {1, 3, 20, 70, 1000}) {
    for (const Target& target : targets()) {
      if (target.algorithm != Algorithm::kFlash2) continue;
      SCOPED_TRACE(conformance::name_of(target) + " " + std::to_string(rows));
      Case of_rows = c;
      of_rows.seqlen_q = rows;
      const Values values = conformance::make_values(of_rows);
      Results results = conformance::empty_results(of_rows, values);
      AttentionOptions options = conformance::options_of(of_rows);
      options.isa = target.isa;
      const AttentionInputs inputs = conformance::inputs_of(values);
      const AttentionOutputs outputs = conformance::outputs_of(results);
      const AttentionGradients gradients = conformance::gradients_of(values, results);
      const Result<Plan> forward = plan_forward(inputs, outputs, options);
      const Result<Plan> backward = plan_backward(inputs, outputs, gradients, options);
      ASSERT_TRUE(forward.ok() && backward.ok());
      for (const Plan* plan : {&*forward, &*backward}) {
        EXPECT_GT(plan->tile_m, 0);
        EXPECT_FALSE(has_note(*plan, "= 0 panel")) << plan->notes.front();
        EXPECT_FALSE(has_note(*plan, " 1 panels")) << plan->notes.front();
      }
      // A panel is a power of two of registers, no longer than needed.
      EXPECT_LT(backward->tile_m, std::max<int64_t>(2 * rows, 17));
      EXPECT_TRUE(has_note(*backward, "one panel of " + std::to_string(backward->tile_m) + " "));
    }
  }
}

TEST(PlanNotes, TellWhyABetterInstructionSetDoesNotRun) {
  const Call call(75, 133, kPlain, DType::kFloat32);
  const std::vector<Isa> runs = available_isas();
  for (const Isa chosen : runs) {
    const Target target = {Algorithm::kFlash2, chosen};
    const Result<Plan> plan =
        plan_forward(call.inputs(), call.outputs(), call.options(kBands[0], target));
    ASSERT_TRUE(plan.ok()) << plan.status().message();
    EXPECT_EQ(plan->isa, chosen);
    for (const Isa better : cpu::isa_priority()) {
      if (better == chosen) break;
      const bool available = std::count(runs.begin(), runs.end(), better) > 0;
      const bool built = available || !cpu::cpu_supports(better);  // else it would be available
      const std::string line = std::string(to_string(better)) + " does not run: ";
      EXPECT_TRUE(has_note(*plan, line));
      if (available) {
        EXPECT_TRUE(has_note(*plan, line + "another instruction set was asked for"));
      }
      if (!built) {
        EXPECT_TRUE(has_note(*plan, line + "this build has no kernels for it"));
      }
    }
  }
}

TEST(PlanOfReference, TellsItsThreadsAndTasks) {
  for (const bool backward : {false, true}) {
    const Case c = base_case(DType::kFloat32);
    const Values values = conformance::make_values(c);
    Results results = conformance::empty_results(c, values);
    AttentionOptions options = conformance::options_of(c);
    options.algorithm = Algorithm::kReference;
    ExecutionContext context;
    for (const int threads : {1, 3, 100}) {
      context.num_threads = threads;
      const AttentionInputs inputs = conformance::inputs_of(values);
      const AttentionOutputs outputs = conformance::outputs_of(results);
      const Result<Plan> plan =
          backward ? plan_backward(inputs, outputs, conformance::gradients_of(values, results),
                                   options, context)
                   : plan_forward(inputs, outputs, options, context);
      ASSERT_TRUE(plan.ok()) << plan.status().message();
      // Forward a task is 64 queries of a head, backward a KV head.
      EXPECT_EQ(plan->num_tasks, backward ? 2 * 2 : 2 * 4);
      EXPECT_EQ(plan->threads, std::min<int64_t>(threads, plan->num_tasks));
      EXPECT_GT(plan->fast_memory_bytes, 0);
    }
  }
}

TEST(PlanOfReference, RefusesAnInstructionSetThatIsNotThere) {
  const Case c = base_case(DType::kFloat32);
  const Values values = conformance::make_values(c);
  Results results = conformance::empty_results(c, values);
  AttentionOptions options = conformance::options_of(c);
  options.algorithm = Algorithm::kReference;
  options.isa = cpu::cpu_supports(Isa::kNeon) ? Isa::kAvx2 : Isa::kNeon;
  const AttentionInputs inputs = conformance::inputs_of(values);
  const AttentionOutputs outputs = conformance::outputs_of(results);
  EXPECT_EQ(plan_forward(inputs, outputs, options).status().code(), StatusCode::kUnavailable);
  const Status status = attention_forward(inputs, outputs, options);
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(status.message().rfind("isa: ", 0), 0u) << status.message();
}

}  // namespace
}  // namespace attentile::property

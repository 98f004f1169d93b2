// SPDX-License-Identifier: Apache-2.0
// Where the matrix unit multiplies: by itself in sequences of more queries than it takes to pay, by
// name in all. Every sequence decides for itself, and for both passes.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "conformance/call_testing.h"
#include "property/slices.h"

namespace attentile::property {
namespace {

using conformance::accurate;
using conformance::all_finite;
using conformance::base_case;
using conformance::run_call;
using conformance::same_bits;
using conformance::Target;

constexpr Algorithm kAlgorithms[] = {Algorithm::kStandard, Algorithm::kFlash1, Algorithm::kFlash2};

// The most queries of a sequence for which the unit does not pay.
struct Few {
  DType dtype;
  int32_t queries;
};
constexpr Few kFew[] = {{DType::kBFloat16, 16}, {DType::kFloat16, 64}, {DType::kFloat32, 240}};

class MatrixUnit : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::vector<Isa> isas = available_isas();
    if (std::count(isas.begin(), isas.end(), Isa::kAmx) == 0) GTEST_SKIP() << "no AMX here";
    if (std::getenv("ATTENTILE_CPU_ISA") != nullptr) GTEST_SKIP() << "ATTENTILE_CPU_ISA is set";
  }
};

Plan plan_of(const Case& c, const Target& target, bool backward) {
  const Values values = conformance::make_values(c);
  Results results = conformance::empty_results(c, values);
  AttentionOptions options = conformance::options_of(c);
  options.algorithm = target.algorithm;
  options.isa = target.isa;
  const AttentionInputs inputs = conformance::inputs_of(values);
  const AttentionOutputs outputs = conformance::outputs_of(results);
  const AttentionGradients gradients = conformance::gradients_of(values, results);
  const Result<Plan> plan = backward ? plan_backward(inputs, outputs, gradients, options)
                                     : plan_forward(inputs, outputs, options);
  EXPECT_TRUE(plan.ok()) << plan.status().message();
  return plan.ok() ? *plan : Plan{};
}

bool has_note(const Plan& plan, const std::string& text) {
  return std::any_of(plan.notes.begin(), plan.notes.end(),
                     [&](const std::string& note) { return note.find(text) != std::string::npos; });
}

// With heads that are wide enough for all dtypes.
Case unit_case(DType dtype) {
  Case c = base_case(dtype);
  c.head_dim = 36;
  c.head_dim_v = 33;
  return c;
}

TEST_F(MatrixUnit, IsChosenWhereItHasSomethingToDo) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16}) {
    for (const bool sink : {false, true}) {
      for (const Algorithm algorithm : kAlgorithms) {
        Case c = unit_case(dtype);
        c.sink = sink;
        const bool expected = dtype == DType::kFloat16 ||
                              (!sink && (dtype == DType::kFloat32 || dtype == DType::kBFloat16));
        for (const bool backward : {false, true}) {
          SCOPED_TRACE(std::string(to_string(dtype)) + " " + to_string(algorithm) +
                       (sink ? " sink" : "") + (backward ? " backward" : ""));
          const Plan plan = plan_of(c, {algorithm, Isa::kAuto}, backward);
          EXPECT_EQ(plan.isa == Isa::kAmx, expected) << to_string(plan.isa);
          EXPECT_EQ(has_note(plan, "amx does not run: its matrix unit is for float16"), !expected);
          const Plan named = plan_of(c, {algorithm, Isa::kAmx}, backward);
          EXPECT_EQ(named.isa, Isa::kAmx);
          EXPECT_EQ(has_note(named, "run on the matrix unit"), expected);
          EXPECT_EQ(has_note(named, "the matrix unit does not run: it is for float16"), !expected);
        }
      }
    }
  }
}

TEST_F(MatrixUnit, TakesNarrowHeadsOfFloat32ByName) {
  for (const auto& [head_dim, head_dim_v] : {std::pair{31, 64}, {64, 31}, {32, 32}}) {
    Case c = base_case(DType::kFloat32);
    c.head_dim = head_dim;
    c.head_dim_v = head_dim_v;
    const bool wide = std::min(head_dim, head_dim_v) >= 32;
    EXPECT_EQ(plan_of(c, {Algorithm::kFlash2, Isa::kAuto}, false).isa == Isa::kAmx, wide);
    const Plan named = plan_of(c, {Algorithm::kFlash2, Isa::kAmx}, false);
    EXPECT_TRUE(has_note(named, "products of float32, as three bfloat16 each, run"));
  }
}

TEST_F(MatrixUnit, PaysFromSoManyQueriesOn) {
  for (const Few& few : kFew) {
    for (const Algorithm algorithm : kAlgorithms) {
      for (const int more : {0, 1}) {
        Case c = unit_case(few.dtype);
        c.seqlen_q = few.queries + more;
        c.seqlen_k = 600;  // in pieces
        c.bias = {true, DType::kFloat32, {c.num_heads_q, c.seqlen_q, c.seqlen_k}};
        c.dbias = true;
        SCOPED_TRACE(std::string(to_string(few.dtype)) + " " + to_string(algorithm) + " " +
                     std::to_string(c.seqlen_q));
        const Values values = conformance::make_values(c);
        const Results by_itself = run_call(c, values, {algorithm, Isa::kAuto});
        const Results on_unit = run_call(c, values, {algorithm, Isa::kAmx});
        const Results without = run_call(c, values, {algorithm, Isa::kAvx512});
        EXPECT_TRUE(same_bits(more == 0 ? without : on_unit, by_itself));
        EXPECT_FALSE(same_bits(more == 0 ? on_unit : without, by_itself));
        const Plan plan = plan_of(c, {algorithm, Isa::kAuto}, false);
        const std::string bound = "more than " + std::to_string(few.queries) + " queries";
        EXPECT_EQ(has_note(plan, "run on the matrix unit, in sequences of " + bound), more == 1);
        EXPECT_EQ(has_note(plan, "matrix unit does not run: it pays from " + bound), more == 0);
      }
    }
  }
}

TEST_F(MatrixUnit, EverySequenceDecidesForItself) {
  for (const Few& few : kFew) {
    for (const Algorithm algorithm : kAlgorithms) {
      SCOPED_TRACE(std::string(to_string(few.dtype)) + " " + to_string(algorithm));
      Case c = unit_case(few.dtype);
      c.varlen = true;
      c.lengths_q = {few.queries, few.queries + 1, 70, 12, 0, 16};
      c.lengths_k = {75, 40, 75, 300, 9, 600};
      c.batch = static_cast<int64_t>(c.lengths_q.size());
      c.seqlen_q = std::max(70, few.queries + 1);
      c.seqlen_k = 600;
      c.bias = {true, DType::kFloat32, {c.batch, c.num_heads_q, c.seqlen_q, c.seqlen_k}};
      c.dbias = true;
      const Values values = conformance::make_values(c);
      const Results whole = run_call(c, values, {algorithm, Isa::kAuto});
      for (int64_t b = 0; b < c.batch; ++b) {
        const Part part = sequence_part(c, values, b);
        const Results alone = run_call(part.c, part.values, {algorithm, Isa::kAuto});
        EXPECT_TRUE(same_bits(alone, sequence_results(c, whole, b))) << "sequence " << b;
      }
    }
  }
}

// A tile of flash1 may be as long as the keys: it is packed piece by piece, and a NaN in the first
// piece is not forgotten over the next.
TEST_F(MatrixUnit, PacksTilesOfAnySize) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16, DType::kFloat32}) {
    for (const bool with_nan : {false, true}) {
      SCOPED_TRACE(std::string(to_string(dtype)) + (with_nan ? " with NaN" : ""));
      Case c = base_case(dtype);
      c.batch = 1;
      c.seqlen_k = 2100;
      c.window_left = 1900;  // the keys of the NaN are hidden from some rows
      Values values = conformance::make_values(c);
      if (with_nan) {
        values.v.set(values.v.count() / c.seqlen_k * 190, NAN);
        values.k.set(values.k.count() / c.seqlen_k * 180 + 1, INFINITY);
      }
      c.fast_memory_bytes = int64_t{4} * 4 * c.head_dim * 64;  // 64 keys
      const Target target = {Algorithm::kFlash1, Isa::kAmx};
      const Results short_tiles = run_call(c, values, target);
      c.fast_memory_bytes = int64_t{1} << 24;
      const Results one_tile = run_call(c, values, target);
      const auto gradient = [](const std::string& name, const std::vector<int64_t>&) {
        return name[0] == 'd';  // dq is added up tile by tile
      };
      EXPECT_TRUE(same_bits(short_tiles, one_tile, gradient));
      EXPECT_NE(all_finite(one_tile.out), with_nan);
      if (!with_nan) {
        EXPECT_TRUE(accurate(c, values, one_tile));
      }
    }
  }
}

// Numbers near the ends of float32, whose parts would overflow or be flushed, alone or among
// others: those are multiplied without the unit.
TEST_F(MatrixUnit, TakesFloat32OfAnySize) {
  for (const int exponent : {-135, -120, -101, -90, 63, 64, 100}) {
    for (const int64_t every : {1, 7}) {
      if (every == 1 && exponent < -110) continue;  // results below 2^-126 may come out as 0
      for (const Algorithm algorithm : kAlgorithms) {
        SCOPED_TRACE("2^" + std::to_string(exponent) + " every " + std::to_string(every) + " " +
                     to_string(algorithm));
        Case c = base_case(DType::kFloat32);
        Values values = conformance::make_values(c);
        const auto scale = [&](auto& tensor, int by) {
          for (int64_t i = 0; i < tensor.count(); i += every) {
            tensor.set(i, std::ldexp(tensor.get(i), by));
          }
        };
        scale(values.v, exponent);
        if (every == 1) {
          scale(values.q, exponent);
          scale(values.k, std::min(-exponent, 120));
          scale(values.dout, std::min(-exponent, 120));
        }
        EXPECT_TRUE(accurate(c, values, run_call(c, values, {algorithm, Isa::kAmx})));
      }
    }
  }
}

// Every query sees key 0 at a logit of 0, the others `distance` below. Key 0 has the value 0, the
// others have large ones.
void make_faint(const Case& c, int distance, Values& values) {
  for (int64_t i = 0; i < values.q.count(); i += c.head_dim) values.q.set(i, 1.0);
  for (int64_t i = 0; i < values.k.count(); ++i) {
    const int64_t key = i / (c.head_dim * c.num_heads_kv) % c.seqlen_k;
    const bool first = i % c.head_dim == 0;
    values.k.set(i, first && key != 0 ? -distance - 0.25 * static_cast<double>(key % 7) : 0.0);
  }
  for (int64_t i = 0; i < values.v.count(); ++i) {
    const int64_t key = i / (c.head_dim_v * c.num_heads_kv) % c.seqlen_k;
    values.v.set(i, key == 0 ? 0.0 : std::ldexp(values.v.get(i), 54));
  }
  for (int64_t i = 0; i < values.dout.count(); ++i) {
    values.dout.set(i, std::ldexp(values.dout.get(i), 40));
  }
  for (int64_t i = 0; i < values.mask.count(); i += c.seqlen_k) values.mask.set(i, 1.0);
}

// Results that are made of weights of e^-60 to e^-100 alone, of whose three parts none, some or all
// are subnormal.
TEST_F(MatrixUnit, TakesFloat32WeightsOfAnySize) {
  const std::vector<std::string> kinds = {"plain", "causal", "mask", "dropout",
                                          "tiny",  "hard",   "NaN"};
  for (const std::string& kind : kinds) {
    for (const int distance : {60, 72, 80, 85, 92, 100}) {
      for (const Algorithm algorithm : kAlgorithms) {
        SCOPED_TRACE(kind + " e^-" + std::to_string(distance) + " " + to_string(algorithm));
        Case c = unit_case(DType::kFloat32);
        c.seqlen_k = 150;
        c.softmax_scale = 1.0;
        c.causal = kind == "causal";
        if (kind == "mask") c.mask = {true, DType::kBool, {c.seqlen_q, c.seqlen_k}};
        c.dropout_p = kind == "dropout" ? 0.5 : 0.0;
        Values values = conformance::make_values(c);
        make_faint(c, distance, values);
        for (int64_t i = 0; i < values.v.count(); i += 5) {
          if (kind == "tiny") values.v.set(i, 0x1p-101);
        }
        if (kind == "hard") {
          values.v.set(values.v.count() - 1, 0x1p70);
          values.q.set(values.q.count() - 1, 0x1p66);
          values.dout.set(values.dout.count() - c.head_dim_v, 0x1p66);
        }
        if (kind == "NaN") values.v.set(values.v.count() - 1, NAN);
        EXPECT_TRUE(accurate(c, values, run_call(c, values, {algorithm, Isa::kAmx})));
      }
    }
  }
}

// An infinite key whose logits are all -inf weighs nothing, also for the lanes beyond the rows,
// whose products with it are not numbers.
TEST_F(MatrixUnit, LanesBeyondTheRowsMeetNoKey) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16, DType::kFloat32}) {
    for (const double dropout : {0.0, 0.5}) {
      for (const Algorithm algorithm : kAlgorithms) {
        SCOPED_TRACE(std::string(to_string(dtype)) + " " + to_string(algorithm) +
                     (dropout > 0 ? " dropout" : ""));
        Case c = unit_case(dtype);
        c.dropout_p = dropout;
        Values values = conformance::make_values(c);
        for (int64_t i = 0; i < values.q.count(); i += c.head_dim) values.q.set(i, 1.0);
        values.k.set(5 * c.num_heads_kv * c.head_dim, -INFINITY);
        const Results results = run_call(c, values, {algorithm, Isa::kAmx});
        EXPECT_TRUE(all_finite(results.out));
        EXPECT_TRUE(all_finite(results.dk));
        EXPECT_TRUE(all_finite(results.dv));
      }
    }
  }
}

// A tile in which no row of a panel has any weight is skipped, as is one that a block pattern hides
// from all: what the unit would have flushed of a sum before is 0 all the same, since another row
// of the panel may want the tile.
TEST_F(MatrixUnit, SkippedTilesLeaveNoTrace) {
  for (const Algorithm algorithm : {Algorithm::kFlash1, Algorithm::kFlash2}) {
    SCOPED_TRACE(to_string(algorithm));
    Case c = unit_case(DType::kFloat32);
    c.seqlen_q = 64;
    c.seqlen_k = 192;
    c.softmax_scale = 1.0;
    c.backward = false;
    c.fast_memory_bytes = int64_t{4} * 4 * c.head_dim * 64;  // flash1: tiles of 64 keys too
    Values values = conformance::make_values(c);
    for (int64_t i = 0; i < values.q.count(); ++i) {
      const int64_t d = i % c.head_dim;
      values.q.set(i, d == 0 ? 1.0 : (d == 1 ? -1000.0 : 0.0));
    }
    for (int64_t i = 0; i < values.k.count(); ++i) {
      const int64_t d = i % c.head_dim;
      const int64_t key = i / (c.head_dim * c.num_heads_kv) % c.seqlen_k;
      const bool faint = key > 0 && key < 128;
      values.k.set(i, d == 0 && faint ? -76.0 : (d == 1 && key >= 128 ? 1.0 : 0.0));
    }
    for (int64_t i = 0; i < values.v.count(); ++i) {
      const int64_t key = i / (c.head_dim_v * c.num_heads_kv) % c.seqlen_k;
      values.v.set(i, key == 0 ? 0.0 : std::ldexp(values.v.get(i), -24));
    }
    const Target target = {algorithm, Isa::kAmx};
    const Results alike = run_call(c, values, target);
    Case hidden = c;
    hidden.block_mask_heads = 1;
    hidden.block_size_q = 64;
    hidden.block_size_k = 64;
    Values hiding = values;
    hiding.block_mask = conformance::make_values(hidden).block_mask;
    for (int64_t i = 0; i < hiding.block_mask.count(); ++i) hiding.block_mask.set(i, i < 2 ? 1 : 0);
    EXPECT_TRUE(same_bits(alike, run_call(hidden, hiding, target)));
    for (int64_t i = 1; i < c.num_heads_q * c.head_dim; i += c.head_dim) values.q.set(i, 0.0);
    const Results with_another = run_call(c, values, target);
    EXPECT_FALSE(same_bits(alike, with_another));
    const auto of_the_other = [](const std::string&, const std::vector<int64_t>& at) {
      return at[0] == 0 && (at[1] == 0 || at[2] == 0);  // query 0: (b, i, h, d) or (b, h, i)
    };
    EXPECT_TRUE(same_bits(alike, with_another, of_the_other));
  }
}

// Hidden by the mask, by -inf, or by the least number there is: the same rows to the last bit.
TEST_F(MatrixUnit, HiddenKeysWeighNothingHoweverTheyAreHidden) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    SCOPED_TRACE(to_string(dtype));
    Case c = unit_case(dtype);
    c.seqlen_q = 96;
    c.seqlen_k = 250;
    c.backward = false;
    const std::vector<int64_t> pairs = {c.seqlen_q, c.seqlen_k};
    c.bias = {true, DType::kFloat32, pairs};
    c.mask = {true, DType::kBool, pairs};
    Values masked = conformance::make_values(c);
    Values infinite = masked;
    Values least = masked;
    for (int64_t i = 0; i < masked.bias.count(); ++i) {
      const int64_t query = i / c.seqlen_k;
      const int64_t key = i % c.seqlen_k;
      const bool late = query % 2 == 1 && key < 64;  // sees nothing of the first tile
      const bool hidden = (key >= 128 && key < 192) || late || (7 * key + 3 * query) % 5 == 0;
      masked.mask.set(i, hidden ? 0 : 1);
      infinite.mask.set(i, 1);
      least.mask.set(i, 1);
      if (!hidden) continue;
      infinite.bias.set(i, -std::numeric_limits<double>::infinity());
      least.bias.set(i, static_cast<double>(std::numeric_limits<float>::lowest()));
    }
    const Target target = {Algorithm::kFlash2, Isa::kAmx};
    const Results expected = run_call(c, masked, target);
    EXPECT_TRUE(all_finite(expected.out));
    EXPECT_TRUE(same_bits(expected, run_call(c, infinite, target)));
    EXPECT_TRUE(same_bits(expected, run_call(c, least, target)));
    Case full = c;
    full.mask = {};
    infinite.mask = least.mask = conformance::make_values(full).mask;
    EXPECT_TRUE(same_bits(expected, run_call(full, infinite, target)));
    EXPECT_TRUE(same_bits(expected, run_call(full, least, target)));
  }
}

}  // namespace
}  // namespace attentile::property

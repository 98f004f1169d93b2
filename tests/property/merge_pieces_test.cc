// SPDX-License-Identifier: Apache-2.0
// The keys cut in three by explicit position offsets (and key_base for dropout), each piece
// attended on its own, the states merged: equal to one call over all keys, within the accuracy
// rule. And the backward pass of each piece with the merged out and lse: its dk and dv are those of
// the whole, its dq adds up.
#include <string>
#include <vector>

#include "conformance/call_testing.h"
#include "property/slices.h"

namespace attentile::property {
namespace {

using conformance::accurate;
using conformance::for_each_target;
using conformance::Target;

AttentionOptions options_for(const Case& c, const Target& target) {
  AttentionOptions options = conformance::options_of(c);
  options.algorithm = target.algorithm;
  options.isa = target.isa;
  return options;
}

// Features that a piece of the keys can have. Only the first piece gets the sink.
Case piece_case(uint64_t seed, DType dtype) {
  Case c = feature_case(seed, dtype);
  c.block_mask_heads = 0;  // pattern tiles are counted from key 0 of a call
  c.block_size_q = c.block_size_k = 0;
  c.seqused_k.clear();
  c.dlse = false;
  c.sink = c.dsink = false;
  c.seqlen_k = std::max<int64_t>(c.seqlen_k, 64);
  for (conformance::Broadcast* broadcast : {&c.bias, &c.mask}) {
    if (broadcast->present) broadcast->shape[3] = c.seqlen_k;
  }
  return c;
}

struct Cut {
  int64_t begin;
  int64_t count;
};

std::vector<Cut> three_cuts(const Case& c) {
  const int64_t first = c.seqlen_k / 5 + 1;
  const int64_t second = c.seqlen_k / 2;
  return {{0, first}, {first, second}, {first + second, c.seqlen_k - first - second}};
}

Results merged_forward(const Case& c, const Values& values, const std::vector<Part>& parts,
                       const Target& target) {
  std::vector<Results> results;
  std::vector<PartialState> states;
  results.reserve(parts.size());
  for (const Part& part : parts) {
    results.push_back(conformance::empty_results(part.c, part.values));
    const AttentionOutputs outputs = conformance::outputs_of(results.back());
    const Status status = attention_forward(conformance::inputs_of(part.values), outputs,
                                            options_for(part.c, target));
    EXPECT_TRUE(status.ok()) << status.message();
    states.push_back({outputs.out, outputs.lse});
  }
  Results whole = conformance::empty_results(c, values);
  const AttentionOutputs outputs = conformance::outputs_of(whole);
  const Status status = merge(states, {outputs.out, outputs.lse});
  EXPECT_TRUE(status.ok()) << status.message();
  return whole;
}

class MergedPieces : public ::testing::TestWithParam<int> {};

TEST_P(MergedPieces, EqualOneCall) {
  const int seed = GetParam();
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    Case c = piece_case(static_cast<uint64_t>(seed), dtype);
    SCOPED_TRACE(describe(c));
    const Values values = conformance::make_values(c);
    std::vector<Part> parts;
    for (const Cut& cut : three_cuts(c)) parts.push_back(key_part(c, values, cut.begin, cut.count));
    Case forward_only = c;
    forward_only.backward = false;
    for_each_target([&](const Target& target) {
      const Results whole = merged_forward(c, values, parts, target);
      EXPECT_TRUE(accurate(forward_only, values, whole));
    });
  }
}

// The definition recomputes the softmax of the keys it is given, so only the algorithms that start
// from out and lse can work on a piece.
TEST_P(MergedPieces, BackwardByPieces) {
  const int seed = GetParam();
  Case c = piece_case(static_cast<uint64_t>(seed), DType::kFloat32);
  SCOPED_TRACE(describe(c));
  const Values values = conformance::make_values(c);
  std::vector<Part> parts;
  for (const Cut& cut : three_cuts(c)) parts.push_back(key_part(c, values, cut.begin, cut.count));
  for_each_target([&](const Target& target) {
    if (target.algorithm != Algorithm::kFlash1 && target.algorithm != Algorithm::kFlash2) return;
    Results whole = merged_forward(c, values, parts, target);
    whole.dq.fill(0.0);
    const std::vector<Cut> cuts = three_cuts(c);
    for (size_t n = 0; n < parts.size(); ++n) {
      const Part& part = parts[n];
      Results piece = conformance::empty_results(part.c, part.values);
      const Status status = attention_backward(
          conformance::inputs_of(part.values), conformance::outputs_of(whole),
          conformance::gradients_of(part.values, piece), options_for(part.c, target));
      ASSERT_TRUE(status.ok()) << status.message();
      for (int64_t at = 0; at < whole.dq.count(); ++at) {
        whole.dq.set(at, whole.dq.get(at) + piece.dq.get(at));
      }
      const auto paste = [&](DenseTensor& target_tensor, const DenseTensor& source, int axis) {
        if (!source.present) return;
        int64_t inner = 1;
        for (int a = axis + 1; a < source.rank(); ++a)
          inner *= source.shape[static_cast<size_t>(a)];
        for (int64_t at = 0; at < source.count(); ++at) {
          const int64_t row = at / inner;
          const int64_t outer = row / cuts[n].count;
          const int64_t key = cuts[n].begin + row % cuts[n].count;
          target_tensor.set((outer * c.seqlen_k + key) * inner + at % inner, source.get(at));
        }
      };
      paste(whole.dk, piece.dk, 1);
      paste(whole.dv, piece.dv, 1);
      paste(whole.dbias, piece.dbias, 3);
    }
    EXPECT_TRUE(accurate(c, values, whole));
  });
}

INSTANTIATE_TEST_SUITE_P(Property, MergedPieces, ::testing::Range(100, 112));

}  // namespace
}  // namespace attentile::property

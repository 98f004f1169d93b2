// SPDX-License-Identifier: Apache-2.0
// PlacedCall: a case's tensors in guarded memory, each with strides of its own, as the arguments of
// one forward and backward call; and the same for contiguous values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "conformance/case.h"
#include "support/placed_tensor.h"

namespace attentile::conformance {

// Views of contiguous values.
AttentionInputs inputs_of(const Values& values);
AttentionOutputs outputs_of(const Results& results);
AttentionGradients gradients_of(const Values& values, const Results& results);

enum class Placement { kRandom, kContiguous };

class PlacedCall {
 public:
  // shapes: what empty_results() gives.
  PlacedCall(const Case& c, const Values& values, const Results& shapes, uint64_t layout_seed,
             Placement placement = Placement::kRandom);

  const AttentionInputs& inputs() const { return inputs_; }
  const AttentionOutputs& outputs() const { return outputs_; }
  const AttentionGradients& gradients() const { return gradients_; }

  // The backward pass reads out and lse: from now on writing them is an error.
  void freeze_outputs();
  Results results() const;
  // Names every tensor that was touched where it must not be; empty if none was.
  std::string damage() const;

 private:
  struct Named {
    const char* name;
    testing::PlacedTensor tensor;
  };

  TensorView place(const char* name, const DenseTensor& dense, testing::Role role,
                   uint32_t zero_stride = 0);
  const testing::PlacedTensor* find(const char* name) const;

  testing::Random random_;
  Placement placement_;
  std::vector<Named> tensors_;
  AttentionInputs inputs_;
  AttentionOutputs outputs_;
  AttentionGradients gradients_;
};

}  // namespace attentile::conformance

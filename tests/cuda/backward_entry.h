// SPDX-License-Identifier: Apache-2.0
// A backward call on the emulated GPU, and the conformance table's cells through both passes.
#pragma once

#include "attentile/attention.h"
#include "conformance/entry.h"
#include "cuda/emulator/device.h"

namespace attentile::cuda::test {

// The tensors of one call.
struct CallViews {
  AttentionInputs inputs;
  AttentionOutputs outputs;
  AttentionGradients gradients;
};

// A backward call on an emulated device that knows the memory of these views and no other. Outputs
// are read, and so are dout and dlse.
Status emulate_backward(const CallViews& call, const AttentionOptions& options,
                        const emulator::Options& device_options,
                        emulator::Report* report = nullptr);

// The forward pass of a cell and, where the case has one, its backward pass; schedule, completion,
// order of blocks and the error of ex2 differ from cell to cell.
conformance::EntryResult run_both_passes(const conformance::Case& c,
                                         const conformance::Oracle& oracle,
                                         const conformance::Cell& cell, uint64_t layout_seed);

// For the tables of docs/kernels/backward_sm80.md.
void print_counts(int64_t head_dim, const emulator::Report& report);

}  // namespace attentile::cuda::test

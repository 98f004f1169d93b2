// SPDX-License-Identifier: Apache-2.0
// The emulated GPU as one more entry point of the conformance table, and as a call on views.
#pragma once

#include <functional>

#include "attentile/attention.h"
#include "conformance/entry.h"
#include "cuda/emulator/device.h"
#include "cuda/params.h"

namespace attentile::cuda::test {

// Makes everything between the first and the last byte of a view known to a device.
void register_view(emulator::Device& device, const TensorView& view,
                   const emulator::Region& region);

// Makes the tensors of a forward call known to a device: inputs to be read, outputs to be written.
void register_call(emulator::Device& device, const AttentionInputs& inputs,
                   const AttentionOutputs& outputs);

// A forward call on an emulated device that knows the memory of these views and no other. `change`
// may choose other kernels and splits than the plan did.
using ChangeParams = std::function<void(ForwardParams&)>;
Status emulate_forward(const AttentionInputs& inputs, const AttentionOutputs& outputs,
                       const AttentionOptions& options, const emulator::Options& device_options,
                       emulator::Report* report = nullptr, const ChangeParams& change = {});

// Splits of `keys` keys, a multiple of 64, of sequences that have few queries.
ChangeParams split_by(int32_t keys);
// One kernel for every sequence, keys undivided: rows of one head a tile, or packed ones. float32
// has the latter alone.
void one_head(ForwardParams& params);
void packed(ForwardParams& params);

// How far ex2.approx is off in a cell: not at all, or as far as PTX allows.
int ex2_ulps_of(uint64_t layout_seed);

// The forward pass of a cell; schedule, completion, order of blocks, the error of ex2, and
// kernels and splits where there is a choice, differ from cell to cell.
conformance::EntryResult run_emulator(const conformance::Case& c, const conformance::Oracle& oracle,
                                      const conformance::Cell& cell, uint64_t layout_seed);

}  // namespace attentile::cuda::test

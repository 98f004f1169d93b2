// SPDX-License-Identifier: Apache-2.0
// Entry point device: the guarded tensors mirrored in device memory, the call there, the results
// back where the other entries leave them.
#include "conformance/call.h"
#include "conformance/entry.h"
#include "cuda/backend.h"
#include "io/device_call.h"

namespace attentile::conformance {

EntryResult run_device(const Case& c, const Oracle& oracle, const Cell& cell,
                       uint64_t layout_seed) {
  EntryResult result;
  const Result<const cuda::BackendTable*>& table = cuda::backend();
  if (!table.ok()) {
    result.status = table.status();
    return result;
  }
  const Placement placement = layout_seed % 2 == 0 ? Placement::kContiguous : Placement::kRandom;
  PlacedCall call(c, oracle.given, oracle.slots, layout_seed, placement);
  io::DeviceCall device(**table, call.inputs(), call.outputs(), call.gradients());
  AttentionOptions options = options_of(c);
  options.algorithm = cell.algorithm;
  options.atomic_dq = cell.atomic_dq;
  // Else the kernels find the lengths by themselves, up to what the tensors allow; bias and mask
  // have the shape of the longest.
  if (layout_seed % 3 != 0 || c.bias.present || c.mask.present || c.block_mask_heads > 0) {
    if (c.varlen) options.max_seqlen_q = c.seqlen_q;
    if (c.packed_k() || c.page_size > 0) options.max_seqlen_k = c.seqlen_k;
  }
  const bool own_workspace = layout_seed % 2 == 0;
  result.status = device.run_forward(options, own_workspace);
  if (!result.status.ok()) return result;
  result.damage = device.damage() + call.damage();
  if (c.backward) {
    call.freeze_outputs();
    result.status = device.run_backward(options, own_workspace);
    if (!result.status.ok()) return result;
    result.damage += device.damage() + call.damage();
  }
  result.results = call.results();
  return result;
}

}  // namespace attentile::conformance

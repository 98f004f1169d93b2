// SPDX-License-Identifier: Apache-2.0
// A workspace of the caller's that lies in a tensor of the call: the kernels would write over it.
#include <cstdint>

#include "validate/bad_call.h"

namespace attentile::test {
namespace {

void place(SampleCall& c, const attentile_tensor& tensor, int64_t past, int64_t size) {
  c.context.workspace = static_cast<unsigned char*>(tensor.data) + past;
  c.context.workspace_bytes = size;
}

}  // namespace

std::vector<BadCall> bad_workspaces() {
  constexpr int32_t kInvalid = ATTENTILE_INVALID_ARGUMENT;
  const Base d = Base::kDense;
  const Base b = Base::kDenseBackward;
  return {
      {"workspace_is_q", d, [](SampleCall& c) { place(c, c.q, 0, 64); }, kInvalid,
       "workspace: its 64 bytes begin 0 past the data of q, but they must not share memory with a "
       "tensor"},
      {"workspace_in_out", d, [](SampleCall& c) { place(c, c.out, 100, 8); }, kInvalid,
       "workspace: its 8 bytes begin 100 past the data of out, but they must not share memory with "
       "a tensor"},
      {"workspace_ends_in_v", d, [](SampleCall& c) { place(c, c.v, -96, 97); }, kInvalid,
       "workspace: its 97 bytes begin 96 before the data of v, but they must not share memory with "
       "a tensor"},
      {"workspace_without_end", d,
       [](SampleCall& c) {
         c.give("bias");
         place(c, c.bias, -64, INT64_MAX);
       },
       kInvalid,
       "workspace: its 9223372036854775807 bytes begin 64 before the data of bias, but they must "
       "not share memory with a tensor"},
      {"workspace_in_last_byte_of_lse", d, [](SampleCall& c) { place(c, c.lse, 95, 4096); },
       kInvalid,
       "workspace: its 4096 bytes begin 95 past the data of lse, but they must not share memory "
       "with a tensor"},
      {"workspace_in_keep", d,
       [](SampleCall& c) {
         c.give("keep");
         place(c, c.keep, 7, 1);
       },
       kInvalid,
       "workspace: its 1 bytes begin 7 past the data of keep, but they must not share memory with "
       "a tensor"},
      {"workspace_in_indices", Base::kPacked, [](SampleCall& c) { place(c, c.cu_seqlens_k, 4, 4); },
       kInvalid,
       "workspace: its 4 bytes begin 4 past the data of cu_seqlens_k, but they must not share "
       "memory with a tensor"},
      {"workspace_in_dv", b, [](SampleCall& c) { place(c, c.dv, 16, 16); }, kInvalid,
       "workspace: its 16 bytes begin 16 past the data of dv, but they must not share memory with "
       "a "
       "tensor"},
      {"workspace_in_dout", Base::kPackedBackward, [](SampleCall& c) { place(c, c.dout, 0, 4); },
       kInvalid,
       "workspace: its 4 bytes begin 0 past the data of dout, but they must not share memory with "
       "a tensor"},
  };
}

}  // namespace attentile::test

// SPDX-License-Identifier: Apache-2.0
// What only the C ABI can be given: struct sizes that fit no version, reserved fields, null
// structs.
#include <cstdint>

#include "validate/bad_call.h"

namespace attentile::test {

std::vector<BadCall> bad_structs() {
  constexpr int32_t kInvalid = ATTENTILE_INVALID_ARGUMENT;
  constexpr Surface kC = Surface::kOnlyC;
  const Base d = Base::kDense;
  const Base b = Base::kDenseBackward;
  const auto with_executor = [](SampleCall& c) { c.context.executor = &c.executor; };
  return {
      {"tensor_struct_size_zero", d, [](SampleCall& c) { c.q.struct_size = 0; }, kInvalid,
       "q: struct_size is 0, but it must be in [96, 4096]", kC},
      {"tensor_struct_size_short", d, [](SampleCall& c) { c.v.struct_size = 95; }, kInvalid,
       "v: struct_size is 95, but it must be in [96, 4096]", kC},
      {"tensor_struct_size_huge", d, [](SampleCall& c) { c.out.struct_size = 4097; }, kInvalid,
       "out: struct_size is 4097, but it must be in [96, 4096]", kC},
      {"tensor_struct_size_max", d, [](SampleCall& c) { c.k.struct_size = SIZE_MAX >> 1; },
       kInvalid, "k: struct_size is 9223372036854775807, but it must be in [96, 4096]", kC},
      {"tensor_reserved", d, [](SampleCall& c) { c.k.reserved = 1; }, kInvalid,
       "k: reserved is 1, but it must be 0", kC},
      {"tensor_rank_absent", d, [](SampleCall& c) { c.lse.rank = -1; }, kInvalid,
       "lse: rank is -1, but it must be in [0, 4]", kC},
      {"gradient_rank_absent", b,
       [](SampleCall& c) {
         c.give("dlse");
         c.dlse.rank = -1;
       },
       kInvalid, "dlse: rank is -1, but it must be in [0, 4]", kC},
      {"inputs_struct_size_zero", d, [](SampleCall& c) { c.inputs.struct_size = 0; }, kInvalid,
       "inputs: struct_size is 0, but it must be in [120, 4096]", kC},
      {"inputs_struct_size_short", b, [](SampleCall& c) { c.inputs.struct_size = 112; }, kInvalid,
       "inputs: struct_size is 112, but it must be in [120, 4096]", kC},
      {"outputs_struct_size_zero", d, [](SampleCall& c) { c.outputs.struct_size = 0; }, kInvalid,
       "outputs: struct_size is 0, but it must be in [32, 4096]", kC},
      {"outputs_struct_size_huge", d, [](SampleCall& c) { c.outputs.struct_size = 1 << 20; },
       kInvalid, "outputs: struct_size is 1048576, but it must be in [32, 4096]", kC},
      {"gradients_struct_size_short", b, [](SampleCall& c) { c.gradients.struct_size = 8; },
       kInvalid, "gradients: struct_size is 8, but it must be in [64, 4096]", kC},
      {"options_struct_size_zero", d, [](SampleCall& c) { c.options.struct_size = 0; }, kInvalid,
       "options: struct_size is 0, but it must be in [160, 4096]", kC},
      {"options_struct_size_short", b, [](SampleCall& c) { c.options.struct_size = 159; }, kInvalid,
       "options: struct_size is 159, but it must be in [160, 4096]", kC},
      {"options_reserved", b, [](SampleCall& c) { c.options.reserved = 3; }, kInvalid,
       "options: reserved is 3, but it must be 0", kC},
      {"context_struct_size_zero", d, [](SampleCall& c) { c.context.struct_size = 0; }, kInvalid,
       "context: struct_size is 0, but it must be in [72, 4096]", kC},
      {"context_reserved", d, [](SampleCall& c) { c.context.reserved = -1; }, kInvalid,
       "context: reserved is -1, but it must be 0", kC},
      {"executor_struct_size_zero", d,
       [=](SampleCall& c) {
         with_executor(c);
         c.executor.struct_size = 0;
       },
       kInvalid, "executor: struct_size is 0, but it must be in [40, 4096]", kC},
      {"executor_reserved", d,
       [=](SampleCall& c) {
         with_executor(c);
         c.executor.reserved = 3;
       },
       kInvalid, "executor: reserved is 3, but it must be 0", kC},
      {"traffic_struct_size_short", d,
       [](SampleCall& c) {
         c.traffic.struct_size = 16;
         c.context.traffic = &c.traffic;
       },
       kInvalid, "traffic: struct_size is 16, but it must be in [24, 4096]", kC},
  };
}

}  // namespace attentile::test

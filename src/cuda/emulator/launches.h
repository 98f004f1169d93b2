// SPDX-License-Identifier: Apache-2.0
// The launches of a pass on the emulated GPU, one after another.
#pragma once

#include "cuda/emulator/device.h"
#include "cuda/kernel_name.h"

namespace attentile::cuda::emulator {

// pass(launch) calls launch.template operator()<Kernel>(blocks, params) for each, in order, while
// it says to go on. Returns the report of all.
template <class Pass>
Report run_launches(Device& device, const Pass& pass) {
  int64_t expected = 0;
  pass([&]<class Kernel>(int64_t blocks, const auto&) {
    expected += blocks;
    return true;
  });
  device.expect_blocks(expected);
  Report all;
  all.completed = true;  // nothing to do is done
  pass([&]<class Kernel>(int64_t blocks, const auto& params) {
    const Report one =
        device.launch<Kernel>({static_cast<uint32_t>(blocks)}, Kernel::kSharedBytes, params);
    all.add(one);
    all.kernels[kernel_name<Kernel>()].add(one.total);
    return all.clean();
  });
  device.expect_blocks(0);
  return all;
}

}  // namespace attentile::cuda::emulator

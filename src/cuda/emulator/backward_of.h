// SPDX-License-Identifier: Apache-2.0
// The backward pass of one dtype on the emulated GPU; each is compiled by itself.
#pragma once

#include "cuda/backward_kernels.h"
#include "cuda/emulator/backward.h"

namespace attentile::cuda::emulator {

template <class T>
Report start_backward_of(Device& device, const BackwardParams& params) {
  Report all;
  all.completed = true;  // nothing to do is done
  backward_pass<T>(params, [&]<class Kernel>(int64_t blocks, const auto& kernel_params) {
    all.add(device.launch<Kernel>({static_cast<uint32_t>(blocks)}, Kernel::kSharedBytes,
                                  kernel_params));
    return all.clean();
  });
  return all;
}

extern template Report start_backward_of<float>(Device&, const BackwardParams&);
extern template Report start_backward_of<Float16>(Device&, const BackwardParams&);
extern template Report start_backward_of<BFloat16>(Device&, const BackwardParams&);

}  // namespace attentile::cuda::emulator

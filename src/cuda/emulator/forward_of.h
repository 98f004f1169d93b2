// SPDX-License-Identifier: Apache-2.0
// The forward pass of one dtype on the emulated GPU; each is compiled by itself.
#pragma once

#include "cuda/emulator/forward.h"
#include "cuda/forward_kernels.h"

namespace attentile::cuda::emulator {

template <class T>
Report start_forward_of(Device& device, const ForwardParams& params) {
  Report all;
  all.completed = true;  // nothing to do is done
  forward_pass<T>(params, [&]<class Kernel>(int64_t blocks, const auto& kernel_params) {
    all.add(device.launch<Kernel>({static_cast<uint32_t>(blocks)}, Kernel::kSharedBytes,
                                  kernel_params));
    return all.clean();
  });
  return all;
}

extern template Report start_forward_of<float>(Device&, const ForwardParams&);
extern template Report start_forward_of<Float16>(Device&, const ForwardParams&);
extern template Report start_forward_of<BFloat16>(Device&, const ForwardParams&);

}  // namespace attentile::cuda::emulator

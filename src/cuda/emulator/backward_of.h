// SPDX-License-Identifier: Apache-2.0
// The backward pass of one dtype on the emulated GPU; each is compiled by itself.
#pragma once

#include "cuda/backward_kernels.h"
#include "cuda/emulator/backward.h"
#include "cuda/emulator/launches.h"

namespace attentile::cuda::emulator {

template <class T>
Report start_backward_of(Device& device, const BackwardParams& params) {
  return run_launches(device, [&](const auto& launch) { backward_pass<T>(params, launch); });
}

extern template Report start_backward_of<float>(Device&, const BackwardParams&);
extern template Report start_backward_of<Float16>(Device&, const BackwardParams&);
extern template Report start_backward_of<BFloat16>(Device&, const BackwardParams&);

}  // namespace attentile::cuda::emulator

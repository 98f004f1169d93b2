// SPDX-License-Identifier: Apache-2.0
// The forward pass of one dtype on the emulated GPU; each is compiled by itself.
#pragma once

#include "cuda/emulator/forward.h"
#include "cuda/emulator/launches.h"
#include "cuda/forward_kernels.h"

namespace attentile::cuda::emulator {

template <class T>
Report start_forward_of(Device& device, const ForwardParams& params) {
  return run_launches(device, [&](const auto& launch) { forward_pass<T>(params, launch); });
}

extern template Report start_forward_of<float>(Device&, const ForwardParams&);
extern template Report start_forward_of<Float16>(Device&, const ForwardParams&);
extern template Report start_forward_of<BFloat16>(Device&, const ForwardParams&);

}  // namespace attentile::cuda::emulator

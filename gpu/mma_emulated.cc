// SPDX-License-Identifier: Apache-2.0
// Tiles on the emulator, which rehearses the check where there is no GPU.
#include "cuda/emulator/device.h"
#include "gpu/mma_kernel.h"

namespace attentile::gpu {
namespace {

constexpr int kArchitecture = 90;

}  // namespace

std::string multiply_on_device(TileBatch& batch) {
  using cuda::emulator::MmaModel;
  cuda::emulator::Device device({.mma = MmaModel::kHardware, .arch = kArchitecture});
  device.register_memory(batch.a.data(), 4 * batch.a.size(), {.name = "a", .writable = false});
  device.register_memory(batch.b.data(), 4 * batch.b.size(), {.name = "b", .writable = false});
  device.register_memory(batch.acc.data(), 4 * batch.acc.size(), {.name = "acc"});
  const MmaParams params = {batch.a.data(), batch.b.data(), batch.acc.data(), batch.count};
  const cuda::emulator::Report report = with_mma_kernel(batch, [&]<class Kernel>(uint32_t blocks) {
    return device.launch<Kernel>({blocks}, Kernel::kSharedBytes, params);
  });
  return report.clean() ? "" : report.text();
}

int device_architecture() {
  return kArchitecture;
}

}  // namespace attentile::gpu

// SPDX-License-Identifier: Apache-2.0
#include "cuda/emulator/device.h"

#include <utility>

#include "cuda/emulator/machine.h"

namespace attentile::cuda::emulator {

Device::Device(const Options& options) : machine_(std::make_unique<Machine>(options)) {}
Device::~Device() = default;

void Device::register_memory(const void* memory, size_t bytes, const Region& region) {
  machine_->global.add(memory, bytes, region.name, region.initialised, region.writable);
}
void Device::forget_memory(const void* memory) {
  machine_->global.remove(memory);
}

const Options& Device::options() const {
  return machine_->options;
}

size_t Device::uninitialised_bytes(const void* memory) const {
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  size_t count = 0;
  for (const GlobalRegion& region : machine_->global.regions()) {
    if (region.begin != begin || region.cells.empty()) continue;
    for (uintptr_t byte = region.begin; byte < region.end; ++byte) {
      const GlobalCell& cell = region.cells[byte / 4 - region.begin / 4];
      count += (cell.valid >> (byte % 4) & 1) == 0;
    }
  }
  return count;
}

void Device::watch(std::function<bool(double)> goes_on) {
  machine_->watch(std::move(goes_on));
}
void Device::expect_blocks(int64_t blocks) {
  machine_->expect_blocks(static_cast<uint64_t>(blocks));
}

Report Device::run(const LaunchShape& shape, Entry entry, const void* params) {
  return machine_->run(shape, entry, params);
}

}  // namespace attentile::cuda::emulator

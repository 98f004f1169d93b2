// SPDX-License-Identifier: Apache-2.0
// The registered regions of global memory and, per 4 bytes of those that can change or are not yet
// initialised, who wrote and read them last. Stamps of earlier launches count as ordered.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace attentile::cuda::emulator {

struct GlobalCell {
  struct Reader {
    uint32_t thread = 0;
    uint32_t epoch = 0;
    uint16_t site = 0;
  };
  uint32_t launch = 0;  // that wrote or read last; stamps below are its own
  uint32_t writer = 0;  // thread number in the launch
  uint32_t write_epoch = 0;
  uint16_t write_site = 0;
  uint8_t valid = 0;        // initialised bytes
  uint8_t written = 0;      // bytes of the last write in this launch
  bool atomic = false;      // and whether it was an atomic
  uint8_t num_readers = 0;  // the last reader, and the last of another block
  uint8_t read_bytes = 0;
  Reader reader[2];
};

struct GlobalRegion {
  uintptr_t begin = 0;
  uintptr_t end = 0;
  std::string name;
  bool writable = true;
  std::vector<GlobalCell> cells;  // empty: read-only and initialised
};

class GlobalShadow {
 public:
  void add(const void* memory, size_t bytes, const std::string& name, bool initialised,
           bool writable) {
    GlobalRegion region{reinterpret_cast<uintptr_t>(memory), 0, name, writable, {}};
    region.end = region.begin + bytes;
    if (writable || !initialised) {
      const uintptr_t first = region.begin / 4;
      region.cells.resize((region.end + 3) / 4 - first);
      if (initialised) {
        for (GlobalCell& cell : region.cells) cell.valid = 0xF;
      }
    }
    regions_.push_back(std::move(region));
  }
  void remove(const void* memory) {
    const auto begin = reinterpret_cast<uintptr_t>(memory);
    std::erase_if(regions_, [&](const GlobalRegion& region) { return region.begin == begin; });
    last_ = 0;
  }
  // The region that holds all those bytes, or null.
  GlobalRegion* find(uintptr_t address, size_t bytes) {
    if (last_ < regions_.size() && holds(regions_[last_], address, bytes)) return &regions_[last_];
    for (size_t i = 0; i < regions_.size(); ++i) {
      if (holds(regions_[i], address, bytes)) {
        last_ = i;
        return &regions_[i];
      }
    }
    return nullptr;
  }
  const std::vector<GlobalRegion>& regions() const { return regions_; }

 private:
  static bool holds(const GlobalRegion& region, uintptr_t address, size_t bytes) {
    return address >= region.begin && address <= region.end && bytes <= region.end - address;
  }
  std::vector<GlobalRegion> regions_;
  size_t last_ = 0;
};

}  // namespace attentile::cuda::emulator

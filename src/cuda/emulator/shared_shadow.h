// SPDX-License-Identifier: Apache-2.0
// Per 4 bytes of a block's shared memory: which bytes are initialised or the destination of a copy
// in flight, who wrote last, and up to which epoch each warp has read.
#pragma once

#include <cstdint>
#include <vector>

namespace attentile::cuda::emulator {

struct SharedCell {
  uint32_t write_epoch = 0;
  uint16_t writer = 0;      // thread in the block
  uint16_t write_site = 0;  // 0: never written
  uint16_t read_site = 0;
  uint8_t valid = 0;      // bytes
  uint8_t written = 0;    // bytes of the last write
  uint8_t in_flight = 0;  // bytes
  uint8_t read = 0;       // bytes of reads since
  bool by_warp = false;   // the last write was a collective one: of every lane and of none
};

// Who read: epoch * 64 + lane; several lanes; or a collective, which is over in all lanes at once.
inline constexpr uint32_t kSeveralLanes = 32;
inline constexpr uint32_t kCollective = 33;

struct SharedShadow {
  uint32_t num_warps = 0;
  std::vector<SharedCell> cells;
  std::vector<uint32_t> readers;  // [cell][warp]

  void reset(uint32_t bytes, uint32_t warps) {
    num_warps = warps;
    cells.assign((bytes + 3) / 4, SharedCell{});
    readers.assign(cells.size() * warps, 0);
  }
  uint32_t* readers_of(uint32_t cell) { return readers.data() + size_t{cell} * num_warps; }
};

}  // namespace attentile::cuda::emulator

// SPDX-License-Identifier: Apache-2.0
// Where an element of a tile lies in shared memory. A tile [rows, columns] is stored as panels of
// 128, 64 or 32 bytes of each row, row after row; within a panel the 16-byte chunks of a row are
// exchanged by an XOR with bits of the row, so that the same chunk of 8 consecutive rows, which
// ldmatrix reads at once, lies in 8 different groups of 4 banks. It is the layout that the bulk
// tensor copies and wgmma of sm_90 know as 128B, 64B and 32B swizzle, so it depends on the address
// and a tile begins at a multiple of kAlignment. Pure, constexpr, the same on host and device.
#pragma once

#include "cuda/device/shared_memory.h"

namespace attentile::cuda {

// Bytes of a row in one panel; kNone keeps rows whole and chunks in place.
enum class Swizzle : uint32_t { kNone = 0, k32 = 32, k64 = 64, k128 = 128 };

// The swizzled offset: bits 4.. of the byte offset xor bits 7.., as many as the panel has chunks.
template <Swizzle kSwizzle>
constexpr uint32_t swizzle(uint32_t offset) {
  constexpr uint32_t kMask = kSwizzle == Swizzle::k128  ? 0x70
                             : kSwizzle == Swizzle::k64 ? 0x30
                             : kSwizzle == Swizzle::k32 ? 0x10
                                                        : 0;
  return offset ^ ((offset >> 3) & kMask);
}

// The widest swizzle whose panels divide rows of `row_bytes`.
constexpr Swizzle swizzle_for(uint32_t row_bytes) {
  return row_bytes % 128 == 0  ? Swizzle::k128
         : row_bytes % 64 == 0 ? Swizzle::k64
         : row_bytes % 32 == 0 ? Swizzle::k32
                               : Swizzle::kNone;
}

// A tile [kRows, kColumns] of T at `base`.
template <class T, int kRows, int kColumns,
          Swizzle kSwizzle = swizzle_for(kColumns * static_cast<uint32_t>(sizeof(T)))>
struct SharedTile {
  static constexpr uint32_t kRowBytes = kColumns * sizeof(T);
  static constexpr uint32_t kPanelBytes =
      kSwizzle == Swizzle::kNone ? kRowBytes : static_cast<uint32_t>(kSwizzle);
  static constexpr uint32_t kBytes = kRows * kRowBytes;
  static constexpr uint32_t kAlignment = kSwizzle == Swizzle::kNone ? 16 : 8 * kPanelBytes;
  static_assert(kRowBytes % kPanelBytes == 0 && kRowBytes % 16 == 0);

  SharedAddress base;

  // Byte offset of element (row, column) from the tile's start.
  static constexpr uint32_t offset(uint32_t row, uint32_t column) {
    const uint32_t byte = column * static_cast<uint32_t>(sizeof(T));
    const uint32_t panel = byte / kPanelBytes;
    return panel * (kRows * kPanelBytes) +
           swizzle<kSwizzle>(row * kPanelBytes + byte % kPanelBytes);
  }
  constexpr SharedAddress at(uint32_t row, uint32_t column) const {
    return base + offset(row, column);
  }
  // From the place of (row, column) to that of (row, column + step): for a step that is a multiple
  // of a power of two beyond column.
  static constexpr SharedAddress columns_on(SharedAddress place, uint32_t step) {
    const uint32_t bytes = step * static_cast<uint32_t>(sizeof(T));
    return SharedAddress{place.byte ^ (bytes % kPanelBytes)} +
           bytes / kPanelBytes * (kRows * kPanelBytes);
  }
};

}  // namespace attentile::cuda

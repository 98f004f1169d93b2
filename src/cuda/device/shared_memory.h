// SPDX-License-Identifier: Apache-2.0
// Shared memory: one dynamic arena per block, addressed in bytes as PTX addresses it (32 bits).
// Accesses are 4, 8 or 16 bytes, aligned to their size. A warp's access takes one wavefront per
// 128 bytes if no two lanes of a phase meet in a bank with different words; a phase is 32 lanes of
// 4 bytes, 16 of 8 or 8 of 16.
#pragma once

#include <bit>

#include "cuda/device/config.h"

namespace attentile::cuda {

// A byte address in shared memory.
struct SharedAddress {
  uint32_t byte = 0;

  friend constexpr SharedAddress operator+(SharedAddress address, uint32_t bytes) {
    return {address.byte + bytes};
  }
  friend constexpr bool operator==(SharedAddress, SharedAddress) = default;
};

// A value that moves in one instruction of shared memory.
template <class T>
concept SharedValue =
    (sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16) && __is_trivially_copyable(T);

template <int kWords>
struct alignas(4 * kWords) Packed {
  uint32_t word[kWords];
};

// ld.shared.b32, .v2.b32, .v4.b32
template <SharedValue T>
ATTENTILE_DEVICE T ld_shared(SharedAddress address, [[maybe_unused]] Site site = Site::here()) {
  Packed<sizeof(T) / 4> raw;
#if ATTENTILE_PTX
  if constexpr (sizeof(T) == 4) {
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(raw.word[0]) : "r"(address.byte));
  } else if constexpr (sizeof(T) == 8) {
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                 : "=r"(raw.word[0]), "=r"(raw.word[1])
                 : "r"(address.byte));
  } else {
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(raw.word[0]), "=r"(raw.word[1]), "=r"(raw.word[2]), "=r"(raw.word[3])
                 : "r"(address.byte));
  }
#else
  emulator::ld_shared(address.byte, raw.word, sizeof(T), site);
#endif
  return std::bit_cast<T>(raw);
}

// st.shared.b32, .v2.b32, .v4.b32
template <SharedValue T>
ATTENTILE_DEVICE void st_shared(SharedAddress address, const T& value,
                                [[maybe_unused]] Site site = Site::here()) {
  const auto raw = std::bit_cast<Packed<sizeof(T) / 4>>(value);
#if ATTENTILE_PTX
  if constexpr (sizeof(T) == 4) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(address.byte), "r"(raw.word[0]) : "memory");
  } else if constexpr (sizeof(T) == 8) {
    asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(address.byte), "r"(raw.word[0]),
                 "r"(raw.word[1])
                 : "memory");
  } else {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address.byte), "r"(raw.word[0]),
                 "r"(raw.word[1]), "r"(raw.word[2]), "r"(raw.word[3])
                 : "memory");
  }
#else
  emulator::st_shared(address.byte, raw.word, sizeof(T), site);
#endif
}

}  // namespace attentile::cuda

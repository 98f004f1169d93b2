// SPDX-License-Identifier: Apache-2.0
// Global memory: loads and stores of 1, 2, 4, 8 or 16 bytes, aligned to their size, and the
// atomics through which blocks of one launch speak to each other. Plain accesses of two blocks to
// the same bytes, one of them a write, are a race unless an acquire that read a release (or came
// after it in a chain of acq_rel additions) lies between them.
#pragma once

#include <bit>

#include "cuda/device/config.h"

namespace attentile::cuda {

template <class T>
concept GlobalValue =
    (sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16) &&
    __is_trivially_copyable(T);

// sizeof(T) bytes that move in one instruction: what the PTX bodies below load and store.
template <int kBytes>
struct MachineWord;
#if ATTENTILE_PTX
template <>
struct MachineWord<1> {
  using Type = unsigned char;
};
template <>
struct MachineWord<2> {
  using Type = unsigned short;
};
template <>
struct MachineWord<4> {
  using Type = unsigned int;
};
template <>
struct MachineWord<8> {
  using Type = uint2;
};
template <>
struct MachineWord<16> {
  using Type = uint4;
};
#else
template <int kBytes>
struct MachineWord {
  struct alignas(kBytes) Type {
    unsigned char byte[kBytes];
  };
};
#endif
template <class T>
using Raw = typename MachineWord<static_cast<int>(sizeof(T))>::Type;

// ld.global
template <GlobalValue T>
ATTENTILE_DEVICE T ld_global(const T* address, [[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  return std::bit_cast<T>(*reinterpret_cast<const Raw<T>*>(address));
#else
  Raw<T> raw;
  emulator::ld_global(address, &raw, {sizeof(T), false}, site);
  return std::bit_cast<T>(raw);
#endif
}

// ld.global.nc: through the read-only cache; nothing may write these bytes during the launch.
template <GlobalValue T>
ATTENTILE_DEVICE T ld_global_nc(const T* address, [[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  return std::bit_cast<T>(__ldg(reinterpret_cast<const Raw<T>*>(address)));
#else
  Raw<T> raw;
  emulator::ld_global(address, &raw, {sizeof(T), true}, site);
  return std::bit_cast<T>(raw);
#endif
}

// ld.global.cs: read once, first to leave the caches.
template <GlobalValue T>
ATTENTILE_DEVICE T ld_global_cs(const T* address, [[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  return std::bit_cast<T>(__ldcs(reinterpret_cast<const Raw<T>*>(address)));
#else
  return ld_global(address, site);
#endif
}

// st.global
template <GlobalValue T>
ATTENTILE_DEVICE void st_global(T* address, const T& value,
                                [[maybe_unused]] Site site = Site::here()) {
  const auto raw = std::bit_cast<Raw<T>>(value);
#if ATTENTILE_PTX
  *reinterpret_cast<Raw<T>*>(address) = raw;
#else
  emulator::st_global(address, &raw, sizeof(T), site);
#endif
}

// st.global.cs: written once and not read soon.
template <GlobalValue T>
ATTENTILE_DEVICE void st_global_cs(T* address, const T& value,
                                   [[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  __stcs(reinterpret_cast<Raw<T>*>(address), std::bit_cast<Raw<T>>(value));
#else
  st_global(address, value, site);
#endif
}

// atom.relaxed.gpu.global.add.f32: returns the value before. Sums depend on the order of arrival;
// subnormal inputs and results are zeros.
ATTENTILE_DEVICE float atomic_add_f32(float* address, float value,
                                      [[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  return atomicAdd(address, value);
#else
  return emulator::atomic_add_f32(address, value, site);
#endif
}

// atom.acq_rel.gpu.global.add.s32: returns the value before; a release of what this thread wrote
// or has seen, and an acquire of what earlier adders released.
ATTENTILE_DEVICE int32_t atomic_add_acq_rel(int32_t* address, int32_t value,
                                            [[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  int32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(__cvta_generic_to_global(address)), "r"(value)
               : "memory");
  return before;
#else
  return emulator::atomic_add_acq_rel(address, value, site);
#endif
}

// ld.acquire.gpu.global.s32 and st.release.gpu.global.s32
ATTENTILE_DEVICE int32_t ld_acquire(const int32_t* address,
                                    [[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  int32_t value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];"
               : "=r"(value)
               : "l"(__cvta_generic_to_global(address))
               : "memory");
  return value;
#else
  return emulator::ld_acquire(address, site);
#endif
}
ATTENTILE_DEVICE void st_release(int32_t* address, int32_t value,
                                 [[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(__cvta_generic_to_global(address)),
               "r"(value)
               : "memory");
#else
  emulator::st_release(address, value, site);
#endif
}

// fence.acq_rel.gpu between one's own accesses. By itself it orders nothing between threads: in
// the emulator it is counted and no more.
ATTENTILE_DEVICE void fence_gpu([[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  __threadfence();
#else
  emulator::fence_gpu(site);
#endif
}

}  // namespace attentile::cuda

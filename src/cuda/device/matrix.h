// SPDX-License-Identifier: Apache-2.0
// Tensor-core products and the moves between shared memory and their fragments. All are warp
// collectives; fragment.h says which element a register holds.
#pragma once

#include "cuda/device/arithmetic.h"
#include "cuda/device/fragment.h"
#include "cuda/device/shared_memory.h"

namespace attentile::cuda {

// ldmatrix.sync.aligned.m8n8.x<kCount>[.trans].shared.b16: kCount matrices of 8 x 8 16-bit
// elements. Lanes 8 j .. 8 j + 7 give the addresses of the 8 rows of matrix j (16 bytes, 16-byte
// aligned; lanes beyond 8 kCount are ignored). Lane (g, t) receives in register j elements
// (g, 2 t) and (g, 2 t + 1), with .trans (2 t, g) and (2 t + 1, g).
template <int kCount, bool kTrans = false>
ATTENTILE_DEVICE Registers<kCount> ldmatrix(SharedAddress row,
                                            [[maybe_unused]] Site site = Site::here()) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4);
  Registers<kCount> m;
#if ATTENTILE_PTX
  if constexpr (kCount == 1 && !kTrans) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(m.reg[0])
                 : "r"(row.byte));
  } else if constexpr (kCount == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(m.reg[0])
                 : "r"(row.byte));
  } else if constexpr (kCount == 2 && !kTrans) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(m.reg[0]), "=r"(m.reg[1])
                 : "r"(row.byte));
  } else if constexpr (kCount == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(m.reg[0]), "=r"(m.reg[1])
                 : "r"(row.byte));
  } else if constexpr (!kTrans) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m.reg[0]), "=r"(m.reg[1]), "=r"(m.reg[2]), "=r"(m.reg[3])
                 : "r"(row.byte));
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m.reg[0]), "=r"(m.reg[1]), "=r"(m.reg[2]), "=r"(m.reg[3])
                 : "r"(row.byte));
  }
#else
  emulator::ldmatrix(row.byte, {kCount, kTrans}, m.reg, site);
#endif
  return m;
}

#if ATTENTILE_PTX
// stmatrix begins with sm_90. Before it, the lane that holds a pair asks for the address of its
// row and stores the pair itself.
template <int kCount>
__device__ __forceinline__ void stmatrix_by_stores(SharedAddress row, const Registers<kCount>& m) {
  const uint32_t lane = threadIdx.x % kWarpSize;
  ATTENTILE_UNROLL
  for (int j = 0; j < kCount; ++j) {
    const uint32_t address =
        __shfl_sync(0xFFFFFFFFu, row.byte, static_cast<int>(8 * j + lane / 4)) + 4 * (lane % 4);
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(m.reg[j]) : "memory");
  }
}
#endif

// stmatrix.sync.aligned.m8n8.x<kCount>.shared.b16: the inverse of ldmatrix without .trans.
template <int kCount>
ATTENTILE_DEVICE void stmatrix(SharedAddress row, const Registers<kCount>& m,
                               [[maybe_unused]] Site site = Site::here()) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4);
#if ATTENTILE_PTX
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (kCount == 1) {
    asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(row.byte),
                 "r"(m.reg[0])
                 : "memory");
  } else if constexpr (kCount == 2) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(row.byte),
                 "r"(m.reg[0]), "r"(m.reg[1])
                 : "memory");
  } else {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row.byte),
                 "r"(m.reg[0]), "r"(m.reg[1]), "r"(m.reg[2]), "r"(m.reg[3])
                 : "memory");
  }
#else
  stmatrix_by_stores(row, m);
#endif
#else
  emulator::stmatrix(row.byte, kCount, m.reg, site);
#endif
}

// mma.sync.aligned.m16n8k16.row.col.f32.T.T.f32: acc [16, 8] += a [16, 16] b [16, 8].
template <class T>
ATTENTILE_DEVICE void mma_m16n8k16(Accumulator& acc, const FragmentA& a, const FragmentB& b,
                                   [[maybe_unused]] Site site = Site::here()) {
  static_assert(kIsFloat16<T> || kIsBFloat16<T>);
#if ATTENTILE_PTX
  float* c = acc.value;
  if constexpr (kIsFloat16<T>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.reg[0]), "r"(a.reg[1]), "r"(a.reg[2]), "r"(a.reg[3]), "r"(b.reg[0]), "r"(b.reg[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.reg[0]), "r"(a.reg[1]), "r"(a.reg[2]), "r"(a.reg[3]), "r"(b.reg[0]), "r"(b.reg[1]));
  }
#else
  emulator::mma(kIsFloat16<T> ? emulator::MmaInput::kFloat16 : emulator::MmaInput::kBFloat16,
                {acc.value, a.reg, b.reg}, site);
#endif
}

// mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32: acc [16, 8] += a [16, 8] b [8, 8]. The
// operands are float32 bits whose low 13 bits the unit ignores; cvt_tf32 rounds first.
ATTENTILE_DEVICE void mma_m16n8k8_tf32(Accumulator& acc, const FragmentA& a, const FragmentB& b,
                                       [[maybe_unused]] Site site = Site::here()) {
#if ATTENTILE_PTX
  float* c = acc.value;
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.reg[0]), "r"(a.reg[1]), "r"(a.reg[2]), "r"(a.reg[3]), "r"(b.reg[0]), "r"(b.reg[1]));
#else
  emulator::mma(emulator::MmaInput::kTf32, {acc.value, a.reg, b.reg}, site);
#endif
}

}  // namespace attentile::cuda

// SPDX-License-Identifier: Apache-2.0
// One warp, one tile: loads the registers of its lanes, multiplies once, stores the accumulator.
#pragma once

#include "cuda/device/device.h"
#include "gpu/mma_tiles.h"

namespace attentile::gpu {

struct MmaParams {
  const uint32_t* a;
  const uint32_t* b;
  float* acc;
  int64_t count;
};

template <class T>  // cuda::Float16, cuda::BFloat16; float: tf32
struct MmaTiles {
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocksPerSm = 1;
  static constexpr uint32_t kSharedBytes = 0;
  using Params = MmaParams;

  ATTENTILE_DEVICE static void run(const Params& params, cuda::SharedAddress) {
    const int64_t tile =
        int64_t{cuda::block_idx().x} * (kThreads / cuda::kWarpSize) + cuda::warp_idx();
    if (tile >= params.count) return;
    const int64_t lane = tile * cuda::kWarpSize + cuda::lane_idx();
    cuda::FragmentA a;
    cuda::FragmentB b;
    cuda::Accumulator acc;
    ATTENTILE_UNROLL
    for (int r = 0; r < 4; ++r) a.reg[r] = cuda::ld_global(params.a + 4 * lane + r);
    ATTENTILE_UNROLL
    for (int r = 0; r < 2; ++r) b.reg[r] = cuda::ld_global(params.b + 2 * lane + r);
    ATTENTILE_UNROLL
    for (int r = 0; r < 4; ++r) acc.value[r] = cuda::ld_global(params.acc + 4 * lane + r);
    if constexpr (sizeof(T) == 4) {
      cuda::mma_m16n8k8_tf32(acc, a, b);
    } else {
      cuda::mma_m16n8k16<T>(acc, a, b);
    }
    ATTENTILE_UNROLL
    for (int r = 0; r < 4; ++r) cuda::st_global(params.acc + 4 * lane + r, acc.value[r]);
  }
};

// Calls visit.template operator()<Kernel>(blocks).
template <class Visit>
auto with_mma_kernel(const TileBatch& batch, Visit visit) {
  const auto blocks = static_cast<uint32_t>((batch.count + 3) / 4);
  if (batch.kind == TileKind::kTf32) return visit.template operator()<MmaTiles<float>>(blocks);
  if (batch.kind == TileKind::kFloat16) {
    return visit.template operator()<MmaTiles<cuda::Float16>>(blocks);
  }
  return visit.template operator()<MmaTiles<cuda::BFloat16>>(blocks);
}

}  // namespace attentile::gpu

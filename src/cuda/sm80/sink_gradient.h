// SPDX-License-Identifier: Apache-2.0
// dsink = -sum over rows of exp(sink - lse) delta: the sink's weight times (0 - delta). One block
// has one head; each of its threads adds up rows kThreads apart, then they add up pairwise.
#pragma once

#include "cuda/backward_params.h"
#include "cuda/device/device.h"
#include "cuda/sm80/gradient_scores.h"

namespace attentile::cuda {

template <class T>
struct SinkGradient {
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocksPerSm = 1;
  static constexpr int kWarps = kThreads / kWarpSize;
  static constexpr uint32_t kSharedBytes = 4 * kWarps;

  using Params = BackwardParams;

  ATTENTILE_DEVICE static void run(const Params& p, SharedAddress start) {
    const int32_t h = static_cast<int32_t>(block_idx().x);
    const uint32_t of_warp = warp_idx();  // before anything can diverge
    float sum = 0.0f;
    for (int32_t b = 0; b < p.call.batch; ++b) {
      const RowRange queries = query_rows(p.call, b);
      const int64_t first = stat_index(p.call, b, h, queries.first);
      for (int32_t i = static_cast<int32_t>(thread_idx()); i < queries.length; i += kThreads) {
        const RowStat row = ld_global_nc(row_stats(p.call) + first + i);
        const float third = ld_global_nc(summed_deltas(p.call) + first + i);
        const float weight = sink_weight(p.call, h, row.lse, kIsFloat32<T> ? third : 0.0f);
        if (weight == 0.0f) continue;  // else delta may be NaN
        sum = fma_rn(-weight, kIsFloat32<T> ? row.delta : third, sum);
      }
    }
    for (uint32_t mask = 1; mask < kWarpSize; mask *= 2) sum = add_rn(sum, shfl_xor(sum, mask));
    if (lane_idx() == 0) st_shared(start + 4 * of_warp, sum);
    bar_sync();
    if (thread_idx() != 0) return;
    sum = 0.0f;
    for (uint32_t warp = 0; warp < kWarps; ++warp) {
      sum = add_rn(sum, ld_shared<float>(start + 4 * warp));
    }
    st_global(const_cast<float*>(element<float>(p.dsink, h, 0, 0)), sum);
  }
};

}  // namespace attentile::cuda

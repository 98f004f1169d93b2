// SPDX-License-Identifier: Apache-2.0
// Merges what the splits of a row's keys left (splits.h), in their order, a warp per row:
//
//     m = max_s m_s      w_s = 2^((m_s - m) exponent)      l = sum_s w_s l_s      O = sum_s w_s O_s
//
// A split that holds nothing (l_s = 0) has weight 0. Its O_s is 0 as well, or NaN where the row
// sees a NaN with weight 0: so O_s is multiplied all the same.
#pragma once

#include "cuda/sm80/online_softmax.h"
#include "cuda/sm80/splits.h"

namespace attentile::cuda {

template <class T>
struct Combine {
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocksPerSm = 1;
  static constexpr uint32_t kSharedBytes = 0;
  using Params = ForwardParams;

  static constexpr int64_t blocks(const Params& p) {
    return ceil_div(partial_rows(p), kThreads / kWarpSize);
  }

  ATTENTILE_DEVICE static void run(const Params& p, SharedAddress) {
    const uint32_t warp = warp_idx();
    const int64_t row = int64_t{block_idx().x} * (kThreads / kWarpSize) + warp;
    if (row >= partial_rows(p)) return;
    const int32_t query = static_cast<int32_t>(row % most_split_queries(p));
    BlockTask task;
    task.h = static_cast<int32_t>(row / most_split_queries(p) % p.num_heads_q);
    task.b = static_cast<int32_t>(row / most_split_queries(p) / p.num_heads_q);
    const RowRange queries = query_rows(p, task.b);
    if (query >= queries.length || queries.length > p.few_queries) return;
    task.seqlen_q = queries.length;
    task.row_q = queries.first;
    find_keys(p, task);
    const int32_t splits = key_splits(p, task).count;
    if (splits > 1) merge(p, task, {row, query, splits});
  }

 private:
  struct Row {
    int64_t row;  // of the workspace
    int32_t query;
    int32_t splits;
  };

  ATTENTILE_DEVICE static float largest_row_max(const Params& p, const Row& of) {
    float largest = -kInfinity;
    for (int32_t split = static_cast<int32_t>(lane_idx()); split < of.splits; split += kWarpSize) {
      largest = max_f32(largest, ld_global(Partials::state(p, of.row, split)).x);
    }
    for (uint32_t distance = 16; distance > 0; distance /= 2) {
      largest = max_f32(largest, shfl_xor(largest, distance));
    }
    return largest;
  }

  ATTENTILE_DEVICE static void merge(const Params& p, const BlockTask& task, const Row& of) {
    const int32_t first_dimension = p.packed_q ? 0 : task.b;
    const int32_t q_row = task.row_q + of.query;
    const float row_max = largest_row_max(p, of);
    const float sink =
        p.sink.data != nullptr ? ld_global_nc(element<float>(p.sink, task.h, 0, 0)) : -kInfinity;
    for (int32_t column = 4 * static_cast<int32_t>(lane_idx()); column < partial_columns(p);
         column += 4 * kWarpSize) {
      float row_sum = 0.0f;
      Partials::Quad o = {};
      for (int32_t split = 0; split < of.splits; ++split) {
        const Partials::Pair state = ld_global(Partials::state(p, of.row, split));
        const Partials::Quad part = ld_global(
            reinterpret_cast<const Partials::Quad*>(Partials::o(p, of.row, split) + column));
        const float excess = mul_rn(add_rn(state.x, -row_max), p.score.exponent);
        const float weight = state.y == 0.0f ? 0.0f : ex2_approx(excess);
        row_sum = fma_rn(weight, state.y, row_sum);
        ATTENTILE_UNROLL
        for (int e = 0; e < 4; ++e) {
          o.value[e] = split == 0 ? mul_rn(weight, part.value[e])
                                  : fma_rn(weight, part.value[e], o.value[e]);
        }
      }
      const RowEnd end = close_row<T>(p, row_max, row_sum, sink);
      const T* to = element<T>(p.out, first_dimension, q_row, task.h) + column * p.out.stride[3];
      ATTENTILE_UNROLL
      for (int e = 0; e < 4; ++e) {
        if (column + e >= p.head_dim_v) break;
        const float value = end.dead ? 0.0f : mul_rn(o.value[e], end.factor);
        st_global_cs(const_cast<T*>(to) + e * p.out.stride[3], from_f32<T>(value));
      }
      if (column == 0 && p.lse.data != nullptr) {
        st_global(const_cast<float*>(element<float>(p.lse, first_dimension, task.h, q_row)),
                  end.lse);
      }
    }
  }
};

}  // namespace attentile::cuda

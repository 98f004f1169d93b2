// SPDX-License-Identifier: Apache-2.0
// The kernels of the backward pass and their order: what is known of each row; dq, and what sums
// over all keys of a row need; dk and dv, with atomic_dq dq too; dbias; dsink.
#pragma once

#include <algorithm>

#include "cuda/backward_params.h"
#include "cuda/sm80/bias_gradient.h"
#include "cuda/sm80/dq_rounding.h"
#include "cuda/sm80/key_gradients.h"
#include "cuda/sm80/query_gradients.h"
#include "cuda/sm80/row_stats.h"
#include "cuda/sm80/sink_gradient.h"
#include "dtype.h"

namespace attentile::cuda {

inline int64_t query_blocks(const ForwardParams& p, int tile_m) {
  return ceil_div(p.max_seqlen_q, tile_m) * p.num_heads_q * p.batch;
}
inline int64_t key_blocks(const ForwardParams& p, int tile_n) {
  return key_tiles(p, tile_n) * p.num_heads_kv * p.batch;
}
inline int64_t bias_blocks(const BackwardParams& p, int tile_m, int tile_n) {
  if (p.dbias.data == nullptr) return 0;
  return bias_key_tiles(p, tile_n) * ceil_div(p.dbias_shape[2], tile_m) * p.dbias_shape[1] *
         p.dbias_shape[0];
}

template <class T, int kHeadDim, class Launch>
bool backward_pass_of(const BackwardParams& p, Launch& launch) {
  const auto start = [&]<class Kernel>(int64_t blocks) -> bool {
    return blocks == 0 || launch.template operator()<Kernel>(blocks, p);
  };
  using Rows = RowStats<T>;
  using Queries = QueryGradients<T, kHeadDim>;
  using Keys = KeyGradients<T, kHeadDim>;
  using Bias = BiasGradient<T, kHeadDim>;
  static_assert(std::max({Queries::kSharedBytes, Keys::kSharedBytes, Bias::kSharedBytes}) <=
                backward_shared_bytes(kHeadDim, kIsFloat32<T>));
  const auto start_keys = [&] {
    const int64_t blocks = key_blocks(p.call, Keys::kTileN);
    if constexpr (!kIsFloat32<T>) {
      if (p.atomic_dq) {
        using Rounding = DqRounding<T>;
        return start.template operator()<AtomicGradients<T, kHeadDim>>(blocks) &&
               start.template operator()<Rounding>(query_blocks(p.call, Rounding::kTileM));
      }
    }
    return start.template operator()<Keys>(blocks);
  };
  return start.template operator()<Rows>(query_blocks(p.call, Rows::kTileM)) &&
         start.template operator()<Queries>(query_blocks(p.call, Queries::kTileM)) &&
         start_keys() &&
         start.template operator()<Bias>(bias_blocks(p, Bias::kTileM, Bias::kTileN)) &&
         start.template operator()<SinkGradient<T>>(p.dsink.data != nullptr ? p.call.num_heads_q
                                                                            : 0);
}

// The launches of a backward pass, in order, as calls of launch.template operator()<Kernel>(blocks,
// params), which says whether to go on.
template <class T, class Launch>
bool backward_pass(const BackwardParams& p, Launch&& launch) {
  const int head_dim = std::max(p.call.head_dim, p.call.head_dim_v);
  if constexpr (kIsFloat32<T>) {
    if (head_dim <= 64) return backward_pass_of<T, 64>(p, launch);
    if (head_dim <= 128) return backward_pass_of<T, 128>(p, launch);
  } else {
    if (head_dim <= 32) return backward_pass_of<T, 32>(p, launch);
    if (head_dim <= 64) return backward_pass_of<T, 64>(p, launch);
    if (head_dim <= 96) return backward_pass_of<T, 96>(p, launch);
    if (head_dim <= 128) return backward_pass_of<T, 128>(p, launch);
    if (head_dim <= 192) return backward_pass_of<T, 192>(p, launch);
  }
  return backward_pass_of<T, 256>(p, launch);
}

}  // namespace attentile::cuda

// SPDX-License-Identifier: Apache-2.0
// The forward kernels there are, by hand, and which of them serves a call: 2 dtypes x 6 classes of
// head_dim. Everything else is decided at run time, but for one thing: at head_dim 96 and 128 the
// accumulators leave no registers for options, so calls without any have a kernel to themselves.
#pragma once

#include <algorithm>

#include "cuda/sm80/forward.h"
#include "dtype.h"
#include "problem.h"

namespace attentile::cuda {

// Whether a call needs more than scaling, the band mask and the softmax.
inline bool has_options(const ForwardParams& params) {
  return params.score.has_terms || params.mask.data != nullptr || params.dropout.enabled;
}

// Calls visit.template operator()<Kernel>() with the kernel of a problem that check_forward()
// accepts.
template <class T, class Visit>
auto with_forward_kernel_of(const ForwardParams& params, Visit visit) {
  const int head_dim = std::max(params.head_dim, params.head_dim_v);
  const bool options = has_options(params);
  if (head_dim <= 32) return visit.template operator()<Forward<T, 32, true>>();
  if (head_dim <= 64) return visit.template operator()<Forward<T, 64, true>>();
  if (head_dim <= 96 && options) return visit.template operator()<Forward<T, 96, true>>();
  if (head_dim <= 96) return visit.template operator()<Forward<T, 96, false>>();
  if (head_dim <= 128 && options) return visit.template operator()<Forward<T, 128, true>>();
  if (head_dim <= 128) return visit.template operator()<Forward<T, 128, false>>();
  if (head_dim <= 192) return visit.template operator()<Forward<T, 192, true>>();
  return visit.template operator()<Forward<T, 256, true>>();
}
template <class Visit>
auto with_forward_kernel(DType dtype, const ForwardParams& params, Visit visit) {
  return dtype == DType::kFloat16 ? with_forward_kernel_of<Float16>(params, visit)
                                  : with_forward_kernel_of<BFloat16>(params, visit);
}

// Blocks of a launch: one per tile of queries, head and batch entry. 0: nothing to do.
template <class Kernel>
int64_t forward_blocks(const ForwardParams& params) {
  return ceil_div(params.max_seqlen_q, Kernel::kTileM) * params.num_heads_q * params.batch;
}

// The launches of a forward pass, in order, as calls of launch.template operator()<Kernel>(blocks,
// params), which says whether to go on. A GPU and the emulator differ in `launch` alone.
template <class Launch>
bool forward_pass(DType dtype, const ForwardParams& params, Launch&& launch) {
  return with_forward_kernel(dtype, params, [&]<class Kernel>() -> bool {
    const int64_t blocks = forward_blocks<Kernel>(params);
    return blocks == 0 || launch.template operator()<Kernel>(blocks, params);
  });
}

}  // namespace attentile::cuda

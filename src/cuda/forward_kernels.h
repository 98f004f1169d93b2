// SPDX-License-Identifier: Apache-2.0
// The forward kernels there are, by hand, and which of them serve a call: 2 dtypes x 6 classes of
// head_dim for sequences with many queries, x 3 for those with few, which serve all of float32.
// Everything else is decided at run time, but for one thing: at head_dim 96 and 128 the
// accumulators leave no registers for options, so calls without any have a kernel to themselves.
#pragma once

#include <algorithm>

#include "cuda/sm80/combine.h"
#include "cuda/sm80/forward.h"
#include "cuda/sm80/keep_mask.h"
#include "dtype.h"
#include "problem.h"

namespace attentile::cuda {

// Whether a call needs more than scaling, the band mask and the softmax.
inline bool has_options(const ForwardParams& params) {
  return params.score.has_terms || params.mask.data != nullptr || params.dropout.enabled;
}

// Calls visit.template operator()<Kernel>() with the kernel of a problem that check_forward()
// accepts: of sequences with many queries, and of those whose heads share tiles.
template <class T, class Visit>
auto with_forward_kernel(const ForwardParams& params, Visit visit) {
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
template <class T, class Visit>
auto with_packed_kernel(const ForwardParams& params, Visit visit) {
  const int head_dim = std::max(params.head_dim, params.head_dim_v);
  if (head_dim <= 64) return visit.template operator()<Forward<T, 64, true, true>>();
  if (head_dim <= 128) return visit.template operator()<Forward<T, 128, true, true>>();
  return visit.template operator()<Forward<T, 256, true, true>>();
}

// Whether the call may have sequences with many queries, and with few. Lengths of a packed batch
// are known on the device alone: there every block asks for its own.
inline bool may_have_many_queries(const ForwardParams& params) {
  return !params.all_packed && params.max_seqlen_q > params.few_queries;
}
inline bool may_have_few_queries(const ForwardParams& params) {
  return params.all_packed || params.max_seqlen_q <= params.few_queries ||
         (params.packed_q && params.few_queries > 0);
}

// The launches of a forward pass, in order, as calls of launch.template operator()<Kernel>(blocks,
// params), which says whether to go on. A GPU and the emulator differ in `launch` alone.
template <class T, class Launch>
bool forward_pass(const ForwardParams& params, Launch&& launch) {
  const auto start = [&]<class Kernel>() -> bool {
    const int64_t blocks = Kernel::blocks(params);
    return blocks == 0 || launch.template operator()<Kernel>(blocks, params);
  };
  if (params.keep.data != nullptr && !start.template operator()<KeepMask>()) return false;
  if constexpr (!kIsFloat32<T>) {
    if (may_have_many_queries(params) && !with_forward_kernel<T>(params, start)) return false;
  }
  if (!may_have_few_queries(params)) return true;
  if (!with_packed_kernel<T>(params, start)) return false;
  return params.num_splits == 1 || start.template operator()<Combine<T>>();
}

}  // namespace attentile::cuda

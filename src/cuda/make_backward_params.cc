// SPDX-License-Identifier: Apache-2.0
// What the backward kernels see, worked out on the host.
#include "cuda/make_backward_params.h"

#include <algorithm>
#include <limits>
#include <string>

#include "cuda/make_params.h"

namespace attentile::cuda {
namespace {

bool sums_keys(const Problem& p) {
  return p.dsink.present || (p.dbias.present && p.dbias_shape[3] == 1);
}

}  // namespace

Status check_backward(const Problem& p, const DeviceLimits& limits) {
  if (Status status = check_forward(p, limits); !status.ok()) return status;
  const int64_t head_dim = std::max(p.head_dim, p.head_dim_v);
  const int32_t bytes = backward_shared_bytes(head_dim, p.dtype == DType::kFloat32);
  if (bytes <= limits.shared_bytes_per_block) return Status();
  return Status(StatusCode::kUnsupported,
                "head_dim: is " + std::to_string(head_dim) + ", of which gradients take " +
                    std::to_string(bytes) +
                    " bytes of shared memory, but a block of this GPU has " +
                    std::to_string(limits.shared_bytes_per_block));
}

BackwardParams make_backward_params(const Problem& p, const DeviceLimits& limits) {
  BackwardParams params;
  params.call = make_forward_params(p, limits);
  params.dout = make_array(p.dout);
  const int64_t chunk = 16 / size_of(p.dtype);
  if (p.head_dim_v % chunk != 0) params.dout.in_chunks = false;  // as v's
  params.dq = make_array(p.dq);
  params.dk = make_array(p.dk);
  params.dv = make_array(p.dv);
  params.dlse = make_array(p.dlse);
  params.dbias = make_array(p.dbias);
  for (int axis = 0; axis < 4; ++axis) {
    params.dbias_shape[axis] = static_cast<int32_t>(p.dbias_shape[axis]);
  }
  params.dsink = make_array(p.dsink);
  constexpr double kLargest = std::numeric_limits<float>::max();
  params.softmax_scale = static_cast<float>(std::clamp(p.softmax_scale, -kLargest, kLargest));
  params.sums_keys = sums_keys(p);
  params.atomic_dq = p.atomic_dq && why_ordered_dq(p) == nullptr;
  return params;
}

const char* why_ordered_dq(const Problem& p) {
  if (p.dtype == DType::kFloat32) return "q is float32";
  return sums_keys(p) ? "dsink or dbias sums over keys" : nullptr;
}

int64_t backward_workspace_bytes(const Problem& p, const DeviceLimits& limits) {
  const BackwardParams params = make_backward_params(p, limits);
  const int64_t rows = num_stats(params.call);
  if (!params.atomic_dq) return rows * kStatBytes;
  return stat_bytes(params.call) + rows * dq_pitch(params.call) * int64_t{sizeof(float)};
}

}  // namespace attentile::cuda

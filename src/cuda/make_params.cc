// SPDX-License-Identifier: Apache-2.0
// What a forward kernel sees, worked out in double on the host.
#include "cuda/make_params.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

namespace attentile::cuda {

ArrayParams make_array(const Array4& array) {
  ArrayParams params;
  if (!array.present) return params;
  params.data = array.data;
  params.is_float32 = array.dtype == DType::kFloat32;
  const int64_t bytes = size_of(array.dtype);
  params.in_chunks = array.stride[3] == 1 && reinterpret_cast<uintptr_t>(array.data) % 16 == 0;
  for (int axis = 0; axis < 4; ++axis) {
    params.stride[axis] = array.stride[axis];
    if (axis < 3 && array.stride[axis] % (16 / bytes) != 0) params.in_chunks = false;
  }
  return params;
}

namespace {

constexpr double kLog2EInDouble = 1.4426950408889634;
// Rows and positions are 32-bit in kernels, with room for a tile beyond the last.
constexpr int64_t kMostRows = (int64_t{1} << 31) - 1024;

IndexParams make_index(const IndexArray& array) {
  return {array.data, array.stride};
}

float to_finite_float(double value) {
  constexpr double kLargest = std::numeric_limits<float>::max();
  return static_cast<float>(std::clamp(value, -kLargest, kLargest));
}

ScoreParams make_score(const Problem& p) {
  ScoreParams score;
  const double exponent = p.softmax_scale * kLog2EInDouble;
  const bool plain = p.softcap == 0.0 && !p.bias.present && !p.alibi_slopes.present;
  score.has_terms = !(plain && exponent > 1e-30 && exponent < 1e30);
  score.logit = to_finite_float(p.softmax_scale);
  if (p.softcap > 0) {
    // Both factors of softcap * tanh(S / softcap) have to be normal numbers; no logit that float32
    // holds and the contract promises tells a cap beyond these ends from the end itself.
    const double cap = std::clamp(p.softcap, 1e-30, 1e34);
    score.softcap = static_cast<float>(cap);
    score.logit = to_finite_float(p.softmax_scale / cap);
  }
  score.exponent = static_cast<float>(score.has_terms ? kLog2EInDouble : exponent);
  if (!score.has_terms) {
    score.value_hi = static_cast<float>(p.softmax_scale);
    score.value_lo = static_cast<float>(p.softmax_scale - static_cast<double>(score.value_hi));
  }
  return score;
}

Status unsupported(const std::string& what) {
  return Status(StatusCode::kUnsupported, what);
}

}  // namespace

Status check_forward(const Problem& p, const DeviceLimits& limits) {
  if (p.dtype != DType::kFloat16 && p.dtype != DType::kBFloat16) {
    return unsupported(std::string("q: is ") + to_string(p.dtype) +
                       ", but the CUDA kernels take float16 and bfloat16");
  }
  if (std::max(p.head_dim, p.head_dim_v) > 256) {
    return unsupported("head_dim: is " + std::to_string(p.head_dim) + " and head_dim_v " +
                       std::to_string(p.head_dim_v) + ", but the CUDA kernels take at most 256");
  }
  if (std::max(p.head_dim, p.head_dim_v) > 192 && limits.shared_bytes_per_block < 131616) {
    return unsupported(
        "head_dim: is above 192, which takes 131,616 bytes of shared memory, but a "
        "block of this GPU has " +
        std::to_string(limits.shared_bytes_per_block));
  }
  if (p.block_mask.present) {
    return unsupported("block_mask: is given, but the CUDA kernels have no block patterns");
  }
  if (p.keep.present) {
    return unsupported("keep: is given, but the CUDA kernels do not write it");
  }
  if (std::max({p.max_seqlen_q, p.max_seqlen_k, p.page_size, p.batch, p.batch_k, p.num_heads_q}) >
      kMostRows) {
    return unsupported("q, k: a dimension is beyond 2^31 - 1024, what the CUDA kernels take");
  }
  return Status();
}

ForwardParams make_forward_params(const Problem& p, const DeviceLimits&) {
  ForwardParams params;
  params.batch = static_cast<int32_t>(p.batch);
  params.num_heads_q = static_cast<int32_t>(p.num_heads_q);
  params.group_size = static_cast<int32_t>(p.group_size);
  params.head_dim = static_cast<int32_t>(p.head_dim);
  params.head_dim_v = static_cast<int32_t>(p.head_dim_v);
  params.max_seqlen_q = static_cast<int32_t>(p.max_seqlen_q);
  params.max_seqlen_k = static_cast<int32_t>(p.max_seqlen_k);
  params.total_q = static_cast<int32_t>(std::min(p.total_q, kMostRows));
  params.total_k = static_cast<int32_t>(std::min(p.total_k, kMostRows));
  params.batch_k = static_cast<int32_t>(p.batch_k);
  params.q = make_array(p.q);
  params.k = make_array(p.k);
  params.v = make_array(p.v);
  params.out = make_array(p.out);
  params.lse = make_array(p.lse);
  params.bias = make_array(p.bias);
  params.mask = make_array(p.mask);
  params.sink = make_array(p.sink);
  params.alibi_slopes = make_array(p.alibi_slopes);
  params.packed_q = p.varlen;
  params.cu_seqlens_q = make_index(p.cu_seqlens_q);
  params.cu_seqlens_k = make_index(p.cu_seqlens_k);
  params.seqused_k = make_index(p.seqused_k);
  params.cache_batch_idx = make_index(p.cache_batch_idx);
  params.leftpad_k = make_index(p.leftpad_k);
  params.block_table = p.block_table;
  params.block_table_stride[0] = p.block_table_stride[0];
  params.block_table_stride[1] = p.block_table_stride[1];
  params.page_size = static_cast<int32_t>(p.page_size);
  params.top_left = p.alignment == Alignment::kTopLeft;
  params.has_position_offset = p.has_position_offset;
  params.position_offset = p.position_offset;
  params.window_left = p.window_left;
  params.window_right = p.window_right;
  params.score = make_score(p);
  params.dropout = p.dropout;
  params.kept_scale = static_cast<float>(p.dropout.enabled ? p.dropout.scale : 1.0);
  return params;
}

int64_t forward_workspace_bytes(const Problem&, const DeviceLimits&) {
  return 0;
}

}  // namespace attentile::cuda

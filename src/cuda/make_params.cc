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
constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;

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

// Whether there are no kernels for many queries: in float32, and where their tiles do not fit into
// shared memory.
bool packs_all(const Problem& p, const DeviceLimits& limits) {
  return p.dtype == DType::kFloat32 || (std::max(p.head_dim, p.head_dim_v) > 192 &&
                                        limits.shared_bytes_per_block < kLargestSharedBytes);
}

// By nothing that differs between the rows of a call: a sequence's own lengths, the size of a group
// and the GPU. Partial results are then at most a quarter of the keys and values in size, up to 16
// heads a group.
void choose_splits(const Problem& p, const DeviceLimits& limits, ForwardParams& params) {
  constexpr int64_t kTileRows = 64;
  constexpr int64_t kLeastFew = 16;
  constexpr int32_t kManySms = 64;
  params.few_queries =
      static_cast<int32_t>(std::max(kLeastFew, kTileRows / std::max<int64_t>(p.group_size, 1)));
  params.split_keys = limits.num_sms < kManySms ? 1024 : 512;
  if (!p.varlen && p.max_seqlen_q > params.few_queries) return;
  params.num_splits = static_cast<int32_t>(
      std::max<int64_t>(1, ceil_div(p.max_seqlen_k + key_phase(params), params.split_keys)));
}

// Of a launch: at least as many as any kernel for the call asks for.
__int128 most_blocks(const Problem& p, const DeviceLimits& limits) {
  constexpr int64_t kLeastTileRows = 32;
  ForwardParams params = make_forward_params(p, limits);
  const int64_t packed_rows = int64_t{most_packed_queries(params)} * p.group_size;
  const __int128 heads = static_cast<__int128>(p.batch) * p.num_heads_kv;
  const __int128 many = heads * p.group_size * ceil_div(p.max_seqlen_q, kLeastTileRows);
  const __int128 few = heads * params.num_splits * ceil_div(packed_rows, kLeastTileRows);
  return many > few ? many : few;
}

Status unsupported(const std::string& what) {
  return Status(StatusCode::kUnsupported, what);
}

}  // namespace

Status check_forward(const Problem& p, const DeviceLimits& limits) {
  if (p.dtype == DType::kFloat64) {
    return unsupported("q: is float64, but the CUDA kernels take float16, bfloat16 and float32");
  }
  if (std::max(p.head_dim, p.head_dim_v) > 256) {
    return unsupported("head_dim: is " + std::to_string(p.head_dim) + " and head_dim_v " +
                       std::to_string(p.head_dim_v) + ", but the CUDA kernels take at most 256");
  }
  if (limits.shared_bytes_per_block < kSharedBytes) {
    return unsupported("device: a block has " + std::to_string(limits.shared_bytes_per_block) +
                       " bytes of shared memory, but the CUDA kernels need " +
                       std::to_string(kSharedBytes));
  }
  if (p.block_mask.present) {
    return unsupported("block_mask: is given, but the CUDA kernels have no block patterns");
  }
  if (std::max({p.max_seqlen_q, p.max_seqlen_k, p.page_size, p.batch, p.batch_k, p.num_heads_q,
                p.num_heads_kv}) > kMostRows) {
    return unsupported("q, k: a dimension is beyond 2^31 - 1024, what the CUDA kernels take");
  }
  if ((p.cu_seqlens_q.data != nullptr && p.total_q > kMostRows) ||
      (p.cu_seqlens_k.data != nullptr && p.total_k > kMostRows)) {
    return unsupported("q, k: more packed rows than 2^31 - 1024, what the CUDA kernels take");
  }
  const int64_t together = most_packed_queries(make_forward_params(p, limits));
  if (together > kMostRows / max64(p.group_size, 1)) {
    return unsupported("q: " + std::to_string(together) + " queries and " +
                       std::to_string(p.group_size) +
                       " heads a group, together beyond 2^31 - 1024");
  }
  if (most_blocks(p, limits) > kMostBlocks) {
    return unsupported("q, k: the CUDA kernels would take more than 2^31 - 1 blocks");
  }
  return Status();
}

ForwardParams make_forward_params(const Problem& p, const DeviceLimits& limits) {
  ForwardParams params;
  params.batch = static_cast<int32_t>(p.batch);
  params.num_heads_q = static_cast<int32_t>(p.num_heads_q);
  params.num_heads_kv = static_cast<int32_t>(p.num_heads_kv);
  params.group_size = static_cast<int32_t>(max64(p.group_size, 1));  // 0 without heads
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
  params.keep = make_array(p.keep);
  params.sink = make_array(p.sink);
  params.alibi_slopes = make_array(p.alibi_slopes);
  // Tiles of these are filled in whole chunks, or else element by element.
  const int64_t chunk = 16 / size_of(p.dtype);
  if (p.head_dim % chunk != 0) params.q.in_chunks = params.k.in_chunks = false;
  if (p.head_dim_v % chunk != 0) params.v.in_chunks = false;
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
  params.all_packed = packs_all(p, limits);
  choose_splits(p, limits, params);
  return params;
}

int64_t forward_workspace_bytes(const Problem& problem, const DeviceLimits& limits) {
  return partial_bytes(make_forward_params(problem, limits));
}

}  // namespace attentile::cuda

// SPDX-License-Identifier: Apache-2.0
// BackwardParams: what the kernels of the backward pass see of a Problem.
#pragma once

#include "cuda/params.h"

namespace attentile::cuda {

struct BackwardParams {
  ForwardParams call;            // the forward call whose gradients are wanted
  ArrayParams dout, dq, dk, dv;  // (batch, row, head, column)
  ArrayParams dlse;              // (batch, head, row, -), float32
  ArrayParams dbias;             // (batch, head, query, key)
  int32_t dbias_shape[4] = {};   // 1 where it is summed
  ArrayParams dsink;             // (head, -, -, -), float32
  float softmax_scale = 1;
  bool sums_keys = false;  // something sums dS over all keys of a row: dsink, some dbias
  bool atomic_dq = false;  // dq is summed by atomic additions where dk and dv are computed
};

// The workspace: for each query and head what the backward pass knows of the row before it meets a
// key, and, where something sums dS over all keys, its delta for that (of float32 what lse leaves);
// with atomic_dq then the rows of dq, unscaled, in float32.
struct RowStat {
  float lse = 0;    // +inf where the row weighs nothing: no key seen, or no such query
  float delta = 0;  // rowsum(dout * out) - dlse; of few keys or float32 sum P dP / sum P - dlse
};

// Shared memory of the largest kernel that serves a head_dim of 16 or 32 bits an element.
inline constexpr int32_t backward_shared_bytes(int64_t head_dim, bool is_float32) {
  if (is_float32) return head_dim <= 64 ? 65808 : head_dim <= 128 ? 114960 : 163976;
  return head_dim <= 128 ? 98848 : head_dim <= 192 ? 115232 : 148000;
}

// Rows of q per head, packed or of one batch entry; and with their heads.
inline constexpr int64_t num_rows(const ForwardParams& p) {
  return p.packed_q ? p.total_q : p.max_seqlen_q;
}
inline constexpr int64_t num_stats(const ForwardParams& p) {
  return num_rows(p) * p.num_heads_q * (p.packed_q ? 1 : p.batch);
}

inline constexpr int64_t kStatBytes = sizeof(RowStat) + sizeof(float);  // of a row
inline constexpr int64_t stat_bytes(const ForwardParams& p) {
  return ceil_div(num_stats(p) * kStatBytes, 16) * 16;
}
// From one row of the sums of dq to the next: whole chunks of dq and of the sums.
inline constexpr int32_t dq_pitch(const ForwardParams& p) {
  return static_cast<int32_t>(ceil_div(p.head_dim, 8)) * 8;
}

// Tiles of keys that dbias has; with dropout they begin before key 0 (key_shift).
inline constexpr int32_t bias_key_tiles(const BackwardParams& p, int tile_n) {
  if (p.dbias_shape[3] == 1) return 1;
  const int64_t shift = p.call.dropout.enabled ? p.call.dropout.key_base & 31 : 0;
  return static_cast<int32_t>(ceil_div(p.dbias_shape[3] + shift, tile_n));
}

}  // namespace attentile::cuda

// SPDX-License-Identifier: Apache-2.0
// Problem: a call after validation. Everything optional is resolved, every layout is four strides,
// nothing below this point checks user input. Plain data; non-owning.
#pragma once

#include <cstdint>

#include "attentile/attention.h"
#include "mask.h"
#include "philox.h"

namespace attentile {

// A strided array of up to four dimensions; strides in elements. Absent: data = null, present
// false. Tokens of q, k, v, out and their gradients: (batch, row, head, column). varlen arrays have
// batch stride 0; dimensions that broadcast have stride 0.
struct Array4 {
  char* data = nullptr;
  DType dtype = DType::kFloat32;
  bool present = false;
  int64_t stride[4] = {};

  // Address of element (a, b, c, d).
  [[gnu::always_inline]] char* at(int64_t a, int64_t b, int64_t c, int64_t d) const {
    return data + (a * stride[0] + b * stride[1] + c * stride[2] + d * stride[3]) * size_of(dtype);
  }
};

// A one-dimensional int32 array; absent: data = null.
struct IndexArray {
  const int32_t* data = nullptr;
  int64_t stride = 0;
  [[gnu::always_inline]] int64_t operator[](int64_t index) const { return data[index * stride]; }
};

// One batch entry: where its rows are and how long it is.
struct Sequence {
  int64_t batch_q = 0;  // index into q's batch dimension (0 for varlen)
  int64_t batch_k = 0;  // index into k's and v's batch dimension (unused when paged)
  int64_t row_q = 0;    // first row of q, out, lse
  int64_t row_k = 0;    // first row of k and v, after leftpad
  int64_t seqlen_q = 0;
  int64_t seqlen_k = 0;        // used keys
  int64_t seqlen_k_given = 0;  // rows of k that belong to it, used or not: dk and dv cover these
  BandMask band;
};

struct Problem {
  Device device = Device::kCpu;
  bool backward = false;
  bool atomic_dq = false;         // the bits of dq may differ from run to run; for a device
  DType dtype = DType::kFloat32;  // of q, k, v, out and their gradients

  int64_t batch = 0;
  int64_t num_heads_q = 0;
  int64_t num_heads_kv = 0;
  int64_t group_size = 0;  // query heads per KV head
  int64_t head_dim = 0;
  int64_t head_dim_v = 0;
  int64_t total_q = 0;       // rows of q over the batch
  int64_t total_k = 0;       // rows of k over the batch
  int64_t batch_k = 0;       // first dimension of k and v: batch, cache rows or pages; packed: 1
  int64_t max_seqlen_q = 0;  // longest sequence
  int64_t max_seqlen_k = 0;

  Array4 q, k, v, out, dout, dq, dk, dv;  // (batch, row, head, column)
  Array4 lse, dlse;                       // (batch, head, row, -)
  Array4 bias, dbias, mask, keep;         // (batch, head, query, key)
  int64_t dbias_shape[4] = {};            // dbias as broadcast: 1 where it is summed
  Array4 sink, dsink;                     // (head, -, -, -), float32
  Array4 alibi_slopes;                    // (batch, head, -, -), float32
  Array4 block_mask;                      // (head, tile_q, tile_k, -)
  int64_t block_size_q = 0;
  int64_t block_size_k = 0;

  bool varlen = false;
  IndexArray cu_seqlens_q, cu_seqlens_k, seqused_k, cache_batch_idx, leftpad_k;
  const int32_t* block_table = nullptr;  // (batch, page)
  int64_t block_table_stride[2] = {};
  int64_t page_size = 0;  // 0: not paged

  double softmax_scale = 1.0;
  double softcap = 0.0;  // 0: none
  Alignment alignment = Alignment::kBottomRight;
  bool has_position_offset = false;
  int64_t position_offset = 0;
  int64_t window_left = kUnbounded;
  int64_t window_right = kUnbounded;  // causal folded in
  Dropout dropout;

  Algorithm algorithm = Algorithm::kAuto;
  Isa isa = Isa::kAuto;
  int64_t fast_memory_bytes = 0;

  [[gnu::always_inline]] bool paged() const { return page_size != 0; }

  [[gnu::always_inline]] Sequence sequence(int64_t b) const {
    Sequence s;
    s.batch_q = varlen ? 0 : b;
    s.batch_k = cache_batch_idx.data ? cache_batch_idx[b] : (cu_seqlens_k.data ? 0 : b);
    s.row_q = cu_seqlens_q.data ? cu_seqlens_q[b] : 0;
    s.row_k = cu_seqlens_k.data ? cu_seqlens_k[b] : 0;
    s.seqlen_q = cu_seqlens_q.data ? cu_seqlens_q[b + 1] - s.row_q : max_seqlen_q;
    s.seqlen_k_given = cu_seqlens_k.data ? cu_seqlens_k[b + 1] - s.row_k : max_seqlen_k;
    s.seqlen_k = seqused_k.data ? seqused_k[b] : s.seqlen_k_given;
    if (leftpad_k.data) {
      s.row_k += leftpad_k[b];
      s.seqlen_k -= leftpad_k[b];
    }
    const int64_t aligned = alignment == Alignment::kTopLeft ? 0 : s.seqlen_k - s.seqlen_q;
    s.band = {.seqlen_k = s.seqlen_k,
              .offset = has_position_offset ? position_offset : aligned,
              .window_left = window_left,
              .window_right = window_right};
    return s;
  }

  // Address of column 0 of key row j (counted from the sequence's first kept key) of k or v.
  [[gnu::always_inline]] const char* key_row(const Array4& array, const Sequence& s, int64_t b,
                                             int64_t head, int64_t j) const {
    const int64_t row = s.row_k + j;
    if (!paged()) return array.at(s.batch_k, row, head, 0);
    const int64_t page =
        block_table[b * block_table_stride[0] + row / page_size * block_table_stride[1]];
    return array.at(page, row % page_size, head, 0);
  }
};

}  // namespace attentile

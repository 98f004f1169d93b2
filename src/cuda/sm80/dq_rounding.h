// SPDX-License-Identifier: Apache-2.0
// The last step of dq with atomic_dq: its float32 sums (AtomicGradients), scaled and rounded. 8
// lanes have a row, 8 elements each at a time.
#pragma once

#include "cuda/backward_params.h"
#include "cuda/device/device.h"
#include "cuda/sm80/gradient_scores.h"

namespace attentile::cuda {

template <class T>
struct DqRounding : RowKernel {
  ATTENTILE_DEVICE static void run(const Params& p, SharedAddress) {
    const BlockTask task = find_task<kTileM>(p.call);
    const int32_t first = task.q_begin + static_cast<int32_t>(thread_idx() / kRowLanes);
    for (int32_t query = first; query < task.q_end; query += kRowStep) {
      const int32_t row = task.row_q + query;
      const float* sums = dq_sums(p.call, task.b, task.h, row);
      T* dq = const_cast<T*>(element<T>(p.dq, first_dimension_q(p.call, task.b), row, task.h));
      for (int32_t c = kChunkOf<T> * static_cast<int32_t>(thread_idx() % kRowLanes);
           c < p.call.head_dim; c += kChunkOf<T> * kRowLanes) {
        store(p, round(sums + c, p.softmax_scale), dq, c);
      }
    }
  }

 private:
  ATTENTILE_DEVICE static Chunk<T> round(const float* sums, float scale) {
    Chunk<T> chunk;
    ATTENTILE_UNROLL
    for (int e = 0; e < kChunkOf<T>; e += kChunkOf<float>) {
      const auto four = ld_global_nc(reinterpret_cast<const Chunk<float>*>(sums + e));
      ATTENTILE_UNROLL
      for (int i = 0; i < kChunkOf<float>; ++i) {
        chunk.element[e + i] = from_f32<T>(mul_rn(four.element[i], scale));
      }
    }
    return chunk;
  }

  // From column c on, as many as exist.
  ATTENTILE_DEVICE static void store(const Params& p, const Chunk<T>& chunk, T* row, int32_t c) {
    const int32_t count = p.call.head_dim - c;
    T* to = row + c * p.dq.stride[3];
    if (p.dq.in_chunks && count >= kChunkOf<T>) {
      return st_global_cs(reinterpret_cast<Chunk<T>*>(to), chunk);
    }
    ATTENTILE_UNROLL
    for (int e = 0; e < kChunkOf<T>; ++e) {
      if (e < count) st_global_cs(to + e * p.dq.stride[3], chunk.element[e]);
    }
  }
};

}  // namespace attentile::cuda

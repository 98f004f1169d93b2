// SPDX-License-Identifier: Apache-2.0
// The first kernel of the backward pass: what is known of each query and head before it meets a
// key, in the workspace (RowStat); with atomic_dq the zeros that dq's sums begin with, too. Each
// row of dout and out is read once, by 8 lanes, 16 bytes each at a time.
#pragma once

#include "cuda/backward_params.h"
#include "cuda/device/device.h"
#include "cuda/sm80/gradient_scores.h"

namespace attentile::cuda {

template <class T>
struct RowStats : RowKernel {
  ATTENTILE_DEVICE static void run(const Params& p, SharedAddress) {
    const BlockTask task = find_task<kTileM>(p.call);
    const int32_t first = task.q_begin + static_cast<int32_t>(thread_idx() / kRowLanes);
    for (int32_t step = 0; task.q_begin + step < task.q_end; step += kRowStep) {
      const int32_t query = first + step;
      const bool present = query < task.q_end;
      Dot dot = {};
      if (present) dot = multiply(p, task, task.row_q + query);
      for (uint32_t mask = 1; mask < kRowLanes; mask *= 2) {
        dot.sum = add_rn(dot.sum, shfl_xor(dot.sum, mask));
        dot.any_out = dot.any_out | shfl_xor(dot.any_out, mask);
      }
      if (present && thread_idx() % kRowLanes == 0) store(p, task, task.row_q + query, dot);
      if (present && p.atomic_dq) clear_sums(p, task, task.row_q + query);
    }
  }

 private:
  struct Dot {
    float sum = 0;         // of dout * out
    uint32_t any_out = 0;  // 0: out is all zeros
  };

  ATTENTILE_DEVICE static Dot multiply(const Params& p, const BlockTask& task, int32_t row) {
    const int32_t a = first_dimension_q(p.call, task.b);
    const T* out = element<T>(p.call.out, a, row, task.h);
    const T* dout = element<T>(p.dout, a, row, task.h);
    Dot dot;
    for (int32_t c = kChunkOf<T> * static_cast<int32_t>(thread_idx() % kRowLanes);
         c < p.call.head_dim_v; c += kChunkOf<T> * kRowLanes) {
      const int32_t count = p.call.head_dim_v - c;
      const Chunk<T> x = load_chunk(p.call.out, out, c, count);
      const Chunk<T> y = load_chunk(p.dout, dout, c, count);
      ATTENTILE_UNROLL
      for (int e = 0; e < kChunkOf<T>; ++e) {
        const float of_out = to_f32(x.element[e]);
        dot.sum = fma_rn(of_out, to_f32(y.element[e]), dot.sum);
        dot.any_out |= static_cast<uint32_t>(of_out != 0.0f);
      }
    }
    return dot;
  }

  // A chunk of a row from column c on, `count` elements of which exist; zeros elsewhere.
  ATTENTILE_DEVICE static Chunk<T> load_chunk(const ArrayParams& array, const T* row, int32_t c,
                                              int32_t count) {
    if (array.in_chunks && count >= kChunkOf<T>) {
      return ld_global_nc(reinterpret_cast<const Chunk<T>*>(row + c));
    }
    const int64_t stride = array.stride[3];
    return load_elements(row + c * stride, count, stride);
  }

  // Of dq.
  ATTENTILE_DEVICE static void clear_sums(const Params& p, const BlockTask& task, int32_t row) {
    float* sums = dq_sums(p.call, task.b, task.h, row);
    for (int32_t c = kChunkOf<float> * static_cast<int32_t>(thread_idx() % kRowLanes);
         c < dq_pitch(p.call); c += kChunkOf<float> * kRowLanes) {
      st_global(reinterpret_cast<Chunk<float>*>(sums + c), Chunk<float>{});
    }
  }

  ATTENTILE_DEVICE static void store(const Params& p, const BlockTask& task, int32_t row,
                                     const Dot& dot) {
    const int32_t a = first_dimension_q(p.call, task.b);
    const float lse = ld_global_nc(element<float>(p.call.lse, a, task.h, row));
    const float sink = p.call.sink.data != nullptr
                           ? ld_global_nc(element<float>(p.call.sink, task.h, 0, 0))
                           : -kInfinity;
    const float dlse =
        p.dlse.data != nullptr ? ld_global_nc(element<float>(p.dlse, a, task.h, row)) : 0.0f;
    // A row of which the sink has all the weight, or that has none, is 0 whatever dout holds.
    const bool nothing = dot.any_out == 0 && (lse == -kInfinity || lse == sink);
    const RowStat stat = {.lse = lse == -kInfinity ? kInfinity : lse,
                          .delta = add_rn(nothing ? 0.0f : dot.sum, -dlse)};
    const int64_t index = stat_index(p.call, task.b, task.h, row);
    st_global(row_stats(p.call) + index, stat);
    if constexpr (kIsFloat32<T>) st_global(lse_rests(p.call) + index, 0.0f);
  }
};

}  // namespace attentile::cuda

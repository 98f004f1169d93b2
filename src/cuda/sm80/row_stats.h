// SPDX-License-Identifier: Apache-2.0
// The first kernel of the backward pass: what is known of each query and head before it meets a
// key, 8 bytes in the workspace (RowStat). Each row of dout and out is read once, by 8 lanes, 16
// bytes each at a time.
#pragma once

#include "cuda/backward_params.h"
#include "cuda/device/device.h"
#include "cuda/sm80/gradient_scores.h"

namespace attentile::cuda {

template <class T>
struct RowStats {
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocksPerSm = 4;
  static constexpr int kTileM = 64;
  static constexpr uint32_t kSharedBytes = 0;
  static constexpr int kRowLanes = 8;
  static constexpr int kRowStep = kThreads / kRowLanes;

  using Params = BackwardParams;

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
    for (int32_t c = 8 * static_cast<int32_t>(thread_idx() % kRowLanes); c < p.call.head_dim_v;
         c += 8 * kRowLanes) {
      const int32_t count = p.call.head_dim_v - c;
      const Packed<4> x = load_eight(p.call.out, out, c, count);
      const Packed<4> y = load_eight(p.dout, dout, c, count);
      ATTENTILE_UNROLL
      for (int e = 0; e < 8; ++e) {
        const uint32_t word = x.word[e / 2];
        dot.sum = fma_rn(cvt_f32<T>(word, e % 2), cvt_f32<T>(y.word[e / 2], e % 2), dot.sum);
        dot.any_out |= word & (e % 2 == 0 ? 0x7FFFu : 0x7FFF0000u);
      }
    }
    return dot;
  }

  // Up to eight elements of a row from column c on, `count` of which exist; zeros elsewhere.
  ATTENTILE_DEVICE static Packed<4> load_eight(const ArrayParams& array, const T* row, int32_t c,
                                               int32_t count) {
    if (array.in_chunks && count >= 8) {
      return ld_global_nc(reinterpret_cast<const Packed<4>*>(row + c));
    }
    Packed<4> eight = {};
    ATTENTILE_UNROLL
    for (int e = 0; e < 8; ++e) {
      if (e >= count) continue;
      const T x = ld_global_nc(row + (c + e) * array.stride[3]);
      eight.word[e / 2] |= static_cast<uint32_t>(x.bits) << (16 * (e % 2));
    }
    return eight;
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
    st_global(row_stats(p.call) + stat_index(p.call, task.b, task.h, row), stat);
  }
};

}  // namespace attentile::cuda

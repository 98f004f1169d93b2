// SPDX-License-Identifier: Apache-2.0
// Every wrapper of the device layer once, so that the compile test sees each become PTX.
#pragma once

#include "cuda/device/device.h"
#include "mask.h"
#include "philox.h"

namespace attentile::cuda::test {

template <class T>
struct Instructions {
  static constexpr int kThreads = 64;
  static constexpr int kMinBlocksPerSm = 1;
  static constexpr uint32_t kSharedBytes = 8192;

  struct Params {
    const uint32_t* in;
    uint32_t* out;
    float* sums;
    int32_t* flags;
    BandMask mask;
    Dropout dropout;
  };

  ATTENTILE_DEVICE static uint32_t move_matrices(SharedAddress arena) {
    const SharedTile<T, 16, 64> tile{arena};
    const Position at = ldmatrix_a(static_cast<int>(lane_idx()));
    const SharedAddress row = tile.at(at.row, at.column);
    const auto x1 = ldmatrix<1>(row);
    const auto x2 = ldmatrix<2>(row);
    const auto x4 = ldmatrix<4>(row);
    const auto x1t = ldmatrix<1, true>(row);
    const auto x2t = ldmatrix<2, true>(row);
    const auto x4t = ldmatrix<4, true>(row);
    bar_sync();
    Accumulator acc{};
    mma_m16n8k16<T>(acc, x4, x2);
    mma_m16n8k8_tf32(acc, x4t, x2t);
    const uint32_t pair = cvt_rn_x2<T>(acc.value[0], acc.value[1]);
    stmatrix<1>(row, x1);
    stmatrix<2>(row, Registers<2>{{pair, x1t.reg[0]}});
    stmatrix<4>(row, x4);
    return pair ^ cvt_tf32(acc.value[2]) ^ cvt_tf32(acc.value[3]);
  }

  ATTENTILE_DEVICE static float calculate(float x) {
    float y = ex2_approx(fma_rn(x, x, 1.0f)) + lg2_approx(mul_rn(x, 3.0f));
    y = add_rn(y, rcp_approx(x)) + tanh_approx(y) + div_rn(x, y);
    y = max_nan_f32(max_f32(x, y), shfl_xor(y, 1)) + shfl_idx(y, 3);
    return y + shfl_down(x, 2) + shfl_up(x, 1) + cvt_f32<T>(cvt_rn_x2<T>(x, y), 1) +
           to_f32(from_f32<T>(x));
  }

  ATTENTILE_DEVICE static uint32_t vote(uint32_t x) {
    const auto signed_x = static_cast<int32_t>(x);
    uint32_t y = ballot((x & 1u) != 0) + redux_add(x);
    y += static_cast<uint32_t>(redux_min(signed_x) + redux_max(signed_x));
    return y + (any(x > 3) ? 1u : 0u) + (all(x > 3) ? 2u : 0u);
  }

  ATTENTILE_DEVICE static void run(const Params& params, SharedAddress arena) {
    const uint32_t thread = thread_idx();
    const uint32_t* in = params.in + 64 * block_idx().x + 4 * (thread % 16);
    for (uint32_t i = thread; i < 512; i += block_threads()) {
      cp_async<16>(arena + 16 * i, in, i % 17);
      cp_async<8>(arena + 16 * i, in, 8);
      cp_async<4>(arena + 16 * i, in);
    }
    cp_async_commit_group();
    cp_async_wait_group<1>();
    cp_async_wait_group<0>();
    bar_sync();
    uint32_t x = move_matrices(arena);
    bar_warp_sync();
    if (warp_idx() == 0) {
      bar_arrive(1, 64);
    } else {
      bar_sync(1, 64);
    }
    const auto four = ld_shared<Packed<4>>(arena + 16 * thread);
    st_shared(arena + 16 * thread, Packed<2>{{four.word[0], four.word[3]}});
    st_shared(arena + 16 * thread + 8, ld_shared<uint32_t>(arena + 16 * thread));
    st_shared(arena + 16 * thread, Packed<4>{{x, x, x, x}});
    x += vote(x) + ld_shared<Packed<2>>(arena + 16 * thread).word[1];
    const float y = calculate(static_cast<float>(x));
    atomic_add_f32(params.sums, y);
    const auto row = static_cast<int64_t>(thread);
    const Philox4 random = philox4x32_10({{Dropout::column(5), params.dropout.row(row), 0, 0}},
                                         params.dropout.key0, params.dropout.key1);
    if (params.mask.visible(row, 5) && (random.word[2] & 0xFFFFu) >= params.dropout.threshold) {
      st_global(params.out + thread, ld_global(in) + ld_global_nc(in + 1) + ld_global_cs(in + 2));
    }
    st_global_cs(params.out + 64 + thread, x + grid_dim().x);
    fence_gpu();
    bar_sync();
    if (thread == 0 && ld_acquire(params.flags) == 0) {
      st_release(params.flags, atomic_add_acq_rel(params.flags + 1, 1));
    }
  }
};

}  // namespace attentile::cuda::test

// SPDX-License-Identifier: Apache-2.0
// A small matrix product with everything an attention kernel does to feed the tensor cores: two
// stages of cp.async, swizzled tiles, ldmatrix, mma. One block computes c [64, 64] = a [64, depth]
// b, b stored [64, depth] (as K) or [depth, 64] (as V). `kBug` seeds a mistake.
#pragma once

#include "cuda/device/device.h"

namespace attentile::cuda::test {

enum class Bug {
  kNone,
  kNoWait,                // reads what may not have arrived
  kWaitsForTooFew,        // leaves the group it needs pending
  kNoCommit,              // waits for groups that hold nothing
  kNoBarrierAfterWait,    // each thread sees its own copies only
  kNoBarrierBeforeReuse,  // the next copy overwrites what slower warps still read
  kNoSwizzleOnRead,
  kWrongFragmentOfB,  // registers 1 and 2 exchanged
  kMisalignedRow,
  kDivergentBarrier,  // one warp leaves a barrier out
  kRowOutOfBounds,    // loads a row too many
  kSameStage,         // both stages in one buffer
};

template <class T, bool kBIsRowMajor = false, Bug kBug = Bug::kNone>
struct Gemm {
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocksPerSm = 2;
  static constexpr int kTile = 64;
  static constexpr int kWarpRows = 16;
  using Tile = SharedTile<T, kTile, kTile>;
  static constexpr uint32_t kStageBytes = 2 * Tile::kBytes;
  static constexpr uint32_t kSharedBytes = 2 * kStageBytes;

  struct Params {
    const T* a;  // [64, depth]
    const T* b;  // [64, depth], or [depth, 64]
    float* c;    // [64, 64]
    int depth;   // a multiple of 64
  };

  // Rows of 64 elements, `stride` apart.
  ATTENTILE_DEVICE static void load_tile(Tile tile, const T* source, int stride) {
    constexpr int kChunk = 8;  // elements of 16 bytes
    const int thread = static_cast<int>(thread_idx());
    ATTENTILE_UNROLL
    for (int i = 0; i < kTile * kTile / kChunk / kThreads; ++i) {
      const int chunk = thread + i * kThreads;
      const int row = chunk / (kTile / kChunk);
      const int column = chunk % (kTile / kChunk) * kChunk;
      const int from = kBug == Bug::kRowOutOfBounds ? row + 1 : row;
      cp_async<16>(tile.at(row, column), source + static_cast<int64_t>(from) * stride + column);
    }
  }

  ATTENTILE_DEVICE static void load_stage(const Params& params, SharedAddress stage, int step) {
    load_tile({stage}, params.a + step * kTile, params.depth);
    const SharedAddress b = stage + Tile::kBytes;
    if constexpr (kBIsRowMajor) {
      load_tile({b}, params.b + static_cast<int64_t>(step) * kTile * kTile, kTile);
    } else {
      load_tile({b}, params.b + step * kTile, params.depth);
    }
  }

  ATTENTILE_DEVICE static SharedAddress address_for_read(Tile tile, int row, int column) {
    if constexpr (kBug == Bug::kNoSwizzleOnRead) {
      return tile.base + static_cast<uint32_t>(row * kTile + column) * 2;
    } else if constexpr (kBug == Bug::kMisalignedRow) {
      return tile.at(row, column) + 4;
    } else {
      return tile.at(row, column);
    }
  }

  // acc [16, 64] of this warp += a tile's rows times b tile
  ATTENTILE_DEVICE static void multiply(SharedAddress stage, Accumulator (&acc)[kTile / 8]) {
    const Tile tile_a{stage};
    const Tile tile_b{stage + Tile::kBytes};
    const int lane = static_cast<int>(lane_idx());
    const int m0 = static_cast<int>(warp_idx()) * kWarpRows;
    ATTENTILE_UNROLL
    for (int k0 = 0; k0 < kTile; k0 += 16) {
      const Position row = ldmatrix_a(lane);
      const FragmentA a = ldmatrix<4>(address_for_read(tile_a, m0 + row.row, k0 + row.column));
      ATTENTILE_UNROLL
      for (int n0 = 0; n0 < kTile; n0 += 16) {
        Registers<4> b;
        if constexpr (kBIsRowMajor) {
          const Position at = ldmatrix_b_trans(lane);
          b = ldmatrix<4, true>(address_for_read(tile_b, k0 + at.row, n0 + at.column));
        } else {
          const Position at = ldmatrix_b(lane);
          b = ldmatrix<4>(address_for_read(tile_b, n0 + at.row, k0 + at.column));
        }
        constexpr int kSecond = kBug == Bug::kWrongFragmentOfB ? 2 : 1;
        mma_m16n8k16<T>(acc[n0 / 8], a, {b.reg[0], b.reg[kSecond]});
        mma_m16n8k16<T>(acc[n0 / 8 + 1], a, {b.reg[3 - kSecond], b.reg[3]});
      }
    }
  }

  ATTENTILE_DEVICE static void store(const Params& params, const Accumulator (&acc)[kTile / 8]) {
    const int lane = static_cast<int>(lane_idx());
    const int m0 = static_cast<int>(warp_idx()) * kWarpRows;
    struct alignas(8) Pair {
      float value[2];
    };
    ATTENTILE_UNROLL
    for (int n = 0; n < kTile / 8; ++n) {
      ATTENTILE_UNROLL
      for (int half = 0; half < 2; ++half) {
        const Position at = fragment_c(lane, 2 * half);
        float* to = params.c + (m0 + at.row) * kTile + n * 8 + at.column;
        st_global(reinterpret_cast<Pair*>(to),
                  Pair{{acc[n].value[2 * half], acc[n].value[2 * half + 1]}});
      }
    }
  }

  ATTENTILE_DEVICE static void run(const Params& params, SharedAddress arena) {
    constexpr bool kCommits = kBug != Bug::kNoCommit;
    Accumulator acc[kTile / 8] = {};
    const int steps = params.depth / kTile;
    load_stage(params, arena, 0);
    if constexpr (kCommits) cp_async_commit_group();
    for (int step = 0; step < steps; ++step) {
      const uint32_t stage = kBug == Bug::kSameStage ? 0 : static_cast<uint32_t>(step % 2);
      const uint32_t next = kBug == Bug::kSameStage ? 0 : 1 - stage;
      if (step + 1 < steps) load_stage(params, arena + next * kStageBytes, step + 1);
      if constexpr (kCommits) cp_async_commit_group();
      if constexpr (kBug == Bug::kWaitsForTooFew) {
        cp_async_wait_group<2>();
      } else if constexpr (kBug != Bug::kNoWait) {
        cp_async_wait_group<1>();
      }
      if constexpr (kBug == Bug::kDivergentBarrier) {
        if (warp_idx() != 2 || step != 1) bar_sync();
      } else if constexpr (kBug != Bug::kNoBarrierAfterWait) {
        bar_sync();
      }
      multiply(arena + stage * kStageBytes, acc);
      if constexpr (kBug != Bug::kNoBarrierBeforeReuse) bar_sync();
    }
    cp_async_wait_group<0>();
    store(params, acc);
  }
};

}  // namespace attentile::cuda::test

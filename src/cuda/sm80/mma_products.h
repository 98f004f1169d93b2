// SPDX-License-Identifier: Apache-2.0
// The two products of the forward pass on tensor cores, for one warp with 16 kRowTiles rows:
//
//     S [rows, kTileN] = Q K^T        O [rows, kHeadDim] += P V
//
// Q, K and V lie in shared memory; P is rounded to T in the registers S was in.
#pragma once

#include "cuda/device/device.h"
#include "cuda/sm80/online_softmax.h"
#include "cuda/sm80/scores.h"
#include "cuda/sm80/special_values.h"

namespace attentile::cuda {

template <class T, int kHeadDim, int kRowTiles, int kTileM, int kTileN>
struct MmaProducts {
  using QueryTile = SharedTile<T, kTileM, kHeadDim>;
  using KeyTile = SharedTile<T, kTileN, kHeadDim>;  // K, and V likewise
  using Scores = ScoreTile<kRowTiles, kTileN / 8>;
  using Rows = RowState<kRowTiles, kHeadDim>;

  // Column of O in element 0 (or 2) of accumulator n.
  ATTENTILE_DEVICE static constexpr int column_of(int n, int t) { return 8 * n + 2 * t; }

  // S = Q K^T, of the rows from first_row on. A fragment 16 rows further down a tile lies 16 rows
  // of a panel further on, as the swizzle repeats every 8.
  ATTENTILE_DEVICE static void multiply_queries(QueryTile q_tile, KeyTile k_tile,
                                                uint32_t first_row, Scores& s) {
    const int lane = opaque_lane();
    const Position at_q = ldmatrix_a(lane);
    const Position at_k = ldmatrix_b(lane);
    const SharedAddress first_q =
        q_tile.at(at_q.row, at_q.column) + first_row * QueryTile::kPanelBytes;
    const SharedAddress first_k = k_tile.at(at_k.row, at_k.column);
    ATTENTILE_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      ATTENTILE_UNROLL
      for (int n = 0; n < kTileN / 8; ++n) s.value[m][n] = {};
    }
    ATTENTILE_UNROLL
    for (int c = 0; c < kHeadDim; c += 16) {
      const SharedAddress q = QueryTile::columns_on(first_q, c);
      const SharedAddress k = KeyTile::columns_on(first_k, c);
      FragmentA a[kRowTiles];
      ATTENTILE_UNROLL
      for (int m = 0; m < kRowTiles; ++m) {
        a[m] = ldmatrix<4>(q + static_cast<uint32_t>(16 * m) * QueryTile::kPanelBytes);
      }
      ATTENTILE_UNROLL
      for (int n = 0; n < kTileN / 8; n += 2) {
        const Registers<4> b = ldmatrix<4>(k + static_cast<uint32_t>(8 * n) * KeyTile::kPanelBytes);
        ATTENTILE_UNROLL
        for (int m = 0; m < kRowTiles; ++m) {
          mma_m16n8k16<T>(s.value[m][n], a[m], {b.reg[0], b.reg[1]});
          mma_m16n8k16<T>(s.value[m][n + 1], a[m], {b.reg[2], b.reg[3]});
        }
      }
    }
  }

  // P as left operands [16, 16] of the product with V: in the registers of two accumulators [16, 8]
  // of S, side by side, lie the elements that a fragment wants there.
  struct Weights {
    FragmentA part[kRowTiles][kTileN / 16];
  };
  ATTENTILE_DEVICE static Weights round_weights(const Scores& s) {
    Weights weights;
    ATTENTILE_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      ATTENTILE_UNROLL
      for (int n = 0; n < kTileN / 16; ++n) {
        ATTENTILE_UNROLL
        for (int r = 0; r < 4; ++r) {
          const float* pair = s.value[m][2 * n + r / 2].value + 2 * (r % 2);
          weights.part[m][n].reg[r] = cvt_rn_x2<T>(pair[0], pair[1]);
        }
      }
    }
    return weights;
  }

  // Two fragments of V [16, 8]: keys from k on, columns from c on. `first_v` is those from 0 on.
  ATTENTILE_DEVICE static SharedAddress first_values(KeyTile v, uint32_t lane) {
    const Position at = ldmatrix_b_trans(static_cast<int>(lane));
    return v.at(at.row, at.column);
  }
  ATTENTILE_DEVICE static Registers<4> values(SharedAddress first_v, int k, int c) {
    return ldmatrix<4, true>(KeyTile::columns_on(first_v, c) +
                             static_cast<uint32_t>(k) * KeyTile::kPanelBytes);
  }

  // O += P V.
  ATTENTILE_DEVICE static void multiply_values(KeyTile v, uint32_t lane, const Weights& weights,
                                               Rows& rows) {
    const SharedAddress first_v = first_values(v, lane);
    ATTENTILE_UNROLL
    for (int k = 0; k < kTileN; k += 16) {
      ATTENTILE_UNROLL
      for (int c = 0; c < kHeadDim; c += 16) {
        const Registers<4> b = values(first_v, k, c);
        ATTENTILE_UNROLL
        for (int m = 0; m < kRowTiles; ++m) {
          const FragmentA& a = weights.part[m][k / 16];
          mma_m16n8k16<T>(rows.acc_o[m][c / 8], a, {b.reg[0], b.reg[1]});
          mma_m16n8k16<T>(rows.acc_o[m][c / 8 + 1], a, {b.reg[2], b.reg[3]});
        }
      }
    }
  }

  // The weights of a row tile, marked (special_values.h).
  template <bool kHasMask, class Task>
  ATTENTILE_DEVICE static void mark(const ForwardParams& p, const Task& task, const TileOrigin& at,
                                    int m, const Weights& weights, Weights& marked) {
    ATTENTILE_UNROLL
    for (int half = 0; half < 2; ++half) {
      const VisibleKeys keys = visible_keys<kHasMask>(p, task, at.query(m, half), at.k0);
      ATTENTILE_UNROLL
      for (int n = 0; n < kTileN / 8; ++n) {
        const int r = half + 2 * (n % 2);
        marked.part[m][n / 2].reg[r] = mark_weights<T>(
            weights.part[m][n / 2].reg[r], keys.has(p, at.key(n, 0)), keys.has(p, at.key(n, 1)));
      }
    }
  }

  // The same product on a tile whose values may hold NaN or infinity, for a mask cuts it.
  template <bool kHasMask, class Task>
  ATTENTILE_DEVICE static void multiply_special_values(const ForwardParams& p, SlotOf<Task> task,
                                                       KeyTile v, const TileOrigin& at,
                                                       const Weights& weights, Rows& rows) {
    const SharedAddress first_v = first_values(v, at.lane);
    ATTENTILE_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      Weights marked;
      mark<kHasMask>(p, task.load(), at, m, weights, marked);
      ATTENTILE_UNROLL
      for (int c = 0; c < kHeadDim; c += 8) {
        Accumulator& acc = rows.acc_o[m][c / 8];
        Accumulator marks = {};
        ATTENTILE_UNROLL
        for (int k = 0; k < kTileN; k += 16) {
          const Registers<4> b = values(first_v, k, c / 16 * 16);
          const SplitValues first = split_values<T>(b.reg[c % 16 / 4]);
          const SplitValues second = split_values<T>(b.reg[c % 16 / 4 + 1]);
          mma_m16n8k16<T>(acc, weights.part[m][k / 16], {first.finite, second.finite});
          mma_m16n8k16<T>(marks, marked.part[m][k / 16], {first.marks, second.marks});
        }
        ATTENTILE_UNROLL
        for (int r = 0; r < 4; ++r) acc.value[r] = add_special(acc.value[r], marks.value[r]);
      }
    }
  }
};

}  // namespace attentile::cuda

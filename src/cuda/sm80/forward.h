// SPDX-License-Identifier: Apache-2.0
// The forward pass of FlashAttention-2 on sm_80 and later. One block computes kTileM rows of out
// and lse of one head: it keeps their queries in shared memory and their outputs in registers, and
// walks over the keys in tiles of kTileN. Per key tile, and nothing of size seqlen x seqlen is ever
// stored:
//
//     S = Q K^T                              ldmatrix, mma m16n8k16, float32 accumulators
//     S = terms and masks of S               masks on tiles that cut a mask's edge alone
//     P = 2^((S - row_max) exponent)         online_softmax.h
//     O = O + P V                            P from the accumulators of S, V by ldmatrix.trans
//
// Bytes per block and key tile: kTileN (head_dim + head_dim_v) elements from global memory, once.
// Two slots of shared memory take turns: while S is computed from the K slot, V arrives in the
// other; while softmax and P V run, the K of the next tile arrives.
//
// NaN and infinity. A key or value outside the keys that the block's queries see is never read. One
// that only some of them see is hidden from the others as the contract says: scores by selection;
// values, of which weight 0 times NaN would be NaN, by a second pass over the keys that shows each
// query its own values alone. A block makes it if its first pass ends in NaN or infinity.
#pragma once

#include "cuda/device/device.h"
#include "cuda/params.h"
#include "cuda/sm80/online_softmax.h"
#include "cuda/sm80/scores.h"
#include "cuda/sm80/sequence.h"
#include "cuda/sm80/tile_load.h"

namespace attentile::cuda {

// head_dim and head_dim_v are at most kHeadDim; what they lack is padded with zeros on the way into
// shared memory. A warp has 16 kRowTiles queries: with two row tiles each fragment of K and V feeds
// two products, which halves what the tensor cores ask of shared memory; a head_dim above 128 would
// leave no registers for that, so there twice as many warps share a tile.
template <class T, int kHeadDimClass, bool kHasOptions>
struct Forward {
  static constexpr int kHeadDim = kHeadDimClass;
  static constexpr int kRowTiles = kHeadDim <= (kHasOptions ? 96 : 128) ? 2 : 1;
  static constexpr int kWarps = 8 / kRowTiles;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kMinBlocksPerSm = kRowTiles;
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr int kTileM = kWarps * kWarpRows;
  static constexpr int kTileN = 64;

  using Params = ForwardParams;
  using QueryTile = SharedTile<T, kTileM, kHeadDim>;  // then the rows of out
  using KeyTile = SharedTile<T, kTileN, kHeadDim>;    // K, and V likewise
  using Scores = ScoreTile<kRowTiles, kTileN / 8>;
  using Rows = RowState<kRowTiles, kHeadDim>;
  static constexpr uint32_t kFlagBytes = 4 * kWarps;
  static constexpr uint32_t kSharedBytes = QueryTile::kBytes + 2 * KeyTile::kBytes + kFlagBytes;

  struct Arena {
    QueryTile q;
    KeyTile k;
    KeyTile v;
    SharedAddress flags;  // [kWarps] words
  };

  ATTENTILE_DEVICE static void run(const Params& params, SharedAddress start) {
    const BlockTask task = find_task<kTileM>(params);
    if (task.q_begin >= task.q_end) return;
    const SharedAddress keys = start + QueryTile::kBytes;
    const Arena arena = {{start}, {keys}, {keys + KeyTile::kBytes}, keys + 2 * KeyTile::kBytes};
    load_queries(params, task, arena.q);
    Rows rows;
    for (bool isolate = false;; isolate = true) {
      rows.reset();
      attend(params, task, arena, isolate, rows);
      ATTENTILE_UNROLL
      for (int m = 0; m < kRowTiles; ++m) {
        ATTENTILE_UNROLL
        for (int half = 0; half < 2; ++half) {
          rows.row_sum[m][half] = quad_sum(rows.row_sum[m][half]);
        }
      }
      if (isolate || !any_in_block(arena.flags, task.warp, is_tainted(rows))) break;
    }
    store(params, task, arena.q, rows);
  }

 private:
  // Index into the first dimension of q, out and lse.
  ATTENTILE_DEVICE static int32_t first_dimension(const Params& p, const BlockTask& task) {
    return p.packed_q ? 0 : task.b;
  }
  ATTENTILE_DEVICE static int32_t first_query(const BlockTask& task) {
    return task.q_begin + static_cast<int32_t>(task.warp) * kWarpRows;
  }

  ATTENTILE_DEVICE static void load_queries(const Params& p, const BlockTask& task,
                                            QueryTile tile) {
    const TileRows rows = {.first = task.q_begin,
                           .begin = task.q_begin,
                           .end = task.q_end,
                           .columns = p.head_dim,
                           .column_stride = p.q.stride[3],
                           .in_chunks = p.q.in_chunks};
    const T* from = element<T>(p.q, first_dimension(p, task), task.row_q + task.q_begin, task.h);
    if (p.q.in_chunks) {
      load_tile<kThreads>(tile, rows, from, p.q.stride[1]);
    } else {
      load_scattered<kThreads>(
          tile, rows, [&](int32_t i) { return from + (i - task.q_begin) * p.q.stride[1]; });
    }
    cp_async_commit_group();
  }

  // Keys [k0, k0 + kTileN) of k or v.
  ATTENTILE_DEVICE static void load_keys(const Params& p, const BlockTask& task,
                                         const ArrayParams& array, int32_t k0, KeyTile tile) {
    const TileRows rows = {.first = k0,
                           .begin = task.k_begin,
                           .end = task.k_end,
                           .columns = &array == &p.k ? p.head_dim : p.head_dim_v,
                           .column_stride = array.stride[3],
                           .in_chunks = array.in_chunks};
    if (array.in_chunks && p.page_size == 0) {
      load_tile<kThreads>(tile, rows, key_row<T>(p, array, task, task.k_begin), array.stride[1]);
    } else {
      load_scattered<kThreads>(tile, rows,
                               [&](int32_t j) { return key_row<T>(p, array, task, j); });
    }
    cp_async_commit_group();
  }

  // Where key tiles begin: so that the 32 keys of a group of dropout lie in one.
  ATTENTILE_DEVICE static int32_t first_key(const Params& p, const BlockTask& task) {
    const uint32_t base = p.dropout.enabled ? static_cast<uint32_t>(p.dropout.key_base) : 0;
    return task.k_begin - static_cast<int32_t>((static_cast<uint32_t>(task.k_begin) + base) % 32);
  }

  // All keys, into rows. Slots: every thread fills its part of one by cp.async; the barrier after
  // each thread's wait shows it to all, and says besides that all are done with the other slot.
  ATTENTILE_DEVICE static void attend(const Params& p, BlockTask task, const Arena& arena,
                                      bool isolate, Rows& rows) {
    const int32_t q0 = first_query(task);
    const int32_t q_end = static_cast<int32_t>(min64(q0 + kWarpRows, task.q_end));
    int32_t k0 = first_key(p, task);
    if (k0 < task.k_end) load_keys(p, task, p.k, k0, arena.k);
    for (; k0 < task.k_end; k0 += kTileN) {
      task.b = opaque(task.b);
      task.h = opaque(task.h);
      task.kv_h = opaque(task.kv_h);
      TileClass tile_class = TileClass::kHidden;
      const int32_t q = opaque(q0);
      if (q < q_end) tile_class = task.band.classify(q, q_end, k0, k0 + kTileN);
      if constexpr (kHasOptions) {
        if (tile_class == TileClass::kFull && p.mask.data != nullptr) {
          tile_class = TileClass::kPartial;
        }
      }
      cp_async_wait_group<0>();
      bar_sync();  // K (and Q) is there; all have read V
      load_keys(p, task, p.v, k0, arena.v);
      Scores s;
      s.at = {q0, k0, opaque(lane_idx())};
      if (tile_class != TileClass::kHidden) multiply_queries(arena, task.warp, s);
      cp_async_wait_group<0>();
      bar_sync();  // V is there; all have read K
      if (k0 + kTileN < task.k_end) load_keys(p, task, p.k, k0 + kTileN, arena.k);
      if (tile_class == TileClass::kHidden) continue;
      if constexpr (kHasOptions) {
        if (p.score.has_terms) add_terms<T>(p, task, s);
      }
      if (tile_class == TileClass::kPartial) hide_scores<kHasOptions>(p, task, s);
      online_softmax(rows, s, p.score.exponent);
      if constexpr (kHasOptions) {
        if (p.dropout.enabled) drop_weights(p, task, s);
      }
      const Weights weights = round_weights(s);
      if (isolate && tile_class == TileClass::kPartial) {
        multiply_visible_values(p, task, s.at, arena.v, weights, rows);
      } else {
        multiply_values(arena.v, s.at.lane, weights, rows);
      }
    }
    cp_async_wait_group<0>();
  }

  // S [kWarpRows, kTileN] = Q K^T. A fragment 16 rows further down a tile lies 16 rows of a panel
  // further on, as the swizzle repeats every 8.
  ATTENTILE_DEVICE static void multiply_queries(const Arena& arena, uint32_t warp, Scores& s) {
    const Position at_q = ldmatrix_a(static_cast<int>(s.at.lane));
    const Position at_k = ldmatrix_b(static_cast<int>(s.at.lane));
    const uint32_t warp_rows = warp * kWarpRows * QueryTile::kPanelBytes;
    ATTENTILE_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      ATTENTILE_UNROLL
      for (int n = 0; n < kTileN / 8; ++n) s.value[m][n] = {};
    }
    ATTENTILE_UNROLL
    for (int c = 0; c < kHeadDim; c += 16) {
      const SharedAddress q = arena.q.at(at_q.row, c + at_q.column) + warp_rows;
      const SharedAddress k = arena.k.at(at_k.row, c + at_k.column);
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

  // Two fragments of V [16, 8]: keys from k on, columns from c on.
  ATTENTILE_DEVICE static Registers<4> values(KeyTile v, uint32_t lane, int k, int c) {
    const Position at = ldmatrix_b_trans(static_cast<int>(lane));
    return ldmatrix<4, true>(v.at(at.row, c + at.column) +
                             static_cast<uint32_t>(k) * KeyTile::kPanelBytes);
  }

  // O [kWarpRows, kHeadDim] += P V.
  ATTENTILE_DEVICE static void multiply_values(KeyTile v, uint32_t lane, const Weights& weights,
                                               Rows& rows) {
    ATTENTILE_UNROLL
    for (int k = 0; k < kTileN; k += 16) {
      ATTENTILE_UNROLL
      for (int c = 0; c < kHeadDim; c += 16) {
        const Registers<4> b = values(v, lane, k, c);
        ATTENTILE_UNROLL
        for (int m = 0; m < kRowTiles; ++m) {
          const FragmentA& a = weights.part[m][k / 16];
          mma_m16n8k16<T>(rows.acc_o[m][c / 8], a, {b.reg[0], b.reg[1]});
          mma_m16n8k16<T>(rows.acc_o[m][c / 8 + 1], a, {b.reg[2], b.reg[3]});
        }
      }
    }
  }

  // A mask of the halves of a register of V that hold keys which a query sees: bits 2 n and 2 n + 1
  // of `seen` are this lane's keys of key tile n.
  ATTENTILE_DEVICE static uint32_t seen_halves(uint32_t seen, int n) {
    return ((seen >> (2 * n) & 1) * 0xFFFFu) | ((seen >> (2 * n + 1) & 1) * 0xFFFF0000u);
  }
  ATTENTILE_DEVICE static uint32_t seen_keys(const Params& p, const BlockTask& task, int32_t query,
                                             const TileOrigin& at) {
    const KeySpan span = band_span(task.band, query, at.k0);
    uint32_t seen = 0;
    ATTENTILE_ROLL
    for (int bit = 0; bit < kTileN / 4; ++bit) {
      const int key = at.key(bit / 2, bit % 2);
      if (key < span.lo || key >= span.hi) continue;
      if (mask_shows<kHasOptions>(p, task, query, at.k0 + key)) seen |= 1u << bit;
    }
    return seen;
  }

  // The same product, query by query: of the values that a query does not see, zeros are taken, and
  // of the product that query's row. The same bits as multiply_values() wherever that is finite.
  ATTENTILE_DEVICE static void multiply_visible_values(const Params& p, const BlockTask& task,
                                                       const TileOrigin& at, KeyTile v,
                                                       const Weights& weights, Rows& rows) {
    ATTENTILE_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      ATTENTILE_ROLL
      for (int row = 0; row < 16; ++row) {
        const int32_t query = at.q0 + 16 * m + row;
        if (query >= task.q_end) break;
        const uint32_t seen = seen_keys(p, task, query, at);
        const bool mine = static_cast<int>(at.lane / 4) == row % 8;
        ATTENTILE_UNROLL
        for (int c = 0; c < kHeadDim; c += 16) {
          Accumulator sum[2] = {rows.acc_o[m][c / 8], rows.acc_o[m][c / 8 + 1]};
          ATTENTILE_UNROLL
          for (int k = 0; k < kTileN; k += 16) {
            const FragmentA& a = weights.part[m][k / 16];
            const Registers<4> b = values(v, at.lane, k, c);
            const uint32_t first = seen_halves(seen, k / 8);
            const uint32_t second = seen_halves(seen, k / 8 + 1);
            mma_m16n8k16<T>(sum[0], a, {b.reg[0] & first, b.reg[1] & second});
            mma_m16n8k16<T>(sum[1], a, {b.reg[2] & first, b.reg[3] & second});
          }
          ATTENTILE_UNROLL
          for (int i = 0; i < 8; ++i) {
            float& o = rows.acc_o[m][c / 8 + i / 4].value[i % 4];
            if (mine && i % 4 / 2 == row / 8) o = sum[i / 4].value[i % 4];
          }
        }
      }
    }
  }

  // Whether a row that is not dead holds a NaN or an infinity: 0 times it is not 0.
  ATTENTILE_DEVICE static bool is_tainted(const Rows& rows) {
    float taint = 0.0f;
    ATTENTILE_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      ATTENTILE_UNROLL
      for (int half = 0; half < 2; ++half) {
        float row = 0.0f;
        ATTENTILE_UNROLL
        for (int n = 0; n < kHeadDim / 8; ++n) {
          row = fma_rn(rows.acc_o[m][n].value[2 * half], 0.0f, row);
          row = fma_rn(rows.acc_o[m][n].value[2 * half + 1], 0.0f, row);
        }
        taint = rows.row_sum[m][half] == 0.0f ? taint : add_rn(taint, row);
      }
    }
    return taint != taint;
  }

  // Whether `flag` is set anywhere in the block. Every warp fills its own word; nobody fills one
  // again in this launch without a barrier between.
  ATTENTILE_DEVICE static bool any_in_block(SharedAddress flags, uint32_t own, bool flag) {
    const bool in_warp = any(flag);
    if (lane_idx() == 0) st_shared(flags + 4 * own, static_cast<uint32_t>(in_warp));
    bar_sync();
    uint32_t found = 0;
    ATTENTILE_UNROLL
    for (int warp = 0; warp < kWarps; ++warp) {
      found |= ld_shared<uint32_t>(flags + static_cast<uint32_t>(4 * warp));
    }
    return found != 0;
  }

  // out and lse of this warp's rows, out through its own rows of the queries' tile, which nobody
  // else reads.
  ATTENTILE_DEVICE static void store(const Params& p, const BlockTask& task, QueryTile tile,
                                     const Rows& rows) {
    const int32_t q0 = first_query(task);
    if (q0 >= task.q_end) return;
    const int first = static_cast<int>(task.warp) * kWarpRows;
    const float sink =
        p.sink.data != nullptr ? ld_global_nc(element<float>(p.sink, task.h, 0, 0)) : -kInfinity;
    const Position at = stmatrix_c(static_cast<int>(lane_idx()));
    ATTENTILE_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      const RowEnd end[2] = {close_row(p, rows.row_max[m][0], rows.row_sum[m][0], sink),
                             close_row(p, rows.row_max[m][1], rows.row_sum[m][1], sink)};
      store_lse(p, task, q0 + 16 * m, end);
      ATTENTILE_UNROLL
      for (int c = 0; c < kHeadDim; c += 16) {
        Registers<4> packed;
        ATTENTILE_UNROLL
        for (int r = 0; r < 4; ++r) {
          const float* pair = rows.acc_o[m][c / 8 + r / 2].value + 2 * (r % 2);
          const RowEnd& row = end[r % 2];
          packed.reg[r] =
              row.dead ? 0u
                       : cvt_rn_x2<T>(mul_rn(pair[0], row.factor), mul_rn(pair[1], row.factor));
        }
        stmatrix(tile.at(first + 16 * m + at.row, c + at.column), packed);
      }
    }
    bar_warp_sync();
    T* to = const_cast<T*>(element<T>(p.out, first_dimension(p, task), task.row_q + q0, task.h));
    store_rows(tile, first,
               StoreRows<T>{.to = to,
                            .row_stride = p.out.stride[1],
                            .column_stride = p.out.stride[3],
                            .count = static_cast<int32_t>(min64(kWarpRows, task.q_end - q0)),
                            .columns = p.head_dim_v,
                            .in_chunks = p.out.in_chunks});
  }

  // One lane of the four that share a row.
  ATTENTILE_DEVICE static void store_lse(const Params& p, const BlockTask& task, int32_t q0,
                                         const RowEnd (&end)[2]) {
    if (p.lse.data == nullptr || lane_idx() % 4 != 0) return;
    ATTENTILE_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int32_t query = q0 + 8 * half + static_cast<int32_t>(lane_idx() / 4);
      if (query >= task.q_end) continue;
      const float* to = element<float>(p.lse, first_dimension(p, task), task.h, task.row_q + query);
      st_global(const_cast<float*>(to), end[half].lse);
    }
  }
};

}  // namespace attentile::cuda

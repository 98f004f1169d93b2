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
// values, of which weight 0 times NaN would be NaN, by a second pass over the keys that tells
// finite values from others (special_values.h). A block makes it if its first pass ends in NaN or
// infinity.
#pragma once

#include "cuda/device/device.h"
#include "cuda/params.h"
#include "cuda/sm80/online_softmax.h"
#include "cuda/sm80/scores.h"
#include "cuda/sm80/sequence.h"
#include "cuda/sm80/special_values.h"
#include "cuda/sm80/tile_load.h"

namespace attentile::cuda {

// head_dim and head_dim_v are at most kHeadDim; what they lack is padded with zeros on the way into
// shared memory. kHasOptions: softcap, bias, ALiBi, boolean mask, dropout and any scale, else those
// are not there. A warp has 16 kRowTiles queries: with two row tiles each fragment of K and V feeds
// two products, which halves what the tensor cores ask of shared memory; where that leaves too few
// registers twice as many warps share a tile. Results do not depend on it by a bit.
template <class T, int kHeadDimClass, bool kHasOptions>
struct Forward {
  static constexpr int kHeadDim = kHeadDimClass;
  static constexpr int kRowTiles = kHeadDim <= (kHasOptions ? 64 : 128) ? 2 : 1;
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

  struct Arena {
    QueryTile q;
    KeyTile k;
    KeyTile v;
    TaskSlot task;        // [kWarps]: this warp's
    SharedAddress flags;  // [kWarps] words
  };
  static constexpr uint32_t kTasksAt = QueryTile::kBytes + 2 * KeyTile::kBytes;
  static constexpr uint32_t kFlagsAt = kTasksAt + kWarps * TaskSlot::kBytes;
  static constexpr uint32_t kSharedBytes = kFlagsAt + 4 * kWarps;

  ATTENTILE_DEVICE static void run(const Params& params, SharedAddress start) {
    const BlockTask task = find_task<kTileM>(params);
    if (task.q_begin >= task.q_end) return;
    const Arena arena = {{start},
                         {start + QueryTile::kBytes},
                         {start + QueryTile::kBytes + KeyTile::kBytes},
                         {start + kTasksAt + task.warp * TaskSlot::kBytes},
                         start + kFlagsAt};
    arena.task.store(task);
    load_queries(params, task, arena.q);
    Rows rows;
    for (bool isolate = false;; isolate = true) {
      attend(params, arena, isolate, rows);
      if (isolate || !any_in_block(arena, is_tainted(rows))) break;
    }
    store(params, arena, rows);
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
  ATTENTILE_DEVICE static void attend(const Params& p, const Arena& arena, bool isolate,
                                      Rows& rows) {
    rows.reset();
    int32_t k0 = first_key(p, arena.task.load());
    int32_t k_end = arena.task.load().k_end;
    if (k0 < k_end) load_keys(p, arena.task.load(), p.k, k0, arena.k);
    for (; k0 < k_end; k0 += kTileN) {
      cp_async_wait_group<0>();
      bar_sync();  // K (and Q) is there; all have read V
      load_keys(p, arena.task.load(), p.v, k0, arena.v);
      Scores s;
      multiply_queries(arena, s);  // also where all is hidden: to skip it takes registers
      cp_async_wait_group<0>();
      bar_sync();  // V is there; all have read K
      if (k0 + kTileN < k_end) load_keys(p, arena.task.load(), p.k, k0 + kTileN, arena.k);
      const TileClass tile_class = classify(p, arena.task.load(), k0);
      if (all(tile_class == TileClass::kHidden)) continue;
      const bool partial = any(tile_class == TileClass::kPartial);
      s.at = {first_query(arena.task.load()), k0, opaque(lane_idx())};
      weigh(p, arena.task, partial, s, rows);
      const Weights weights = round_weights(s);
      if (isolate && partial) {
        multiply_special_values(p, arena, s.at, weights, rows);
      } else {
        multiply_values(arena.v, s.at.lane, weights, rows);
      }
    }
    cp_async_wait_group<0>();
    rows.sum_quads();
  }

  // Of this warp's queries and the keys from k0 on.
  ATTENTILE_DEVICE static TileClass classify(const Params& p, const BlockTask& task, int32_t k0) {
    const int32_t q0 = first_query(task);
    if (q0 >= task.q_end) return TileClass::kHidden;
    const int32_t q_end = q0 + kWarpRows < task.q_end ? q0 + kWarpRows : task.q_end;
    const TileClass by_band = task.band.classify(q0, q_end, k0, k0 + kTileN);
    const bool masked = kHasOptions && p.mask.data != nullptr;
    return masked && by_band == TileClass::kFull ? TileClass::kPartial : by_band;
  }

  // Dot products -> weights, before they are rounded.
  ATTENTILE_DEVICE static void weigh(const Params& p, TaskSlot task, bool partial, Scores& s,
                                     Rows& rows) {
    if constexpr (kHasOptions) {
      if (p.score.has_terms) add_terms<T>(p, task.load(), s);
    }
    if (partial) hide_scores<kHasOptions>(p, task.load(), s);
    online_softmax(rows, s, p.score.exponent);
    if constexpr (kHasOptions) {
      if (p.dropout.enabled) drop_weights(p, task.load(), s);
    }
  }

  // S [kWarpRows, kTileN] = Q K^T. A fragment 16 rows further down a tile lies 16 rows of a panel
  // further on, as the swizzle repeats every 8.
  ATTENTILE_DEVICE static void multiply_queries(const Arena& arena, Scores& s) {
    const int lane = static_cast<int>(opaque(lane_idx()));
    const Position at_q = ldmatrix_a(lane);
    const Position at_k = ldmatrix_b(lane);
    const uint32_t warp_rows = arena.task.load().warp * kWarpRows * QueryTile::kPanelBytes;
    const SharedAddress first_q = arena.q.at(at_q.row, at_q.column) + warp_rows;
    const SharedAddress first_k = arena.k.at(at_k.row, at_k.column);
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

  // Two fragments of V [16, 8]: keys from k on, columns from c on. `first` is those from 0 on.
  ATTENTILE_DEVICE static SharedAddress first_values(KeyTile v, uint32_t lane) {
    const Position at = ldmatrix_b_trans(static_cast<int>(lane));
    return v.at(at.row, at.column);
  }
  ATTENTILE_DEVICE static Registers<4> values(SharedAddress first, int k, int c) {
    return ldmatrix<4, true>(KeyTile::columns_on(first, c) +
                             static_cast<uint32_t>(k) * KeyTile::kPanelBytes);
  }

  // O [kWarpRows, kHeadDim] += P V.
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

  // The weights of 16 keys, marked (special_values.h).
  ATTENTILE_DEVICE static FragmentA marked_weights(const Params& p, const BlockTask& task,
                                                   const TileOrigin& at, int m,
                                                   const FragmentA& weights, int n) {
    FragmentA marked;
    ATTENTILE_UNROLL
    for (int r = 0; r < 4; ++r) {
      const int32_t query = at.query(m, r % 2);
      const KeySpan span = band_span(task.band, query, at.k0);
      const auto sees = [&](int key) {
        return query < task.q_end && key >= span.lo && key < span.hi &&
               mask_shows<kHasOptions>(p, task, query, at.k0 + key);
      };
      const int key_tile = 2 * n + r / 2;
      marked.reg[r] =
          mark_weights<T>(weights.reg[r], sees(at.key(key_tile, 0)), sees(at.key(key_tile, 1)));
    }
    return marked;
  }

  // The same product on a tile whose values may hold NaN or infinity, for a mask cuts it.
  ATTENTILE_DEVICE static void multiply_special_values(const Params& p, const Arena& arena,
                                                       const TileOrigin& at, const Weights& weights,
                                                       Rows& rows) {
    const SharedAddress first_v = first_values(arena.v, at.lane);
    ATTENTILE_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      Weights marked;
      ATTENTILE_UNROLL
      for (int n = 0; n < kTileN / 16; ++n) {
        marked.part[m][n] = marked_weights(p, arena.task.load(), at, m, weights.part[m][n], n);
      }
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
  ATTENTILE_DEVICE static bool any_in_block(const Arena& arena, bool flag) {
    const bool in_warp = any(flag);
    if (lane_idx() == 0)
      st_shared(arena.flags + 4 * arena.task.load().warp, static_cast<uint32_t>(in_warp));
    bar_sync();
    uint32_t found = 0;
    ATTENTILE_UNROLL
    for (int warp = 0; warp < kWarps; ++warp) {
      found |= ld_shared<uint32_t>(arena.flags + static_cast<uint32_t>(4 * warp));
    }
    return found != 0;
  }

  // out and lse of this warp's rows, out through its own rows of the queries' tile, which nobody
  // else reads.
  ATTENTILE_DEVICE static void store(const Params& p, const Arena& arena, const Rows& rows) {
    const BlockTask task = arena.task.load();
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
        stmatrix(arena.q.at(first + 16 * m + at.row, c + at.column), packed);
      }
    }
    bar_warp_sync();
    T* to = const_cast<T*>(element<T>(p.out, first_dimension(p, task), task.row_q + q0, task.h));
    store_rows(arena.q, first,
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

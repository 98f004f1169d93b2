// SPDX-License-Identifier: Apache-2.0
// The forward pass of FlashAttention-2 on sm_80 and later. One block computes kTileM rows of out
// and lse of one head, or packed of all heads of a group: it keeps their queries in shared memory
// and their outputs in registers, and walks over the keys, or one split of them, in tiles of
// kTileN. Per key tile, and nothing of size seqlen x seqlen is ever stored:
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

#include <type_traits>

#include "cuda/device/device.h"
#include "cuda/params.h"
#include "cuda/sm80/fma_products.h"
#include "cuda/sm80/mma_products.h"
#include "cuda/sm80/online_softmax.h"
#include "cuda/sm80/scores.h"
#include "cuda/sm80/splits.h"
#include "cuda/sm80/tile_load.h"

namespace attentile::cuda {

// head_dim and head_dim_v are at most kHeadDim; what they lack is padded with zeros on the way into
// shared memory. kHasOptions: softcap, bias, ALiBi, boolean mask, dropout and any scale, else those
// are not there. A warp has 16 kRowTiles rows: with two row tiles each fragment of K and V feeds
// two products, which halves what the tensor cores ask of shared memory; where that leaves too few
// registers twice as many warps share a tile. kPacked: packed rows and splits of the keys. A row's
// bits depend on none of these.
template <class T, int kHeadDimClass, bool kHasOptions, bool kPacked = false>
struct Forward {
  static constexpr int kHeadDim = kHeadDimClass;
  static constexpr int kRowTiles = !kPacked && kHeadDim <= (kHasOptions ? 64 : 128) ? 2 : 1;
  static constexpr int kWarps = !kPacked ? 8 / kRowTiles : kIsFloat32<T> && kHeadDim > 128 ? 2 : 4;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kMinBlocksPerSm = kPacked ? 2 : kRowTiles;
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr int kTileM = kWarps * kWarpRows;
  static constexpr int kTileN = kIsFloat32<T> ? 32 : 64;

  using Params = ForwardParams;
  using Task = std::conditional_t<kPacked, PackedTask, BlockTask>;
  using Slot = SlotOf<Task>;
  using Products = std::conditional_t<kIsFloat32<T>, FmaProducts<kHeadDim, kTileM, kTileN>,
                                      MmaProducts<T, kHeadDim, kRowTiles, kTileM, kTileN>>;
  using QueryTile = typename Products::QueryTile;  // then the rows of out
  using KeyTile = typename Products::KeyTile;
  using Scores = typename Products::Scores;
  using Rows = typename Products::Rows;

  struct Arena {
    QueryTile q;
    KeyTile k;
    KeyTile v;
    Slot task;            // [kWarps]: this warp's
    SharedAddress flags;  // [kWarps] words
  };
  static constexpr uint32_t kTasksAt = QueryTile::kBytes + 2 * KeyTile::kBytes;
  static constexpr uint32_t kFlagsAt = kTasksAt + kWarps * Slot::kBytes;
  static constexpr uint32_t kSharedBytes = kFlagsAt + 4 * kWarps;

  // Of a launch: one per tile of rows, head and batch entry, and split.
  static constexpr int64_t blocks(const Params& p) {
    if (kPacked) {
      return packed_tiles<kTileM>(p) * p.num_splits * (p.num_heads_q / p.group_size) * p.batch;
    }
    return ceil_div(p.max_seqlen_q, kTileM) * p.num_heads_q * p.batch;
  }

  ATTENTILE_DEVICE static void run(const Params& params, SharedAddress start) {
    const Task task = find(params);
    if (task.q_begin >= task.q_end) return;
    if (!kPacked && task.seqlen_q <= params.few_queries) return;  // the packed kernel's
    const Arena arena = {{start},
                         {start + QueryTile::kBytes},
                         {start + QueryTile::kBytes + KeyTile::kBytes},
                         {start + kTasksAt + task.warp * Slot::kBytes},
                         start + kFlagsAt};
    arena.task.store(task);
    load_queries(params, task, arena.q);
    Rows rows;
    for (bool isolate = false;; isolate = true) {
      attend(params, arena, isolate, rows);
      if (isolate || !any_in_block(arena, is_tainted(rows, is_part(arena.task)))) break;
    }
    store(params, arena, rows);
  }

 private:
  ATTENTILE_DEVICE static Task find(const Params& p) {
    if constexpr (kPacked) {
      return find_packed_task<kTileM>(p);
    } else {
      return find_task<kTileM>(p);
    }
  }
  // Whether the block has one split of several.
  ATTENTILE_DEVICE static bool is_part(Slot task) {
    return kPacked && task.load().split != Task::kUnsplit;
  }
  // Index into the first dimension of q, out and lse.
  ATTENTILE_DEVICE static int32_t first_dimension(const Params& p, const Task& task) {
    return p.packed_q ? 0 : task.b;
  }
  // This warp's.
  ATTENTILE_DEVICE static int32_t first_row(const Task& task) {
    return task.q_begin + static_cast<int32_t>(task.warp) * kWarpRows;
  }
  // Address of column 0 of a row of q or out.
  ATTENTILE_DEVICE static const T* row_of(const Params& p, const ArrayParams& array,
                                          const Task& task, int32_t row) {
    return element<T>(array, first_dimension(p, task), task.row_q + query_of(p, task, row),
                      head_of(p, task, row));
  }

  ATTENTILE_DEVICE static void load_queries(const Params& p, const Task& task, QueryTile tile) {
    const TileRows rows = {.first = task.q_begin,
                           .begin = task.q_begin,
                           .end = task.q_end,
                           .columns = p.head_dim,
                           .column_stride = p.q.stride[3],
                           .in_chunks = p.q.in_chunks};
    if (!kPacked && p.q.in_chunks) {
      load_tile<kThreads>(tile, rows, row_of(p, p.q, task, task.q_begin), p.q.stride[1]);
    } else {
      load_scattered<kThreads>(tile, rows, [&](int32_t row) { return row_of(p, p.q, task, row); });
    }
    cp_async_commit_group();
  }

  // Keys [k0, k0 + kTileN) of k or v.
  ATTENTILE_DEVICE static void load_keys(const Params& p, const Task& task,
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

  // Where the first key tile begins. Tiles lie alike for all rows, whatever keys their block has,
  // so the bits of a row do not depend on its block.
  ATTENTILE_DEVICE static int32_t first_key(const Params& p, const Task& task) {
    if (task.k_begin >= task.k_end) return task.k_end;
    return task.k_begin - (task.k_begin + key_phase(p)) % kTileN;
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
      // Also where all is hidden: to skip it takes registers.
      Products::multiply_queries(arena.q, arena.k, arena.task.load().warp * kWarpRows, s);
      cp_async_wait_group<0>();
      bar_sync();  // V is there; all have read K
      if (k0 + kTileN < k_end) load_keys(p, arena.task.load(), p.k, k0 + kTileN, arena.k);
      const TileClass tile_class = classify(p, arena.task.load(), k0);
      if (all(tile_class == TileClass::kHidden)) continue;
      const bool partial = any(tile_class == TileClass::kPartial);
      s.at = {first_row(arena.task.load()), k0, opaque(lane_idx())};
      weigh(p, arena.task, partial, s, rows);
      const auto weights = Products::round_weights(s);
      if (isolate && partial) {
        Products::template multiply_special_values<kHasOptions>(p, arena.task, arena.v, s.at,
                                                                weights, rows);
      } else {
        Products::multiply_values(arena.v, s.at.lane, weights, rows);
      }
    }
    cp_async_wait_group<0>();
    rows.sum_quads();
  }

  // Of this warp's rows and the keys from k0 on.
  ATTENTILE_DEVICE static TileClass classify(const Params& p, const Task& task, int32_t k0) {
    const int32_t row = first_row(task);
    if (row >= task.q_end) return TileClass::kHidden;
    const int32_t end = row + kWarpRows < task.q_end ? row + kWarpRows : task.q_end;
    const TileClass by_band =
        task.band.classify(query_of(p, task, row), query_of(p, task, end - 1) + 1, k0, k0 + kTileN);
    const bool masked = kHasOptions && p.mask.data != nullptr;
    return masked && by_band == TileClass::kFull ? TileClass::kPartial : by_band;
  }

  // Dot products -> weights, before they are rounded.
  ATTENTILE_DEVICE static void weigh(const Params& p, Slot task, bool partial, Scores& s,
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

  // Whether a row holds a NaN or an infinity: 0 times it is not 0. What a dead row holds does not
  // matter; a row that nothing weighs in one split may live in another.
  ATTENTILE_DEVICE static bool is_tainted(const Rows& rows, bool dead_rows_too) {
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
        const bool dead = rows.row_sum[m][half] == 0.0f && !dead_rows_too;
        taint = dead ? taint : add_rn(taint, row);
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

  ATTENTILE_DEVICE static void store(const Params& p, const Arena& arena, const Rows& rows) {
    const Task task = arena.task.load();
    if (first_row(task) >= task.q_end) return;
    if (is_part(arena.task)) {
      store_partials(p, task, rows);
    } else if constexpr (kIsFloat32<T>) {
      store_float32(p, task, rows);
    } else {
      store_rows_of_out(p, arena, task, rows);
    }
  }

  // out and lse of this warp's rows, out through its own rows of the queries' tile, which nobody
  // else reads.
  ATTENTILE_DEVICE static void store_rows_of_out(const Params& p, const Arena& arena,
                                                 const Task& task, const Rows& rows) {
    const int first = static_cast<int>(task.warp) * kWarpRows;
    const Position at = stmatrix_c(static_cast<int>(lane_idx()));
    ATTENTILE_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      const RowEnd end[2] = {close(p, task, rows, m, 0), close(p, task, rows, m, 1)};
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
    const int32_t row0 = first_row(task);
    const StoredRows out = {.count = static_cast<int32_t>(min64(kWarpRows, task.q_end - row0)),
                            .columns = p.head_dim_v,
                            .column_stride = p.out.stride[3],
                            .in_chunks = p.out.in_chunks};
    store_scattered(arena.q, first, out, [&](int32_t row) {
      return const_cast<T*>(row_of(p, p.out, task, row0 + row));
    });
  }

  // The same where nothing is rounded and nothing has to be exchanged.
  ATTENTILE_DEVICE static void store_float32(const Params& p, const Task& task, const Rows& rows) {
    ATTENTILE_UNROLL
    for (int half = 0; half < 2; ++half) {
      const RowEnd end = close(p, task, rows, 0, half);
      const int32_t row = row_at(task, 0, half);
      if (row >= task.q_end) continue;
      float* to = const_cast<float*>(row_of(p, p.out, task, row));
      ATTENTILE_UNROLL
      for (int n = 0; n < kHeadDim / 8; ++n) {
        ATTENTILE_UNROLL
        for (int e = 0; e < 2; ++e) {
          const int32_t column = Products::column_of(n, static_cast<int>(lane_idx() % 4)) + e;
          if (column >= p.head_dim_v) continue;
          const float value = mul_rn(rows.acc_o[0][n].value[2 * half + e], end.factor);
          st_global(to + column * p.out.stride[3], end.dead ? 0.0f : value);
        }
      }
    }
  }

  // This thread's row of a row tile and half.
  ATTENTILE_DEVICE static int32_t row_at(const Task& task, int m, int half) {
    return first_row(task) + 16 * m + 8 * half + static_cast<int32_t>(lane_idx() / 4);
  }

  // What a row comes to; one lane of the four that share it stores lse.
  ATTENTILE_DEVICE static RowEnd close(const Params& p, const Task& task, const Rows& rows, int m,
                                       int half) {
    const int32_t row = row_at(task, m, half);
    const int32_t head = head_of(p, task, row);
    const float sink =
        p.sink.data != nullptr ? ld_global_nc(element<float>(p.sink, head, 0, 0)) : -kInfinity;
    const RowEnd end = close_row<T>(p, rows.row_max[m][half], rows.row_sum[m][half], sink);
    if (p.lse.data != nullptr && lane_idx() % 4 == 0 && row < task.q_end) {
      const float* to = element<float>(p.lse, first_dimension(p, task), head,
                                       task.row_q + query_of(p, task, row));
      st_global(const_cast<float*>(to), end.lse);
    }
    return end;
  }

  // This warp's rows of one split, for Combine.
  ATTENTILE_DEVICE static void store_partials(const Params& p, const Task& task, const Rows& rows) {
    ATTENTILE_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int32_t row = row_at(task, 0, half);
      if (row >= task.q_end) continue;
      const int64_t of = Partials::row(p, task.b, head_of(p, task, row), query_of(p, task, row));
      float* o = Partials::o(p, of, task.split);
      ATTENTILE_UNROLL
      for (int n = 0; n < kHeadDim / 8; ++n) {
        const float* pair = rows.acc_o[0][n].value + 2 * half;
        const int32_t column = Products::column_of(n, static_cast<int>(lane_idx() % 4));
        if (column >= partial_columns(p)) continue;
        st_global(reinterpret_cast<Partials::Pair*>(o + column), Partials::Pair{pair[0], pair[1]});
      }
      if (lane_idx() % 4 == 0) {
        st_global(Partials::state(p, of, task.split),
                  Partials::Pair{rows.row_max[0][half], rows.row_sum[0][half]});
      }
    }
  }
};

}  // namespace attentile::cuda

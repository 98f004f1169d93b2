// SPDX-License-Identifier: Apache-2.0
// What the kernels of the backward pass share: rows to tiles, products of tiles in shared memory
// (of 16-bit tiles; of float32 tiles in fma_tiles.h), and the isolation of NaN and infinity.
//
// NaN and infinity. Weights and dS of pairs that do not see each other are 0 by selection, but 0
// times a NaN in the row of dout, q or k that they are multiplied with is NaN. So a block whose
// gradients are not finite computes them again, and clears what is not finite in those rows once
// scores and dP have been computed from them. Nothing is lost: a row that holds or sees such a
// value has a NaN in lse or delta, and hence in the dS of every pair that does see each other.
#pragma once

#include "cuda/device/device.h"
#include "cuda/params.h"
#include "cuda/sm80/fma_tiles.h"
#include "cuda/sm80/sequence.h"
#include "cuda/sm80/special_values.h"
#include "cuda/sm80/tile_load.h"

namespace attentile::cuda {

// Fills a tile with items [rows.begin, rows.end) of an array, the first of which lies at `from`.
template <int kThreads, class T, int kRows, int kColumns>
ATTENTILE_DEVICE void load_rows(SharedTile<T, kRows, kColumns> tile, const ArrayParams& array,
                                const T* from, TileRows rows) {
  rows.column_stride = array.stride[3];
  rows.in_chunks = array.in_chunks;
  if (array.in_chunks) {
    load_tile<kThreads>(tile, rows, from, array.stride[1]);
  } else {
    load_scattered<kThreads>(tile, rows,
                             [&](int32_t i) { return from + (i - rows.begin) * array.stride[1]; });
  }
}

// Index into the first dimension of q, out, dout, lse and dq.
ATTENTILE_DEVICE int32_t first_dimension_q(const ForwardParams& p, int32_t b) {
  return p.packed_q ? 0 : b;
}
// How far before key 0 the tiles of keys begin, so that the 32 keys of a group of dropout lie in
// one: in [0, 32).
ATTENTILE_DEVICE int32_t key_shift(const ForwardParams& p) {
  return p.dropout.enabled ? static_cast<int32_t>(p.dropout.key_base & 31) : 0;
}

// 0, or NaN if an element is NaN or infinite.
template <int kTiles>
ATTENTILE_DEVICE float taint_of(const Accumulator (&tiles)[kTiles], float taint = 0.0f) {
  ATTENTILE_UNROLL
  for (int n = 0; n < kTiles; ++n) {
    ATTENTILE_UNROLL
    for (int r = 0; r < 4; ++r) taint = fma_rn(tiles[n].value[r], 0.0f, taint);
  }
  return taint;
}

// Accumulators [16 kRowTiles, 8 kColumnTiles] of one warp.
template <int kRowTiles, int kColumnTiles>
struct Sums {
  Accumulator value[kRowTiles][kColumnTiles];

  ATTENTILE_DEVICE void reset() {
    ATTENTILE_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      ATTENTILE_UNROLL
      for (int n = 0; n < kColumnTiles; ++n) value[m][n] = {};
    }
  }
  ATTENTILE_DEVICE float taint() const {
    float taint = 0.0f;
    ATTENTILE_UNROLL
    for (int m = 0; m < kRowTiles; ++m) taint = taint_of(value[m], taint);
    return taint;
  }
};

// A factor, or none.
struct Unscaled {};
ATTENTILE_DEVICE float scaled(float x, float factor) {
  return mul_rn(x, factor);
}
ATTENTILE_DEVICE float scaled(float x, Unscaled) {
  return x;
}

// Two neighbouring accumulators [16, 8], scaled, as the four registers of a piece [16, 16] of T:
// what stmatrix stores, and a left operand of mma.
template <class T, class Factor>
ATTENTILE_DEVICE Registers<4> round_piece(const Accumulator& left, const Accumulator& right,
                                          Factor factor) {
  Registers<4> piece;
  ATTENTILE_UNROLL
  for (int r = 0; r < 4; ++r) {
    const float* pair = &(r < 2 ? left : right).value[r % 2 == 0 ? 0 : 2];
    piece.reg[r] = cvt_rn_x2<T>(scaled(pair[0], factor), scaled(pair[1], factor));
  }
  return piece;
}

// sums, scaled and rounded, to a tile, from (row, column) on; multiples of 16.
template <class T, int kRows, int kColumns, int kRowTiles, int kColumnTiles, class Factor>
ATTENTILE_DEVICE void store_sums(SharedTile<T, kRows, kColumns> tile, Position to,
                                 const Accumulator (&sums)[kRowTiles][kColumnTiles],
                                 Factor factor) {
  const Position at = stmatrix_c(static_cast<int>(lane_idx()));
  ATTENTILE_UNROLL
  for (int m = 0; m < kRowTiles; ++m) {
    ATTENTILE_UNROLL
    for (int n = 0; n < kColumnTiles; n += 2) {
      stmatrix(tile.at(to.row + 16 * m + at.row, to.column + 8 * n + at.column),
               round_piece<T>(sums[m][n], sums[m][n + 1], factor));
    }
  }
}
// The same of scores, which lie alike.
template <class T, int kRows, int kColumns, int kRowTiles, int kKeyTiles>
ATTENTILE_DEVICE void store_scores(SharedTile<T, kRows, kColumns> tile, Position to,
                                   const Accumulator (&scores)[kRowTiles][kKeyTiles]) {
  store_sums(tile, to, scores, Unscaled());
}

// acc [16 kRowTiles, 8 kKeyTiles] = A B^T of rows of two tiles, from row_a and row_b on; multiples
// of 16. A fragment 16 rows further down lies 16 rows of a panel further on, as the swizzle repeats
// every 8.
template <class T, int kRowsA, int kRowsB, int kColumns, int kRowTiles, int kKeyTiles>
ATTENTILE_DEVICE void multiply_rows(SharedTile<T, kRowsA, kColumns> tile_a, uint32_t row_a,
                                    SharedTile<T, kRowsB, kColumns> tile_b, uint32_t row_b,
                                    Accumulator (&acc)[kRowTiles][kKeyTiles]) {
  constexpr uint32_t kPitch = SharedTile<T, kRowsA, kColumns>::kPanelBytes;
  const int lane = static_cast<int>(lane_idx());
  const Position at_a = ldmatrix_a(lane);
  const Position at_b = ldmatrix_b(lane);
  const SharedAddress place_a = tile_a.at(at_a.row, at_a.column) + row_a * kPitch;
  const SharedAddress place_b = tile_b.at(at_b.row, at_b.column) + row_b * kPitch;
  ATTENTILE_UNROLL
  for (int m = 0; m < kRowTiles; ++m) {
    ATTENTILE_UNROLL
    for (int n = 0; n < kKeyTiles; ++n) acc[m][n] = {};
  }
  const auto add_columns = [&](int c) {
    const SharedAddress first_a = tile_a.columns_on(place_a, static_cast<uint32_t>(c));
    const SharedAddress first_b = tile_b.columns_on(place_b, static_cast<uint32_t>(c));
    FragmentA a[kRowTiles];
    ATTENTILE_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      a[m] = ldmatrix<4>(first_a + static_cast<uint32_t>(16 * m) * kPitch);
    }
    ATTENTILE_UNROLL
    for (int n = 0; n < kKeyTiles; n += 2) {
      const Registers<4> b = ldmatrix<4>(first_b + static_cast<uint32_t>(8 * n) * kPitch);
      ATTENTILE_UNROLL
      for (int m = 0; m < kRowTiles; ++m) {
        mma_m16n8k16<T>(acc[m][n], a[m], {b.reg[0], b.reg[1]});
        mma_m16n8k16<T>(acc[m][n + 1], a[m], {b.reg[2], b.reg[3]});
      }
    }
  };
  // Unrolled so far that ldmatrix runs ahead of mma, but not out of registers.
  constexpr int kStep = kColumns > 128 ? 64 : kColumns;
  ATTENTILE_ROLL
  for (int c = 0; c < kColumns; c += kStep) {
    ATTENTILE_UNROLL
    for (int more = 0; more < kStep; more += 16) add_columns(c + more);
  }
}

// sums [16 kRowTiles, 8 kColumnTiles] += A^T B of columns of two tiles, from column_a and column_b
// on; multiples of 16.
template <class T, int kRows, int kColumnsA, int kColumnsB, int kRowTiles, int kColumnTiles>
ATTENTILE_DEVICE void multiply_columns(SharedTile<T, kRows, kColumnsA> tile_a, uint32_t column_a,
                                       SharedTile<T, kRows, kColumnsB> tile_b, uint32_t column_b,
                                       Accumulator (&sums)[kRowTiles][kColumnTiles]) {
  constexpr uint32_t kPitchA = SharedTile<T, kRows, kColumnsA>::kPanelBytes;
  constexpr uint32_t kPitchB = SharedTile<T, kRows, kColumnsB>::kPanelBytes;
  const int lane = static_cast<int>(lane_idx());
  const Position at_a = ldmatrix_a_trans(lane);
  const Position at_b = ldmatrix_b_trans(lane);
  const SharedAddress place_a = tile_a.at(at_a.row, column_a + at_a.column);
  const SharedAddress place_b = tile_b.at(at_b.row, column_b + at_b.column);
  const auto on_b = [&](int n) {
    // The columns of a warp need not be a power of two.
    return kColumnTiles == (kColumnTiles & -kColumnTiles)
               ? tile_b.columns_on(place_b, static_cast<uint32_t>(8 * n))
               : tile_b.at(at_b.row, column_b + 8 * n + at_b.column);
  };
  ATTENTILE_UNROLL
  for (int k = 0; k < kRows; k += 16) {
    FragmentA a[kRowTiles];
    ATTENTILE_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      a[m] = ldmatrix<4, true>(tile_a.columns_on(place_a, static_cast<uint32_t>(16 * m)) +
                               static_cast<uint32_t>(k) * kPitchA);
    }
    ATTENTILE_UNROLL
    for (int n = 0; n < kColumnTiles; n += 2) {
      const Registers<4> b = ldmatrix<4, true>(on_b(n) + static_cast<uint32_t>(k) * kPitchB);
      ATTENTILE_UNROLL
      for (int m = 0; m < kRowTiles; ++m) {
        mma_m16n8k16<T>(sums[m][n], a[m], {b.reg[0], b.reg[1]});
        mma_m16n8k16<T>(sums[m][n + 1], a[m], {b.reg[2], b.reg[3]});
      }
    }
  }
}

// A word of a tile without its NaN and infinities.
template <class T>
ATTENTILE_DEVICE uint32_t finite_part(uint32_t word) {
  constexpr uint32_t kExponent = 0x7F800000;
  if constexpr (kIsFloat32<T>) return (word & kExponent) == kExponent ? 0 : word;
  if constexpr (!kIsFloat32<T>) return split_values<T>(word).finite;
}

// acc [16, 8 kColumnTiles] = A B of 16 rows of a tile, from row_a on, and columns of another, from
// column_b on; multiples of 16. kFinite: B without its NaN and infinities.
template <bool kFinite, class T, int kRows, int kDepth, int kColumns, int kColumnTiles>
ATTENTILE_DEVICE void multiply_tiles(SharedTile<T, kRows, kDepth> tile_a, uint32_t row_a,
                                     SharedTile<T, kDepth, kColumns> tile_b, uint32_t column_b,
                                     Accumulator (&acc)[kColumnTiles]) {
  constexpr uint32_t kPitchA = SharedTile<T, kRows, kDepth>::kPanelBytes;
  constexpr uint32_t kPitchB = SharedTile<T, kDepth, kColumns>::kPanelBytes;
  const int lane = static_cast<int>(lane_idx());
  const Position at_a = ldmatrix_a(lane);
  const Position at_b = ldmatrix_b_trans(lane);
  const SharedAddress place_a = tile_a.at(at_a.row, at_a.column) + row_a * kPitchA;
  SharedAddress place_b[kColumnTiles / 2];
  ATTENTILE_UNROLL
  for (int n = 0; n < kColumnTiles; n += 2) {
    place_b[n / 2] = tile_b.at(at_b.row, column_b + 8 * n + at_b.column);
    acc[n] = acc[n + 1] = {};
  }
  ATTENTILE_UNROLL
  for (int k = 0; k < kDepth; k += 16) {
    const FragmentA a = ldmatrix<4>(tile_a.columns_on(place_a, static_cast<uint32_t>(k)));
    ATTENTILE_UNROLL
    for (int n = 0; n < kColumnTiles; n += 2) {
      Registers<4> b = ldmatrix<4, true>(place_b[n / 2] + static_cast<uint32_t>(k) * kPitchB);
      if constexpr (kFinite) {
        ATTENTILE_UNROLL
        for (uint32_t& word : b.reg) word = finite_part<T>(word);
      }
      mma_m16n8k16<T>(acc[n], a, {b.reg[0], b.reg[1]});
      mma_m16n8k16<T>(acc[n + 1], a, {b.reg[2], b.reg[3]});
    }
  }
}

// sums [16 kRowTiles, kColumns] += A B, of A [16 kRowTiles, kRows] in accumulators, rounded here,
// and B a tile.
template <class T, int kRows, int kColumns, int kRowTiles>
ATTENTILE_DEVICE void multiply_accumulators(const Accumulator (&a)[kRowTiles][kRows / 8],
                                            SharedTile<T, kRows, kColumns> b, uint32_t lane,
                                            Accumulator (&sums)[kRowTiles][kColumns / 8]) {
  constexpr uint32_t kPitch = SharedTile<T, kRows, kColumns>::kPanelBytes;
  const Position at = ldmatrix_b_trans(static_cast<int>(lane));
  const SharedAddress place = b.at(at.row, at.column);
  ATTENTILE_UNROLL
  for (int n = 0; n < kRows; n += 16) {
    FragmentA left[kRowTiles];
    ATTENTILE_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      left[m] = round_piece<T>(a[m][n / 8], a[m][n / 8 + 1], Unscaled());
    }
    ATTENTILE_UNROLL
    for (int c = 0; c < kColumns; c += 16) {
      const Registers<4> right = ldmatrix<4, true>(b.columns_on(place, static_cast<uint32_t>(c)) +
                                                   static_cast<uint32_t>(n) * kPitch);
      ATTENTILE_UNROLL
      for (int m = 0; m < kRowTiles; ++m) {
        mma_m16n8k16<T>(sums[m][c / 8], left[m], {right.reg[0], right.reg[1]});
        mma_m16n8k16<T>(sums[m][c / 8 + 1], left[m], {right.reg[2], right.reg[3]});
      }
    }
  }
}

// NaN and infinity of a tile -> 0, by all threads of the block; barriers are the caller's.
template <int kThreads, class T, int kRows, int kColumns>
ATTENTILE_DEVICE void clear_special_values(SharedTile<T, kRows, kColumns> tile) {
  constexpr uint32_t kBytes = SharedTile<T, kRows, kColumns>::kBytes;
  ATTENTILE_ROLL
  for (uint32_t byte = 16 * thread_idx(); byte < kBytes; byte += 16 * kThreads) {
    auto chunk = ld_shared<Packed<4>>(tile.base + byte);
    ATTENTILE_UNROLL
    for (uint32_t& word : chunk.word) word = finite_part<T>(word);
    st_shared(tile.base + byte, chunk);
  }
}

// Whether `flag` is set anywhere in the block. Every warp fills its own word of `flags`; nobody
// fills one again in this launch without a barrier between.
template <int kWarps>
ATTENTILE_DEVICE bool any_in_block(SharedAddress flags, uint32_t warp, bool flag) {
  const bool in_warp = any(flag);
  if (lane_idx() == 0) st_shared(flags + 4 * warp, static_cast<uint32_t>(in_warp));
  bar_sync();
  uint32_t found = 0;
  ATTENTILE_UNROLL
  for (int w = 0; w < kWarps; ++w) {
    found |= ld_shared<uint32_t>(flags + static_cast<uint32_t>(4 * w));
  }
  return found != 0;
}

}  // namespace attentile::cuda

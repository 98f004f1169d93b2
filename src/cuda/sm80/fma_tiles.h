// SPDX-License-Identifier: Apache-2.0
// Products of float32 tiles by fused multiply-adds, for one warp: what mma does for 16-bit tiles.
// With g = lane / 4 and t = lane % 4 a thread has, of 16 rows, rows g and g + 8, and of the columns
//
//     scores: 8 n + 2 t and 8 n + 2 t + 1        as in the accumulators of mma, so that all that
//                                                happens between two products is the same
//     sums:   16 (n / 2) + 4 t + 2 (n % 2), + 1  four neighbours of each 16, of two accumulators:
//                                                what one load brings
#pragma once

#include "cuda/device/device.h"
#include "cuda/sm80/tile_load.h"

namespace attentile::cuda {

// Column of a sum in element 0 (or 2) of accumulator n.
constexpr int fma_column(int n, int t) {
  return n / 2 * 16 + 4 * t + n % 2 * 2;
}

using Quad = Chunk<float>;

ATTENTILE_DEVICE void add_quad(const Quad& a, const Quad& b, float& sum) {
  ATTENTILE_UNROLL
  for (int e = 0; e < kChunkOf<float>; ++e) sum = fma_rn(a.element[e], b.element[e], sum);
}

// scores [16, 8 kKeyTiles] = A B^T of rows of two tiles, from row_a and row_b on; multiples of 16.
// A sum per panel, and the sum of these, which errs less than one long chain.
template <int kRowsA, int kRowsB, int kColumns, int kKeyTiles>
ATTENTILE_DEVICE void multiply_rows(SharedTile<float, kRowsA, kColumns> tile_a, uint32_t row_a,
                                    SharedTile<float, kRowsB, kColumns> tile_b, uint32_t row_b,
                                    Accumulator (&scores)[1][kKeyTiles]) {
  constexpr uint32_t kPanelBytes = SharedTile<float, kRowsA, kColumns>::kPanelBytes;
  constexpr uint32_t kPanelColumns = kPanelBytes / sizeof(float);
  constexpr uint32_t kPanels = kColumns / kPanelColumns;
  static_assert(kPanelColumns == 32);
  const uint32_t g = lane_idx() / 4;
  const uint32_t t = lane_idx() % 4;
  ATTENTILE_UNROLL
  for (int n = 0; n < kKeyTiles; ++n) scores[0][n] = {};
  ATTENTILE_ROLL
  for (uint32_t panel = 0; panel < kPanels; ++panel) {
    Accumulator part[kKeyTiles] = {};
    ATTENTILE_ROLL
    for (uint32_t c = 0; c < kPanelColumns; c += kChunkOf<float>) {
      const SharedAddress at_a = tile_a.at(g, c) + (panel * kRowsA + row_a) * kPanelBytes;
      const uint32_t rows_on = (panel * kRowsB + row_b) * kPanelBytes;
      const SharedAddress at_b[2] = {tile_b.at(2 * t, c) + rows_on,
                                     tile_b.at(2 * t + 1, c) + rows_on};
      const Quad a[2] = {ld_shared<Quad>(at_a), ld_shared<Quad>(at_a + 8 * kPanelBytes)};
      ATTENTILE_UNROLL
      for (int n = 0; n < kKeyTiles; ++n) {
        ATTENTILE_UNROLL
        for (int e = 0; e < 2; ++e) {
          const Quad b = ld_shared<Quad>(at_b[e] + static_cast<uint32_t>(8 * n) * kPanelBytes);
          add_quad(a[0], b, part[n].value[e]);
          add_quad(a[1], b, part[n].value[2 + e]);
        }
      }
    }
    ATTENTILE_UNROLL
    for (int n = 0; n < kKeyTiles; ++n) {
      ATTENTILE_UNROLL
      for (int i = 0; i < 4; ++i) {
        scores[0][n].value[i] = add_rn(scores[0][n].value[i], part[n].value[i]);
      }
    }
  }
}

// What a quad of B's columns adds to a thread's two rows of sums, of accumulators n and n + 1.
// kSomeUnseen: a row of weight below 0 is left out.
template <bool kSomeUnseen>
ATTENTILE_DEVICE void add_weighted(const float (&weight)[2], const Quad& values,
                                   Accumulator* sums) {
  ATTENTILE_UNROLL
  for (int i = 0; i < 8; ++i) {  // [accumulator][row][column]
    const float w = weight[i / 2 % 2];
    float& sum = sums[i / 4].value[i % 4];
    const float more = fma_rn(w, values.element[i / 4 * 2 + i % 2], sum);
    sum = kSomeUnseen && w < 0 ? sum : more;
  }
}

// sums [16, kColumns] += A B, of A [16, kRows] in accumulators, B a tile [kRows, kColumns]. The
// lanes of a row give each other their elements of A, one at a time: column 8 n + 2 source + e.
template <bool kSomeUnseen, int kRows, int kColumns>
ATTENTILE_DEVICE void add_rows(const Accumulator (&a)[1][kRows / 8],
                               SharedTile<float, kRows, kColumns> b, uint32_t lane,
                               Accumulator (&sums)[1][kColumns / 8]) {
  constexpr uint32_t kPanelBytes = SharedTile<float, kRows, kColumns>::kPanelBytes;
  const uint32_t t = lane % 4;
  ATTENTILE_ROLL
  for (uint32_t source = 0; source < 4; ++source) {
    ATTENTILE_UNROLL
    for (int n = 0; n < kRows / 8; ++n) {
      ATTENTILE_UNROLL
      for (int e = 0; e < 2; ++e) {
        const float* mine = a[0][n].value;
        const float weight[2] = {shfl_idx(mine[e], lane - t + source),
                                 shfl_idx(mine[2 + e], lane - t + source)};
        const uint32_t row = static_cast<uint32_t>(8 * n + e) + 2 * source;
        const SharedAddress at[2] = {b.at(row, 4 * t), b.at(row, 16 + 4 * t)};
        ATTENTILE_UNROLL
        for (int c = 0; c < kColumns / 8; c += 2) {
          const uint32_t panel = static_cast<uint32_t>(8 * c) * sizeof(float) / kPanelBytes;
          add_weighted<kSomeUnseen>(
              weight, ld_shared<Quad>(at[c / 2 % 2] + panel * kRows * kPanelBytes), &sums[0][c]);
        }
      }
    }
  }
}

template <int kRows, int kColumns>
ATTENTILE_DEVICE void multiply_accumulators(const Accumulator (&a)[1][kRows / 8],
                                            SharedTile<float, kRows, kColumns> b, uint32_t lane,
                                            Accumulator (&sums)[1][kColumns / 8]) {
  add_rows<false>(a, b, lane, sums);
}

// sums [16, 8 kColumnTiles] += A^T B of columns of two tiles, from column_a and column_b on;
// multiples of 16.
template <int kRows, int kColumnsA, int kColumnsB, int kColumnTiles>
ATTENTILE_DEVICE void multiply_columns(SharedTile<float, kRows, kColumnsA> tile_a,
                                       uint32_t column_a,
                                       SharedTile<float, kRows, kColumnsB> tile_b,
                                       uint32_t column_b, Accumulator (&sums)[1][kColumnTiles]) {
  constexpr uint32_t kPanelBytes = SharedTile<float, kRows, kColumnsA>::kPanelBytes;
  static_assert(kPanelBytes == SharedTile<float, kRows, kColumnsB>::kPanelBytes);
  const uint32_t g = lane_idx() / 4;
  const uint32_t t = lane_idx() % 4;
  ATTENTILE_ROLL
  for (uint32_t k = 0; k < kRows; ++k) {
    const float weight[2] = {ld_shared<float>(tile_a.at(k, column_a + g)),
                             ld_shared<float>(tile_a.at(k, column_a + g + 8))};
    ATTENTILE_UNROLL
    for (int n = 0; n < kColumnTiles; n += 2) {
      const uint32_t column = column_b + static_cast<uint32_t>(8 * n) + 4 * t;
      add_weighted<false>(weight, ld_shared<Quad>(tile_b.at(k, column)), &sums[0][n]);
    }
  }
}

// Scores to a tile, from (row, column) on; multiples of 16.
template <int kRows, int kColumns, int kKeyTiles>
ATTENTILE_DEVICE void store_scores(SharedTile<float, kRows, kColumns> tile, Position to,
                                   const Accumulator (&scores)[1][kKeyTiles]) {
  const int lane = static_cast<int>(lane_idx());
  ATTENTILE_UNROLL
  for (int n = 0; n < kKeyTiles; ++n) {
    ATTENTILE_UNROLL
    for (int half = 0; half < 2; ++half) {
      const float* pair = scores[0][n].value + 2 * half;
      st_shared(tile.at(to.row + 8 * half + lane / 4, to.column + 8 * n + 2 * (lane % 4)),
                Packed<2>{std::bit_cast<uint32_t>(pair[0]), std::bit_cast<uint32_t>(pair[1])});
    }
  }
}

// The same of sums, times factor.
template <int kRows, int kColumns, int kColumnTiles>
ATTENTILE_DEVICE void store_sums(SharedTile<float, kRows, kColumns> tile, Position to,
                                 const Accumulator (&sums)[1][kColumnTiles], float factor) {
  const int lane = static_cast<int>(lane_idx());
  ATTENTILE_UNROLL
  for (int n = 0; n < kColumnTiles; n += 2) {
    ATTENTILE_UNROLL
    for (int half = 0; half < 2; ++half) {
      const float* left = sums[0][n].value + 2 * half;
      const float* right = sums[0][n + 1].value + 2 * half;
      st_shared(tile.at(to.row + 8 * half + lane / 4, to.column + 8 * n + 4 * (lane % 4)),
                Quad{{mul_rn(left[0], factor), mul_rn(left[1], factor), mul_rn(right[0], factor),
                      mul_rn(right[1], factor)}});
    }
  }
}

}  // namespace attentile::cuda

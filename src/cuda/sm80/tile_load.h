// SPDX-License-Identifier: Apache-2.0
// From rows in global memory to a swizzled tile in shared memory, and back. Rows that begin at
// multiples of 16 bytes move by cp.async, 16 bytes a thread, up to eight threads to the 128 bytes
// of a panel's row; any other layout element by element. Rows outside the range and columns beyond
// the last are zeros in the tile and never read.
#pragma once

#include "cuda/device/device.h"
#include "cuda/params.h"

namespace attentile::cuda {

// 16 bytes of elements.
template <class T>
inline constexpr int kChunkOf = 16 / static_cast<int>(sizeof(T));
template <class T>
struct alignas(16) Chunk {
  T element[kChunkOf<T>];
};

// Row r of the tile is item first + r of the source, which is there if it lies in [begin, end).
struct TileRows {
  int32_t first = 0;
  int32_t begin = 0;
  int32_t end = 0;  // > begin
  int32_t columns = 0;
  int64_t column_stride = 1;
  bool in_chunks = false;  // then columns are whole chunks
};

template <class T>
ATTENTILE_DEVICE Chunk<T> load_elements(const T* from, int count, int64_t stride) {
  Chunk<T> chunk = {};
  ATTENTILE_UNROLL
  for (int e = 0; e < kChunkOf<T>; ++e) {
    if (e < count) chunk.element[e] = ld_global_nc(from + e * stride);
  }
  return chunk;
}

// Which chunks of a tile a thread moves: kRowThreads threads have the chunks of a panel's row.
template <int kThreads, class Tile, class T>
struct ChunkMap {
  static constexpr int kPanelColumns = static_cast<int>(Tile::kPanelBytes / sizeof(T));
  static constexpr int kRowThreads = kPanelColumns / kChunkOf<T>;
  static constexpr int kRowStep = kThreads / kRowThreads;
};

// Fills tile [kRows, kColumns] with all kThreads threads of the block; rows `row_stride` elements
// apart, column 0 of item `begin` at `from`. The caller commits and waits; a barrier comes before
// the tile is read.
template <int kThreads, class T, int kRows, int kColumns>
ATTENTILE_DEVICE void load_tile(SharedTile<T, kRows, kColumns> tile, const TileRows& rows,
                                const T* from, int64_t row_stride) {
  using Tile = SharedTile<T, kRows, kColumns>;
  using Map = ChunkMap<kThreads, Tile, T>;
  const uint32_t thread = opaque(thread_idx());  // unsigned: quotients are shifts
  const int first_row = static_cast<int>(thread / Map::kRowThreads);
  const int first_column = static_cast<int>(thread % Map::kRowThreads * kChunkOf<T>);
  const int first_item = rows.first + first_row - rows.begin;
  const int num_columns = rows.columns - first_column;
  const SharedAddress to = tile.at(first_row, first_column);
  const T* at = from + first_item * row_stride + first_column;
  // The swizzle repeats every 8 rows, so all places follow from the first.
  static_assert(Map::kRowStep % 8 == 0);
  ATTENTILE_UNROLL
  for (int row = 0; row < kRows; row += Map::kRowStep, at += Map::kRowStep * row_stride) {
    const bool present =
        static_cast<uint32_t>(first_item + row) < static_cast<uint32_t>(rows.end - rows.begin);
    ATTENTILE_UNROLL
    for (int column = 0; column < kColumns; column += Map::kPanelColumns) {
      const int place = row + column / Map::kPanelColumns * kRows;
      cp_async_if(to + static_cast<uint32_t>(place) * Tile::kPanelBytes, at + column,
                  present && column < num_columns);
    }
  }
}

// The same where rows are not in chunks, or lie in pages: address(item) is where column 0 of an
// item lies.
template <int kThreads, class T, int kRows, int kColumns, class Address>
ATTENTILE_DEVICE void load_scattered(SharedTile<T, kRows, kColumns> tile, const TileRows& rows,
                                     Address address) {
  using Map = ChunkMap<kThreads, SharedTile<T, kRows, kColumns>, T>;
  const int thread = static_cast<int>(opaque(thread_idx()));
  const int first_column = thread % Map::kRowThreads * kChunkOf<T>;
  ATTENTILE_ROLL
  for (int row = thread / Map::kRowThreads; row < kRows; row += Map::kRowStep) {
    const int item = rows.first + row;
    const bool present = item >= rows.begin && item < rows.end;
    const T* from = address(present ? item : rows.begin);
    ATTENTILE_ROLL
    for (int column = first_column; column < kColumns; column += Map::kPanelColumns) {
      const int left = present ? rows.columns - column : 0;
      const int count = left < 0 ? 0 : left < kChunkOf<T> ? left : kChunkOf<T>;
      if (rows.in_chunks) {
        cp_async_if(tile.at(row, column), from + column, count > 0);
      } else {
        st_shared(tile.at(row, column),
                  load_elements(from + column * rows.column_stride, count, rows.column_stride));
      }
    }
  }
}

// Rows [0, count) of a tile part that one warp wrote.
struct StoredRows {
  int32_t count = 0;
  int32_t columns = 0;
  int64_t column_stride = 1;
  bool in_chunks = false;
};

// The warp's lanes store rows [first, first + out.count) of the tile, panel by panel, row r of them
// to address(r).
template <class T, int kRows, int kColumns, class Address>
ATTENTILE_DEVICE void store_scattered(SharedTile<T, kRows, kColumns> tile, int first,
                                      const StoredRows& out, Address address) {
  using Map = ChunkMap<kWarpSize, SharedTile<T, kRows, kColumns>, T>;
  const int lane = static_cast<int>(lane_idx());
  for (int panel = 0; panel < kColumns; panel += Map::kPanelColumns) {
    const int column = panel + lane % Map::kRowThreads * kChunkOf<T>;
    if (column >= out.columns) continue;
    for (int row = lane / Map::kRowThreads; row < out.count; row += Map::kRowStep) {
      const auto values = ld_shared<Chunk<T>>(tile.at(first + row, column));
      T* to = address(row) + column * out.column_stride;
      if (out.in_chunks && column + kChunkOf<T> <= out.columns) {
        st_global_cs(reinterpret_cast<Chunk<T>*>(to), values);
        continue;
      }
      ATTENTILE_UNROLL
      for (int e = 0; e < kChunkOf<T>; ++e) {
        if (column + e < out.columns) st_global_cs(to + e * out.column_stride, values.element[e]);
      }
    }
  }
}

// The same to `to`, rows `row_stride` elements apart.
template <class T>
struct StoreRows {
  T* to = nullptr;
  int64_t row_stride = 0;
  int64_t column_stride = 1;
  int32_t count = 0;
  int32_t columns = 0;
  bool in_chunks = false;
};
template <class T, int kRows, int kColumns>
ATTENTILE_DEVICE void store_rows(SharedTile<T, kRows, kColumns> tile, int first,
                                 const StoreRows<T>& out) {
  store_scattered(tile, first,
                  {.count = out.count,
                   .columns = out.columns,
                   .column_stride = out.column_stride,
                   .in_chunks = out.in_chunks},
                  [&](int32_t row) { return out.to + row * out.row_stride; });
}

}  // namespace attentile::cuda

// SPDX-License-Identifier: Apache-2.0
// What dropout keeps of a tile, drawn for all algorithms alike.
#pragma once

#include "cpu/philox_lanes.h"
#include "cpu/score_tile.h"

namespace attentile::cpu {

// keep[k][i] = 1 where dropout keeps the weight of (query i, key k), else 0. One Philox call draws
// the eight keys 32 g + 8 r + 2 c + t (r < 4, t < 2) of a query, for group g and column c.
template <class Isa, class Real>
inline void fill_keep(const Problem& p, const Tile& t, Real* keep) {
  constexpr int kLanes = Vec<Isa, Real>::kLanes;
  const Dropout& dropout = p.dropout;
  const uint32_t stream = dropout.stream(t.b, t.h);
  const uint64_t first = static_cast<uint64_t>(t.k0) + static_cast<uint64_t>(dropout.key_base);
  const uint64_t last = first + static_cast<uint64_t>(t.keys) - 1;
  alignas(64) uint32_t word[4][kLanes];
  alignas(64) uint32_t rows[kLanes];
  for (uint64_t group = first / 32; group <= last / 32; ++group) {
    for (uint32_t c = 0; c < 4; ++c) {
      for (int i0 = 0; i0 < t.lanes; i0 += kLanes) {
        for (int i = 0; i < kLanes; ++i) rows[i] = dropout.row(t.q0 + i0 + i);
        const Philox4 counter = {
            {static_cast<uint32_t>(4 * group + c), 0, stream, dropout.offset_low}};
        PhiloxLanes<Isa, kLanes>::draw(counter, rows, dropout, word);
        for (uint64_t lane = 0; lane < 8; ++lane) {
          const uint64_t key = 32 * group + 8 * (lane / 2) + uint64_t{2} * c + lane % 2;
          if (key < first || key > last) continue;
          Real* row = keep + static_cast<int64_t>(key - first) * t.lanes + i0;
          for (int i = 0; i < kLanes; ++i) {
            const uint32_t value = (word[lane / 2][i] >> (16 * (lane % 2))) & 0xFFFFu;
            row[i] = value >= dropout.threshold ? Real{1} : Real{0};
          }
        }
      }
    }
  }
}

}  // namespace attentile::cpu

// SPDX-License-Identifier: Apache-2.0
// What happens to the scores of a tile between the two matrix products, on the accumulators of one
// warp: softcap, bias and ALiBi; masks; dropout. A thread holds, of each of kRowTiles x kKeyTiles
// accumulators [16, 8], rows g and g + 8 and columns 2 t and 2 t + 1, with g = lane / 4 and
// t = lane % 4. So all 8 keys of one Philox call lie in one thread.
#pragma once

#include "cuda/device/device.h"
#include "cuda/numerics.h"
#include "cuda/params.h"
#include "cuda/sm80/sequence.h"

namespace attentile::cuda {

// Where a tile of scores stands, and which of it is this thread's.
struct TileOrigin {
  int32_t q0 = 0;  // its first row
  int32_t k0 = 0;  // its first key; may be negative
  uint32_t lane = 0;

  // This thread's row `half` (of two) of a row tile, a query of a head, and its key, counted from
  // k0.
  ATTENTILE_DEVICE int32_t query(int row_tile, int half) const {
    return q0 + 16 * row_tile + 8 * half + static_cast<int32_t>(lane / 4);
  }
  ATTENTILE_DEVICE int key(int key_tile, int e) const {
    return 8 * key_tile + 2 * static_cast<int>(lane % 4) + e;
  }
};

template <int kRowTiles, int kKeyTiles>
struct ScoreTile {
  TileOrigin at;
  Accumulator value[kRowTiles][kKeyTiles];  // [16 kRowTiles, 8 kKeyTiles]

  // visit(row, for_keys) for each of this thread's rows, one after the other, where
  // for_keys(change) calls change(key, value) for each of its keys, counted from k0.
  template <class Visit>
  ATTENTILE_DEVICE void for_rows(Visit visit) {
    ATTENTILE_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      ATTENTILE_UNROLL
      for (int half = 0; half < 2; ++half) {
        visit(opaque(at.query(m, half)), [&](auto change) {
          ATTENTILE_UNROLL
          for (int n = 0; n < kKeyTiles; ++n) {
            change(at.key(n, 0), value[m][n].value[2 * half]);
            change(at.key(n, 1), value[m][n].value[2 * half + 1]);
          }
        });
      }
    }
  }
};

// Keys [lo, hi) of the tile that a query may see by the band, relative to k0.
struct KeySpan {
  int lo;
  int hi;
};
ATTENTILE_DEVICE KeySpan band_span(const NarrowBand& band, int32_t query, int32_t k0) {
  return {band.lo(query) - k0, band.hi(query) - k0};
}

// Row of an array (batch, head, query, key), its first key.
template <class T, class Task>
ATTENTILE_DEVICE const T* score_row(const ForwardParams& p, const ArrayParams& array,
                                    const Task& task, int32_t row) {
  return element<T>(array, task.b, head_of(p, task, row), query_of(p, task, row));
}

// Which keys of a tile a row sees; none where there is no such row.
struct VisibleKeys {
  KeySpan span = {0, 0};
  int32_t k0 = 0;
  const uint8_t* mask = nullptr;  // the row of the boolean mask, if there is one

  ATTENTILE_DEVICE bool in_band(int key) const { return key >= span.lo && key < span.hi; }
  ATTENTILE_DEVICE bool in_mask(const ForwardParams& p, int key) const {
    return ld_global_nc(mask + (int64_t{k0} + key) * p.mask.stride[3]) != 0;
  }
  ATTENTILE_DEVICE bool has(const ForwardParams& p, int key) const {
    return in_band(key) && (mask == nullptr || in_mask(p, key));
  }
};
template <bool kHasMask, class Task>
ATTENTILE_DEVICE VisibleKeys visible_keys(const ForwardParams& p, const Task& task, int32_t row,
                                          int32_t k0) {
  const bool exists = row < task.q_end;
  VisibleKeys keys = {.span = band_span(task.band, query_of(p, task, row), k0), .k0 = k0};
  keys.span.hi = exists ? keys.span.hi : keys.span.lo;
  if (kHasMask && exists && p.mask.data != nullptr) {
    keys.mask = score_row<uint8_t>(p, p.mask, task, row);
  }
  return keys;
}

// -slope * |query + offset - key| of ALiBi: its slope, and query + offset.
struct AlibiRow {
  float slope;
  int64_t position;
};
template <class Task>
ATTENTILE_DEVICE AlibiRow alibi_row(const ForwardParams& p, const Task& task, int32_t row) {
  // Beyond these ends a distance is beyond float32's whole numbers by far.
  constexpr int64_t kFar = int64_t{1} << 62;
  const int64_t offset = position_offset(p, task.seqlen_q, task.band.seqlen_k);
  return {ld_global_nc(element<float>(p.alibi_slopes, task.b, head_of(p, task, row), 0)),
          query_of(p, task, row) + clamp64(offset, -kFar, kFar)};
}
ATTENTILE_DEVICE float add_alibi(const AlibiRow& row, int32_t key, float x) {
  const int64_t distance = row.position - key;
  return fma_rn(-row.slope, static_cast<float>(distance < 0 ? -distance : distance), x);
}

// Dot products -> logits. Elements beyond the queries and keys that exist get anything.
template <class T, class Task, int kRowTiles, int kKeyTiles>
ATTENTILE_DEVICE void add_terms(const ForwardParams& p, const Task& task,
                                ScoreTile<kRowTiles, kKeyTiles>& s) {
  s.for_rows([&](int32_t row, auto for_keys) {
    for_keys([&](int, float& x) {
      x = mul_rn(x, p.score.logit);
      if (p.score.softcap > 0) x = mul_rn(tanh_rn(x), p.score.softcap);
    });
    const auto add_bias = [&](const auto* bias) {
      for_keys([&](int column, float& x) {
        const int32_t key = s.at.k0 + column;
        if (key < 0 || key >= task.band.seqlen_k) return;
        x = add_rn(x, to_f32(ld_global_nc(bias + int64_t{key} * p.bias.stride[3])));
      });
    };
    if (p.bias.data != nullptr && row < task.q_end) {
      if (p.bias.is_float32) {
        add_bias(score_row<float>(p, p.bias, task, row));
      } else {
        add_bias(score_row<T>(p, p.bias, task, row));
      }
    }
    if (p.alibi_slopes.data != nullptr) {
      const AlibiRow alibi = alibi_row(p, task, row);
      for_keys([&](int key, float& x) { x = add_alibi(alibi, s.at.k0 + key, x); });
    }
  });
}

// -inf where a query does not see a key.
template <bool kHasMask, class Task, int kRowTiles, int kKeyTiles>
ATTENTILE_DEVICE void hide_scores(const ForwardParams& p, const Task& task,
                                  ScoreTile<kRowTiles, kKeyTiles>& s) {
  s.for_rows([&](int32_t row, auto for_keys) {
    const VisibleKeys keys = visible_keys<kHasMask>(p, task, row, s.at.k0);
    for_keys([&](int key, float& x) { x = keys.in_band(key) ? x : -kInfinity; });
    if (!kHasMask || keys.mask == nullptr) return;
    for_keys([&](int key, float& x) {
      if (keys.in_band(key) && !keys.in_mask(p, key)) x = -kInfinity;
    });
  });
}

// Weights -> 0 where dropout drops them. k0 + key_base is a multiple of 32.
template <class Task, int kRowTiles, int kKeyTiles>
ATTENTILE_DEVICE void drop_weights(const ForwardParams& p, const Task& task,
                                   ScoreTile<kRowTiles, kKeyTiles>& s) {
  static_assert(kKeyTiles % 4 == 0);
  const Dropout& dropout = p.dropout;
  const uint64_t first =
      static_cast<uint64_t>(int64_t{s.at.k0}) + static_cast<uint64_t>(dropout.key_base);
  ATTENTILE_UNROLL
  for (int m = 0; m < kRowTiles; ++m) {
    ATTENTILE_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int32_t row = opaque(s.at.query(m, half));
      const uint32_t query = dropout.row(query_of(p, task, row));
      const uint32_t stream = dropout.stream(task.b, head_of(p, task, row));
      ATTENTILE_UNROLL
      for (int group = 0; group < kKeyTiles / 4; ++group) {
        const uint32_t column =
            Dropout::column(first + 32 * static_cast<uint64_t>(group)) + s.at.lane % 4;
        const Philox4 random = philox4x32_10({{column, query, stream, dropout.offset_low}},
                                             dropout.key0, dropout.key1);
        ATTENTILE_UNROLL
        for (int word = 0; word < 4; ++word) {
          float* pair = &s.value[m][4 * group + word].value[2 * half];
          if ((random.word[word] & 0xFFFFu) < dropout.threshold) pair[0] = 0.0f;
          if (random.word[word] >> 16 < dropout.threshold) pair[1] = 0.0f;
        }
      }
    }
  }
}

}  // namespace attentile::cuda

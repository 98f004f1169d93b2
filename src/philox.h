// SPDX-License-Identifier: Apache-2.0
// The dropout generator: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011), counter-based, so
// that whether (batch, head, query, key) is kept depends on (seed, offset) and those positions
// alone.
//
//     key     = (low32(seed), high32(seed) xor high32(offset))
//     counter = (4 * (j / 32) + (j % 8) / 2,  i,  b * num_heads_q + h,  low32(offset))
//     lane    = 2 * ((j % 32) / 8) + j % 2      its 16-bit lane: word lane / 2, low half first
//     keep    = lane_value >= threshold         threshold = round_half_up(65536 p)
//
// One call serves 8 keys. Counter words are taken modulo 2^32.
#pragma once

#include <cmath>
#include <cstdint>

namespace attentile {

struct Philox4 {
  uint32_t word[4];
};

[[gnu::always_inline]] constexpr Philox4 philox4x32_10(Philox4 counter, uint32_t key0,
                                                       uint32_t key1) {
  constexpr uint64_t kMultiplier0 = 0xD2511F53u;
  constexpr uint64_t kMultiplier1 = 0xCD9E8D57u;
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = kMultiplier0 * counter.word[0];
    const uint64_t product1 = kMultiplier1 * counter.word[2];
    counter = {{static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0,
                static_cast<uint32_t>(product1),
                static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1,
                static_cast<uint32_t>(product0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// The generator of one call: options, resolved. Positions are those of the whole problem.
struct Dropout {
  bool enabled = false;
  uint32_t threshold = 0;  // in [0, 65536]; a lane value below it is dropped
  double scale = 1.0;      // 1 / (1 - p), 0 when p = 1: multiplies kept weights
  uint32_t key0 = 0;
  uint32_t key1 = 0;
  uint32_t offset_low = 0;
  int64_t query_base = 0;
  int64_t key_base = 0;
  int64_t head_base = 0;
  int64_t batch_base = 0;
  int64_t num_heads_q = 0;  // of the whole problem

  // Third counter word of local batch entry b and query head h.
  [[gnu::always_inline]] constexpr uint32_t stream(int64_t b, int64_t h) const {
    const uint64_t batch = static_cast<uint64_t>(b) + static_cast<uint64_t>(batch_base);
    const uint64_t head = static_cast<uint64_t>(h) + static_cast<uint64_t>(head_base);
    return static_cast<uint32_t>(batch * static_cast<uint64_t>(num_heads_q) + head);
  }
  // Second counter word of local query i.
  [[gnu::always_inline]] constexpr uint32_t row(int64_t i) const {
    return static_cast<uint32_t>(static_cast<uint64_t>(i) + static_cast<uint64_t>(query_base));
  }
  // First counter word of whole-problem key j.
  [[gnu::always_inline]] static constexpr uint32_t column(uint64_t j) {
    return static_cast<uint32_t>(4 * (j / 32) + (j % 8) / 2);
  }
  [[gnu::always_inline]] static constexpr int lane(uint64_t j) {
    return static_cast<int>(2 * ((j % 32) / 8) + j % 2);
  }

  [[gnu::always_inline]] constexpr bool keep(int64_t b, int64_t h, int64_t i, int64_t j) const {
    const uint64_t key = static_cast<uint64_t>(j) + static_cast<uint64_t>(key_base);
    const Philox4 random =
        philox4x32_10({{column(key), row(i), stream(b, h), offset_low}}, key0, key1);
    const int index = lane(key);
    const uint32_t value = (random.word[index / 2] >> (16 * (index % 2))) & 0xFFFFu;
    return value >= threshold;
  }
};

inline Dropout make_dropout(double p, uint64_t seed, uint64_t offset) {
  Dropout dropout;
  dropout.enabled = p > 0.0;
  dropout.threshold = static_cast<uint32_t>(std::floor(65536.0 * p + 0.5));
  dropout.scale = p < 1.0 ? 1.0 / (1.0 - p) : 0.0;
  dropout.key0 = static_cast<uint32_t>(seed);
  dropout.key1 = static_cast<uint32_t>(seed >> 32) ^ static_cast<uint32_t>(offset >> 32);
  dropout.offset_low = static_cast<uint32_t>(offset);
  return dropout;
}

}  // namespace attentile

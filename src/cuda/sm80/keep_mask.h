// SPDX-License-Identifier: Apache-2.0
// keep: whether dropout keeps (batch entry, head, query, key), for every pair, hidden or not, as
// bytes. A thread makes one Philox call and writes its 8 keys: of a group of 32, the pair
// 2 (call % 4) in each of the 4 octets.
#pragma once

#include "cuda/device/device.h"
#include "cuda/sm80/sequence.h"

namespace attentile::cuda {

struct KeepMask {
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocksPerSm = 1;
  static constexpr uint32_t kSharedBytes = 0;
  using Params = ForwardParams;

  static constexpr int64_t blocks(const Params& p) {
    return ceil_div(calls_per_row(p) * p.max_seqlen_q * p.num_heads_q * p.batch, kThreads);
  }

  ATTENTILE_DEVICE static void run(const Params& p, SharedAddress) {
    const int64_t calls = calls_per_row(p);
    const int64_t index = int64_t{block_idx().x} * kThreads + thread_idx();
    const int64_t row = index / calls;
    const int32_t query = static_cast<int32_t>(row % p.max_seqlen_q);
    const int64_t head = row / p.max_seqlen_q;
    const int32_t h = static_cast<int32_t>(head % p.num_heads_q);
    const int64_t b = head / p.num_heads_q;
    if (b >= p.batch) return;
    const Dropout& dropout = p.dropout;
    const int64_t call = index % calls;
    const int64_t first = call / 4 * 32 - key_phase(p) + call % 4 * 2;
    const uint64_t place = static_cast<uint64_t>(first) + static_cast<uint64_t>(dropout.key_base);
    const Philox4 random = philox4x32_10(
        {{Dropout::column(place), dropout.row(query), dropout.stream(b, h), dropout.offset_low}},
        dropout.key0, dropout.key1);
    char* cells = const_cast<char*>(element<char>(p.keep, b, h, query));
    ATTENTILE_UNROLL
    for (int octet = 0; octet < 4; ++octet) {
      ATTENTILE_UNROLL
      for (int e = 0; e < 2; ++e) {
        const int64_t key = first + int64_t{8} * octet + e;
        const bool kept = (random.word[octet] >> (16 * e) & 0xFFFFu) >= dropout.threshold;
        if (key < 0 || key >= p.max_seqlen_k) continue;
        st_global(cells + key * p.keep.stride[3], static_cast<char>(kept));
      }
    }
  }

 private:
  static constexpr int64_t calls_per_row(const Params& p) {
    return 4 * ceil_div(int64_t{p.max_seqlen_k} + key_phase(p), 32);
  }
};

}  // namespace attentile::cuda

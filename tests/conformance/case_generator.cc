// SPDX-License-Identifier: Apache-2.0
// make_case: a seed becomes a case. Weights are chosen so that features meet each other, lengths
// and head dimensions sit around tile edges, and most cases take a few milliseconds.
#include <algorithm>
#include <string>

#include "conformance/case.h"
#include "support/random.h"

namespace attentile::conformance {
namespace {

using testing::mix_seed;
using testing::Random;

int64_t pick_length(Random& random) {
  if (random.chance(0.02)) return 0;
  if (random.chance(0.04)) return random.pick<int64_t>({191, 255, 256, 257, 383, 513});
  if (random.chance(0.25)) return random.integer(1, 130);
  return random.pick<int64_t>({1,  2,  3,  5,  7,  8,  9,  13, 15, 16, 17,  23,  31, 32,
                               33, 37, 47, 61, 63, 64, 65, 79, 96, 97, 127, 128, 129});
}

int64_t pick_head_dim(Random& random) {
  if (random.chance(0.04)) {
    return random.pick<int64_t>({129, 144, 160, 192, 255, 256, 257, 320, 511, 512});
  }
  if (random.chance(0.15)) return random.integer(1, 128);
  return random.pick<int64_t>({1,  2,  3,  4,  5,  7,  8,  9,  15, 16, 17,  24, 31,
                               32, 33, 40, 48, 63, 64, 64, 65, 80, 96, 127, 128});
}

// Multiply-adds of one product over all pairs: what a case costs.
double cost_of(const Case& c) {
  return static_cast<double>(c.batch * c.num_heads_q) * static_cast<double>(c.seqlen_q) *
         static_cast<double>(c.seqlen_k) * static_cast<double>(c.head_dim + c.head_dim_v);
}

void pick_sizes(Case& c, Random& random) {
  c.batch = random.pick<int64_t>({1, 1, 2, 2, 3, 5});
  c.num_heads_kv = random.pick<int64_t>({1, 1, 2, 3});
  c.num_heads_q = c.num_heads_kv * random.pick<int64_t>({1, 1, 1, 2, 3, 4, 8});
  c.seqlen_q = pick_length(random);
  c.seqlen_k = random.chance(0.35) ? c.seqlen_q : pick_length(random);
  if (random.chance(0.1)) c.seqlen_q = random.integer(1, 4);
  if (c.seed % 16 == 7) {  // few queries over several pieces of the keys
    c.seqlen_q = random.integer(1, 8);
    c.seqlen_k = random.pick<int64_t>({511, 512, 513, 700, 1024, 1025, 1100, 1537});
  }
  c.head_dim = pick_head_dim(random);
  c.head_dim_v = random.chance(0.6) ? c.head_dim : pick_head_dim(random);
  if (random.chance(0.005)) c.batch = 0;
  const double limit = random.chance(0.04) ? 1.2e7 : 2.5e6;
  while (cost_of(c) > limit) {
    switch (random.integer(0, 4)) {
      case 0: c.batch = std::max<int64_t>(1, c.batch - 1); break;
      case 1:
        if (c.num_heads_kv > 1) {
          c.num_heads_q /= c.num_heads_kv;
          c.num_heads_kv = 1;
        }
        break;
      case 2:
        c.num_heads_q = c.num_heads_kv * std::max<int64_t>(1, c.num_heads_q / c.num_heads_kv / 2);
        break;
      case 3: (random.chance(0.5) ? c.seqlen_q : c.seqlen_k) = random.integer(1, 65); break;
      default: (random.chance(0.5) ? c.head_dim : c.head_dim_v) = random.integer(1, 64); break;
    }
  }
}

void pick_varlen(Case& c, Random& random) {
  c.varlen = true;
  const bool same = random.chance(0.4);
  c.batch = std::max<int64_t>(1, c.batch);
  if (random.chance(0.3)) c.batch = random.integer(1, 6);
  const bool keys_too = random.chance(0.65);
  for (int64_t b = 0; b < c.batch; ++b) {
    const auto length = [&](int64_t longest) {
      if (random.chance(0.15)) return int64_t{0};
      return random.chance(0.4) ? longest : random.integer(0, longest);
    };
    c.lengths_q.push_back(static_cast<int32_t>(length(c.seqlen_q)));
    if (!keys_too) continue;
    c.lengths_k.push_back(same ? c.lengths_q.back() : static_cast<int32_t>(length(c.seqlen_k)));
  }
  c.seqlen_q = *std::max_element(c.lengths_q.begin(), c.lengths_q.end());
  if (keys_too) c.seqlen_k = *std::max_element(c.lengths_k.begin(), c.lengths_k.end());
}

void pick_pages(Case& c, Random& random) {
  c.page_size = random.pick<int64_t>({1, 3, 16, 64});
  c.max_pages = (c.seqlen_k + c.page_size - 1) / c.page_size + random.integer(0, 1);
  const int64_t max_pages = c.max_pages;
  c.num_pages = c.batch * max_pages + random.integer(0, 5);
  std::vector<int32_t> pages(static_cast<size_t>(c.num_pages));
  for (size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<int32_t>(i);
  random.shuffle(pages);
  size_t next = 0;
  const bool share = random.chance(0.3);  // sequences that begin with the same pages
  for (int64_t b = 0; b < c.batch; ++b) {
    c.seqused_k.push_back(
        static_cast<int32_t>(random.chance(0.2) ? c.seqlen_k : random.integer(0, c.seqlen_k)));
    const int64_t used_pages = (c.seqused_k.back() + c.page_size - 1) / c.page_size;
    for (int64_t page = 0; page < max_pages; ++page) {
      if (page >= used_pages) {
        c.block_table.push_back(c.num_pages > 0 ? random.pick(pages) : 0);
      } else if (share && b > 0 && page < max_pages / 2) {
        c.block_table.push_back(c.block_table[static_cast<size_t>(page)]);
      } else {
        c.block_table.push_back(pages[next++]);
      }
    }
  }
  c.seqlen_k = *std::max_element(c.seqused_k.begin(), c.seqused_k.end());
}

// Which rows of k and v take part: used lengths, pages, cache rows, left padding.
void pick_key_storage(Case& c, Random& random) {
  if (!c.packed_k() && c.batch > 0 && random.chance(c.varlen ? 0.4 : 0.12)) {
    pick_pages(c, random);
  } else {
    if (!c.packed_k() && random.chance(0.08)) {
      c.cache_rows = c.batch + random.integer(0, 3);
      for (int64_t b = 0; b < c.batch; ++b) {
        c.cache_batch_idx.push_back(static_cast<int32_t>(random.integer(0, c.cache_rows - 1)));
      }
      if (c.cache_rows == 0 || c.batch == 0) {
        c.cache_rows = 0;
        c.cache_batch_idx.clear();
      }
    }
    if (c.batch > 0 && random.chance(0.15)) {
      for (int64_t b = 0; b < c.batch; ++b) {
        c.seqused_k.push_back(static_cast<int32_t>(random.integer(0, c.given_keys(b))));
      }
    }
    if (!c.packed_k() && c.batch > 0 && random.chance(0.1)) {
      for (int64_t b = 0; b < c.batch; ++b) {
        const int64_t used =
            c.seqused_k.empty() ? c.given_keys(b) : c.seqused_k[static_cast<size_t>(b)];
        c.leftpad_k.push_back(static_cast<int32_t>(random.integer(0, used)));
      }
    }
  }
}

void pick_band(Case& c, Random& random) {
  c.causal = random.chance(0.35);
  c.alignment = random.chance(0.35) ? Alignment::kTopLeft : Alignment::kBottomRight;
  if (random.chance(0.15)) c.position_offset = random.integer(-20, 40);
  if (random.chance(0.25)) {
    const auto side = [&] {
      return random.pick<int64_t>({-1, 0, 1, 3, 7, 15, 16, 31, 33, 64, 100, 1000});
    };
    c.window_left = side();
    c.window_right = side();
  }
}

Broadcast pick_broadcast(const Case& c, Random& random) {
  Broadcast result;
  result.present = true;
  result.shape = {c.batch, c.num_heads_q, c.seqlen_q, c.seqlen_k};
  for (int64_t& size : result.shape) {
    if (random.chance(0.3)) size = 1;
  }
  while (!result.shape.empty() && result.shape.front() == 1 && random.chance(0.5)) {
    result.shape.erase(result.shape.begin());
  }
  return result;
}

void pick_score_features(Case& c, Random& random) {
  if (random.chance(0.2)) {
    c.mask = pick_broadcast(c, random);
    c.mask.dtype = random.chance(0.5) ? DType::kBool : DType::kUInt8;
  }
  if (random.chance(0.25)) {
    c.bias = pick_broadcast(c, random);
    c.bias.dtype = random.chance(0.5) ? c.dtype : DType::kFloat32;
  }
  if (random.chance(0.15)) c.alibi_rank = random.chance(0.5) ? 1 : 2;
  if (random.chance(0.15)) c.softcap = random.pick({0.5, 2.0, 20.0, 50.0});
  c.sink = random.chance(0.15);
  if (random.chance(0.12)) {
    c.block_mask_heads = random.chance(0.5) ? 1 : c.num_heads_q;
    c.block_size_q = random.pick<int64_t>({1, 3, 8, 16, 32, 64, 128});
    c.block_size_k = random.pick<int64_t>({1, 5, 8, 16, 32, 64, 128});
  }
  if (random.chance(0.3)) c.softmax_scale = random.pick({0.0, -0.3, 0.05, 0.37, 1.0});
}

void pick_dropout(Case& c, Random& random) {
  if (!random.chance(0.2)) return;
  c.dropout_p = random.pick({0.1, 0.25, 0.3, 0.5, 0.5, 0.9, 1.0});
  c.dropout_seed = random.bits();
  c.dropout_offset =
      random.chance(0.5) ? random.bits() : static_cast<uint64_t>(random.integer(0, 9));
  c.keep = !c.varlen && random.chance(0.4);
  if (!random.chance(0.5)) return;
  c.query_base = random.integer(0, 1000);
  c.key_base = random.pick<int64_t>({0, 1, 7, 8, 31, 32, 33, 1000, int64_t{1} << 31});
  c.head_base = random.integer(0, 5);
  c.batch_base = random.integer(0, 5);
  c.dropout_num_heads_q = c.num_heads_q + c.head_base + random.integer(0, 3);
}

void pick_passes(Case& c, Random& random) {
  const bool forward_only = c.page_size > 0 || !c.cache_batch_idx.empty() || !c.leftpad_k.empty();
  c.backward = !forward_only && random.chance(0.75);
  c.lse = c.backward || random.chance(0.85);
  c.dlse = c.backward && random.chance(0.3);
  c.dbias = c.backward && c.bias.present && random.chance(0.85);
  c.dsink = c.backward && c.sink && random.chance(0.85);
}

// Makes the case one whose results are exact; false if its features forbid that.
bool make_dominant(Case& c, Random& random) {
  const int64_t pool = c.page_size > 0 ? c.num_pages * c.page_size : c.seqlen_k;
  if (pool > 200 || c.softcap > 0) return false;
  c.tier = Tier::kDominant;
  c.softmax_scale = 256.0;
  if (c.dropout_p > 0) c.dropout_p = random.pick({0.5, 0.75});
  return true;
}

bool make_equal(Case& c, Random& random) {
  if (c.bias.present || c.alibi_rank > 0) return false;
  c.tier = Tier::kEqual;
  // The mask leaves a power of two of the visible keys in every row.
  c.mask.present = true;
  c.mask.dtype = random.chance(0.5) ? DType::kBool : DType::kUInt8;
  c.mask.shape = {c.batch, c.num_heads_q, c.seqlen_q, c.seqlen_k};
  if (c.dropout_p > 0) c.dropout_p = random.pick({0.5, 0.75});
  return true;
}

void pick_statistics(Case& c, Random& random) {
  const double choice = random.uniform();
  if (choice < 0.60) {
    c.fill = Fill::kNormal;
  } else if (choice < 0.72) {
    c.fill = Fill::kPeaked;
  } else if (choice < 0.80) {
    c.fill = Fill::kOutliers;
  } else if (choice < 0.90) {
    c.fill = Fill::kVeryNegative;
  } else {
    c.fill = Fill::kSparseWhole;
  }
  if (!random.chance(0.1)) return;
  const auto axes = [&] {
    return static_cast<uint32_t>(random.chance(0.5) ? random.integer(0, c.varlen ? 7 : 15) : 0);
  };
  c.zero_stride_q = axes();
  c.zero_stride_k = axes();
  c.zero_stride_v = axes();
  c.zero_stride_dout = axes();
}

}  // namespace

Case make_case(uint64_t seed) {
  Random random(mix_seed(seed, 0));
  Case c;
  c.seed = seed;
  c.name = std::to_string(seed);
  c.dtype = random.pick({DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kFloat16,
                         DType::kFloat16, DType::kBFloat16, DType::kBFloat16, DType::kFloat64});
  pick_sizes(c, random);
  if (c.batch > 0 && random.chance(0.25)) pick_varlen(c, random);
  pick_key_storage(c, random);
  pick_band(c, random);
  pick_score_features(c, random);
  pick_dropout(c, random);
  pick_passes(c, random);
  const double tier = random.uniform();
  const bool exact = (tier < 0.15 && make_dominant(c, random)) ||
                     (tier >= 0.15 && tier < 0.25 && make_equal(c, random));
  if (!exact) pick_statistics(c, random);
  const bool repeated =
      (c.zero_stride_q | c.zero_stride_k | c.zero_stride_v | c.zero_stride_dout) != 0;
  c.poison = !repeated && random.chance(0.7);
  c.fast_memory_bytes = random.chance(0.2) ? 0 : int64_t{1} << random.integer(11, 18);
  c.num_threads = static_cast<int>(random.integer(1, 4));
  return c;
}

}  // namespace attentile::conformance

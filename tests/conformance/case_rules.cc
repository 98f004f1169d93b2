// SPDX-License-Identifier: Apache-2.0
// The contract's rules on a case, restated by brute force without the library's own arithmetic: who
// sees whom, which dropout decisions fall, where a key is stored. And the case in words.
#include <algorithm>
#include <cmath>

#include "conformance/case.h"

namespace attentile::conformance {

int64_t Case::key_length(int64_t b) const {
  const size_t at = static_cast<size_t>(b);
  const int64_t used = seqused_k.empty() ? given_keys(b) : seqused_k[at];
  return leftpad_k.empty() ? used : used - leftpad_k[at];
}

int64_t Case::total_q() const {
  int64_t total = 0;
  for (int32_t length : lengths_q) total += length;
  return total;
}

int64_t Case::total_k() const {
  int64_t total = 0;
  for (int32_t length : lengths_k) total += length;
  return total;
}

KeyPlace key_place(const Case& c, int64_t b, int64_t j) {
  const size_t at = static_cast<size_t>(b);
  const int64_t row = j + (c.leftpad_k.empty() ? 0 : c.leftpad_k[at]);
  if (c.packed_k()) {
    int64_t first = 0;
    for (size_t earlier = 0; earlier < at; ++earlier) first += c.lengths_k[earlier];
    return {0, first + row};
  }
  if (c.page_size > 0) {
    const int64_t entry = b * c.max_pages + row / c.page_size;
    return {c.block_table[static_cast<size_t>(entry)], row % c.page_size};
  }
  return {c.cache_batch_idx.empty() ? b : c.cache_batch_idx[at], row};
}

bool visible(const Case& c, const Values& values, int64_t b, int64_t h, int64_t i, int64_t j) {
  if (j >= c.key_length(b)) return false;
  const int64_t aligned =
      c.alignment == Alignment::kTopLeft ? 0 : c.key_length(b) - c.query_length(b);
  // Wide: offsets and windows may be any int64.
  const __int128 position = static_cast<__int128>(i) + c.position_offset.value_or(aligned);
  if (c.causal && j > position) return false;
  if (c.window_left >= 0 && j < position - c.window_left) return false;
  if (c.window_right >= 0 && j > position + c.window_right) return false;
  if (values.mask.present &&
      values.mask.bytes[static_cast<size_t>(broadcast_index(values.mask, b, h, i, j))] == 0) {
    return false;
  }
  if (values.block_mask.present) {
    const int64_t head = c.block_mask_heads == 1 ? 0 : h;
    const int64_t at = values.block_mask.index(head, i / c.block_size_q, j / c.block_size_k);
    if (values.block_mask.bytes[static_cast<size_t>(at)] == 0) return false;
  }
  return true;
}

int64_t broadcast_index(const DenseTensor& tensor, int64_t b, int64_t h, int64_t i, int64_t j) {
  const int64_t coordinates[4] = {b, h, i, j};
  int64_t flat = 0;
  for (int axis = 0; axis < tensor.rank(); ++axis) {
    const int64_t size = tensor.shape[static_cast<size_t>(axis)];
    const int64_t coordinate = size == 1 ? 0 : coordinates[4 - tensor.rank() + axis];
    flat = flat * size + coordinate;
  }
  return flat;
}

// Philox4x32-10 written out from the paper; the counter from the contract, section 4.
bool keeps(const Case& c, int64_t b, int64_t h, int64_t i, int64_t j) {
  const uint64_t key_position = static_cast<uint64_t>(j + c.key_base);
  const uint64_t heads =
      static_cast<uint64_t>(c.dropout_num_heads_q > 0 ? c.dropout_num_heads_q : c.num_heads_q);
  const uint64_t stream =
      static_cast<uint64_t>(b + c.batch_base) * heads + static_cast<uint64_t>(h + c.head_base);
  uint32_t x[4] = {static_cast<uint32_t>(key_position / 32 * 4 + key_position % 8 / 2),
                   static_cast<uint32_t>(i + c.query_base), static_cast<uint32_t>(stream),
                   static_cast<uint32_t>(c.dropout_offset)};
  uint32_t k0 = static_cast<uint32_t>(c.dropout_seed);
  uint32_t k1 = static_cast<uint32_t>((c.dropout_seed >> 32) ^ (c.dropout_offset >> 32));
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * x[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57} * x[2];
    const uint32_t y[4] = {static_cast<uint32_t>(p1 >> 32) ^ x[1] ^ k0, static_cast<uint32_t>(p1),
                           static_cast<uint32_t>(p0 >> 32) ^ x[3] ^ k1, static_cast<uint32_t>(p0)};
    std::copy(y, y + 4, x);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  const uint64_t lane = 2 * (key_position % 32 / 8) + key_position % 2;
  const uint32_t drawn = (x[lane / 2] >> (lane % 2 == 0 ? 0 : 16)) & 0xFFFF;
  return static_cast<double>(drawn) >= std::floor(65536.0 * c.dropout_p + 0.5);
}

AttentionOptions options_of(const Case& c) {
  AttentionOptions options;
  options.softmax_scale = c.softmax_scale;
  options.causal = c.causal;
  options.alignment = c.alignment;
  options.position_offset = c.position_offset;
  options.window_left = c.window_left;
  options.window_right = c.window_right;
  options.softcap = c.softcap;
  options.dropout_p = c.dropout_p;
  options.dropout_seed = c.dropout_seed;
  options.dropout_offset = c.dropout_offset;
  options.query_base = c.query_base;
  options.key_base = c.key_base;
  options.head_base = c.head_base;
  options.batch_base = c.batch_base;
  options.dropout_num_heads_q = c.dropout_num_heads_q;
  options.block_size_q = c.block_size_q;
  options.block_size_k = c.block_size_k;
  options.fast_memory_bytes = c.fast_memory_bytes;
  return options;
}

const char* to_string(Tier tier) {
  switch (tier) {
    case Tier::kStatistical: return "statistical";
    case Tier::kDominant: return "dominant";
    case Tier::kEqual: return "equal";
  }
  return "unknown";
}

const char* to_string(Fill fill) {
  switch (fill) {
    case Fill::kNormal: return "normal";
    case Fill::kPeaked: return "peaked";
    case Fill::kOutliers: return "outliers";
    case Fill::kVeryNegative: return "very_negative";
    case Fill::kSparseWhole: return "sparse_whole";
  }
  return "unknown";
}

std::vector<std::string> features_of(const Case& c) {
  std::vector<std::string> names;
  const auto add = [&](bool has, const char* name) {
    if (has) names.push_back(name);
  };
  add(c.backward, "backward");
  add(c.num_heads_q == c.num_heads_kv, "mha");
  add(c.num_heads_kv > 1 && c.num_heads_q > c.num_heads_kv, "gqa");
  add(c.num_heads_kv == 1 && c.num_heads_q > 1, "mqa");
  add(c.head_dim != c.head_dim_v, "head_dim_v");
  add(c.varlen, "varlen");
  add(c.varlen && !c.packed_k() && c.page_size == 0, "packed_q_batched_k");
  add(c.varlen && c.page_size > 0, "packed_q_paged_k");
  add(!c.seqused_k.empty(), "seqused_k");
  add(c.page_size > 0, "block_table");
  add(!c.cache_batch_idx.empty(), "cache_batch_idx");
  add(!c.leftpad_k.empty(), "leftpad_k");
  add(c.causal, "causal");
  add(c.alignment == Alignment::kTopLeft, "top_left");
  add(c.position_offset.has_value(), "position_offset");
  add(c.window_left >= 0 || c.window_right >= 0, "window");
  add(c.mask.present, "mask");
  add(c.bias.present, "bias");
  add(c.alibi_rank > 0, "alibi");
  add(c.softcap > 0, "softcap");
  add(c.sink, "sink");
  add(c.block_mask_heads > 0, "block_mask");
  add(c.softmax_scale.has_value(), "scale");
  add(c.dropout_p > 0, "dropout");
  add(c.has_bases(), "bases");
  add(c.keep, "keep");
  add(c.dlse, "dlse");
  add(c.dbias, "dbias");
  add(c.dsink, "dsink");
  add(c.poison, "poison");
  add((c.zero_stride_q | c.zero_stride_k | c.zero_stride_v | c.zero_stride_dout) != 0,
      "zero_stride");
  add(c.batch == 0 || c.num_heads_q == 0 || c.seqlen_q == 0 || c.seqlen_k == 0, "empty");
  return names;
}

std::string describe(const Case& c) {
  std::string text = "case=" + c.name + " " + attentile::to_string(c.dtype) + " " +
                     to_string(c.tier) + "/" + to_string(c.fill);
  const auto add = [&](const char* name, int64_t value) {
    text += " " + std::string(name) + "=" + std::to_string(value);
  };
  add("batch", c.batch);
  add("seqlen_q", c.seqlen_q);
  add("seqlen_k", c.seqlen_k);
  add("num_heads_q", c.num_heads_q);
  add("num_heads_kv", c.num_heads_kv);
  add("head_dim", c.head_dim);
  add("head_dim_v", c.head_dim_v);
  for (const std::string& feature : features_of(c)) text += " " + feature;
  if (c.window_left >= 0 || c.window_right >= 0) {
    add("window_left", c.window_left);
    add("window_right", c.window_right);
  }
  if (c.page_size > 0) add("page_size", c.page_size);
  if (c.position_offset) add("offset", *c.position_offset);
  if (c.bias.present) text += " bias=" + testing::to_string(c.bias.shape);
  if (c.mask.present) text += " mask=" + testing::to_string(c.mask.shape);
  return text;
}

}  // namespace attentile::conformance

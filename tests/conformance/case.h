// SPDX-License-Identifier: Apache-2.0
// Case: one attention problem of the conformance table, and its tensors. A case is a pure function
// of a 64-bit seed, or a hand-written one with a name. Nothing here uses the library's own mask
// arithmetic: visible() restates the contract by brute force.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "attentile/attention.h"
#include "support/dense_tensor.h"

namespace attentile::conformance {

using testing::DenseTensor;

// How a case is judged and filled (contract, accuracy rule).
enum class Tier {
  kStatistical,  // random values; error against that of standard attention
  kDominant,     // whole numbers, one visible key of each row ahead by more than 200: bit equality
  kEqual,        // all visible weights of a row equal, their number a power of two: bit equality
};
enum class Fill {
  kNormal,        // N(0, 1)
  kPeaked,        // q six times as large: few keys carry the row
  kOutliers,      // N(0, 1) + N(0, 100) on one value in a thousand
  kVeryNegative,  // all logits near -120: the bias, or q and k, are made so
  kSparseWhole,   // four in five zero, else -2..2
};

const char* to_string(Tier tier);
const char* to_string(Fill fill);

// A tensor that broadcasts to (batch, num_heads_q, seqlen_q, seqlen_k).
struct Broadcast {
  bool present = false;
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;  // rank 0..4

  bool operator==(const Broadcast&) const = default;
};

struct Case {
  uint64_t seed = 0;
  std::string name;  // the seed in decimal, or the hand-written name
  Tier tier = Tier::kStatistical;
  Fill fill = Fill::kNormal;
  DType dtype = DType::kFloat32;

  int64_t batch = 1;
  int64_t seqlen_q = 1;  // varlen: the longest
  int64_t seqlen_k = 1;  // packed keys: the longest; paged: the most keys used
  int64_t num_heads_q = 1;
  int64_t num_heads_kv = 1;
  int64_t head_dim = 1;
  int64_t head_dim_v = 1;

  bool varlen = false;                        // queries are packed
  std::vector<int32_t> lengths_q, lengths_k;  // varlen; no lengths_k: keys are not packed
  std::vector<int32_t> seqused_k;             // empty: absent
  int64_t page_size = 0;                      // 0: not paged
  int64_t num_pages = 0;
  int64_t max_pages = 0;
  std::vector<int32_t> block_table;      // batch * max_pages
  int64_t cache_rows = 0;                // batch dimension of k and v with cache_batch_idx
  std::vector<int32_t> cache_batch_idx;  // empty: absent
  std::vector<int32_t> leftpad_k;        // empty: absent

  bool causal = false;
  Alignment alignment = Alignment::kBottomRight;
  std::optional<int64_t> position_offset;
  int64_t window_left = -1;
  int64_t window_right = -1;
  std::optional<double> softmax_scale;
  double softcap = 0.0;
  Broadcast bias, mask;
  int alibi_rank = 0;  // 0: absent
  bool sink = false;
  int64_t block_mask_heads = 0;  // 0: absent
  int64_t block_size_q = 0;
  int64_t block_size_k = 0;

  double dropout_p = 0.0;
  uint64_t dropout_seed = 0;
  uint64_t dropout_offset = 0;
  int64_t query_base = 0;
  int64_t key_base = 0;
  int64_t head_base = 0;
  int64_t batch_base = 0;
  int64_t dropout_num_heads_q = 0;

  bool backward = false;
  bool lse = true;
  bool keep = false;
  bool dlse = false;
  bool dbias = false;
  bool dsink = false;

  bool poison = false;         // NaN in everything that no query sees
  uint32_t zero_stride_q = 0;  // a bit per axis: the values repeat and the stride is 0
  uint32_t zero_stride_k = 0;
  uint32_t zero_stride_v = 0;
  uint32_t zero_stride_dout = 0;

  int64_t fast_memory_bytes = 0;
  int num_threads = 1;

  bool packed_k() const { return varlen && !lengths_k.empty(); }
  int64_t query_length(int64_t b) const {
    return varlen ? lengths_q[static_cast<size_t>(b)] : seqlen_q;
  }
  // Rows of k that belong to the entry, used or not.
  int64_t given_keys(int64_t b) const {
    return packed_k() ? lengths_k[static_cast<size_t>(b)] : seqlen_k;
  }
  // Keys of the entry that positions count: used, less the left padding.
  int64_t key_length(int64_t b) const;
  int64_t total_q() const;  // varlen
  int64_t total_k() const;  // packed keys
  bool has_bases() const {
    return query_base != 0 || key_base != 0 || head_base != 0 || batch_base != 0 ||
           dropout_num_heads_q != 0;
  }
  bool operator==(const Case&) const = default;
};

// The values of a case, row-major. Absent tensors are absent here too.
struct Values {
  DenseTensor q, k, v, bias, mask, sink, alibi_slopes, cu_seqlens_q, cu_seqlens_k, seqused_k,
      block_table, cache_batch_idx, leftpad_k, block_mask, dout, dlse;

  bool operator==(const Values&) const = default;
};

// The results of a case.
struct Results {
  DenseTensor out, lse, keep, dq, dk, dv, dbias, dsink;
};

// Where key j of a batch entry lies in k and v: (row of the first axis, row of the second); packed
// keys: (0, packed row).
struct KeyPlace {
  int64_t first = 0;
  int64_t second = 0;
};
KeyPlace key_place(const Case& c, int64_t b, int64_t j);

// Whether query i of batch entry b and head h sees key j, from the contract's sentences.
bool visible(const Case& c, const Values& values, int64_t b, int64_t h, int64_t i, int64_t j);

// Element of a tensor that broadcasts to four axes, for (b, h, i, j).
int64_t broadcast_index(const DenseTensor& tensor, int64_t b, int64_t h, int64_t i, int64_t j);

// Whether dropout keeps the weight of (b, h, i, j), from the contract's formula.
bool keeps(const Case& c, int64_t b, int64_t h, int64_t i, int64_t j);

// The case of a seed, the hand-written ones, and one of them by name (or seed in decimal).
Case make_case(uint64_t seed);
const std::vector<Case>& named_cases();
std::optional<Case> find_case(const std::string& name);

Values make_values(const Case& c);
// The same with `poison` in every key, value, bias element and row of q, dout and dlse that takes
// no part.
Values poisoned(const Case& c, const Values& values,
                double poison = std::numeric_limits<double>::quiet_NaN());
// Shapes and types of the results that the case asks for; the elements are zero.
Results empty_results(const Case& c, const Values& values);

// The call. Tensors are added by the caller.
AttentionOptions options_of(const Case& c);

// Names of the features a case combines, for counting, e.g. "causal", "varlen", "dropout".
std::vector<std::string> features_of(const Case& c);
// One line: every field that is not at its default.
std::string describe(const Case& c);

}  // namespace attentile::conformance

// SPDX-License-Identifier: Apache-2.0
// The tensors of a case: values by tier and fill, and the poison.
#include <algorithm>
#include <cmath>

#include "conformance/case.h"
#include "support/random.h"

namespace attentile::conformance {
namespace {

using testing::mix_seed;
using testing::Random;

DenseTensor index_tensor(const std::vector<int32_t>& values, std::vector<int64_t> shape) {
  DenseTensor tensor(DType::kInt32, std::move(shape));
  for (size_t i = 0; i < values.size(); ++i) tensor.set(static_cast<int64_t>(i), values[i]);
  return tensor;
}

DenseTensor cumulative(const std::vector<int32_t>& lengths) {
  std::vector<int32_t> sums = {0};
  for (int32_t length : lengths) sums.push_back(sums.back() + length);
  return index_tensor(sums, {static_cast<int64_t>(sums.size())});
}

double draw(Fill fill, Random& random) {
  switch (fill) {
    case Fill::kOutliers: {
      const double value = random.normal();
      return random.chance(0.001) ? value + 10.0 * random.normal() : value;
    }
    case Fill::kSparseWhole:
      return random.chance(0.8) ? 0.0 : static_cast<double>(random.integer(-2, 2));
    default: return random.normal();
  }
}

void fill_random(DenseTensor& tensor, Fill fill, Random& random) {
  for (int64_t i = 0; i < tensor.count(); ++i) tensor.set(i, draw(fill, random));
}

void fill_whole(DenseTensor& tensor, int64_t largest, Random& random) {
  for (int64_t i = 0; i < tensor.count(); ++i) {
    tensor.set(i, static_cast<double>(random.integer(-largest, largest)));
  }
}

// Repeats the first slice along each axis of the set.
void repeat_along(DenseTensor& tensor, uint32_t axes) {
  for (int axis = 0; axis < tensor.rank(); ++axis) {
    if ((axes >> axis & 1u) == 0) continue;
    int64_t inner = 1;
    for (int a = axis + 1; a < tensor.rank(); ++a) inner *= tensor.shape[static_cast<size_t>(a)];
    const int64_t size = tensor.shape[static_cast<size_t>(axis)];
    for (int64_t i = 0; i < tensor.count(); ++i) {
      tensor.set(i, tensor.get(i / (inner * size) * (inner * size) + i % inner));
    }
  }
}

// Each query selects one column of k, in which all keys of a head differ by at least 256 logits.
void fill_dominant(const Case& c, Values& values, Random& random) {
  values.q.fill(0.0);
  const int64_t rows = c.head_dim > 0 ? values.q.count() / c.head_dim : 0;
  for (int64_t row = 0; row < rows; ++row) {
    values.q.set(row * c.head_dim + random.integer(0, c.head_dim - 1),
                 random.chance(0.5) ? 1.0 : -1.0);
  }
  // Axis of the keys that one query may meet: all pages, or the rows of a batch entry.
  const int64_t groups = c.packed_k() || c.page_size > 0 ? 1 : values.k.shape[0];
  const int64_t keys =
      c.packed_k() ? values.k.shape[0]
                   : (c.page_size > 0 ? values.k.shape[0] * values.k.shape[1] : values.k.shape[1]);
  const int64_t columns = c.num_heads_kv * c.head_dim;
  // Packed sequences may hold more rows than whole numbers are exact for; they never meet, so the
  // ranks may repeat from one to the next.
  const int64_t period =
      c.packed_k() ? std::max<int64_t>(c.seqlen_k, 1) : std::max<int64_t>(keys, 1);
  std::vector<int64_t> ranks(static_cast<size_t>(period));
  for (int64_t i = 0; i < period; ++i) ranks[static_cast<size_t>(i)] = i - period / 2;
  for (int64_t group = 0; group < groups; ++group) {
    for (int64_t column = 0; column < columns; ++column) {
      random.shuffle(ranks);
      for (int64_t key = 0; key < keys; ++key) {
        values.k.set((group * keys + key) * columns + column,
                     static_cast<double>(ranks[static_cast<size_t>(key % period)]));
      }
    }
  }
  fill_whole(values.v, 2, random);
  fill_whole(values.dout, 2, random);
  if (values.dlse.present) fill_whole(values.dlse, 2, random);
  if (values.bias.present) fill_whole(values.bias, 8, random);
  for (int64_t h = 0; values.alibi_slopes.present && h < values.alibi_slopes.count(); ++h) {
    values.alibi_slopes.set(h, random.pick({0.0, 0.015625, 0.03125, 0.0625}));
  }
  for (int64_t h = 0; values.sink.present && h < values.sink.count(); ++h) {
    values.sink.set(h, random.chance(0.25) ? 200000.0 : -200000.0);
  }
}

// q and k live on different columns, so every logit is 0; the mask keeps a power of two of keys.
// Powers whose logarithm rounds so that exp(-lse) is the power again: 1, 2, 4, 16.
void fill_equal(const Case& c, Values& values, Random& random) {
  fill_whole(values.q, 3, random);
  fill_whole(values.k, 3, random);
  for (int64_t i = 0; i < values.q.count(); ++i) {
    if (i % c.head_dim % 2 != 0 || c.head_dim == 1) values.q.set(i, 0.0);
  }
  for (int64_t i = 0; i < values.k.count(); ++i) {
    if (i % c.head_dim % 2 == 0 && c.head_dim > 1) values.k.set(i, 0.0);
  }
  fill_whole(values.v, 2, random);
  fill_whole(values.dout, 2, random);
  if (values.dlse.present) fill_whole(values.dlse, 2, random);
  if (values.sink.present) values.sink.fill(-200000.0);
  values.mask.fill(1.0);
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t h = 0; h < c.num_heads_q; ++h) {
      for (int64_t i = 0; i < c.query_length(b); ++i) {
        std::vector<int64_t> keys;
        for (int64_t j = 0; j < c.key_length(b); ++j) {
          if (visible(c, values, b, h, i, j)) keys.push_back(j);
        }
        random.shuffle(keys);
        size_t kept = 0;
        for (size_t power : {1, 2, 4, 16}) {
          if (power <= keys.size() && (kept == 0 || random.chance(0.8))) kept = power;
        }
        for (size_t n = kept; n < keys.size(); ++n) values.mask.put(0.0, b, h, i, keys[n]);
      }
    }
  }
}

void fill_statistical(const Case& c, Values& values, Random& random) {
  fill_random(values.q, c.fill, random);
  fill_random(values.k, c.fill, random);
  fill_random(values.v, c.fill, random);
  fill_random(values.dout, c.fill, random);
  if (values.dlse.present) fill_random(values.dlse, Fill::kNormal, random);
  if (values.bias.present) fill_random(values.bias, Fill::kNormal, random);
  if (c.fill == Fill::kPeaked) {
    for (int64_t i = 0; i < values.q.count(); ++i) values.q.set(i, 6.0 * values.q.get(i));
  }
  if (c.fill == Fill::kVeryNegative) {
    if (values.bias.present) {
      for (int64_t i = 0; i < values.bias.count(); ++i) {
        values.bias.set(i, values.bias.get(i) - 120.0);
      }
    } else {
      // One column contributes -120 to every logit (before a softcap).
      const double scale =
          c.softmax_scale.value_or(1.0 / std::sqrt(static_cast<double>(c.head_dim)));
      const double column = scale == 0.0 ? 0.0 : std::sqrt(120.0 / std::fabs(scale));
      for (int64_t i = 0; i < values.q.count(); i += c.head_dim) values.q.set(i, column);
      for (int64_t i = 0; i < values.k.count(); i += c.head_dim) {
        values.k.set(i, scale > 0 ? -column : column);
      }
    }
  }
  for (int64_t h = 0; values.alibi_slopes.present && h < values.alibi_slopes.count(); ++h) {
    values.alibi_slopes.set(h, std::exp2(-0.5 * static_cast<double>(random.integer(1, 16))));
  }
  for (int64_t h = 0; values.sink.present && h < values.sink.count(); ++h) {
    values.sink.set(h, random.chance(0.1) ? 12.0 : random.normal());
  }
  repeat_along(values.q, c.zero_stride_q);
  repeat_along(values.k, c.zero_stride_k);
  repeat_along(values.v, c.zero_stride_v);
  repeat_along(values.dout, c.zero_stride_dout);
}

// Bytes of a mask: any non-zero byte means visible.
void fill_mask(DenseTensor& mask, Random& random) {
  if (!mask.present) return;
  const double density = random.pick({0.2, 0.5, 0.8, 0.95});
  for (int64_t i = 0; i < mask.count(); ++i) {
    const int yes = mask.dtype == DType::kBool ? 1 : random.pick({1, 2, 128, 255});
    mask.bytes[static_cast<size_t>(i)] = static_cast<char>(random.chance(density) ? yes : 0);
  }
}

std::vector<int64_t> key_shape(const Case& c, int64_t columns) {
  if (c.packed_k()) return {c.total_k(), c.num_heads_kv, columns};
  if (c.page_size > 0) return {c.num_pages, c.page_size, c.num_heads_kv, columns};
  return {c.cache_rows > 0 ? c.cache_rows : c.batch, c.seqlen_k, c.num_heads_kv, columns};
}

std::vector<int64_t> query_shape(const Case& c, int64_t columns) {
  if (c.varlen) return {c.total_q(), c.num_heads_q, columns};
  return {c.batch, c.seqlen_q, c.num_heads_q, columns};
}

std::vector<int64_t> lse_shape(const Case& c) {
  if (c.varlen) return {c.num_heads_q, c.total_q()};
  return {c.batch, c.num_heads_q, c.seqlen_q};
}

void make_index_tensors(const Case& c, Values& values) {
  if (c.varlen) {
    values.cu_seqlens_q = cumulative(c.lengths_q);
  }
  if (c.packed_k()) values.cu_seqlens_k = cumulative(c.lengths_k);
  if (!c.seqused_k.empty()) values.seqused_k = index_tensor(c.seqused_k, {c.batch});
  if (c.page_size > 0) {
    values.block_table = index_tensor(c.block_table, {c.batch, c.max_pages});
  }
  if (!c.cache_batch_idx.empty()) {
    values.cache_batch_idx = index_tensor(c.cache_batch_idx, {c.batch});
  }
  if (!c.leftpad_k.empty()) values.leftpad_k = index_tensor(c.leftpad_k, {c.batch});
}

}  // namespace

Values make_values(const Case& c) {
  Random random(mix_seed(c.seed, 1));
  Values values;
  values.q = DenseTensor(c.dtype, query_shape(c, c.head_dim));
  values.k = DenseTensor(c.dtype, key_shape(c, c.head_dim));
  values.v = DenseTensor(c.dtype, key_shape(c, c.head_dim_v));
  values.dout = DenseTensor(c.dtype, query_shape(c, c.head_dim_v));
  const DType lse_type = c.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  if (c.dlse) values.dlse = DenseTensor(lse_type, lse_shape(c));
  if (c.bias.present) values.bias = DenseTensor(c.bias.dtype, c.bias.shape);
  if (c.mask.present) values.mask = DenseTensor(c.mask.dtype, c.mask.shape);
  if (c.sink) values.sink = DenseTensor(DType::kFloat32, {c.num_heads_q});
  if (c.alibi_rank == 1) values.alibi_slopes = DenseTensor(DType::kFloat32, {c.num_heads_q});
  if (c.alibi_rank == 2) {
    values.alibi_slopes = DenseTensor(DType::kFloat32, {c.batch, c.num_heads_q});
  }
  make_index_tensors(c, values);
  if (c.block_mask_heads > 0) {
    const auto tiles = [](int64_t length, int64_t size) { return (length + size - 1) / size; };
    values.block_mask = DenseTensor(
        DType::kUInt8,
        {c.block_mask_heads, tiles(c.seqlen_q, c.block_size_q), tiles(c.seqlen_k, c.block_size_k)});
    fill_mask(values.block_mask, random);
  }
  if (c.tier == Tier::kEqual) {
    fill_equal(c, values, random);
  } else {
    fill_mask(values.mask, random);
    if (c.tier == Tier::kDominant) {
      fill_dominant(c, values, random);
    } else {
      fill_statistical(c, values, random);
    }
  }
  return values;
}

Values poisoned(const Case& c, const Values& values, double poison) {
  Values result = values;
  std::vector<bool> key_seen(
      static_cast<size_t>(values.k.count() / std::max<int64_t>(c.head_dim, 1)));
  std::vector<bool> bias_seen(static_cast<size_t>(values.bias.present ? values.bias.count() : 0));
  int64_t first_query = 0;
  const int64_t group = c.num_heads_q / std::max<int64_t>(c.num_heads_kv, 1);
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t h = 0; h < c.num_heads_q; ++h) {
      for (int64_t i = 0; i < c.query_length(b); ++i) {
        bool any = false;
        for (int64_t j = 0; j < c.key_length(b); ++j) {
          if (!visible(c, values, b, h, i, j)) continue;
          any = true;
          const KeyPlace place = key_place(c, b, j);
          const int64_t row =
              c.packed_k() ? place.second : place.first * values.k.shape[1] + place.second;
          key_seen[static_cast<size_t>(row * c.num_heads_kv + h / group)] = true;
          if (values.bias.present) {
            bias_seen[static_cast<size_t>(broadcast_index(values.bias, b, h, i, j))] = true;
          }
        }
        if (any) continue;
        const int64_t row = (first_query + i) * c.num_heads_q + h;
        for (int64_t d = 0; d < c.head_dim; ++d) result.q.set(row * c.head_dim + d, poison);
        for (int64_t d = 0; d < c.head_dim_v; ++d) result.dout.set(row * c.head_dim_v + d, poison);
        if (!c.dlse || c.sink) continue;  // a sink's gradient receives dlse
        if (c.varlen) {
          result.dlse.put(poison, h, first_query + i);
        } else {
          result.dlse.put(poison, b, h, i);
        }
      }
    }
    first_query += c.query_length(b);
  }
  for (size_t row = 0; row < key_seen.size(); ++row) {
    if (key_seen[row]) continue;
    const int64_t at = static_cast<int64_t>(row);
    for (int64_t d = 0; d < c.head_dim; ++d) result.k.set(at * c.head_dim + d, poison);
    for (int64_t d = 0; d < c.head_dim_v; ++d) result.v.set(at * c.head_dim_v + d, poison);
  }
  for (size_t at = 0; at < bias_seen.size(); ++at) {
    if (!bias_seen[at]) result.bias.set(static_cast<int64_t>(at), poison);
  }
  return result;
}

Results empty_results(const Case& c, const Values& values) {
  Results results;
  results.out = DenseTensor(c.dtype, query_shape(c, c.head_dim_v));
  const DType lse_type = c.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  if (c.lse) results.lse = DenseTensor(lse_type, lse_shape(c));
  if (c.keep) {
    results.keep = DenseTensor(DType::kUInt8, {c.batch, c.num_heads_q, c.seqlen_q, c.seqlen_k});
  }
  if (!c.backward) return results;
  results.dq = DenseTensor(c.dtype, values.q.shape);
  results.dk = DenseTensor(c.dtype, values.k.shape);
  results.dv = DenseTensor(c.dtype, values.v.shape);
  if (c.dbias) results.dbias = DenseTensor(values.bias.dtype, values.bias.shape);
  if (c.dsink) results.dsink = DenseTensor(DType::kFloat32, values.sink.shape);
  return results;
}

}  // namespace attentile::conformance

// SPDX-License-Identifier: Apache-2.0
// Cutting cases and results.
#include "property/slices.h"

#include <algorithm>
#include <cstring>

#include "support/random.h"

namespace attentile::property {
namespace {

using testing::Random;

// Along an axis counted from the end of four, where the tensor has it and does not broadcast it.
DenseTensor slice_broadcast(const DenseTensor& tensor, int axis_of_four, int64_t begin,
                            int64_t count) {
  const int axis = axis_of_four - (4 - tensor.rank());
  if (!tensor.present || axis < 0 || tensor.shape[static_cast<size_t>(axis)] == 1) return tensor;
  return slice(tensor, axis, begin, count);
}

std::vector<int32_t> part_of(const std::vector<int32_t>& values, int64_t begin, int64_t count) {
  if (values.empty()) return {};
  return {values.begin() + begin, values.begin() + begin + count};
}

int64_t heads_of_generator(const Case& c) {
  return c.dropout_num_heads_q > 0 ? c.dropout_num_heads_q : c.num_heads_q;
}

void set_shape(conformance::Broadcast& broadcast, const DenseTensor& tensor) {
  if (tensor.present) broadcast.shape = tensor.shape;
}

int64_t first_row(const std::vector<int32_t>& lengths, int64_t b) {
  int64_t row = 0;
  for (int64_t n = 0; n < b; ++n) row += lengths[static_cast<size_t>(n)];
  return row;
}

// A packed tensor's rows as a batch of one.
DenseTensor unpack(const DenseTensor& tensor, int64_t begin, int64_t count) {
  if (!tensor.present) return {};
  DenseTensor result = slice(tensor, 0, begin, count);
  result.shape.insert(result.shape.begin(), 1);
  return result;
}

DenseTensor unpack_lse(const DenseTensor& tensor, int64_t begin, int64_t count) {
  if (!tensor.present) return {};
  DenseTensor result = slice(tensor, 1, begin, count);
  result.shape.insert(result.shape.begin(), 1);
  return result;
}

}  // namespace

DenseTensor slice(const DenseTensor& tensor, int axis, int64_t begin, int64_t count) {
  if (!tensor.present) return {};
  std::vector<int64_t> shape = tensor.shape;
  const size_t at = static_cast<size_t>(axis);
  const int64_t size = shape[at];
  shape[at] = count;
  DenseTensor result(tensor.dtype, shape);
  int64_t inner = size_of(tensor.dtype);
  for (size_t a = at + 1; a < shape.size(); ++a) inner *= shape[a];
  int64_t outer = 1;
  for (size_t a = 0; a < at; ++a) outer *= shape[a];
  for (int64_t n = 0; n < outer && count > 0 && inner > 0; ++n) {
    std::memcpy(result.bytes.data() + n * count * inner,
                tensor.bytes.data() + (n * size + begin) * inner,
                static_cast<size_t>(count * inner));
  }
  return result;
}

Case feature_case(uint64_t seed, DType dtype, bool few_queries) {
  Random random(testing::mix_seed(seed, 40));
  Case c;
  c.name = "property";
  c.seed = seed;
  c.dtype = dtype;
  c.batch = 4;
  c.seqlen_q = random.pick<int64_t>({4, 33, 45, 70});
  c.seqlen_k = random.pick<int64_t>({29, 64, 83, 150});
  if (few_queries) {
    c.seqlen_q = random.integer(2, 8);
    c.seqlen_k = random.pick<int64_t>({512, 513, 1100, 1537});
  }
  c.num_heads_kv = 3;
  c.num_heads_q = c.num_heads_kv * random.pick<int64_t>({1, 2, 3});
  c.head_dim = random.pick<int64_t>({5, 16, 24, 64});
  c.head_dim_v = random.pick<int64_t>({7, 16, 32});
  c.backward = true;
  c.causal = random.chance(0.4);
  if (random.chance(0.3)) c.alignment = Alignment::kTopLeft;
  if (random.chance(0.3)) {
    c.window_left = random.integer(0, 40);
    c.window_right = random.integer(0, 20);
  }
  const std::vector<int64_t> whole = {c.batch, c.num_heads_q, c.seqlen_q, c.seqlen_k};
  if (random.chance(0.4)) c.bias = {true, DType::kFloat32, whole};
  c.dbias = c.bias.present;
  if (random.chance(0.3)) c.mask = {true, DType::kBool, whole};
  if (random.chance(0.3)) c.alibi_rank = 2;
  if (random.chance(0.3)) c.softcap = 4.0;
  c.sink = random.chance(0.3);
  if (!few_queries && random.chance(0.25)) {
    c.block_mask_heads = c.num_heads_q;
    c.block_size_q = 16;
    c.block_size_k = 24;
  }
  if (!few_queries && random.chance(0.5)) {
    c.dropout_p = 0.3;
    c.dropout_seed = random.bits();
    c.dropout_offset = random.bits();
    c.batch_base = 2;
    c.head_base = 1;
    c.dropout_num_heads_q = c.num_heads_q + 4;
  }
  if (random.chance(0.3)) {
    for (int64_t b = 0; b < c.batch; ++b) {
      c.seqused_k.push_back(static_cast<int32_t>(random.integer(0, c.seqlen_k)));
    }
  }
  c.dlse = random.chance(0.4);
  c.fast_memory_bytes = 4096;
  c.num_threads = 1;
  return c;
}

Part batch_part(const Case& c, const Values& values, int64_t begin, int64_t count) {
  Part part{c, values};
  part.c.batch = count;
  part.c.batch_base = c.batch_base + begin;
  part.c.dropout_num_heads_q = heads_of_generator(c);
  part.c.seqused_k = part_of(c.seqused_k, begin, count);
  for (DenseTensor* tensor : {&part.values.q, &part.values.k, &part.values.v, &part.values.dout,
                              &part.values.dlse, &part.values.seqused_k}) {
    *tensor = slice(*tensor, 0, begin, count);
  }
  part.values.bias = slice_broadcast(values.bias, 0, begin, count);
  part.values.mask = slice_broadcast(values.mask, 0, begin, count);
  if (c.alibi_rank == 2) part.values.alibi_slopes = slice(values.alibi_slopes, 0, begin, count);
  set_shape(part.c.bias, part.values.bias);
  set_shape(part.c.mask, part.values.mask);
  return part;
}

Part head_part(const Case& c, const Values& values, int64_t begin, int64_t count) {
  const int64_t group = c.num_heads_q / c.num_heads_kv;
  const int64_t begin_q = begin * group;
  const int64_t count_q = count * group;
  Part part{c, values};
  part.c.num_heads_q = count_q;
  part.c.num_heads_kv = count;
  part.c.head_base = c.head_base + begin_q;
  part.c.dropout_num_heads_q = heads_of_generator(c);
  part.values.q = slice(values.q, 2, begin_q, count_q);
  part.values.k = slice(values.k, 2, begin, count);
  part.values.v = slice(values.v, 2, begin, count);
  part.values.dout = slice(values.dout, 2, begin_q, count_q);
  part.values.dlse = slice(values.dlse, 1, begin_q, count_q);
  part.values.bias = slice_broadcast(values.bias, 1, begin_q, count_q);
  part.values.mask = slice_broadcast(values.mask, 1, begin_q, count_q);
  part.values.sink = slice(values.sink, 0, begin_q, count_q);
  if (c.alibi_rank > 0) {
    part.values.alibi_slopes = slice(values.alibi_slopes, c.alibi_rank - 1, begin_q, count_q);
  }
  if (c.block_mask_heads > 1) {
    part.values.block_mask = slice(values.block_mask, 0, begin_q, count_q);
    part.c.block_mask_heads = count_q;
  }
  set_shape(part.c.bias, part.values.bias);
  set_shape(part.c.mask, part.values.mask);
  return part;
}

Part key_part(const Case& c, const Values& values, int64_t begin, int64_t count) {
  Part part{c, values};
  const int64_t aligned = c.alignment == Alignment::kTopLeft ? 0 : c.seqlen_k - c.seqlen_q;
  part.c.position_offset = c.position_offset.value_or(aligned) - begin;
  part.c.key_base = c.key_base + begin;
  part.c.seqlen_k = count;
  part.values.k = slice(values.k, 1, begin, count);
  part.values.v = slice(values.v, 1, begin, count);
  part.values.bias = slice_broadcast(values.bias, 3, begin, count);
  part.values.mask = slice_broadcast(values.mask, 3, begin, count);
  set_shape(part.c.bias, part.values.bias);
  set_shape(part.c.mask, part.values.mask);
  return part;
}

Part sequence_part(const Case& c, const Values& values, int64_t b) {
  Part part{c, values};
  const size_t at = static_cast<size_t>(b);
  const int64_t row_q = first_row(c.lengths_q, b);
  const int64_t row_k = first_row(c.lengths_k, b);
  const int64_t length_q = c.lengths_q[at];
  const int64_t length_k = c.lengths_k[at];
  part.c.varlen = false;
  part.c.lengths_q.clear();
  part.c.lengths_k.clear();
  part.c.batch = 1;
  part.c.batch_base = c.batch_base + b;
  part.c.dropout_num_heads_q = heads_of_generator(c);
  part.c.seqlen_q = length_q;
  part.c.seqlen_k = length_k;
  part.c.seqused_k = part_of(c.seqused_k, b, 1);
  part.values.cu_seqlens_q = {};
  part.values.cu_seqlens_k = {};
  part.values.q = unpack(values.q, row_q, length_q);
  part.values.k = unpack(values.k, row_k, length_k);
  part.values.v = unpack(values.v, row_k, length_k);
  part.values.dout = unpack(values.dout, row_q, length_q);
  part.values.dlse = unpack_lse(values.dlse, row_q, length_q);
  part.values.seqused_k = slice(values.seqused_k, 0, b, 1);
  const int64_t lengths[4] = {1, c.num_heads_q, length_q, length_k};
  const int64_t begins[4] = {b, 0, 0, 0};
  for (int axis : {0, 2, 3}) {
    part.values.bias = slice_broadcast(part.values.bias, axis, begins[axis], lengths[axis]);
    part.values.mask = slice_broadcast(part.values.mask, axis, begins[axis], lengths[axis]);
  }
  if (c.alibi_rank == 2) part.values.alibi_slopes = slice(values.alibi_slopes, 0, b, 1);
  if (c.block_mask_heads > 0) {
    const auto tiles = [](int64_t length, int64_t size) { return (length + size - 1) / size; };
    part.values.block_mask = slice(slice(values.block_mask, 1, 0, tiles(length_q, c.block_size_q)),
                                   2, 0, tiles(length_k, c.block_size_k));
  }
  set_shape(part.c.bias, part.values.bias);
  set_shape(part.c.mask, part.values.mask);
  return part;
}

Results batch_results(const Case& c, const Results& whole, int64_t begin, int64_t count) {
  Results part = whole;
  for (DenseTensor* tensor : {&part.out, &part.lse, &part.keep, &part.dq, &part.dk, &part.dv}) {
    *tensor = slice(*tensor, 0, begin, count);
  }
  part.dsink = {};  // summed over the batch
  part.dbias = whole.dbias.rank() == 4 && whole.dbias.shape[0] == c.batch
                   ? slice(whole.dbias, 0, begin, count)
                   : DenseTensor();
  return part;
}

Results head_results(const Case& c, const Results& whole, int64_t begin, int64_t count) {
  const int64_t group = c.num_heads_q / c.num_heads_kv;
  Results part = whole;
  part.out = slice(whole.out, 2, begin * group, count * group);
  part.lse = slice(whole.lse, 1, begin * group, count * group);
  part.keep = slice(whole.keep, 1, begin * group, count * group);
  part.dq = slice(whole.dq, 2, begin * group, count * group);
  part.dk = slice(whole.dk, 2, begin, count);
  part.dv = slice(whole.dv, 2, begin, count);
  part.dsink = slice(whole.dsink, 0, begin * group, count * group);
  if (whole.dbias.present) part.dbias = slice(whole.dbias, 1, begin * group, count * group);
  return part;
}

Results sequence_results(const Case& c, const Results& whole, int64_t b) {
  const size_t at = static_cast<size_t>(b);
  const int64_t row_q = first_row(c.lengths_q, b);
  const int64_t row_k = first_row(c.lengths_k, b);
  Results part;
  part.out = unpack(whole.out, row_q, c.lengths_q[at]);
  part.lse = unpack_lse(whole.lse, row_q, c.lengths_q[at]);
  part.dq = unpack(whole.dq, row_q, c.lengths_q[at]);
  part.dk = unpack(whole.dk, row_k, c.lengths_k[at]);
  part.dv = unpack(whole.dv, row_k, c.lengths_k[at]);
  if (whole.dbias.present) {
    part.dbias =
        slice(slice(slice(whole.dbias, 0, b, 1), 2, 0, c.lengths_q[at]), 3, 0, c.lengths_k[at]);
  }
  return part;
}

}  // namespace attentile::property

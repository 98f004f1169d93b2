// SPDX-License-Identifier: Apache-2.0
// Shapes and dtypes of the inputs: q, k, v and the terms of the logits. Sizes of the problem come
// from q, k and v (and cu_seqlens_q); everything else must fit them.
#include <cmath>
#include <cstdint>

#include "validate_call.h"
#include "validate_text.h"

namespace attentile::validation {
namespace {

constexpr int64_t kMaxHeadDim = 512;
constexpr const char* kScoresShape = "[batch, num_heads_q, seqlen_q, seqlen_k]";
constexpr const char* kPackedScoresShape = "[batch, num_heads_q, max_seqlen_q, max_seqlen_k]";

// Index arrays that cannot be served together, or in this pass.
Status check_combination(const Call& call) {
  const AttentionInputs& in = call.inputs;
  if (call.backward()) {
    const Argument forward_only[] = {{"block_table", &in.block_table},
                                     {"cache_batch_idx", &in.cache_batch_idx},
                                     {"leftpad_k", &in.leftpad_k}};
    for (const Argument& argument : forward_only) {
      if (argument.absent()) continue;
      return unsupported("{}: is given, but only the forward pass supports it", argument.name);
    }
  }
  if (call.packed_k() && !call.packed_q()) {
    return invalid("cu_seqlens_q: is missing, but cu_seqlens_k is given");
  }
  if (call.paged() && call.packed_k()) {
    return invalid(
        "cu_seqlens_k: is given with block_table, but the lengths of paged keys are seqused_k's");
  }
  if (call.paged() && !in.seqused_k.present()) {
    return invalid("seqused_k: is missing, but block_table needs it");
  }
  if (in.cache_batch_idx.present() && (call.paged() || call.packed_k())) {
    return invalid("cache_batch_idx: is given with {}, but k then has no rows per batch entry",
                   call.paged() ? "block_table" : "cu_seqlens_k");
  }
  return {};
}

Status check_head_dim(const Argument& argument, const char* label, int64_t size) {
  if (size >= 1 && size <= kMaxHeadDim) return {};
  return invalid("{}: {} is {}, but it must be in [1, {}]", argument.name, label, size,
                 kMaxHeadDim);
}

Status check_q(Call* call) {
  const TensorView& view = call->inputs.q;
  const Argument q = {"q", &view};
  const DType dtype = view.dtype;
  if (dtype != DType::kFloat32 && dtype != DType::kFloat16 && dtype != DType::kBFloat16 &&
      dtype != DType::kFloat64) {
    return invalid("q: dtype is {}, but it must be float32, float16, bfloat16 or float64", dtype);
  }
  Problem& p = call->problem;
  p.dtype = dtype;
  const int64_t* sizes = view.shape;
  if (call->packed_q()) {
    Status status = expect_shape(q, {{"total_q"}, {"num_heads_q"}, {"head_dim"}});
    if (!status.ok()) return status;
    const TensorView& lengths = call->inputs.cu_seqlens_q;
    status = expect_shape({"cu_seqlens_q", &lengths}, {{"batch + 1"}});
    if (!status.ok()) return status;
    if (lengths.shape[0] < 1) {
      return invalid("cu_seqlens_q: size is 0, but it must be batch + 1, at least 1");
    }
    p.varlen = true;
    p.batch = lengths.shape[0] - 1;
    p.total_q = sizes[0];
    p.q = make_array(view, {-1, 0, 1, 2});
    ++sizes;
  } else {
    Status status = expect_shape(q, {{"batch"}, {"seqlen_q"}, {"num_heads_q"}, {"head_dim"}});
    if (!status.ok()) return status;
    p.batch = sizes[0];
    p.max_seqlen_q = sizes[1];
    p.total_q = sizes[0] * sizes[1];
    p.q = make_array(view, {0, 1, 2, 3});
    sizes += 2;
  }
  p.num_heads_q = sizes[0];
  p.head_dim = sizes[1];
  return check_head_dim(q, "head_dim", p.head_dim);
}

// k and v; the first sizes of v are those of k.
Status check_k_v(Call* call) {
  Problem& p = call->problem;
  const TensorView& view = call->inputs.k;
  const TensorView& view_v = call->inputs.v;
  const Argument k = {"k", &view};
  const Argument v = {"v", &view_v};
  if (Status status = expect_dtype(k, p.dtype, "q"); !status.ok()) return status;
  if (Status status = expect_dtype(v, p.dtype, "q"); !status.ok()) return status;
  Status status;
  const int64_t* n = view.shape;
  const Size head_dim = {"head_dim", p.head_dim, "q"};
  if (call->packed_k()) {
    status = expect_shape(k, {{"total_k"}, {"num_heads_kv"}, head_dim});
    if (!status.ok()) return status;
    status = expect_shape(v, {{"total_k", n[0], "k"}, {"num_heads_kv", n[1], "k"}, {"head_dim_v"}});
    if (!status.ok()) return status;
    p.total_k = n[0];
    p.batch_k = 1;
    p.k = make_array(view, {-1, 0, 1, 2});
    p.v = make_array(view_v, {-1, 0, 1, 2});
  } else {
    Size rows = {"batch", p.batch, call->packed_q() ? "cu_seqlens_q" : "q"};
    if (call->inputs.cache_batch_idx.present()) rows = {"batch_cache"};
    if (call->paged()) rows = {"num_pages"};
    const char* keys = call->paged() ? "page_size" : "seqlen_k";
    status = expect_shape(k, {rows, {keys}, {"num_heads_kv"}, head_dim});
    if (!status.ok()) return status;
    status = expect_shape(
        v,
        {{rows.label, n[0], "k"}, {keys, n[1], "k"}, {"num_heads_kv", n[2], "k"}, {"head_dim_v"}});
    if (!status.ok()) return status;
    p.batch_k = n[0];
    p.max_seqlen_k = n[1];
    p.k = make_array(view, {0, 1, 2, 3});
    p.v = make_array(view_v, {0, 1, 2, 3});
  }
  p.num_heads_kv = n[view.rank - 2];
  p.head_dim_v = view_v.shape[view_v.rank - 1];
  return check_head_dim(v, "head_dim_v", p.head_dim_v);
}

Status check_heads(Problem* p) {
  if (p->num_heads_kv == 0 && p->num_heads_q > 0) {
    return invalid("k: num_heads_kv is 0, but q has num_heads_q {}", p->num_heads_q);
  }
  if (p->num_heads_kv > 0 && p->num_heads_q % p->num_heads_kv != 0) {
    return invalid("q: num_heads_q is {}, but it must be a multiple of num_heads_kv, which is {}",
                   p->num_heads_q, p->num_heads_kv);
  }
  p->group_size = p->num_heads_kv > 0 ? p->num_heads_q / p->num_heads_kv : 0;
  return {};
}

Status check_bias(Call* call) {
  Problem& p = call->problem;
  const Argument bias = {"bias", &call->inputs.bias};
  const Argument mask = {"mask", &call->inputs.mask};
  const int64_t scores[4] = {p.batch, p.num_heads_q, p.max_seqlen_q, p.max_seqlen_k};
  const char* text = p.varlen ? kPackedScoresShape : kScoresShape;
  if (!bias.absent()) {
    const DType dtype = bias.view->dtype;
    if (dtype != p.dtype && dtype != DType::kFloat32) {
      return invalid("bias: dtype is {}, but it must be float32 or that of q, which is {}", dtype,
                     p.dtype);
    }
    if (Status status = broadcast(bias, scores, text, &p.bias); !status.ok()) return status;
  }
  if (mask.absent()) return {};
  if (Status status = expect_mask_dtype(mask); !status.ok()) return status;
  return broadcast(mask, scores, text, &p.mask);
}

Status check_per_head(Call* call) {
  Problem& p = call->problem;
  const Argument sink = {"sink", &call->inputs.sink};
  const Argument slopes = {"alibi_slopes", &call->inputs.alibi_slopes};
  const Size heads = {"num_heads_q", p.num_heads_q, "q"};
  Status status;
  if (!sink.absent()) {
    if (status = expect_dtype(sink, DType::kFloat32, nullptr); !status.ok()) return status;
    if (status = expect_shape(sink, {heads}); !status.ok()) return status;
    p.sink = make_array(*sink.view, {0});
  }
  if (slopes.absent()) return {};
  if (status = expect_dtype(slopes, DType::kFloat32, nullptr); !status.ok()) return status;
  if (slopes.view->rank == 1) {
    if (status = expect_shape(slopes, {heads}); !status.ok()) return status;
    p.alibi_slopes = make_array(*slopes.view, {-1, 0});
    return {};
  }
  if (slopes.view->rank != 2) {
    return invalid(
        "alibi_slopes: rank is {}, but it must be 1 or 2: [num_heads_q] or [batch, "
        "num_heads_q]",
        slopes.view->rank);
  }
  status = expect_shape(slopes, {{"batch", p.batch, p.varlen ? "cu_seqlens_q" : "q"}, heads});
  p.alibi_slopes = make_array(*slopes.view, {0, 1});
  return status;
}

// ceil(length / size), also for sizes near 2^63.
int64_t num_tiles(int64_t length, int64_t size) {
  return length / size + (length % size != 0 ? 1 : 0);
}

Status check_block_mask(Call* call) {
  Problem& p = call->problem;
  const AttentionOptions& options = call->options;
  const Argument pattern = {"block_mask", &call->inputs.block_mask};
  if (pattern.absent()) return {};
  if (Status status = expect_mask_dtype(pattern); !status.ok()) return status;
  Status status = expect_shape(pattern, {{"num_heads_q or 1"}, {"tiles_q"}, {"tiles_k"}});
  if (!status.ok()) return status;
  const struct {
    const char* name;
    const char* length_name;
    int64_t size, length;
    int64_t* result;
  } sides[2] = {{"block_size_q", "longest query sequence", options.block_size_q, p.max_seqlen_q,
                 &p.block_size_q},
                {"block_size_k", "longest key sequence", options.block_size_k, p.max_seqlen_k,
                 &p.block_size_k}};
  const int64_t* shape = pattern.view->shape;
  if (shape[0] != 1 && shape[0] != p.num_heads_q) {
    return invalid(
        "block_mask: shape is {}, but its first size must be 1 or num_heads_q, which is "
        "{}",
        shape_of(*pattern.view), p.num_heads_q);
  }
  for (int i = 0; i < 2; ++i) {
    const auto& side = sides[i];
    if (side.size < 1) {
      return invalid("{}: is {}, but block_mask needs at least 1", side.name, side.size);
    }
    const int64_t tiles = num_tiles(side.length, side.size);
    if (shape[1 + i] != tiles) {
      return invalid("block_mask: tiles_{} is {}, but {} {} over the {} of {} makes {}",
                     i == 0 ? "q" : "k", shape[1 + i], side.name, side.size, side.length_name,
                     side.length, tiles);
    }
    // A tile longer than the sequence is the sequence; so sums of tiles cannot overflow.
    *side.result = side.size < side.length ? side.size : max64(side.length, 1);
  }
  p.block_mask = make_array(*pattern.view, {0, 1, 2});
  return {};
}

Status check_dropout_heads(Call* call) {
  Problem& p = call->problem;
  const int64_t whole = call->options.dropout_num_heads_q;
  const int64_t base = call->options.head_base;
  if (whole == 0 && base == 0) {
    p.dropout.num_heads_q = p.num_heads_q;
    return {};
  }
  int64_t least = 0;
  if (__builtin_add_overflow(base, p.num_heads_q, &least)) {
    return invalid("head_base: is {}, but with the num_heads_q {} of q it must stay below 2^63",
                   base, p.num_heads_q);
  }
  if (whole < least) {
    return invalid(
        "dropout_num_heads_q: is {}, but it must be at least {}: head_base is {} and q has "
        "num_heads_q {}",
        whole, least, base, p.num_heads_q);
  }
  p.dropout.num_heads_q = whole;
  return {};
}

}  // namespace

Status check_tokens(Call* call) {
  const Argument needed[] = {
      {"q", &call->inputs.q}, {"k", &call->inputs.k}, {"v", &call->inputs.v}};
  for (const Argument& argument : needed) {
    if (Status status = require(argument, "it must be given"); !status.ok()) return status;
  }
  if (Status status = check_combination(*call); !status.ok()) return status;
  if (Status status = check_q(call); !status.ok()) return status;
  if (Status status = check_k_v(call); !status.ok()) return status;
  if (Status status = check_heads(&call->problem); !status.ok()) return status;
  Problem& p = call->problem;
  p.softmax_scale =
      call->options.softmax_scale.value_or(1.0 / std::sqrt(static_cast<double>(p.head_dim)));
  return {};
}

Status check_terms(Call* call) {
  if (Status status = check_bias(call); !status.ok()) return status;
  if (Status status = check_per_head(call); !status.ok()) return status;
  if (Status status = check_block_mask(call); !status.ok()) return status;
  return check_dropout_heads(call);
}

}  // namespace attentile::validation

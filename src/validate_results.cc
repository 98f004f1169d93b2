// SPDX-License-Identifier: Apache-2.0
// What a call writes, and what the backward pass reads of the forward pass: shapes and dtypes
// follow from the inputs.
#include <cstdint>

#include "validate_call.h"
#include "validate_text.h"

namespace attentile::validation {
namespace {

// out, dout, dq: [batch, seqlen_q, num_heads_q, column] or packed [total_q, ...], in q's dtype.
Status check_query_tokens(const Call& call, const Argument& argument, const Size& column,
                          Array4* array) {
  const Problem& p = call.problem;
  if (Status status = expect_dtype(argument, p.dtype, "q"); !status.ok()) return status;
  const Size heads = {"num_heads_q", p.num_heads_q, "q"};
  if (call.packed_q()) {
    Status status = expect_shape(argument, {{"total_q", p.total_q, "q"}, heads, column});
    if (status.ok()) *array = make_array(*argument.view, {-1, 0, 1, 2});
    return status;
  }
  Status status = expect_shape(
      argument, {{"batch", p.batch, "q"}, {"seqlen_q", p.max_seqlen_q, "q"}, heads, column});
  if (status.ok()) *array = make_array(*argument.view, {0, 1, 2, 3});
  return status;
}

// dk, dv: as k, with the last size given. The backward pass has no pages and no cache rows.
Status check_key_tokens(const Call& call, const Argument& argument, const Size& column,
                        Array4* array) {
  const Problem& p = call.problem;
  if (Status status = expect_dtype(argument, p.dtype, "q"); !status.ok()) return status;
  const Size heads = {"num_heads_kv", p.num_heads_kv, "k"};
  if (call.packed_k()) {
    Status status = expect_shape(argument, {{"total_k", p.total_k, "k"}, heads, column});
    if (status.ok()) *array = make_array(*argument.view, {-1, 0, 1, 2});
    return status;
  }
  Status status = expect_shape(
      argument, {{"batch", p.batch, "k"}, {"seqlen_k", p.max_seqlen_k, "k"}, heads, column});
  if (status.ok()) *array = make_array(*argument.view, {0, 1, 2, 3});
  return status;
}

// lse, dlse: [batch, num_heads_q, seqlen_q] or packed [num_heads_q, total_q].
Status check_lse(const Call& call, const Argument& argument, Array4* array) {
  const Problem& p = call.problem;
  const DType dtype = p.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  if (Status status = expect_dtype(argument, dtype, nullptr); !status.ok()) return status;
  const Size heads = {"num_heads_q", p.num_heads_q, "q"};
  if (call.packed_q()) {
    Status status = expect_shape(argument, {heads, {"total_q", p.total_q, "q"}});
    if (status.ok()) *array = make_array(*argument.view, {-1, 0, 1});
    return status;
  }
  Status status =
      expect_shape(argument, {{"batch", p.batch, "q"}, heads, {"seqlen_q", p.max_seqlen_q, "q"}});
  if (status.ok()) *array = make_array(*argument.view, {0, 1, 2});
  return status;
}

Status check_keep(Call* call) {
  Problem& p = call->problem;
  const Argument keep = {"keep", &call->outputs.keep, Use::kWritten};
  if (keep.absent() || call->backward()) return {};
  if (call->packed_q())
    return invalid(
        "keep: is given with cu_seqlens_q, but only a call of equal lengths can write it");
  if (Status status = expect_dtype(keep, DType::kUInt8, nullptr); !status.ok()) return status;
  Status status =
      expect_shape(keep, {{"batch", p.batch, "q"},
                          {"num_heads_q", p.num_heads_q, "q"},
                          {"seqlen_q", p.max_seqlen_q, "q"},
                          {"seqlen_k", p.max_seqlen_k, call->paged() ? "seqused_k" : "k"}});
  if (status.ok()) p.keep = make_array(*keep.view, {0, 1, 2, 3});
  return status;
}

Status check_token_gradients(Call* call) {
  Problem& p = call->problem;
  const AttentionGradients& gradients = *call->gradients;
  const Size head_dim = {"head_dim", p.head_dim, "q"};
  const Size head_dim_v = {"head_dim_v", p.head_dim_v, "v"};
  const Argument dout = {"dout", &gradients.dout};
  const Argument dlse = {"dlse", &gradients.dlse};
  const Argument dq = {"dq", &gradients.dq, Use::kWritten};
  const Argument dk = {"dk", &gradients.dk, Use::kWritten};
  const Argument dv = {"dv", &gradients.dv, Use::kWritten};
  for (const Argument& argument : {dout, dq, dk, dv}) {
    Status status = require(argument, "the backward pass needs it");
    if (!status.ok()) return status;
  }
  if (Status s = check_query_tokens(*call, dout, head_dim_v, &p.dout); !s.ok()) return s;
  if (!dlse.absent()) {
    if (Status s = check_lse(*call, dlse, &p.dlse); !s.ok()) return s;
  }
  if (Status s = check_query_tokens(*call, dq, head_dim, &p.dq); !s.ok()) return s;
  if (Status s = check_key_tokens(*call, dk, head_dim, &p.dk); !s.ok()) return s;
  return check_key_tokens(*call, dv, head_dim_v, &p.dv);
}

Status check_dbias(Call* call) {
  Problem& p = call->problem;
  const TensorView& bias = call->inputs.bias;
  const TensorView& view = call->gradients->dbias;
  if (!view.present()) return {};
  if (!bias.present()) return invalid("dbias: is given, but bias is missing");
  const Argument dbias = {"dbias", &view, Use::kWritten};
  if (Status status = expect_dtype(dbias, bias.dtype, "bias"); !status.ok()) return status;
  bool same = view.rank == bias.rank;
  for (int i = 0; i < view.rank && same; ++i) same = view.shape[i] == bias.shape[i];
  if (!same) {
    return invalid("dbias: shape is {}, but bias has shape {}", shape_of(view), shape_of(bias));
  }
  const int first = 4 - view.rank;
  for (int i = 0; i < 4; ++i) p.dbias_shape[i] = i < first ? 1 : view.shape[i - first];
  p.dbias = make_array(view, {-first, 1 - first, 2 - first, 3 - first});
  return {};
}

Status check_dsink(Call* call) {
  Problem& p = call->problem;
  const Argument dsink = {"dsink", &call->gradients->dsink, Use::kWritten};
  if (dsink.absent()) return {};
  if (!call->inputs.sink.present()) return invalid("dsink: is given, but sink is missing");
  if (Status s = expect_dtype(dsink, DType::kFloat32, nullptr); !s.ok()) return s;
  Status status = expect_shape(dsink, {{"num_heads_q", p.num_heads_q, "q"}});
  if (status.ok()) p.dsink = make_array(*dsink.view, {0});
  return status;
}

}  // namespace

Status check_results(Call* call) {
  Problem& p = call->problem;
  const Argument out = {"out", &call->outputs.out};
  const Argument lse = {"lse", &call->outputs.lse};
  if (Status s = require(out, "it must be given"); !s.ok()) return s;
  if (call->backward()) {
    if (Status s = require(lse, "the backward pass needs it"); !s.ok()) return s;
  }
  const Size head_dim_v = {"head_dim_v", p.head_dim_v, "v"};
  if (Status s = check_query_tokens(*call, out, head_dim_v, &p.out); !s.ok()) return s;
  if (!lse.absent()) {
    if (Status s = check_lse(*call, lse, &p.lse); !s.ok()) return s;
  }
  if (Status s = check_keep(call); !s.ok()) return s;
  if (!call->backward()) return {};
  if (Status s = check_token_gradients(call); !s.ok()) return s;
  if (Status s = check_dbias(call); !s.ok()) return s;
  return check_dsink(call);
}

}  // namespace attentile::validation

// SPDX-License-Identifier: Apache-2.0
// AttentionCall: one small problem with most features on, its inputs and outputs, for tests that
// run it again and again under faults and compare every bit with an undisturbed run.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "attentile/attention.h"
#include "support/dense_tensor.h"
#include "support/random.h"

namespace attentile::testing {

struct CallShape {
  int64_t batch = 2;
  int64_t seqlen_q = 70;
  int64_t seqlen_k = 90;
  int64_t num_heads_q = 4;
  int64_t num_heads_kv = 2;
  int64_t head_dim = 24;
  int64_t head_dim_v = 16;
};

class AttentionCall {
 public:
  explicit AttentionCall(Algorithm algorithm, DType dtype = DType::kFloat32, CallShape shape = {})
      : AttentionCall(algorithm, dtype, shape, Random(7)) {}

  // The forward pass, then the backward pass; stops at the first error.
  Status run(const ExecutionContext& context = {}) {
    Status status = forward(context);
    if (status.ok()) status = backward(context);
    return status;
  }
  Status forward(const ExecutionContext& context = {}) {
    return attention_forward(inputs(), outputs(), options, context);
  }
  Status backward(const ExecutionContext& context = {}) {
    return attention_backward(inputs(), outputs(), gradients(), options, context);
  }
  Result<Plan> plan(bool of_backward, const ExecutionContext& context = {}) {
    return of_backward ? plan_backward(inputs(), outputs(), gradients(), options, context)
                       : plan_forward(inputs(), outputs(), options, context);
  }

  // Every byte of every result, one after the other.
  std::string results() const {
    std::string bytes;
    for (const DenseTensor* tensor : {&out, &lse, &dq, &dk, &dv, &dbias, &dsink}) {
      bytes.append(tensor->bytes.begin(), tensor->bytes.end());
    }
    return bytes;
  }
  void spoil_results() {
    for (DenseTensor* tensor : {&out, &lse, &dq, &dk, &dv, &dbias, &dsink}) {
      for (char& byte : tensor->bytes) byte = '\x5a';
    }
  }
  std::string input_bytes() const {
    std::string bytes;
    for (const DenseTensor* tensor : {&q, &k, &v, &bias, &sink, &dout, &dlse}) {
      bytes.append(tensor->bytes.begin(), tensor->bytes.end());
    }
    return bytes;
  }

  AttentionInputs inputs() const {
    AttentionInputs views;
    views.q = q.view();
    views.k = k.view();
    views.v = v.view();
    views.bias = bias.view();
    views.sink = sink.view();
    return views;
  }
  AttentionOutputs outputs() const {
    AttentionOutputs views;
    views.out = out.view();
    views.lse = lse.view();
    return views;
  }
  AttentionGradients gradients() const {
    AttentionGradients views;
    views.dout = dout.view();
    views.dlse = dlse.view();
    views.dq = dq.view();
    views.dk = dk.view();
    views.dv = dv.view();
    views.dbias = dbias.view();
    views.dsink = dsink.view();
    return views;
  }

  DenseTensor q, k, v, bias, sink, dout, dlse;     // inputs
  DenseTensor out, lse, dq, dk, dv, dbias, dsink;  // results
  AttentionOptions options;

 private:
  AttentionCall(Algorithm algorithm, DType dtype, const CallShape& s, Random random)
      : q(dtype, {s.batch, s.seqlen_q, s.num_heads_q, s.head_dim}),
        k(dtype, {s.batch, s.seqlen_k, s.num_heads_kv, s.head_dim}),
        v(dtype, {s.batch, s.seqlen_k, s.num_heads_kv, s.head_dim_v}),
        bias(dtype, {s.num_heads_q, 1, s.seqlen_k}),
        sink(DType::kFloat32, {s.num_heads_q}),
        dout(dtype, {s.batch, s.seqlen_q, s.num_heads_q, s.head_dim_v}),
        dlse(dtype == DType::kFloat64 ? dtype : DType::kFloat32,
             {s.batch, s.num_heads_q, s.seqlen_q}),
        out(dout),
        lse(dlse),
        dq(q),
        dk(k),
        dv(v),
        dbias(bias),
        dsink(sink) {
    for (DenseTensor* tensor : {&q, &k, &v, &bias, &sink, &dout, &dlse}) {
      for (int64_t i = 0; i < tensor->count(); ++i) tensor->set(i, random.normal());
    }
    options.algorithm = algorithm;
    options.causal = true;
    options.dropout_p = 0.25;
    options.dropout_seed = 11;
    spoil_results();
  }
};

inline constexpr Algorithm kAlgorithms[] = {Algorithm::kReference, Algorithm::kStandard,
                                            Algorithm::kFlash1, Algorithm::kFlash2};

}  // namespace attentile::testing

// SPDX-License-Identifier: Apache-2.0
// Prefill of a prompt: causal attention with 8 query heads on 2 KV heads (GQA).
// Its check needs no second implementation: the first query sees only the first key, so its output
// is that key's value, and its lse is their scaled dot product.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "attentile/attention.h"

int main() {
  constexpr int64_t kSeqlen = 1000, kHeadsQ = 8, kHeadsKv = 2, kHeadDim = 64;
  std::mt19937 engine(1);
  std::normal_distribution<float> normal;
  std::vector<float> q(kSeqlen * kHeadsQ * kHeadDim), k(kSeqlen * kHeadsKv * kHeadDim), v(k.size());
  for (auto* tensor : {&q, &k, &v}) {
    for (float& x : *tensor) x = normal(engine);
  }
  std::vector<float> out(q.size()), lse(kHeadsQ * kSeqlen);

  const auto view = [](std::vector<float>& x, std::initializer_list<int64_t> shape) {
    return attentile::contiguous_view(x.data(), attentile::DType::kFloat32, shape);
  };
  const attentile::AttentionInputs inputs = {.q = view(q, {1, kSeqlen, kHeadsQ, kHeadDim}),
                                             .k = view(k, {1, kSeqlen, kHeadsKv, kHeadDim}),
                                             .v = view(v, {1, kSeqlen, kHeadsKv, kHeadDim})};
  const attentile::AttentionOutputs outputs = {.out = view(out, {1, kSeqlen, kHeadsQ, kHeadDim}),
                                               .lse = view(lse, {1, kHeadsQ, kSeqlen})};
  const attentile::Status status = attentile::attention_forward(inputs, outputs, {.causal = true});
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.message().c_str());
    return 1;
  }

  double worst = 0;
  for (int64_t head = 0; head < kHeadsQ; ++head) {
    const int64_t head_kv = head / (kHeadsQ / kHeadsKv);
    double logit = 0;
    for (int64_t d = 0; d < kHeadDim; ++d) {
      logit += double(q[head * kHeadDim + d]) * k[head_kv * kHeadDim + d] / std::sqrt(kHeadDim);
      worst = std::fmax(worst, std::fabs(out[head * kHeadDim + d] - v[head_kv * kHeadDim + d]));
    }
    worst = std::fmax(worst, std::fabs(lse[head * kSeqlen] - logit));
  }
  std::printf("prefill of %ld tokens: first row within %.1e of its closed form\n",
              static_cast<long>(kSeqlen), worst);
  return worst < 1e-5 ? 0 : 1;
}

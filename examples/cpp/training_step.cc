// SPDX-License-Identifier: Apache-2.0
// One training step: forward, backward, and the gradient of q checked against finite differences
// of loss = sum(out * dout). float64, so that the differences are worth something.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "attentile/attention.h"

using namespace attentile;
constexpr int64_t kBatch = 2, kSeqlen = 33, kHeads = 2, kHeadDim = 16;

// Row-major (batch, seqlen, heads, head_dim), filled with normal numbers.
struct Tensor {
  explicit Tensor(std::mt19937& engine) : data(kBatch * kSeqlen * kHeads * kHeadDim) {
    for (double& x : data) x = std::normal_distribution()(engine);
  }
  TensorView view() const {
    return contiguous_view(data.data(), DType::kFloat64, {kBatch, kSeqlen, kHeads, kHeadDim});
  }
  std::vector<double> data;
};

void require(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.message().c_str());
  std::exit(1);
}

int main() {
  std::mt19937 engine(1);
  Tensor q(engine), k(engine), v(engine), dout(engine), out(engine);
  Tensor dq(engine), dk(engine), dv(engine);
  std::vector<double> lse(kBatch * kHeads * kSeqlen);
  const AttentionInputs inputs = {.q = q.view(), .k = k.view(), .v = v.view()};
  const AttentionOutputs outputs = {
      .out = out.view(),
      .lse = contiguous_view(lse.data(), DType::kFloat64, {kBatch, kHeads, kSeqlen})};
  const AttentionOptions options = {.causal = true, .dropout_p = 0.1, .dropout_seed = 7};
  require(attention_forward(inputs, outputs, options));
  const AttentionGradients gradients = {
      .dout = dout.view(), .dq = dq.view(), .dk = dk.view(), .dv = dv.view()};
  require(attention_backward(inputs, outputs, gradients, options));

  double worst = 0;
  for (size_t i = 0; i < q.data.size(); i += 97) {
    double loss = 0, step = 1e-5, original = q.data[i];
    for (int sign : {1, -1}) {
      q.data[i] = original + sign * step;
      require(attention_forward(inputs, outputs, options));
      for (size_t j = 0; j < dout.data.size(); ++j) loss += sign * out.data[j] * dout.data[j];
    }
    q.data[i] = original;
    worst = std::fmax(worst, std::fabs(loss / (2 * step) - dq.data[i]));
  }
  std::printf("training step: dq within %.1e of finite differences\n", worst);
  return worst < 1e-8 ? 0 : 1;
}

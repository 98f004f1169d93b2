// SPDX-License-Identifier: Apache-2.0
// Three sequences of different lengths, packed without padding, in C. All scores are 0 because k
// is, so every query gets the mean of the values it sees: causal, query i of a sequence sees keys
// 0 to i, and the values count 0, 1, 2, ... from the start of each: the mean is i / 2.
#include <attentile/c_api.h>
#include <math.h>
#include <stdio.h>

enum { kBatch = 3, kTotal = 10, kHeads = 2, kHeadDim = 4 };

static attentile_tensor packed(float* data) {
  attentile_tensor tensor = ATTENTILE_TENSOR_INIT;
  tensor.data = data;
  tensor.rank = 3;
  tensor.shape[0] = kTotal, tensor.stride[0] = kHeads * kHeadDim;
  tensor.shape[1] = kHeads, tensor.stride[1] = kHeadDim;
  tensor.shape[2] = kHeadDim, tensor.stride[2] = 1;
  return tensor;
}

int main(void) {
  const int32_t starts[kBatch + 1] = {0, 5, 7, kTotal};
  static float q_data[kTotal * kHeads * kHeadDim], k_data[kTotal * kHeads * kHeadDim];
  static float v_data[kTotal * kHeads * kHeadDim], out_data[kTotal * kHeads * kHeadDim];
  for (int s = 0; s < kBatch; ++s) {
    for (int n = starts[s] * kHeads * kHeadDim; n < starts[s + 1] * kHeads * kHeadDim; ++n) {
      q_data[n] = 1.0f;
      v_data[n] = (float)(n / (kHeads * kHeadDim) - starts[s]);
    }
  }
  const attentile_tensor q = packed(q_data), k = packed(k_data), v = packed(v_data);
  const attentile_tensor out = packed(out_data);
  attentile_tensor cu_seqlens = ATTENTILE_TENSOR_INIT;
  cu_seqlens.data = (void*)starts;
  cu_seqlens.dtype = ATTENTILE_INT32;
  cu_seqlens.rank = 1, cu_seqlens.shape[0] = kBatch + 1, cu_seqlens.stride[0] = 1;

  attentile_attention_inputs inputs = ATTENTILE_INPUTS_INIT;
  inputs.q = &q, inputs.k = &k, inputs.v = &v;
  inputs.cu_seqlens_q = inputs.cu_seqlens_k = &cu_seqlens;
  attentile_attention_outputs outputs = ATTENTILE_OUTPUTS_INIT;
  outputs.out = &out;
  attentile_options options = ATTENTILE_OPTIONS_INIT;
  options.causal = 1;
  if (attentile_attention_forward(&inputs, &outputs, &options, NULL) != ATTENTILE_OK) {
    return fprintf(stderr, "%s\n", attentile_last_error()), 1;
  }

  float worst = 0;
  for (int s = 0; s < kBatch; ++s) {
    for (int row = starts[s]; row < starts[s + 1]; ++row) {
      const float expected = (float)(row - starts[s]) / 2;
      worst = fmaxf(worst, fabsf(out_data[row * kHeads * kHeadDim] - expected));
    }
  }
  printf("%d sequences in C, attentile %s: error %g\n", kBatch, attentile_version(), worst);
  return worst < 1e-6f ? 0 : 1;
}

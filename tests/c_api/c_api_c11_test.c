// SPDX-License-Identifier: Apache-2.0
// The C ABI as a C program uses it, compiled as C11 with -Wall -Wextra -pedantic -Werror. Each
// function returns NULL, or the text of the check that failed; c_api_test.cc runs them.
#include "c_api/c_api_c11_test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attentile/c_api.h"

#define STRINGIFY_(x) #x
#define STRINGIFY(x) STRINGIFY_(x)
#define CHECK(condition)                                                  \
  do {                                                                    \
    if (!(condition)) return "line " STRINGIFY(__LINE__) ": " #condition; \
  } while (0)

enum { kBatch = 1, kRows = 3, kHeads = 2, kDim = 4, kSize = kBatch * kRows * kHeads * kDim };

static attentile_tensor tokens(float* data) {
  attentile_tensor t = ATTENTILE_TENSOR_INIT;
  t.data = data;
  t.dtype = ATTENTILE_FLOAT32;
  t.rank = 4;
  t.shape[0] = kBatch;
  t.shape[1] = kRows;
  t.shape[2] = kHeads;
  t.shape[3] = kDim;
  t.stride[0] = kRows * kHeads * kDim;
  t.stride[1] = kHeads * kDim;
  t.stride[2] = kDim;
  t.stride[3] = 1;
  return t;
}

static attentile_tensor rows(float* data) {
  attentile_tensor t = ATTENTILE_TENSOR_INIT;
  t.data = data;
  t.rank = 3;
  t.shape[0] = kBatch;
  t.shape[1] = kHeads;
  t.shape[2] = kRows;
  t.stride[0] = kHeads * kRows;
  t.stride[1] = kRows;
  t.stride[2] = 1;
  return t;
}

const char* c11_forward_and_backward(void) {
  float q[kSize], k[kSize], v[kSize], out[kSize], lse[kHeads * kRows];
  float dout[kSize], dq[kSize], dk[kSize], dv[kSize];
  for (int i = 0; i < kSize; ++i) {
    q[i] = k[i] = 0.0F;
    v[i] = (float)(i / (kHeads * kDim));  // the row's number
    dout[i] = 1.0F;
  }
  const attentile_tensor tq = tokens(q), tk = tokens(k), tv = tokens(v), tout = tokens(out);
  const attentile_tensor tdout = tokens(dout), tdq = tokens(dq), tdk = tokens(dk), tdv = tokens(dv);
  const attentile_tensor tlse = rows(lse);
  attentile_attention_inputs inputs = ATTENTILE_INPUTS_INIT;
  attentile_attention_outputs outputs = ATTENTILE_OUTPUTS_INIT;
  attentile_attention_gradients gradients = ATTENTILE_GRADIENTS_INIT;
  attentile_options options = ATTENTILE_OPTIONS_INIT;
  inputs.q = &tq;
  inputs.k = &tk;
  inputs.v = &tv;
  outputs.out = &tout;
  outputs.lse = &tlse;
  gradients.dout = &tdout;
  gradients.dq = &tdq;
  gradients.dk = &tdk;
  gradients.dv = &tdv;
  options.causal = 1;
  CHECK(attentile_attention_forward(&inputs, &outputs, &options, NULL) == ATTENTILE_OK);
  CHECK(strcmp(attentile_last_error(), "") == 0);
  // Equal weights: row i is the mean of 0 .. i, its lse is log(i + 1).
  for (int i = 0; i < kRows; ++i) {
    CHECK(fabsf(out[i * kHeads * kDim] - (float)i / 2.0F) < 1e-6F);
    CHECK(fabsf(lse[i] - logf((float)(i + 1))) < 1e-6F);
  }
  CHECK(attentile_attention_backward(&inputs, &outputs, &gradients, &options, NULL) ==
        ATTENTILE_OK);
  CHECK(fabsf(dv[0] - (1.0F + 0.5F + 1.0F / 3.0F)) < 1e-6F);
  CHECK(fabsf(dv[2 * kHeads * kDim] - 1.0F / 3.0F) < 1e-6F);
  return NULL;
}

const char* c11_initialisers(void) {
  attentile_tensor tensor;
  attentile_attention_inputs inputs;
  attentile_attention_outputs outputs;
  attentile_attention_gradients gradients;
  attentile_options options;
  attentile_executor executor;
  attentile_traffic traffic;
  attentile_context context;
  attentile_plan_info plan;
  attentile_partial_state state;
  attentile_tensor_init(&tensor, sizeof tensor);
  attentile_inputs_init(&inputs, sizeof inputs);
  attentile_outputs_init(&outputs, sizeof outputs);
  attentile_gradients_init(&gradients, sizeof gradients);
  attentile_options_init(&options, sizeof options);
  attentile_executor_init(&executor, sizeof executor);
  attentile_traffic_init(&traffic, sizeof traffic);
  attentile_context_init(&context, sizeof context);
  attentile_plan_info_init(&plan, sizeof plan);
  attentile_partial_state_init(&state, sizeof state);
  CHECK(tensor.struct_size == sizeof tensor && tensor.data == NULL);
  CHECK(inputs.struct_size == sizeof inputs && inputs.block_mask == NULL);
  CHECK(outputs.struct_size == sizeof outputs && outputs.keep == NULL);
  CHECK(gradients.struct_size == sizeof gradients && gradients.dsink == NULL);
  CHECK(options.struct_size == sizeof options && options.window_left == -1);
  CHECK(options.window_right == -1 && options.fast_memory_bytes == 0);
  CHECK(options.atomic_dq == 0 && options.reserved == 0);
  CHECK(executor.struct_size == sizeof executor && executor.num_threads == 1);
  CHECK(traffic.struct_size == sizeof traffic && traffic.bytes_read == 0);
  CHECK(context.struct_size == sizeof context && context.stream == NULL);
  CHECK(plan.struct_size == sizeof plan && plan.notes == NULL);
  CHECK(state.struct_size == sizeof state && state.lse == NULL);
  attentile_options_init(NULL, sizeof options);
  return NULL;
}

const char* c11_names(void) {
  CHECK(strcmp(attentile_status_name(ATTENTILE_OK), "ok") == 0);
  CHECK(strcmp(attentile_status_name(ATTENTILE_INVALID_ARGUMENT), "invalid_argument") == 0);
  CHECK(strcmp(attentile_status_name(ATTENTILE_UNSUPPORTED), "unsupported") == 0);
  CHECK(strcmp(attentile_status_name(ATTENTILE_OUT_OF_MEMORY), "out_of_memory") == 0);
  CHECK(strcmp(attentile_status_name(ATTENTILE_CANCELLED), "cancelled") == 0);
  CHECK(strcmp(attentile_status_name(ATTENTILE_UNAVAILABLE), "unavailable") == 0);
  CHECK(strcmp(attentile_status_name(ATTENTILE_INTERNAL), "internal") == 0);
  CHECK(strcmp(attentile_status_name(-7), "unknown") == 0);
  CHECK(strlen(attentile_version()) >= 5);
  int32_t isas[16];
  const int32_t count = attentile_available_isas(isas, 16);
  CHECK(count >= 1 && count <= 16);
  CHECK(isas[count - 1] == ATTENTILE_SCALAR);
  CHECK(attentile_available_isas(NULL, 0) == count);
  return NULL;
}

// SPDX-License-Identifier: Apache-2.0
// The layout of the C structs is a promise: sizes, offsets and enum values of version 0.1 on
// machines with 64-bit pointers. A field may only ever be added at the end.
#include <gtest/gtest.h>

#include <cstddef>

#include "attentile/attention.h"
#include "attentile/c_api.h"

namespace attentile {
namespace {

static_assert(sizeof(void*) == 8 && sizeof(size_t) == 8);

static_assert(sizeof(attentile_tensor) == 96);
static_assert(offsetof(attentile_tensor, struct_size) == 0);
static_assert(offsetof(attentile_tensor, data) == 8);
static_assert(offsetof(attentile_tensor, dtype) == 16);
static_assert(offsetof(attentile_tensor, device) == 20);
static_assert(offsetof(attentile_tensor, rank) == 24);
static_assert(offsetof(attentile_tensor, shape) == 32);
static_assert(offsetof(attentile_tensor, stride) == 64);

static_assert(sizeof(attentile_attention_inputs) == 120);
static_assert(offsetof(attentile_attention_inputs, q) == 8);
static_assert(offsetof(attentile_attention_inputs, k) == 16);
static_assert(offsetof(attentile_attention_inputs, v) == 24);
static_assert(offsetof(attentile_attention_inputs, bias) == 32);
static_assert(offsetof(attentile_attention_inputs, mask) == 40);
static_assert(offsetof(attentile_attention_inputs, sink) == 48);
static_assert(offsetof(attentile_attention_inputs, alibi_slopes) == 56);
static_assert(offsetof(attentile_attention_inputs, cu_seqlens_q) == 64);
static_assert(offsetof(attentile_attention_inputs, cu_seqlens_k) == 72);
static_assert(offsetof(attentile_attention_inputs, seqused_k) == 80);
static_assert(offsetof(attentile_attention_inputs, block_table) == 88);
static_assert(offsetof(attentile_attention_inputs, cache_batch_idx) == 96);
static_assert(offsetof(attentile_attention_inputs, leftpad_k) == 104);
static_assert(offsetof(attentile_attention_inputs, block_mask) == 112);

static_assert(sizeof(attentile_attention_outputs) == 32);
static_assert(offsetof(attentile_attention_outputs, out) == 8);
static_assert(offsetof(attentile_attention_outputs, lse) == 16);
static_assert(offsetof(attentile_attention_outputs, keep) == 24);

static_assert(sizeof(attentile_attention_gradients) == 64);
static_assert(offsetof(attentile_attention_gradients, dout) == 8);
static_assert(offsetof(attentile_attention_gradients, dlse) == 16);
static_assert(offsetof(attentile_attention_gradients, dq) == 24);
static_assert(offsetof(attentile_attention_gradients, dk) == 32);
static_assert(offsetof(attentile_attention_gradients, dv) == 40);
static_assert(offsetof(attentile_attention_gradients, dbias) == 48);
static_assert(offsetof(attentile_attention_gradients, dsink) == 56);

static_assert(sizeof(attentile_options) == 184);
static_assert(offsetof(attentile_options, has_softmax_scale) == 8);
static_assert(offsetof(attentile_options, has_position_offset) == 12);
static_assert(offsetof(attentile_options, softmax_scale) == 16);
static_assert(offsetof(attentile_options, position_offset) == 24);
static_assert(offsetof(attentile_options, causal) == 32);
static_assert(offsetof(attentile_options, alignment) == 36);
static_assert(offsetof(attentile_options, window_left) == 40);
static_assert(offsetof(attentile_options, window_right) == 48);
static_assert(offsetof(attentile_options, softcap) == 56);
static_assert(offsetof(attentile_options, dropout_p) == 64);
static_assert(offsetof(attentile_options, dropout_seed) == 72);
static_assert(offsetof(attentile_options, dropout_offset) == 80);
static_assert(offsetof(attentile_options, query_base) == 88);
static_assert(offsetof(attentile_options, key_base) == 96);
static_assert(offsetof(attentile_options, head_base) == 104);
static_assert(offsetof(attentile_options, batch_base) == 112);
static_assert(offsetof(attentile_options, dropout_num_heads_q) == 120);
static_assert(offsetof(attentile_options, block_size_q) == 128);
static_assert(offsetof(attentile_options, block_size_k) == 136);
static_assert(offsetof(attentile_options, algorithm) == 144);
static_assert(offsetof(attentile_options, isa) == 148);
static_assert(offsetof(attentile_options, fast_memory_bytes) == 152);
static_assert(offsetof(attentile_options, max_seqlen_q) == 160);
static_assert(offsetof(attentile_options, max_seqlen_k) == 168);
static_assert(offsetof(attentile_options, atomic_dq) == 176);
static_assert(offsetof(attentile_options, reserved) == 180);

static_assert(sizeof(attentile_executor) == 40);
static_assert(offsetof(attentile_executor, context) == 8);
static_assert(offsetof(attentile_executor, num_threads) == 16);
static_assert(offsetof(attentile_executor, submit) == 24);
static_assert(offsetof(attentile_executor, parallel) == 32);

static_assert(sizeof(attentile_traffic) == 24);
static_assert(offsetof(attentile_traffic, bytes_read) == 8);
static_assert(offsetof(attentile_traffic, bytes_written) == 16);

static_assert(sizeof(attentile_context) == 72);
static_assert(offsetof(attentile_context, num_threads) == 8);
static_assert(offsetof(attentile_context, executor) == 16);
static_assert(offsetof(attentile_context, poll) == 24);
static_assert(offsetof(attentile_context, poll_data) == 32);
static_assert(offsetof(attentile_context, workspace) == 40);
static_assert(offsetof(attentile_context, workspace_bytes) == 48);
static_assert(offsetof(attentile_context, traffic) == 56);
static_assert(offsetof(attentile_context, stream) == 64);

static_assert(sizeof(attentile_plan_info) == 152);
static_assert(offsetof(attentile_plan_info, backward) == 8);
static_assert(offsetof(attentile_plan_info, tile_m) == 24);
static_assert(offsetof(attentile_plan_info, workspace_bytes) == 48);
static_assert(offsetof(attentile_plan_info, flops) == 72);
static_assert(offsetof(attentile_plan_info, flash2_bytes_written) == 120);
static_assert(offsetof(attentile_plan_info, notes) == 128);
static_assert(offsetof(attentile_plan_info, device) == 136);
static_assert(offsetof(attentile_plan_info, kernel) == 144);

static_assert(sizeof(attentile_partial_state) == 24);
static_assert(offsetof(attentile_partial_state, out) == 8);
static_assert(offsetof(attentile_partial_state, lse) == 16);

// C's enumerators and C++'s are one list.
template <class A, class B>
constexpr bool same(A a, B b) {
  return static_cast<int32_t>(a) == static_cast<int32_t>(b);
}
static_assert(same(ATTENTILE_OK, StatusCode::kOk));
static_assert(same(ATTENTILE_INVALID_ARGUMENT, StatusCode::kInvalidArgument));
static_assert(same(ATTENTILE_UNSUPPORTED, StatusCode::kUnsupported));
static_assert(same(ATTENTILE_OUT_OF_MEMORY, StatusCode::kOutOfMemory));
static_assert(same(ATTENTILE_CANCELLED, StatusCode::kCancelled));
static_assert(same(ATTENTILE_UNAVAILABLE, StatusCode::kUnavailable));
static_assert(same(ATTENTILE_INTERNAL, StatusCode::kInternal));
static_assert(same(ATTENTILE_FLOAT32, DType::kFloat32));
static_assert(same(ATTENTILE_FLOAT16, DType::kFloat16));
static_assert(same(ATTENTILE_BFLOAT16, DType::kBFloat16));
static_assert(same(ATTENTILE_FLOAT64, DType::kFloat64));
static_assert(same(ATTENTILE_INT32, DType::kInt32));
static_assert(same(ATTENTILE_UINT8, DType::kUInt8));
static_assert(same(ATTENTILE_BOOL, DType::kBool));
static_assert(same(ATTENTILE_CPU, Device::kCpu));
static_assert(same(ATTENTILE_CUDA, Device::kCuda));
static_assert(same(ATTENTILE_BOTTOM_RIGHT, Alignment::kBottomRight));
static_assert(same(ATTENTILE_TOP_LEFT, Alignment::kTopLeft));
static_assert(same(ATTENTILE_ALGORITHM_AUTO, Algorithm::kAuto));
static_assert(same(ATTENTILE_REFERENCE, Algorithm::kReference));
static_assert(same(ATTENTILE_STANDARD, Algorithm::kStandard));
static_assert(same(ATTENTILE_FLASH1, Algorithm::kFlash1));
static_assert(same(ATTENTILE_FLASH2, Algorithm::kFlash2));
static_assert(same(ATTENTILE_ISA_AUTO, Isa::kAuto));
static_assert(same(ATTENTILE_SCALAR, Isa::kScalar));
static_assert(same(ATTENTILE_AVX2, Isa::kAvx2));
static_assert(same(ATTENTILE_AVX512, Isa::kAvx512));
static_assert(same(ATTENTILE_AVX512_BF16, Isa::kAvx512Bf16));
static_assert(same(ATTENTILE_NEON, Isa::kNeon));
static_assert(same(ATTENTILE_NEON_BF16, Isa::kNeonBf16));
static_assert(same(ATTENTILE_AMX, Isa::kAmx));

// The defaults of the initialisers are those of AttentionOptions.
TEST(AbiLayout, OptionDefaults) {
  const attentile_options c = ATTENTILE_OPTIONS_INIT;
  const AttentionOptions cpp;
  EXPECT_EQ(c.struct_size, sizeof c);
  EXPECT_EQ(c.has_softmax_scale != 0, cpp.softmax_scale.has_value());
  EXPECT_EQ(c.has_position_offset != 0, cpp.position_offset.has_value());
  EXPECT_EQ(c.causal != 0, cpp.causal);
  EXPECT_EQ(c.window_left, cpp.window_left);
  EXPECT_EQ(c.window_right, cpp.window_right);
  EXPECT_EQ(c.softcap, cpp.softcap);
  EXPECT_EQ(c.dropout_p, cpp.dropout_p);
  EXPECT_TRUE(same(c.alignment, cpp.alignment));
  EXPECT_TRUE(same(c.algorithm, cpp.algorithm));
  EXPECT_TRUE(same(c.isa, cpp.isa));
  EXPECT_EQ(c.fast_memory_bytes, cpp.fast_memory_bytes);
  EXPECT_EQ(c.max_seqlen_q, cpp.max_seqlen_q);
  EXPECT_EQ(c.max_seqlen_k, cpp.max_seqlen_k);
  EXPECT_EQ(c.atomic_dq != 0, cpp.atomic_dq);
  EXPECT_EQ(c.reserved, 0);
  const attentile_executor executor = ATTENTILE_EXECUTOR_INIT;
  EXPECT_EQ(executor.num_threads, Executor{}.num_threads);
}

}  // namespace
}  // namespace attentile

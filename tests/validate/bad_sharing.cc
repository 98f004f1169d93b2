// SPDX-License-Identifier: Apache-2.0
// Outputs that share memory with themselves, with each other or with an input.
#include <cstdint>
#include <utility>

#include "validate/bad_call.h"

namespace attentile::test {
namespace {

constexpr int32_t kInvalid = ATTENTILE_INVALID_ARGUMENT;

void move_to(attentile_tensor& t, const attentile_tensor& other, int64_t bytes) {
  t.data = static_cast<unsigned char*>(other.data) + bytes;
}

std::vector<BadCall> bad_forward_sharing() {
  const Base d = Base::kDense;
  return {
      {"out_stride_zero", d, [](SampleCall& c) { c.out.stride[0] = 0; }, kInvalid,
       "out: strides are [0, 16, 4, 1] with shape [2, 3, 4, 4], but no two elements of an output "
       "may share memory"},
      {"out_rows_overlap", d,
       [](SampleCall& c) {
         c.out.stride[1] = 12;
         c.out.stride[0] = 64;
       },
       kInvalid,
       "out: strides are [64, 12, 4, 1] with shape [2, 3, 4, 4], but no two elements of an output "
       "may share memory"},
      {"out_opposite_strides", d,
       [](SampleCall& c) {
         c.out.stride[2] = 1;
         c.out.stride[3] = -1;
         move_to(c.out, c.out, 64);
       },
       kInvalid,
       "out: strides are [48, 16, 1, -1] with shape [2, 3, 4, 4], but no two elements of an output "
       "may share memory"},
      {"lse_stride_zero", d, [](SampleCall& c) { c.lse.stride[2] = 0; }, kInvalid,
       "lse: strides are [12, 3, 0] with shape [2, 4, 3], but no two elements of an output may "
       "share memory"},
      {"keep_stride_zero", d,
       [](SampleCall& c) {
         c.give("keep");
         c.keep.stride[1] = 0;
       },
       kInvalid,
       "keep: strides are [60, 0, 5, 1] with shape [2, 4, 3, 5], but no two elements of an output "
       "may share memory"},
      {"out_is_q", d, [](SampleCall& c) { move_to(c.out, c.q, 0); }, kInvalid,
       "out: data is 0 bytes past that of q, but an output must not share memory with an input"},
      {"out_in_k", d, [](SampleCall& c) { move_to(c.out, c.k, 32); }, kInvalid,
       "out: data is 32 bytes past that of k, but an output must not share memory with an input"},
      {"out_before_v", d, [](SampleCall& c) { move_to(c.out, c.v, -380); }, kInvalid,
       "out: data is 380 bytes before that of v, but an output must not share memory with an "
       "input"},
      {"out_is_v_of_negative_strides", d,
       [](SampleCall& c) {
         move_to(c.v, c.v, 79 * 4);
         for (int64_t& stride : c.v.stride) stride = -stride;
         move_to(c.out, c.v, 0);
       },
       kInvalid,
       "out: data is 0 bytes past that of v, but an output must not share memory with an input"},
      {"out_is_bias", d,
       [](SampleCall& c) {
         c.give("bias");
         move_to(c.out, c.bias, 0);
       },
       kInvalid,
       "out: data is 0 bytes past that of bias, but an output must not share memory with an input"},
      {"out_in_mask", d,
       [](SampleCall& c) {
         c.give("mask");
         move_to(c.out, c.mask, 12);
       },
       kInvalid,
       "out: data is 12 bytes past that of mask, but an output must not share memory with an "
       "input"},
      {"lse_is_sink", d,
       [](SampleCall& c) {
         c.give("sink");
         move_to(c.lse, c.sink, 0);
       },
       kInvalid,
       "lse: data is 0 bytes past that of sink, but an output must not share memory with an input"},
      {"lse_is_alibi_slopes", d,
       [](SampleCall& c) {
         c.give("alibi_slopes");
         move_to(c.lse, c.alibi_slopes, 28);
       },
       kInvalid,
       "lse: data is 28 bytes past that of alibi_slopes, but an output must not share memory with "
       "an input"},
      {"lse_in_cu_seqlens", Base::kPacked, [](SampleCall& c) { move_to(c.lse, c.cu_seqlens_k, 8); },
       kInvalid,
       "lse: data is 8 bytes past that of cu_seqlens_k, but an output must not share memory with "
       "an input"},
      {"out_in_block_table", Base::kPaged, [](SampleCall& c) { move_to(c.out, c.block_table, -4); },
       kInvalid,
       "out: data is 4 bytes before that of block_table, but an output must not share memory with "
       "an input"},
      {"lse_in_out", d, [](SampleCall& c) { move_to(c.lse, c.out, 4); }, kInvalid,
       "lse: data is 4 bytes past that of out, but an output must not share memory with another"},
      {"keep_in_lse", d,
       [](SampleCall& c) {
         c.give("keep");
         move_to(c.keep, c.lse, 95);
       },
       kInvalid,
       "keep: data is 95 bytes past that of lse, but an output must not share memory with another"},
      {"out_interleaved_one_column_too_wide", d,
       [](SampleCall& c) {
         // Out in the even and q in the odd columns of one buffer, and out one row too low.
         const attentile_tensor buffer = c.make_tensor(ATTENTILE_FLOAT32, {2, 3, 4, 16});
         for (int axis = 0; axis < 4; ++axis) {
           c.q.stride[axis] = buffer.stride[axis] * (axis == 3 ? 2 : 1);
           c.out.stride[axis] = c.q.stride[axis];
         }
         move_to(c.q, buffer, 4);
         move_to(c.out, buffer, 68);
       },
       kInvalid,
       "out: data is 64 bytes past that of q, but an output must not share memory with an input"},
  };
}

std::vector<BadCall> bad_backward_sharing() {
  const Base b = Base::kDenseBackward;
  return {
      {"dq_is_q", b, [](SampleCall& c) { move_to(c.dq, c.q, 0); }, kInvalid,
       "dq: data is 0 bytes past that of q, but an output must not share memory with an input"},
      {"dq_is_dout", b, [](SampleCall& c) { move_to(c.dq, c.dout, 0); }, kInvalid,
       "dq: data is 0 bytes past that of dout, but an output must not share memory with an input"},
      {"dq_in_out", b, [](SampleCall& c) { move_to(c.dq, c.out, 8); }, kInvalid,
       "dq: data is 8 bytes past that of out, but an output must not share memory with an input"},
      {"dk_in_lse", b, [](SampleCall& c) { move_to(c.dk, c.lse, 4); }, kInvalid,
       "dk: data is 4 bytes past that of lse, but an output must not share memory with an input"},
      {"dk_is_dq", b, [](SampleCall& c) { move_to(c.dk, c.dq, 0); }, kInvalid,
       "dk: data is 0 bytes past that of dq, but an output must not share memory with another"},
      {"dv_is_dk", b, [](SampleCall& c) { move_to(c.dv, c.dk, 0); }, kInvalid,
       "dv: data is 0 bytes past that of dk, but an output must not share memory with another"},
      {"dv_stride_zero", b, [](SampleCall& c) { c.dv.stride[2] = 0; }, kInvalid,
       "dv: strides are [40, 8, 0, 1] with shape [2, 5, 2, 4], but no two elements of an output "
       "may "
       "share memory"},
      {"dv_in_dlse", b,
       [](SampleCall& c) {
         c.give("dlse");
         move_to(c.dv, c.dlse, 92);
       },
       kInvalid,
       "dv: data is 92 bytes past that of dlse, but an output must not share memory with an input"},
      {"dbias_is_bias", b,
       [](SampleCall& c) {
         c.give("bias");
         c.give("dbias");
         move_to(c.dbias, c.bias, 0);
       },
       kInvalid,
       "dbias: data is 0 bytes past that of bias, but an output must not share memory with an "
       "input"},
      {"dbias_broadcast_by_stride", b,
       [](SampleCall& c) {
         c.give("bias");
         c.give("dbias");
         c.dbias.stride[0] = 0;
       },
       kInvalid,
       "dbias: strides are [0, 15, 5, 1] with shape [2, 4, 3, 5], but no two elements of an output "
       "may share memory"},
      {"dsink_in_dv", b,
       [](SampleCall& c) {
         c.give("sink");
         c.give("dsink");
         move_to(c.dsink, c.dv, 316);
       },
       kInvalid,
       "dsink: data is 316 bytes past that of dv, but an output must not share memory with "
       "another"},
      {"dsink_in_dbias", b,
       [](SampleCall& c) {
         for (const char* name : {"bias", "dbias", "sink", "dsink"}) c.give(name);
         move_to(c.dsink, c.dbias, 0);
       },
       kInvalid,
       "dsink: data is 0 bytes past that of dbias, but an output must not share memory with "
       "another"},
  };
}

}  // namespace

std::vector<BadCall> bad_sharing() {
  std::vector<BadCall> cases = bad_forward_sharing();
  for (BadCall& bad : bad_backward_sharing()) cases.push_back(std::move(bad));
  return cases;
}

}  // namespace attentile::test

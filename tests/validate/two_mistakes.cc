// SPDX-License-Identifier: Apache-2.0
// Calls with two mistakes: the sentence is about the one that validate.h says is found first. One
// call for each two steps that follow each other.
#include <cstdint>

#include "validate/bad_call.h"

namespace attentile::test {

std::vector<BadCall> two_mistakes() {
  constexpr int32_t kInvalid = ATTENTILE_INVALID_ARGUMENT;
  const Base d = Base::kDense;
  return {
      {"options_before_views", d,
       [](SampleCall& c) {
         c.options.softcap = -1;
         c.q.rank = 7;
       },
       kInvalid, "softcap: is -1, but it must be at least 0 (0: none)"},
      {"views_before_tokens", d,
       [](SampleCall& c) {
         c.lse.rank = 7;
         c.k.dtype = ATTENTILE_FLOAT16;
       },
       kInvalid, "lse: rank is 7, but it must be in [0, 4]"},
      {"tokens_before_index_arrays", Base::kPacked,
       [](SampleCall& c) {
         c.k.dtype = ATTENTILE_FLOAT16;
         c.integers(c.cu_seqlens_q)[0] = 1;
       },
       kInvalid, "k: dtype is float16, but q has dtype float32"},
      {"index_arrays_before_terms", Base::kPacked,
       [](SampleCall& c) {
         c.integers(c.cu_seqlens_q)[0] = 1;
         c.give("sink");
         c.sink.dtype = ATTENTILE_INT32;
       },
       kInvalid, "cu_seqlens_q[0]: is 1, but it must be 0"},
      {"terms_before_results", d,
       [](SampleCall& c) {
         c.give("sink");
         c.sink.dtype = ATTENTILE_INT32;
         c.out.shape[1] = 2;
       },
       kInvalid, "sink: dtype is int32, but it must be float32"},
      {"results_before_sharing", d,
       [](SampleCall& c) {
         c.lse.dtype = ATTENTILE_FLOAT64;
         c.out.data = c.q.data;
       },
       kInvalid, "lse: dtype is float64, but it must be float32"},
      {"sharing_before_workspace", d,
       [](SampleCall& c) {
         c.out.data = c.q.data;
         c.context.workspace = c.v.data;
         c.context.workspace_bytes = 4;
       },
       kInvalid,
       "out: data is 0 bytes past that of q, but an output must not share memory with an input"},
  };
}

}  // namespace attentile::test

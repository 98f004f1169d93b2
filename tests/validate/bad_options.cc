// SPDX-License-Identifier: Apache-2.0
// Scalars, enums and the execution context.
#include <cmath>
#include <cstdint>
#include <limits>

#include "validate/bad_call.h"

namespace attentile::test {
namespace {

constexpr int32_t kInvalid = ATTENTILE_INVALID_ARGUMENT;
constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

void set_scale(SampleCall& c, double value) {
  c.options.has_softmax_scale = 1;
  c.options.softmax_scale = value;
}

}  // namespace

std::vector<BadCall> bad_options() {
  const Base d = Base::kDense;
  return {
      {"scale_nan", d, [](SampleCall& c) { set_scale(c, NAN); }, kInvalid,
       "softmax_scale: is nan, but it must be finite"},
      {"scale_negative_nan", d, [](SampleCall& c) { set_scale(c, -std::abs(NAN)); }, kInvalid,
       "softmax_scale: is nan, but it must be finite"},
      {"scale_inf", d, [](SampleCall& c) { set_scale(c, INFINITY); }, kInvalid,
       "softmax_scale: is inf, but it must be finite"},
      {"scale_minus_inf", d, [](SampleCall& c) { set_scale(c, -INFINITY); }, kInvalid,
       "softmax_scale: is -inf, but it must be finite"},
      {"softcap_nan", d, [](SampleCall& c) { c.options.softcap = NAN; }, kInvalid,
       "softcap: is nan, but it must be finite"},
      {"softcap_inf", d, [](SampleCall& c) { c.options.softcap = INFINITY; }, kInvalid,
       "softcap: is inf, but it must be finite"},
      {"softcap_negative", d, [](SampleCall& c) { c.options.softcap = -0.5; }, kInvalid,
       "softcap: is -0.5, but it must be at least 0 (0: none)"},
      {"dropout_nan", d, [](SampleCall& c) { c.options.dropout_p = NAN; }, kInvalid,
       "dropout_p: is nan, but it must be in [0, 1]"},
      {"dropout_inf", d, [](SampleCall& c) { c.options.dropout_p = INFINITY; }, kInvalid,
       "dropout_p: is inf, but it must be in [0, 1]"},
      {"dropout_negative", d, [](SampleCall& c) { c.options.dropout_p = -1e-9; }, kInvalid,
       "dropout_p: is -1e-09, but it must be in [0, 1]"},
      {"dropout_above_one", d, [](SampleCall& c) { c.options.dropout_p = 1.0000001; }, kInvalid,
       "dropout_p: is 1.0000001, but it must be in [0, 1]"},
      {"window_left_below_minus_one", d, [](SampleCall& c) { c.options.window_left = -2; },
       kInvalid, "window_left: is -2, but it must be at least -1"},
      {"window_right_below_minus_one", d, [](SampleCall& c) { c.options.window_right = -3; },
       kInvalid, "window_right: is -3, but it must be at least -1"},
      {"window_right_checked_with_causal", d,
       [](SampleCall& c) {
         c.options.causal = 1;
         c.options.window_right = kMin;
       },
       kInvalid, "window_right: is -9223372036854775808, but it must be at least -1"},
      {"query_base_negative", d, [](SampleCall& c) { c.options.query_base = -1; }, kInvalid,
       "query_base: is -1, but it must be at least 0"},
      {"key_base_negative", d, [](SampleCall& c) { c.options.key_base = -1; }, kInvalid,
       "key_base: is -1, but it must be at least 0"},
      {"head_base_negative", d, [](SampleCall& c) { c.options.head_base = -1; }, kInvalid,
       "head_base: is -1, but it must be at least 0"},
      {"batch_base_negative", d, [](SampleCall& c) { c.options.batch_base = kMin; }, kInvalid,
       "batch_base: is -9223372036854775808, but it must be at least 0"},
      {"dropout_heads_negative", d, [](SampleCall& c) { c.options.dropout_num_heads_q = -4; },
       kInvalid, "dropout_num_heads_q: is -4, but it must be at least 0"},
      {"dropout_heads_too_few", d, [](SampleCall& c) { c.options.dropout_num_heads_q = 3; },
       kInvalid,
       "dropout_num_heads_q: is 3, but it must be at least 4: head_base is 0 and q has num_heads_q "
       "4"},
      {"dropout_heads_below_base", d,
       [](SampleCall& c) {
         c.options.head_base = 8;
         c.options.dropout_num_heads_q = 11;
       },
       kInvalid,
       "dropout_num_heads_q: is 11, but it must be at least 12: head_base is 8 and q has "
       "num_heads_q 4"},
      {"dropout_heads_missing_for_base", d, [](SampleCall& c) { c.options.head_base = 4; },
       kInvalid,
       "dropout_num_heads_q: is 0, but it must be at least 8: head_base is 4 and q has num_heads_q "
       "4"},
      {"dropout_heads_base_at_limit", d,
       [](SampleCall& c) {
         c.options.head_base = kMax;
         c.options.dropout_num_heads_q = kMax;
       },
       kInvalid,
       "head_base: is 9223372036854775807, but with the num_heads_q 4 of q it must stay below "
       "2^63"},
      {"block_size_q_negative", d, [](SampleCall& c) { c.options.block_size_q = -1; }, kInvalid,
       "block_size_q: is -1, but it must be at least 0"},
      {"block_size_k_negative", d, [](SampleCall& c) { c.options.block_size_k = -64; }, kInvalid,
       "block_size_k: is -64, but it must be at least 0"},
      {"fast_memory_negative", d, [](SampleCall& c) { c.options.fast_memory_bytes = -1; }, kInvalid,
       "fast_memory_bytes: is -1, but it must be at least 0"},
      {"alignment_unknown", d, [](SampleCall& c) { c.options.alignment = 2; }, kInvalid,
       "alignment: is 2, but it must be in [0, 1]"},
      {"alignment_negative", d, [](SampleCall& c) { c.options.alignment = -1; }, kInvalid,
       "alignment: is -1, but it must be in [0, 1]"},
      {"algorithm_unknown", d, [](SampleCall& c) { c.options.algorithm = 5; }, kInvalid,
       "algorithm: is 5, but it must be in [0, 4]"},
      {"algorithm_negative", d, [](SampleCall& c) { c.options.algorithm = -2147483647 - 1; },
       kInvalid, "algorithm: is -2147483648, but it must be in [0, 4]"},
      {"isa_unknown", d, [](SampleCall& c) { c.options.isa = 8; }, kInvalid,
       "isa: is 8, but it must be in [0, 7]"},
      {"isa_negative", d, [](SampleCall& c) { c.options.isa = -1; }, kInvalid,
       "isa: is -1, but it must be in [0, 7]"},
      {"options_checked_in_backward", Base::kDenseBackward,
       [](SampleCall& c) { c.options.softcap = -1; }, kInvalid,
       "softcap: is -1, but it must be at least 0 (0: none)"},
      {"num_threads_negative", d, [](SampleCall& c) { c.context.num_threads = -1; }, kInvalid,
       "num_threads: is -1, but it must be in [0, 4096] (0: all cores)"},
      {"num_threads_too_many", d, [](SampleCall& c) { c.context.num_threads = 4097; }, kInvalid,
       "num_threads: is 4097, but it must be in [0, 4096] (0: all cores)"},
      {"executor_without_threads", d,
       [](SampleCall& c) {
         c.executor.num_threads = 0;
         c.context.executor = &c.executor;
       },
       kInvalid, "executor.num_threads: is 0, but it must be in [1, 4096]"},
      {"executor_with_too_many_threads", d,
       [](SampleCall& c) {
         c.executor.num_threads = 5000;
         c.context.executor = &c.executor;
       },
       kInvalid, "executor.num_threads: is 5000, but it must be in [1, 4096]"},
      {"executor_without_submit", d,
       [](SampleCall& c) {
         c.executor.num_threads = 2;
         c.context.executor = &c.executor;
       },
       kInvalid,
       "executor.submit: is null, and so is parallel, but num_threads is 2 and needs one of them"},
      {"workspace_bytes_negative", d, [](SampleCall& c) { c.context.workspace_bytes = -8; },
       kInvalid, "workspace_bytes: is -8, but it must be at least 0"},
      {"workspace_null_with_bytes", d, [](SampleCall& c) { c.context.workspace_bytes = 64; },
       kInvalid, "workspace: is null, but workspace_bytes is 64"},
      {"context_checked_in_backward", Base::kPackedBackward,
       [](SampleCall& c) { c.context.num_threads = 100000; }, kInvalid,
       "num_threads: is 100000, but it must be in [0, 4096] (0: all cores)"},
  };
}

}  // namespace attentile::test

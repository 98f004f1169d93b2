// SPDX-License-Identifier: Apache-2.0
// The scalars of a call and its execution context. Enums may hold any int32: they come from C.
#include <cmath>
#include <cstdint>

#include "cpu/executor.h"
#include "validate.h"
#include "validate_call.h"
#include "validate_text.h"

namespace attentile {
namespace validation {
namespace {

template <class Enum>
Status check_enum(const char* name, Enum value, Enum last) {
  const auto number = static_cast<int32_t>(value);
  if (number >= 0 && number <= static_cast<int32_t>(last)) return {};
  return invalid("{}: is {}, but it must be in [0, {}]", name, number, static_cast<int32_t>(last));
}

Status check_finite(const char* name, double value) {
  if (std::isfinite(value)) return {};
  return invalid("{}: is {}, but it must be finite", name, value);
}

Status check_at_least(const char* name, int64_t value, int64_t least) {
  if (value >= least) return {};
  return invalid("{}: is {}, but it must be at least {}", name, value, least);
}

Status check_integers(const AttentionOptions& o) {
  const struct {
    const char* name;
    int64_t value;
    int64_t least;
  } integers[] = {
      {"window_left", o.window_left, -1},
      {"window_right", o.window_right, -1},
      {"query_base", o.query_base, 0},
      {"key_base", o.key_base, 0},
      {"head_base", o.head_base, 0},
      {"batch_base", o.batch_base, 0},
      {"block_size_q", o.block_size_q, 0},
      {"block_size_k", o.block_size_k, 0},
      {"dropout_num_heads_q", o.dropout_num_heads_q, 0},
      {"fast_memory_bytes", o.fast_memory_bytes, 0},
      {"max_seqlen_q", o.max_seqlen_q, 0},
      {"max_seqlen_k", o.max_seqlen_k, 0},
  };
  for (const auto& integer : integers) {
    Status status = check_at_least(integer.name, integer.value, integer.least);
    if (!status.ok()) return status;
  }
  return {};
}

Status check_reals(const AttentionOptions& o) {
  if (o.softmax_scale.has_value()) {
    if (Status s = check_finite("softmax_scale", *o.softmax_scale); !s.ok()) return s;
  }
  if (Status s = check_finite("softcap", o.softcap); !s.ok()) return s;
  if (o.softcap < 0) {
    return invalid("softcap: is {}, but it must be at least 0 (0: none)", o.softcap);
  }
  if (!(o.dropout_p >= 0 && o.dropout_p <= 1)) {
    return invalid("dropout_p: is {}, but it must be in [0, 1]", o.dropout_p);
  }
  return {};
}

}  // namespace

Status check_options(Call* call) {
  const AttentionOptions& o = call->options;
  if (Status s = check_enum("alignment", o.alignment, Alignment::kTopLeft); !s.ok()) return s;
  if (Status s = check_enum("algorithm", o.algorithm, Algorithm::kFlash2); !s.ok()) return s;
  if (Status s = check_enum("isa", o.isa, Isa::kAmx); !s.ok()) return s;
  if (Status s = check_reals(o); !s.ok()) return s;
  if (Status s = check_integers(o); !s.ok()) return s;

  Problem& p = call->problem;
  p.backward = call->backward();
  p.softcap = o.softcap;
  p.alignment = o.alignment;
  p.has_position_offset = o.position_offset.has_value();
  p.position_offset = o.position_offset.value_or(0);
  p.window_left = o.window_left;
  p.window_right = o.causal ? 0 : o.window_right;
  p.dropout = make_dropout(o.dropout_p, o.dropout_seed, o.dropout_offset);
  p.dropout.query_base = o.query_base;
  p.dropout.key_base = o.key_base;
  p.dropout.head_base = o.head_base;
  p.dropout.batch_base = o.batch_base;
  p.algorithm = o.algorithm == Algorithm::kAuto ? Algorithm::kFlash2 : o.algorithm;
  p.isa = o.isa;
  p.fast_memory_bytes = o.fast_memory_bytes;
  p.atomic_dq = o.atomic_dq;
  return {};
}

}  // namespace validation

Status validate_context(const ExecutionContext& context) {
  using validation::invalid;
  if (context.num_threads < 0 || context.num_threads > cpu::kMaxWorkers) {
    return invalid("num_threads: is {}, but it must be in [0, {}] (0: all cores)",
                   context.num_threads, cpu::kMaxWorkers);
  }
  if (const Executor* executor = context.executor; executor != nullptr) {
    if (executor->num_threads < 1 || executor->num_threads > cpu::kMaxWorkers) {
      return invalid("executor.num_threads: is {}, but it must be in [1, {}]",
                     executor->num_threads, cpu::kMaxWorkers);
    }
    if (executor->submit == nullptr && executor->parallel == nullptr && executor->num_threads > 1) {
      return invalid(
          "executor.submit: is null, and so is parallel, but num_threads is {} and needs "
          "one of them",
          executor->num_threads);
    }
  }
  if (context.workspace_bytes < 0) {
    return invalid("workspace_bytes: is {}, but it must be at least 0", context.workspace_bytes);
  }
  if (context.workspace == nullptr && context.workspace_bytes > 0) {
    return invalid("workspace: is null, but workspace_bytes is {}", context.workspace_bytes);
  }
  return {};
}

}  // namespace attentile

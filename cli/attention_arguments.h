// SPDX-License-Identifier: Apache-2.0
// The options that attend, plan, bench and explain share: what to compute and where, as
// AttentionOptions and the shape of a problem.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "attentile/attention.h"
#include "cli/arguments.h"

namespace attentile::cli {

// Sizes as --shape and --random give them: B,SQ,SK,HQ,HK,D[,DV].
struct Shape {
  int64_t batch = 1;
  int64_t seqlen_q = 0;
  int64_t seqlen_k = 0;
  int64_t num_heads_q = 1;
  int64_t num_heads_kv = 1;
  int64_t head_dim = 64;
  int64_t head_dim_v = 64;
};

Shape parse_shape(std::string_view name, std::string_view text);

enum class Layout { kBshd, kBhsd };

// --causal, --alignment, --position-offset, --window, --softcap, --scale.
void declare_mask_options(Arguments& arguments);
// --dropout, --seed, --offset, --block-size.
void declare_dropout_options(Arguments& arguments);
// --algorithm, --isa, --fast-memory, --threads, --atomic-dq; --device, which device_argument.h
// reads.
void declare_machine_options(Arguments& arguments);
void declare_atomic_dq(Arguments& arguments);
void declare_layout_option(Arguments& arguments);
void declare_dtype_option(Arguments& arguments, const std::string& help);

// Reads whichever of the above were declared and given.
AttentionOptions read_options(const Arguments& arguments);
Algorithm read_algorithm(const Arguments& arguments);
Isa read_isa(const Arguments& arguments);
// --threads: 0, all cores, when it was not given.
int read_threads(const Arguments& arguments);
Layout read_layout(const Arguments& arguments);
std::optional<DType> read_dtype(const Arguments& arguments);
DType parse_dtype(std::string_view name, std::string_view text);

// The short names of the command line: "f32".
std::string_view short_name(DType dtype);
std::string_view to_string(Layout layout);

}  // namespace attentile::cli

// SPDX-License-Identifier: Apache-2.0
// What a call is and what was planned for it, as JSON and as a line for people.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "attentile/attention.h"
#include "cli/attention_arguments.h"
#include "problem.h"

namespace attentile::cli {

using Json = nlohmann::ordered_json;

// Every key up to the position of its query, and no window besides.
bool is_causal(const Problem& problem);

// dtype, batch, seqlen_q, ... of a validated problem, in the names of a bench record.
Json shape_facts(const Problem& problem, Layout layout);
// algorithm, isa, threads, kernel, tiles, workspace, flops, notes.
Json plan_facts(const Plan& plan);
// Null where nothing was counted, as on a GPU.
Json traffic_facts(const std::optional<Traffic>& traffic);

// "float16, batch 1, 1024 x 1024, 9/3 heads, head_dim 64, causal"
std::string shape_words(const Problem& problem);

// "flash2 on avx2, 2 threads", "flash2 on cuda, Forward<Float16, 64, true>"; of the
// emulator "flash2 on emulator, ..."
std::string place_words(const Plan& plan);

// "1.23 ms"
std::string seconds_words(double seconds);

// Text of a JSON value for stdout: two spaces of indentation, invalid UTF-8 replaced.
std::string to_text(const Json& json);

}  // namespace attentile::cli

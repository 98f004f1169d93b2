// SPDX-License-Identifier: Apache-2.0
// Facts of a problem and a plan; names as in a bench record.
#include "cli/facts.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/numbers.h"
#include "cuda/backend.h"

namespace attentile::cli {

bool is_causal(const Problem& problem) {
  return problem.window_left == kUnbounded && problem.window_right == 0;
}

Json shape_facts(const Problem& problem, Layout layout) {
  Json facts;
  facts["dtype"] = short_name(problem.dtype);
  facts["batch"] = problem.batch;
  facts["seqlen_q"] = problem.max_seqlen_q;
  facts["seqlen_k"] = problem.max_seqlen_k;
  facts["num_heads_q"] = problem.num_heads_q;
  facts["num_heads_kv"] = problem.num_heads_kv;
  facts["head_dim"] = problem.head_dim;
  facts["head_dim_v"] = problem.head_dim_v;
  facts["causal"] = is_causal(problem);
  facts["window_left"] = problem.window_left;
  facts["window_right"] = problem.window_right;
  facts["softcap"] = problem.softcap;
  facts["softmax_scale"] = problem.softmax_scale;
  facts["alignment"] = problem.alignment == Alignment::kTopLeft ? "top_left" : "bottom_right";
  facts["position_offset"] =
      problem.has_position_offset ? Json(problem.position_offset) : Json(nullptr);
  facts["atomic_dq"] = problem.atomic_dq;
  facts["layout"] = to_string(layout);
  facts["device"] = "cpu";
  facts["varlen"] = problem.varlen;
  return facts;
}

Json traffic_facts(const std::optional<Traffic>& traffic) {
  if (!traffic) return {{"bytes_read", nullptr}, {"bytes_written", nullptr}};
  return {{"bytes_read", traffic->bytes_read}, {"bytes_written", traffic->bytes_written}};
}

Json plan_facts(const Plan& plan) {
  Json facts;
  facts["algorithm"] = to_string(plan.algorithm);
  facts["isa"] = to_string(plan.isa);
  facts["threads"] = plan.threads;
  if (plan.device == Device::kCuda) facts["kernel"] = plan.kernel;
  facts["tile_m"] = plan.tile_m;
  facts["tile_n"] = plan.tile_n;
  facts["num_tasks"] = plan.num_tasks;
  facts["workspace_bytes"] = plan.workspace_bytes;
  facts["fast_memory_bytes"] = plan.fast_memory_bytes;
  facts["visible_pairs"] = plan.visible_pairs;
  facts["flops"] = plan.flops;
  facts["notes"] = plan.notes;
  return facts;
}

std::string shape_words(const Problem& problem) {
  std::string text = fmt::format("{}, batch {}, {} x {} tokens, {}/{} heads, head_dim {}",
                                 to_string(problem.dtype), problem.batch, problem.max_seqlen_q,
                                 problem.max_seqlen_k, problem.num_heads_q, problem.num_heads_kv,
                                 problem.head_dim);
  if (problem.head_dim_v != problem.head_dim) {
    text += fmt::format(", head_dim_v {}", problem.head_dim_v);
  }
  if (problem.varlen) text += ", varlen";
  if (problem.paged()) text += fmt::format(", pages of {}", problem.page_size);
  if (is_causal(problem)) text += ", causal";
  if (!is_causal(problem) &&
      (problem.window_left != kUnbounded || problem.window_right != kUnbounded)) {
    text += fmt::format(", window {},{}", problem.window_left, problem.window_right);
  }
  if (problem.dropout.enabled) text += ", dropout";
  return text;
}

std::string place_words(const Plan& plan) {
  if (plan.device == Device::kCuda) {
    const Result<const cuda::BackendTable*>& table = cuda::backend();
    return fmt::format("{} on {}, {}", to_string(plan.algorithm),
                       table.ok() ? (*table)->name : "cuda",
                       plan.kernel.empty() ? "nothing to do" : plan.kernel);
  }
  return fmt::format("{} on {}, {} thread{}", to_string(plan.algorithm), to_string(plan.isa),
                     plan.threads, plan.threads == 1 ? "" : "s");
}

std::string seconds_words(double seconds) {
  if (seconds < 1e-3) return fmt::format("{:.1f} us", seconds * 1e6);
  if (seconds < 1) return fmt::format("{:.2f} ms", seconds * 1e3);
  return fmt::format("{:.3f} s", seconds);
}

std::string to_text(const Json& json) {
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace attentile::cli

// SPDX-License-Identifier: Apache-2.0
// Oracle and judgement of one case.
#include "conformance/oracle.h"

#include <cmath>
#include <cstring>
#include <deque>
#include <memory>

#include "conformance/call.h"
#include "reference/rounded_standard.h"
#include "validate.h"

namespace attentile::conformance {
namespace {

// The dropout decisions, by the definition.
std::string check_keep(const Case& c, const DenseTensor& keep) {
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t h = 0; h < c.num_heads_q; ++h) {
      for (int64_t i = 0; i < c.seqlen_q; ++i) {
        for (int64_t j = 0; j < c.seqlen_k; ++j) {
          const bool expected = keeps(c, b, h, i, j);
          const char got = keep.bytes[static_cast<size_t>(keep.index(b, h, i, j))];
          if (got == static_cast<char>(expected)) continue;
          return "keep" + testing::to_string({b, h, i, j}) + " is " +
                 std::to_string(static_cast<int>(got)) + ", expected " + std::to_string(expected);
        }
      }
    }
  }
  return {};
}

// The ceilings are relative to the largest value of an output, so they mean nothing where gradients
// vanish: rows of few keys, equal keys, everything dropped.
bool is_typical(const Case& c, const Values& values) {
  const bool repeated =
      (c.zero_stride_q | c.zero_stride_k | c.zero_stride_v | c.zero_stride_dout) != 0;
  if (c.tier != Tier::kStatistical || c.fill != Fill::kNormal || repeated || c.softmax_scale ||
      c.bias.present || c.dropout_p > 0.5 || c.head_dim < 8 || c.head_dim_v < 8) {
    return false;
  }
  int64_t pairs = 0;
  int64_t rows = 0;
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t h = 0; h < c.num_heads_q; ++h) {
      for (int64_t i = 0; i < c.query_length(b); ++i, ++rows) {
        for (int64_t j = 0; j < c.key_length(b); ++j) {
          if (visible(c, values, b, h, i, j)) ++pairs;
        }
      }
    }
  }
  return rows >= 16 && pairs >= 8 * rows;
}

void copy_into(DenseTensor& slot, const DenseTensor& result) {
  if (slot.present && result.bytes.size() == slot.bytes.size() && !slot.bytes.empty()) {
    std::memcpy(slot.bytes.data(), result.bytes.data(), slot.bytes.size());
  }
}

void note(const std::vector<reference::Verdict>& verdicts, Judgement& judgement) {
  for (const reference::Verdict& verdict : verdicts) {
    if (!verdict.passed) {
      judgement.failure += (judgement.failure.empty() ? "" : "; ") +
                           (verdict.reason.empty() ? verdict.name + " fails" : verdict.reason);
    }
    judgement.vacuous = judgement.vacuous || verdict.mistrusted;
    if (verdict.allowed > 0 && verdict.elements > 0) {
      judgement.ratios[verdict.name] = std::fabs(verdict.got - verdict.expected) / verdict.allowed;
    }
  }
}

}  // namespace

Oracle::Oracle(const Case& c) : values(make_values(c)), slots(empty_results(c, values)) {
  given = c.poison ? poisoned(c, values) : values;
  compute(c);
}

Oracle::Oracle(const Case& c, const Values& special)
    : values(special), given(special), slots(empty_results(c, special)) {
  compute(c);
}

void Oracle::compute(const Case& c) {
  const AttentionInputs inputs = inputs_of(values);
  const AttentionOutputs outputs = outputs_of(slots);
  const AttentionOptions options = options_of(c);
  Result<Problem> checked = validate_forward(inputs, outputs, options, Check::kCall);
  if (!checked.ok()) {
    status = checked.status();
    return;
  }
  forward = *checked;
  if (c.backward) {
    checked =
        validate_backward(inputs, outputs, gradients_of(values, slots), options, Check::kCall);
    if (!checked.ok()) {
      status = checked.status();
      return;
    }
    backward = *checked;
  }
  typical = is_typical(c, values);
  ExecutionContext context;
  context.num_threads = 1;
  const Problem& whole = c.backward ? backward : forward;
  status = reference::compute_exact(whole, context, &exact);
  if (status.ok()) status = reference::compute_standard(whole, context, &standard);
}

Oracle& oracle_of(const Case& c, const Values& values) {
  struct Kept {
    Case c;
    std::unique_ptr<Oracle> oracle;
  };
  constexpr size_t kMost = 4;  // tests judge a few variants of a problem by turns
  thread_local std::deque<Kept> kept;
  for (const Kept& one : kept) {
    if (one.c == c && one.oracle->values == values) return *one.oracle;
  }
  if (kept.size() == kMost) kept.pop_back();
  kept.push_front({c, std::make_unique<Oracle>(c, values)});
  return *kept.front().oracle;
}

Judgement judge(const Case& c, Oracle& oracle, const Results& results) {
  Judgement judgement;
  copy_into(oracle.slots.out, results.out);
  copy_into(oracle.slots.lse, results.lse);
  copy_into(oracle.slots.dq, results.dq);
  copy_into(oracle.slots.dk, results.dk);
  copy_into(oracle.slots.dv, results.dv);
  copy_into(oracle.slots.dbias, results.dbias);
  copy_into(oracle.slots.dsink, results.dsink);
  reference::AccuracyOptions options;
  options.tier =
      c.tier == Tier::kStatistical ? reference::Tier::kStatistical : reference::Tier::kExact;
  options.normal_inputs = oracle.typical;
  note(reference::check_forward(oracle.forward, oracle.exact, oracle.standard, options), judgement);
  if (c.backward) {
    note(reference::check_backward(oracle.backward, oracle.exact, oracle.standard, options),
         judgement);
  }
  if (c.keep && judgement.failure.empty()) {
    judgement.failure = check_keep(c, results.keep);
  }
  return judgement;
}

}  // namespace attentile::conformance

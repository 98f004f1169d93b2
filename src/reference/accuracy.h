// SPDX-License-Identifier: Apache-2.0
// The accuracy rule (contract section 6) as code: compares what a call wrote with the oracle.
//
//   statistical   |got - exact| <= factor * e + floor, for every element. e is the largest error of
//                 standard attention in q's precision; factor is 2 for out and lse, 3 for
//                 gradients, in every dtype. floor = max(4 u * condition, 1 ulp of the output's
//                 dtype at the largest exact value), u = 2^-24 (float64: 2^-53). On N(0,1) inputs
//                 there is a ceiling besides, relative to the largest exact value (float64: none).
//                 The oracle of float64 computes in long double, and the conditions of its weights
//                 carry the errors of its logits: decision 0006.
//   exact         out and dv equal the exact value rounded to their dtype, lse within 1 ulp; the
//                 others as above. For inputs whose result is exact in any order of summation.
//
// NaN passes only where the exact value is NaN, or in a gradient where the contract lets a NaN
// spread (condition NaN); an infinity only where the exact value rounds to it. A case in which
// zeros would have passed although the exact result is not zero proves nothing: it is mistrusted.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "reference/attention.h"

namespace attentile::reference {

enum class Tier { kStatistical, kExact };

struct AccuracyOptions {
  Tier tier = Tier::kStatistical;
  bool normal_inputs = false;  // inputs are N(0,1): the ceilings hold
};

// The judgement on one output. Errors are absolute.
struct Verdict {
  std::string name;
  int64_t elements = 0;
  double max_reference = 0;   // largest finite exact |value|
  double max_error = 0;       // infinite when a NaN or infinity is wrong
  double standard_error = 0;  // largest error of standard attention
  double allowed = 0;         // bound at the worst element: the largest error relative to its bound
  double ceiling = 0;         // 0: none applies
  int64_t worst[4] = {};      // index of the worst element over ExactArray's axes
  double got = 0;             // its value
  double expected = 0;        // its exact value
  int64_t failures = 0;       // elements outside their bound
  bool passed = false;
  bool mistrusted = false;  // the case could not fail
  std::string reason = {};  // one sentence when it failed or is mistrusted
};

// Compare what the problem's output arrays hold now. lse is judged when the problem has it.
std::vector<Verdict> check_forward(const Problem& problem, const ExactResult& exact,
                                   const ExactResult& standard, const AccuracyOptions& options);
std::vector<Verdict> check_backward(const Problem& problem, const ExactResult& exact,
                                    const ExactResult& standard, const AccuracyOptions& options);

// Oracle, yardstick and comparison in one: a backward problem's gradients, else out and lse.
Result<std::vector<Verdict>> check(const Problem& problem, const ExecutionContext& context,
                                   const AccuracyOptions& options);

// True when all passed and none is mistrusted.
bool all_pass(const std::vector<Verdict>& verdicts);

// A table for people: one heading line, one line per output. No line ends in a newline.
std::string verdict_heading();
std::string to_text(const Verdict& verdict);

}  // namespace attentile::reference

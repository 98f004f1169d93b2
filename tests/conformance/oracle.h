// SPDX-License-Identifier: Apache-2.0
// The oracle's answer to a case, computed once on the clean values and shared by all its cells, and
// the judgement of a cell's results against it.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "conformance/case.h"
#include "problem.h"
#include "reference/accuracy.h"
#include "reference/attention.h"

namespace attentile::conformance {

// The inputs and what is right. Not movable: the problem points into the tensors.
struct Oracle {
  explicit Oracle(const Case& c);
  // With values of the caller's, which cells then get as they are.
  Oracle(const Case& c, const Values& special);
  Oracle(const Oracle&) = delete;
  Oracle& operator=(const Oracle&) = delete;

  Status status;  // not ok: validation refused the case, or memory ran out
  Values values;
  Values given;   // what cells get: poisoned, if the case says so
  Results slots;  // a cell's results go here to be judged
  Problem forward;
  Problem backward;
  // N(0, 1) inputs, and rows and outputs enough for the ceilings to mean something.
  bool typical = false;
  reference::ExactResult exact;
  reference::ExactResult standard;

 private:
  void compute(const Case& c);
};

// The oracle of these values; the last few asked for are kept, as every target asks for the same.
Oracle& oracle_of(const Case& c, const Values& values);

struct Judgement {
  std::string failure;  // empty: passed
  bool vacuous = false;
  std::map<std::string, double> ratios;  // output -> worst error / allowed
};

Judgement judge(const Case& c, Oracle& oracle, const Results& results);

}  // namespace attentile::conformance

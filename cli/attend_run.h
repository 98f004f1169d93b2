// SPDX-License-Identifier: Apache-2.0
// The work of `attend` between reading and writing: plan, allocate, compute, verify.
#pragma once

#include <optional>
#include <vector>

#include "attentile/attention.h"
#include "cli/device_argument.h"
#include "cli/tensors.h"
#include "problem.h"
#include "reference/accuracy.h"

namespace attentile::cli {

struct PassResult {
  Plan plan;
  Problem problem;  // shapes; its pointers are those of the call
  double seconds = 0;
  std::optional<Traffic> traffic;  // not counted on a GPU
};

struct Judged {
  reference::Verdict verdict;
  int64_t nans =
      0;  // elements that are NaN in the output and by the oracle: no error measures them
};

struct AttendResult {
  PassResult forward;
  std::optional<PassResult> backward;
  std::vector<Judged> judged;  // with verify
};

struct AttendWork {
  AttentionOptions options;
  DeviceChoice device = DeviceChoice::kCpu;
  int threads = 0;
  Layout layout = Layout::kBshd;
  bool verify = false;
  bool normal_inputs = false;  // for the accuracy rule's ceilings
  std::FILE* progress = nullptr;
};

// Computes and, if asked, verifies; call.results holds the outputs afterwards. Ctrl-C stops it
// where the caller holds an InterruptGuard.
AttendResult run_attend(CallTensors& call, const AttendWork& work);

}  // namespace attentile::cli

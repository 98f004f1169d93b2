// SPDX-License-Identifier: Apache-2.0
// The entry points: each runs a case forward (and backward) and hands back what it wrote.
#pragma once

#include <string>

#include "conformance/case.h"
#include "conformance/oracle.h"
#include "conformance/runner.h"

namespace attentile::conformance {

struct EntryResult {
  Status status;  // kUnsupported: the cell is refused
  Results results;
  std::string damage;  // what was touched outside the results
};

// layout_seed: strides, guards and whether the workspace is the caller's differ from cell to cell.
EntryResult run_cpp(const Case& c, const Oracle& oracle, const Cell& cell, uint64_t layout_seed);
EntryResult run_c(const Case& c, const Oracle& oracle, const Cell& cell, uint64_t layout_seed);
EntryResult run_cli(const Case& c, const Oracle& oracle, const Cell& cell, uint64_t layout_seed,
                    const std::string& cli_path);

// On the device of cuda::backend(): kUnavailable where there is none.
EntryResult run_device(const Case& c, const Oracle& oracle, const Cell& cell, uint64_t layout_seed);

// False for a case that `attentile attend` has no flags for.
bool cli_can_express(const Case& c);

}  // namespace attentile::conformance

// SPDX-License-Identifier: Apache-2.0
// The conformance table's entry through the program, which is not built here.
#include "conformance/entry.h"

namespace attentile::conformance {

bool cli_can_express(const Case&) {
  return false;
}

EntryResult run_cli(const Case&, const Oracle&, const Cell&, uint64_t, const std::string&) {
  EntryResult result;
  result.status = Status(StatusCode::kUnsupported, "entry: is cli, which this program has not");
  return result;
}

}  // namespace attentile::conformance

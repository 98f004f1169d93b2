// SPDX-License-Identifier: Apache-2.0
// A case's call on the device.
#pragma once

#include <string>

#include "conformance/call.h"
#include "conformance/case.h"
#include "io/device_call.h"

namespace attentile::gpu {

struct Outcome {
  std::string what;     // went wrong; empty: nothing
  bool sticky = false;  // an error that every later call in this process would have too
};

inline Outcome outcome_of(const Status& status) {
  return {status.ok() ? "" : status.message(), status.code() == StatusCode::kInternal};
}

struct Prepared {
  Prepared(const cuda::BackendTable& table, const conformance::Case& of,
           const conformance::Values& values,
           io::Surroundings surroundings = io::Surroundings::kPoison)
      : c(of),
        placed(c, values, conformance::empty_results(c, values), 1,
               conformance::Placement::kContiguous),
        device(table, placed.inputs(), placed.outputs(), placed.gradients(), surroundings),
        options(conformance::options_of(c)) {}

  // Every pass, one after the other.
  Outcome run(bool own_workspace) {
    std::string damage;
    for (const bool backward : {false, true}) {
      if (backward && !c.backward) continue;
      const Status status = backward ? device.run_backward(options, own_workspace)
                                     : device.run_forward(options, own_workspace);
      if (!status.ok()) return outcome_of(status);
      damage += device.damage();
    }
    return {damage};
  }

  conformance::Case c;
  conformance::PlacedCall placed;
  io::DeviceCall device;
  AttentionOptions options;
};

}  // namespace attentile::gpu

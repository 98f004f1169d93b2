// SPDX-License-Identifier: Apache-2.0
// What `bench` measures: the product of shapes, dtypes, thread counts and passes.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "attentile/attention.h"
#include "cli/arguments.h"
#include "cli/device_argument.h"
#include "cli/synthetic_call.h"

namespace attentile::cli {

struct BenchCase {
  SyntheticCall call;
  int threads = 0;
};

struct BenchRequest {
  std::vector<BenchCase> cases;
  AttentionOptions options;
  DeviceChoice device = DeviceChoice::kCpu;
  double min_time_s = 0.5;
  std::optional<std::string> json;
};

void declare_bench(Arguments& arguments);
BenchRequest read_bench(const Arguments& arguments);

}  // namespace attentile::cli

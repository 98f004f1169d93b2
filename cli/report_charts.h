// SPDX-License-Identifier: Apache-2.0
// The charts of a report: bars of GFLOP/s under the measured peak, and time against sequence
// length.
#pragma once

#include <string>
#include <vector>

#include "cli/facts.h"

namespace attentile::cli {

// One group of bars per case, one bar per name, a mark at the peak.
std::string draw_speed_bars(const std::vector<Json>& records);

// One chart per family of cases that differ in sequence length only (three lengths or more).
std::vector<std::string> draw_time_curves(const std::vector<Json>& records);

// The colour of the n-th name.
std::string_view series_color(size_t n);

}  // namespace attentile::cli

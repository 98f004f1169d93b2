// SPDX-License-Identifier: Apache-2.0
// What the edge tests share: the calls and comparisons of the conformance table under short names.
#pragma once

#include <limits>

#include "conformance/call_testing.h"

namespace attentile::edge {

using conformance::accurate;
using conformance::all_finite;
using conformance::all_zero;
using conformance::base_case;
using conformance::Case;
using conformance::Fill;
using conformance::for_each_target;
using conformance::Results;
using conformance::run_call;
using conformance::same_bits;
using conformance::Target;
using conformance::Tier;
using conformance::Values;
using testing::DenseTensor;

inline constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

}  // namespace attentile::edge

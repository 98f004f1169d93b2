// SPDX-License-Identifier: Apache-2.0
// Standard attention in the same precision: the yardstick of the accuracy rule (contract section
// 6). Plain loops with float32 accumulation; S, P, dP, dS and the results rounded to q's dtype. It
// is the definition of row.h in other arithmetic. float64 problems are computed in float64, where
// the oracle has long double.
#pragma once

#include "reference/attention.h"

namespace attentile::reference {

// As compute_exact, without conditions. Values are what the dtype of each result can hold.
Status compute_standard(const Problem& problem, const ExecutionContext& context,
                        ExactResult* result);

}  // namespace attentile::reference

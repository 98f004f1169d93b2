// SPDX-License-Identifier: Apache-2.0
// The dropout decisions of a call, written out so that tests can see them.
#pragma once

#include "attentile/attention.h"
#include "problem.h"

namespace attentile {

// Fills problem.keep (uint8) for every (batch, head, query, key), hidden or not: 1 where dropout
// keeps the weight, everywhere 1 without dropout. It is the last step of a call: poll is told 1
// meanwhile, and may still cancel.
Status write_keep_mask(const Problem& problem, const ExecutionContext& context);

}  // namespace attentile

// SPDX-License-Identifier: Apache-2.0
// The table of bad calls: what is wrong, and the code and the exact sentence that come of it.
#pragma once

#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "validate/sample_call.h"

namespace attentile::test {

enum class Surface {
  kBoth,   // C++ and C
  kOnlyC,  // what only C can get wrong: struct sizes, null structs
};

struct BadCall {
  std::string name;
  Base base;
  std::function<void(SampleCall&)> spoil;
  int32_t code;
  std::string sentence;
  Surface surface = Surface::kBoth;
};

// What the test runner shows of a case.
inline void PrintTo(const BadCall& bad, std::ostream* stream) {
  *stream << bad.name;
}

std::vector<BadCall> bad_views();    // every argument: rank, dtype, device, sizes, extent, address
std::vector<BadCall> bad_tokens();   // q, k, v and outputs: presence, dtype, shape
std::vector<BadCall> bad_terms();    // bias, mask, sink, alibi_slopes, block_mask, gradients
std::vector<BadCall> bad_lengths();  // index arrays
std::vector<BadCall> bad_options();  // scalars, enums, execution context
std::vector<BadCall> bad_sharing();  // outputs that share memory
std::vector<BadCall> bad_workspaces();  // a workspace that lies in a tensor
std::vector<BadCall> two_mistakes();    // which of two is told
std::vector<BadCall> bad_structs();     // the C ABI's own

}  // namespace attentile::test

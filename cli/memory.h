// SPDX-License-Identifier: Apache-2.0
// How much memory there is. Linux grants more than it has, so a request that cannot fit is refused
// with a sentence here instead of being killed later.
#pragma once

#include <string_view>

namespace attentile::cli {

// Bytes that this process can still get: the least of the machine's and its limits'. Infinite when
// the system does not say.
double available_memory();

// An Error with status 3 unless `bytes` are available. `what` begins the sentence.
void require_memory(std::string_view what, double bytes);

// Largest resident size that this program had so far, in bytes (getrusage would count the program
// that started it too). Infinite when the system does not say.
double peak_resident_bytes();

}  // namespace attentile::cli

// SPDX-License-Identifier: Apache-2.0
// The speeds that times are held against, measured in this process.
#pragma once

#include "attentile/attention.h"

namespace attentile::cli {

// Bytes per second that `threads` threads read from memory in one stream each, best of several
// passes over buffers much larger than the caches.
double measure_read_bandwidth(int threads);

}  // namespace attentile::cli

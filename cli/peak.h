// SPDX-License-Identifier: Apache-2.0
// The speeds that times are held against, measured in this process.
#pragma once

#include "attentile/attention.h"

namespace attentile::cli {

// Bytes of memory that measure_read_bandwidth needs.
int64_t read_bandwidth_bytes(int threads);

// Bytes per second that `threads` threads read from memory in one stream each, best of several
// passes over buffers much larger than the caches. An Error with status 3, and no thread left, when
// the system does not give the memory or a thread.
double measure_read_bandwidth(int threads);

}  // namespace attentile::cli

// SPDX-License-Identifier: Apache-2.0
// What a plan asks of a GPU. The defaults are those of an A100 (sm_80).
#pragma once

#include <cstdint>

namespace attentile::cuda {

struct DeviceLimits {
  int32_t num_sms = 108;
  int32_t shared_bytes_per_block = 163 * 1024;  // what a launch can ask for; sm_86: 99 KiB
};

}  // namespace attentile::cuda

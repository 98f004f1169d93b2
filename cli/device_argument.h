// SPDX-License-Identifier: Apache-2.0
// --device: where a command computes.
#pragma once

#include "cli/arguments.h"
#include "cuda/backend_table.h"

namespace attentile::cli {

enum class DeviceChoice { kCpu, kCuda, kEmulator };

void declare_device(Arguments& arguments);

// cpu if it was not given. An Error, with a sentence on what was looked for, unless the device can
// be used; the emulator's library is the one beside the program.
DeviceChoice read_device(const Arguments& arguments);

const char* to_string(DeviceChoice device);

// Of a device that read_device() found: not the CPU.
const cuda::BackendTable& device_table();

}  // namespace attentile::cli

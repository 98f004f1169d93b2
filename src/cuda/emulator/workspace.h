// SPDX-License-Identifier: Apache-2.0
// The workspace of a call on the emulated GPU.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/emulator/device.h"
#include "mask.h"

namespace attentile::cuda::emulator {

// Memory for the length of a call, Options::workspace_offset bytes from a multiple of 256: nobody
// has filled it.
class Workspace {
 public:
  Workspace(Device& device, int64_t bytes)
      : device_(device),
        lines_(bytes == 0 ? 0 : ceil_div(bytes + device.options().workspace_offset, 256)) {
    if (bytes > 0) {
      device.register_memory(data(), static_cast<size_t>(bytes),
                             {.name = "workspace", .initialised = false});
    }
  }
  ~Workspace() {
    if (!lines_.empty()) device_.forget_memory(data());
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  char* data() {
    if (lines_.empty()) return nullptr;
    return reinterpret_cast<char*>(lines_.data()) + device_.options().workspace_offset;
  }

 private:
  struct alignas(256) Line {
    char byte[256];
  };
  Device& device_;
  std::vector<Line> lines_;
};

}  // namespace attentile::cuda::emulator

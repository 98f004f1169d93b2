// SPDX-License-Identifier: Apache-2.0
// Products of single tiles on the tensor cores of a GPU, to be held bit for bit against the model
// by which the emulator adds. A tile is one mma instruction of one warp.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace attentile::gpu {

enum class TileKind { kFloat16, kBFloat16, kTf32 };

// Registers as the lanes of a warp hold them: [tiles, 32, 4], [tiles, 32, 2], [tiles, 32, 4].
struct TileBatch {
  TileKind kind = TileKind::kFloat16;
  int64_t count = 0;
  std::vector<uint32_t> a;
  std::vector<uint32_t> b;
  std::vector<float> acc;  // C, then D
};

// C -> D. Empty, or why not. Two bodies: on the GPU, and, for a rehearsal, on the emulator.
std::string multiply_on_device(TileBatch& batch);
// Compute capability of that device, as 90 for 9.0; 0: there is none.
int device_architecture();

}  // namespace attentile::gpu

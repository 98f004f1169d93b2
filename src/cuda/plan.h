// SPDX-License-Identifier: Apache-2.0
// What a call would start on a GPU: its launches and its workspace. Pure: no device is asked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "attentile/status.h"
#include "cuda/backward_params.h"
#include "cuda/device_limits.h"
#include "problem.h"

namespace attentile::cuda {

struct LaunchPlan {
  std::string kernel;  // as Forward<BFloat16, 64, true>
  int64_t blocks = 0;
  int32_t threads = 0;  // of a block
  int64_t shared_bytes = 0;
  int64_t tile_m = 0;  // queries and keys that a block has at a time; 0: the kernel has no tiles
  int64_t tile_n = 0;

  // Blocks that fit an SM by threads and shared memory; registers may allow fewer.
  int32_t blocks_per_sm(const DeviceLimits& limits) const;
};

struct DevicePlan {
  std::vector<LaunchPlan> launches;  // in order; none: nothing to do
  int64_t workspace_bytes = 0;       // at any alignment
};

// Ok, or kUnsupported with the reason why no kernel serves the call. Allocates nothing where all is
// well.
Status check_problem(const Problem& problem, const DeviceLimits& limits);
// A grid of that many blocks of that size can be started.
Status check_launch(int64_t blocks, int32_t threads, int64_t shared_bytes,
                    const DeviceLimits& limits);

// The launches of a call; kUnsupported as above. Null data counts as memory that is yet to come.
Result<DevicePlan> make_plan(const Problem& problem, const DeviceLimits& limits);

// Of a problem that check_problem() accepts: what the kernels get. `workspace` is memory of
// workspace_bytes(), null where that is 0.
int64_t workspace_bytes(const Problem& problem, const DeviceLimits& limits);
ForwardParams forward_params(const Problem& problem, const DeviceLimits& limits, void* workspace);
BackwardParams backward_params(const Problem& problem, const DeviceLimits& limits, void* workspace);

}  // namespace attentile::cuda

// SPDX-License-Identifier: Apache-2.0
// The one thing that libattentile_cuda.so and the emulated backend export: a table of functions.
// The library finds it by name, checks version and sizes, and calls nothing else of theirs. Plain C
// types at the border; every function returns a StatusCode and, unless that is 0, fills `sentence`.
#pragma once

#include <cstdint>

#include "cuda/device_limits.h"
#include "dtype.h"

namespace attentile::cuda {

struct ForwardParams;
struct BackwardParams;

inline constexpr uint32_t kBackendVersion = 3;
inline constexpr const char* kBackendSymbol = "attentile_cuda_backend";

struct Sentence {
  char text[4096] = "";
};

struct DeviceInfo {
  char name[256] = "";
  int32_t compute_capability = 0;  // 10 * major + minor
  int64_t memory_bytes = 0;
  DeviceLimits limits;
};

// ExecutionContext's poll. A backend whose passes are over when they return asks it meanwhile, and
// ends a pass with kCancelled where it says so; one that starts them and returns does not ask.
struct Watch {
  int (*poll)(void* data, double fraction) = nullptr;
  void* data = nullptr;
};

// stream: a cudaStream_t; null is the default stream. forward and backward put their launches on it
// and return: they allocate nothing, wait for nothing, and may be captured into a graph. Memory of
// allocate_on_stream belongs to what follows on that stream, until release_on_stream.
struct BackendTable {
  uint32_t version;
  uint32_t table_bytes;
  uint32_t forward_params_bytes;
  uint32_t backward_params_bytes;
  const char* name;  // "cuda", "emulator"

  int32_t (*device_count)(int32_t* count, Sentence* sentence);
  int32_t (*device_info)(int32_t device, DeviceInfo* info, Sentence* sentence);
  int32_t (*current_device)(int32_t* device, Sentence* sentence);
  int32_t (*set_device)(int32_t device, Sentence* sentence);

  int32_t (*allocate)(int64_t bytes, void** memory, Sentence* sentence);
  int32_t (*release)(void* memory, Sentence* sentence);
  int32_t (*copy_to_device)(void* to, const void* from, int64_t bytes, Sentence* sentence);
  int32_t (*copy_to_host)(void* to, const void* from, int64_t bytes, Sentence* sentence);
  int32_t (*synchronise)(void* stream, Sentence* sentence);

  int32_t (*forward)(DType dtype, const ForwardParams* params, void* stream, const Watch* watch,
                     Sentence* sentence);
  int32_t (*backward)(DType dtype, const BackwardParams* params, void* stream, const Watch* watch,
                      Sentence* sentence);

  int32_t (*allocate_on_stream)(int64_t bytes, void* stream, void** memory, Sentence* sentence);
  int32_t (*release_on_stream)(void* memory, void* stream, Sentence* sentence);
};

}  // namespace attentile::cuda

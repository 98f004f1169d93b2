// SPDX-License-Identifier: Apache-2.0
// A GPU as the library uses one: the CUDA runtime, its errors as status codes and sentences.
#pragma once

#include <cuda_runtime.h>

#include "cuda/device/kernel.h"
#include "cuda/library.h"

namespace attentile::cuda::gpu {

struct Runtime {
  static constexpr const char* kName = "cuda";

  // 0, or the status code of an error, told as what the function was about.
  static int32_t check(cudaError_t error, const char* function, Sentence* sentence);

  static int32_t device_count(int32_t* count, Sentence* sentence);
  static int32_t device_info(int32_t device, DeviceInfo* info, Sentence* sentence);
  static int32_t current_device(int32_t* device, Sentence* sentence);
  static int32_t set_device(int32_t device, Sentence* sentence);
  static int32_t allocate(int64_t bytes, void** memory, Sentence* sentence);
  static int32_t release(void* memory, Sentence* sentence);
  static int32_t copy_to_device(void* to, const void* from, int64_t bytes, Sentence* sentence);
  static int32_t copy_to_host(void* to, const void* from, int64_t bytes, Sentence* sentence);
  static int32_t synchronise(void* stream, Sentence* sentence);
  static int32_t allocate_on_stream(int64_t bytes, void* stream, void** memory, Sentence* sentence);
  static int32_t release_on_stream(void* memory, void* stream, Sentence* sentence);

  template <class Kernel>
  static int32_t launch(int64_t blocks, const typename Kernel::Params& params, void* stream,
                        Sentence* sentence) {
    return check(cuda::launch<Kernel>({static_cast<uint32_t>(blocks)}, Kernel::kSharedBytes, params,
                                      static_cast<cudaStream_t>(stream)),
                 "launch", sentence);
  }
};

// The kernels of one type, each compiled by itself: forward_bf16.cu and its siblings. 0 or the
// status code of the launch that failed.
template <class T>
int32_t start_forward_of(const ForwardParams& params, void* stream, Sentence* sentence);
template <class T>
int32_t start_backward_of(const BackwardParams& params, void* stream, Sentence* sentence);

}  // namespace attentile::cuda::gpu

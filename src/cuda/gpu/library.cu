// SPDX-License-Identifier: Apache-2.0
// libattentile_cuda.so: the table, and everything of it that starts no kernel.
#include <cstdio>

#include "cuda/gpu/runtime.h"
#include "cuda/kernel_type.h"

namespace attentile::cuda::gpu {
namespace {

StatusCode code_of(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation: return StatusCode::kOutOfMemory;
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorInvalidDevice:
    case cudaErrorDevicesUnavailable:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorSystemNotReady:
    case cudaErrorNotSupported: return StatusCode::kUnavailable;
    default: return StatusCode::kInternal;
  }
}

int attribute(cudaDeviceAttr which, int32_t device, cudaError_t* error) {
  int value = 0;
  if (*error == cudaSuccess) *error = cudaDeviceGetAttribute(&value, which, device);
  return value;
}

}  // namespace

int32_t Runtime::check(cudaError_t error, const char* function, Sentence* sentence) {
  if (error == cudaSuccess) return 0;
  std::snprintf(sentence->text, sizeof sentence->text, "cuda: %s: %s", function,
                cudaGetErrorString(error));
  (void)cudaGetLastError();  // or the next call would tell of it again
  return static_cast<int32_t>(code_of(error));
}

int32_t Runtime::device_count(int32_t* count, Sentence* sentence) {
  return check(cudaGetDeviceCount(count), "cudaGetDeviceCount", sentence);
}

int32_t Runtime::device_info(int32_t device, DeviceInfo* info, Sentence* sentence) {
  cudaDeviceProp properties;
  cudaError_t error = cudaGetDeviceProperties(&properties, device);
  if (error == cudaSuccess) {
    std::snprintf(info->name, sizeof info->name, "%s", properties.name);
    info->compute_capability = 10 * properties.major + properties.minor;
    info->memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  }
  info->limits.num_sms = attribute(cudaDevAttrMultiProcessorCount, device, &error);
  info->limits.shared_bytes_per_block =
      attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device, &error);
  return check(error, "cudaGetDeviceProperties", sentence);
}

int32_t Runtime::current_device(int32_t* device, Sentence* sentence) {
  return check(cudaGetDevice(device), "cudaGetDevice", sentence);
}
int32_t Runtime::set_device(int32_t device, Sentence* sentence) {
  return check(cudaSetDevice(device), "cudaSetDevice", sentence);
}

int32_t Runtime::allocate(int64_t bytes, void** memory, Sentence* sentence) {
  return check(cudaMalloc(memory, static_cast<size_t>(bytes)), "cudaMalloc", sentence);
}
int32_t Runtime::release(void* memory, Sentence* sentence) {
  return check(cudaFree(memory), "cudaFree", sentence);
}

int32_t Runtime::copy_to_device(void* to, const void* from, int64_t bytes, Sentence* sentence) {
  return check(cudaMemcpy(to, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice),
               "cudaMemcpy", sentence);
}
int32_t Runtime::copy_to_host(void* to, const void* from, int64_t bytes, Sentence* sentence) {
  return check(cudaMemcpy(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost),
               "cudaMemcpy", sentence);
}
int32_t Runtime::synchronise(void* stream, Sentence* sentence) {
  return check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "cudaStreamSynchronize",
               sentence);
}

int32_t Runtime::allocate_on_stream(int64_t bytes, void* stream, void** memory,
                                    Sentence* sentence) {
  return check(
      cudaMallocAsync(memory, static_cast<size_t>(bytes), static_cast<cudaStream_t>(stream)),
      "cudaMallocAsync", sentence);
}
int32_t Runtime::release_on_stream(void* memory, void* stream, Sentence* sentence) {
  return check(cudaFreeAsync(memory, static_cast<cudaStream_t>(stream)), "cudaFreeAsync", sentence);
}

}  // namespace attentile::cuda::gpu

namespace attentile::cuda {

template <>
int32_t library_forward<gpu::Runtime>(DType dtype, const ForwardParams* params, void* stream,
                                      const Watch*, Sentence* sentence) {
  return with_kernel_type(
      dtype, [&]<class T>() { return gpu::start_forward_of<T>(*params, stream, sentence); });
}

template <>
int32_t library_backward<gpu::Runtime>(DType dtype, const BackwardParams* params, void* stream,
                                       const Watch*, Sentence* sentence) {
  return with_kernel_type(
      dtype, [&]<class T>() { return gpu::start_backward_of<T>(*params, stream, sentence); });
}

}  // namespace attentile::cuda

extern "C" __attribute__((visibility("default"))) const attentile::cuda::BackendTable*
attentile_cuda_backend() {
  static const attentile::cuda::BackendTable table =
      attentile::cuda::make_table<attentile::cuda::gpu::Runtime>();
  return &table;
}

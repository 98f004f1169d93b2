// SPDX-License-Identifier: Apache-2.0
// In the place of libattentile_cuda.so: a GPU of host memory whose every kernel makes an illegal
// access, which CUDA tells of from then on.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cuda/library.h"

namespace {

using namespace attentile;
using namespace attentile::cuda;

int32_t count(int32_t* found, Sentence*) {
  *found = 1;
  return 0;
}
int32_t info(int32_t, DeviceInfo* found, Sentence*) {
  *found = {};
  found->compute_capability = 90;
  return 0;
}
int32_t current(int32_t* device, Sentence*) {
  *device = 0;
  return 0;
}
int32_t set(int32_t, Sentence*) {
  return 0;
}
int32_t allocate(int64_t bytes, void** memory, Sentence*) {
  *memory = std::calloc(1, static_cast<size_t>(bytes));
  return 0;
}
int32_t release(void* memory, Sentence*) {
  std::free(memory);
  return 0;
}
int32_t allocate_on_stream(int64_t bytes, void*, void** memory, Sentence* sentence) {
  return allocate(bytes, memory, sentence);
}
int32_t release_on_stream(void* memory, void*, Sentence* sentence) {
  return release(memory, sentence);
}
int32_t copy(void* to, const void* from, int64_t bytes, Sentence*) {
  std::memcpy(to, from, static_cast<size_t>(bytes));
  return 0;
}
int32_t synchronise(void*, Sentence* sentence) {
  std::snprintf(sentence->text, sizeof sentence->text, "an illegal memory access");
  return static_cast<int32_t>(StatusCode::kInternal);
}
template <class Params>
int32_t start(DType, const Params*, void*, const Watch*, Sentence*) {
  return 0;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const BackendTable* attentile_cuda_backend() {
  static const BackendTable table = {.version = kBackendVersion,
                                     .table_bytes = sizeof(BackendTable),
                                     .forward_params_bytes = sizeof(ForwardParams),
                                     .backward_params_bytes = sizeof(BackwardParams),
                                     .name = "broken",
                                     .device_count = count,
                                     .device_info = info,
                                     .current_device = current,
                                     .set_device = set,
                                     .allocate = allocate,
                                     .release = release,
                                     .copy_to_device = copy,
                                     .copy_to_host = copy,
                                     .synchronise = synchronise,
                                     .forward = start<ForwardParams>,
                                     .backward = start<BackwardParams>,
                                     .allocate_on_stream = allocate_on_stream,
                                     .release_on_stream = release_on_stream};
  return &table;
}

// SPDX-License-Identifier: Apache-2.0
// libattentile_cuda_emulated.so: the table of the emulated GPU.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cuda/emulator/backward.h"
#include "cuda/emulator/forward.h"
#include "cuda/emulator/runtime.h"

namespace attentile::cuda::emulator {
namespace {

constexpr size_t kAlignment = 256;  // as cudaMalloc's

Status wrong_device(int32_t device) {
  return {StatusCode::kInvalidArgument,
          "device: is " + std::to_string(device) + ", but the emulator has device 0 alone"};
}

}  // namespace

std::mutex& Runtime::mutex() {
  static std::mutex instance;
  return instance;
}
Device& Runtime::device() {
  static Device instance;
  return instance;
}

constinit thread_local bool Runtime::asking = false;

bool Runtime::goes_on(const Watch& watch, double fraction, Status* status) {
  int answer = 0;
  asking = true;
  try {
    answer = watch.poll(watch.data, fraction);
  } catch (...) {
    *status = {StatusCode::kInternal, "call: an exception left poll"};
  }
  asking = false;
  if (answer == 0) return status->ok();
  char text[96];
  std::snprintf(text, sizeof text, "poll: returned %d, so the call was cancelled at %.1f %%",
                answer, 100 * fraction);
  *status = {StatusCode::kCancelled, text};
  return false;
}

Status Runtime::judge(const Report& report) {
  if (report.clean()) return {};
  return {StatusCode::kInternal, "emulator: the launch was not clean\n" + report.text()};
}

int32_t Runtime::tell(const Status& status, Sentence* sentence) {
  if (!status.ok()) {
    std::snprintf(sentence->text, sizeof sentence->text, "%s", status.message().c_str());
  }
  return static_cast<int32_t>(status.code());
}

int32_t Runtime::device_count(int32_t* count, Sentence*) {
  *count = 1;
  return 0;
}

int32_t Runtime::device_info(int32_t device, DeviceInfo* info, Sentence* sentence) {
  if (device != 0) return tell(wrong_device(device), sentence);
  *info = {};
  std::snprintf(info->name, sizeof info->name, "emulated GPU");
  info->compute_capability = 80;
  info->memory_bytes = int64_t{1} << 40;
  return 0;
}

int32_t Runtime::current_device(int32_t* device, Sentence*) {
  *device = 0;
  return 0;
}
int32_t Runtime::set_device(int32_t device, Sentence* sentence) {
  return device == 0 ? 0 : tell(wrong_device(device), sentence);
}

int32_t Runtime::allocate(int64_t bytes, void** memory, Sentence* sentence) {
  return guarded(sentence, [&]() -> Status {
    *memory = nullptr;
    if (bytes <= 0) return {};
    const size_t size = (static_cast<size_t>(bytes) + kAlignment - 1) / kAlignment * kAlignment;
    *memory = std::aligned_alloc(kAlignment, size);
    if (*memory == nullptr) {
      return {StatusCode::kOutOfMemory,
              "memory: " + std::to_string(bytes) + " bytes could not be allocated"};
    }
    device().register_memory(*memory, static_cast<size_t>(bytes), {.name = "device memory"});
    return {};
  });
}

int32_t Runtime::release(void* memory, Sentence* sentence) {
  return guarded(sentence, [&]() -> Status {
    if (memory != nullptr) device().forget_memory(memory);
    std::free(memory);
    return {};
  });
}

int32_t Runtime::copy_to_device(void* to, const void* from, int64_t bytes, Sentence*) {
  std::memcpy(to, from, static_cast<size_t>(bytes));
  return 0;
}
int32_t Runtime::copy_to_host(void* to, const void* from, int64_t bytes, Sentence*) {
  std::memcpy(to, from, static_cast<size_t>(bytes));
  return 0;
}
int32_t Runtime::synchronise(void*, Sentence*) {
  return 0;
}

int32_t Runtime::allocate_on_stream(int64_t bytes, void*, void** memory, Sentence* sentence) {
  return allocate(bytes, memory, sentence);
}
int32_t Runtime::release_on_stream(void* memory, void*, Sentence* sentence) {
  return release(memory, sentence);
}

}  // namespace attentile::cuda::emulator

namespace attentile::cuda {

template <>
int32_t library_forward<emulator::Runtime>(DType dtype, const ForwardParams* params, void*,
                                           const Watch* watch, Sentence* sentence) {
  return emulator::Runtime::run(watch, sentence, [&](emulator::Device& device) {
    return emulator::start_forward(device, dtype, *params);
  });
}

template <>
int32_t library_backward<emulator::Runtime>(DType dtype, const BackwardParams* params, void*,
                                            const Watch* watch, Sentence* sentence) {
  return emulator::Runtime::run(watch, sentence, [&](emulator::Device& device) {
    return emulator::start_backward(device, dtype, *params);
  });
}

}  // namespace attentile::cuda

extern "C" [[gnu::visibility("default")]] const attentile::cuda::BackendTable*
attentile_cuda_backend() {
  static const attentile::cuda::BackendTable table =
      attentile::cuda::make_table<attentile::cuda::emulator::Runtime>();
  return &table;
}

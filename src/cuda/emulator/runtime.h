// SPDX-License-Identifier: Apache-2.0
// The emulated GPU as the library uses one. Its memory is host memory that one Device knows; a call
// is over when it returns, whatever the stream; calls of several threads take turns, and a poll may
// make none.
#pragma once

#include <exception>
#include <functional>
#include <mutex>
#include <new>
#include <string>
#include <utility>

#include "cuda/emulator/device.h"
#include "cuda/library.h"

namespace attentile::cuda::emulator {

struct Runtime {
  static constexpr const char* kName = "emulator";

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

  // pass(device) starts kernels and returns the report of all.
  template <class Pass>
  static int32_t run(const Watch* watch, Sentence* sentence, Pass pass) {
    return guarded(sentence, [&]() -> Status {
      if (watch == nullptr || watch->poll == nullptr) return judge(pass(device()));
      Status cancelled;
      const Watched watched(device(),
                            [&](double fraction) { return goes_on(*watch, fraction, &cancelled); });
      const Report report = pass(device());
      return cancelled.ok() || !report.findings.empty() ? judge(report) : cancelled;
    });
  }

 private:
  // While it lives, also where a pass throws.
  struct Watched {
    Watched(Device& watched, std::function<bool(double)> goes_on) : device(watched) {
      device.watch(std::move(goes_on));
    }
    ~Watched() { device.watch(nullptr); }
    Watched(const Watched&) = delete;
    Watched& operator=(const Watched&) = delete;

    Device& device;
  };

  static constinit thread_local bool asking;  // this thread is in a poll

  static std::mutex& mutex();
  static Device& device();
  // False, and why in status, when the watch says so.
  static bool goes_on(const Watch& watch, double fraction, Status* status);
  static Status judge(const Report& report);
  static int32_t tell(const Status& status, Sentence* sentence);

  // Runs body, which returns a Status, alone.
  template <class Body>
  static int32_t guarded(Sentence* sentence, Body body) {
    if (asking) {
      return tell({StatusCode::kUnsupported, "device: poll calls the emulator, which is at work"},
                  sentence);
    }
    try {
      const std::lock_guard<std::mutex> lock(mutex());
      return tell(body(), sentence);
    } catch (const std::bad_alloc&) {
      return tell({StatusCode::kOutOfMemory, "memory: ran out on the emulated GPU"}, sentence);
    } catch (const std::exception& error) {
      return tell({StatusCode::kInternal, std::string("emulator: ") + error.what()}, sentence);
    }
  }
};

}  // namespace attentile::cuda::emulator

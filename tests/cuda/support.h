// SPDX-License-Identifier: Apache-2.0
// What the tests of the emulator share: registered buffers, one-block launches, kernels of a line.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cuda/device/device.h"
#include "cuda/emulator/device.h"

namespace attentile::cuda::test {

using emulator::BlockOrder;
using emulator::Completion;
using emulator::Device;
using emulator::Fault;
using emulator::Finding;
using emulator::MmaModel;
using emulator::Options;
using emulator::Report;
using emulator::Schedule;

inline constexpr Schedule kSchedules[] = {Schedule::kRoundRobin, Schedule::kRandom,
                                          Schedule::kMostDelayedFirst, Schedule::kFurthestFirst};
inline constexpr Completion kCompletions[] = {Completion::kLatest, Completion::kAtOnce,
                                              Completion::kRandom};
inline constexpr BlockOrder kBlockOrders[] = {BlockOrder::kForward, BlockOrder::kReverse,
                                              BlockOrder::kRandom, BlockOrder::kEvenFirst};

// Host memory that kernels may touch, with room around it that belongs to nobody.
template <class T>
class Buffer {
 public:
  static constexpr size_t kAlignment = 256;
  static constexpr size_t kGap = kAlignment / sizeof(T);
  Buffer(Device& device, size_t count, const emulator::Region& region = {.name = "buffer"})
      : storage_(count + 3 * kGap), count_(count) {
    device.register_memory(data(), count * sizeof(T), region);
  }
  T* data() { return aligned() + kGap; }
  T& operator[](size_t i) { return data()[i]; }
  size_t size() const { return count_; }
  std::vector<T> values() { return std::vector<T>(data(), data() + count_); }

 private:
  T* aligned() {
    const auto address = reinterpret_cast<uintptr_t>(storage_.data());
    return reinterpret_cast<T*>((address + kAlignment - 1) / kAlignment * kAlignment);
  }
  std::vector<T> storage_;
  size_t count_;
};

// A kernel from a function: Kernel<threads, Params, function>.
template <int kBlockThreads, class P, void (*kFunction)(const P&, SharedAddress)>
struct Kernel {
  static constexpr int kThreads = kBlockThreads;
  static constexpr int kMinBlocksPerSm = 1;
  using Params = P;
  static void run(const Params& params, SharedAddress arena) { kFunction(params, arena); }
};

inline std::vector<uint32_t> random_words(size_t count) {
  std::mt19937 random(11);
  std::vector<uint32_t> words(count);
  for (uint32_t& word : words) word = static_cast<uint32_t>(random());
  return words;
}

struct Words {
  uint32_t* out;
  const uint32_t* in;
  int argument;
};

// One block over an output (uninitialised) and an input (read-only) of words.
template <int kBlockThreads, void (*kFunction)(const Words&, SharedAddress)>
struct OneBlock {
  explicit OneBlock(const std::vector<uint32_t>& input = std::vector<uint32_t>(64),
                    const Options& options = {}, int argument = 0, size_t outputs = 1024,
                    uint32_t shared_bytes = 4096)
      : device(options),
        out(device, outputs, {.name = "out", .initialised = false}),
        in(device, input.size(), {.name = "in", .writable = false}) {
    for (size_t i = 0; i < input.size(); ++i) in[i] = input[i];
    report = device.launch<Kernel<kBlockThreads, Words, kFunction>>(
        {1, 1, 1}, shared_bytes, {out.data(), in.data(), argument});
  }
  Device device;
  Buffer<uint32_t> out;
  Buffer<uint32_t> in;
  Report report;
};

// The finding, if the kernel has one of that class and nothing else.
template <class R>
const Finding* only(const R& run, Fault fault) {
  EXPECT_EQ(run.report.findings.size(), 1u) << run.report.text();
  static const Finding kNothing;
  const Finding* finding = run.report.find(fault);
  EXPECT_NE(finding, nullptr) << run.report.text();
  if (finding == nullptr) return &kNothing;
  if (fault != Fault::kDeadlock) {
    EXPECT_NE(finding->where.file.find("_test.cc"), std::string::npos);
  }
  return finding;
}
template <class R>
void clean(const R& run) {
  EXPECT_TRUE(run.report.clean()) << run.report.text();
}

// `blocks` blocks over 256 words of zeros.
template <class K>
Report run_blocks(uint32_t blocks, int argument, const Options& options) {
  Device device(options);
  Buffer<uint32_t> out(device, 256, {.name = "out"});
  std::memset(out.data(), 0, 1024);
  return device.launch<K>({blocks}, 1024, {out.data(), nullptr, argument});
}

}  // namespace attentile::cuda::test

// SPDX-License-Identifier: Apache-2.0
// The emulated GPU: registers global memory, launches kernels, returns what was found.
//
//   emulator::Device device({.schedule = Schedule::kRandom, .seed = 7});
//   device.register_memory(x.data(), bytes, {.name = "x", .writable = false});
//   const Report report = device.launch<Scale<Float16>>({grid}, shared_bytes, params);
//
// A Device belongs to one OS thread at a time; different threads may use different ones.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "cuda/device/shared_memory.h"
#include "cuda/emulator/report.h"

namespace attentile::cuda::emulator {

// Which warp runs next, whenever more than one can.
enum class Schedule {
  kRoundRobin,        // by turns, a few collectives each; lanes ascending
  kRandom,            // seeded
  kMostDelayedFirst,  // the warp that is furthest behind; lanes descending
  kFurthestFirst,     // one warp runs until it has to wait
};
// When the bytes of a cp.async arrive, within what its waits allow.
enum class Completion { kLatest, kAtOnce, kRandom };
// In which order blocks enter the grid's resident slots.
enum class BlockOrder { kForward, kReverse, kRandom, kEvenFirst };
// How mma adds: in float32, k ascending; or as the unit of Options::arch does, bit for bit.
enum class MmaModel { kFloat32, kHardware };

struct Options {
  Schedule schedule = Schedule::kRoundRobin;
  Completion completion = Completion::kLatest;
  BlockOrder block_order = BlockOrder::kForward;
  MmaModel mma = MmaModel::kFloat32;
  uint64_t seed = 1;
  int arch = 80;
  int ex2_ulps = 0;  // that ex2.approx is off, up; 2 is what PTX allows, and none for integers
  int resident_blocks = 2;    // that run interleaved
  int workspace_offset = 16;  // from where cudaMalloc would put it: what the kernels are promised
  // Strict: only bar.warp.sync and barriers order the lanes of a warp, and bar_sync() is one line.
  bool strict = true;
  uint64_t max_instructions = 20'000'000'000;  // of a launch, against endless loops
  size_t stack_bytes = size_t{256} << 10;      // per thread, touched on demand
};

struct Region {
  std::string name;
  bool initialised = true;  // by the host, before the launch
  bool writable = true;
};

struct LaunchShape {
  Dim3 grid;
  uint32_t threads = 32;
  uint32_t shared_bytes = 0;
};

class Machine;

class Device {
 public:
  explicit Device(const Options& options = {});
  ~Device();

  // Makes [memory, memory + bytes) global memory; regions do not overlap.
  void register_memory(const void* memory, size_t bytes, const Region& region);
  void forget_memory(const void* memory);
  const Options& options() const;
  // Bytes of that region that nobody has written so far.
  size_t uninitialised_bytes(const void* memory) const;

  // goes_on hears every 10 ms or so, in the calling thread, which part of the blocks has ended;
  // when it says false the launch ends there, not completed. Nothing else depends on it. null:
  // nobody hears.
  void watch(std::function<bool(double fraction)> goes_on);
  // Of all launches of the pass that follows; 0: each is one of its own.
  void expect_blocks(int64_t blocks);

  template <class Kernel>
  Report launch(Dim3 grid, uint32_t shared_bytes, const typename Kernel::Params& params) {
    using Params = typename Kernel::Params;
    static_assert(Kernel::kThreads % kWarpSize == 0 && Kernel::kThreads <= 1024);
    return run(
        {grid, Kernel::kThreads, shared_bytes},
        [](const void* raw, SharedAddress arena) {
          Kernel::run(*static_cast<const Params*>(raw), arena);
        },
        &params);
  }

 private:
  using Entry = void (*)(const void* params, SharedAddress arena);
  Report run(const LaunchShape& shape, Entry entry, const void* params);

  std::unique_ptr<Machine> machine_;
};

}  // namespace attentile::cuda::emulator

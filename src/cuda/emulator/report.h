// SPDX-License-Identifier: Apache-2.0
// What a launch in the emulator found and counted: findings, each once with the number of times it
// occurred (in memory: of 4-byte words), and counters in total and per line of the kernel.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "cuda/device/config.h"

namespace attentile::cuda::emulator {

enum class Fault {
  kUninitialisedRead,
  kOutOfBounds,
  kMisaligned,
  kReadAfterWrite,  // a race: the write is not ordered before the read
  kWriteAfterRead,
  kWriteAfterWrite,
  kInFlight,           // touches the destination of a cp.async that nobody waited for
  kNeverWaited,        // a thread exits with copies in flight
  kReadOnlyWritten,    // a write to memory registered as read-only
  kReadOnlyLoad,       // ld.global.nc of bytes written in this launch
  kDivergence,         // lanes of a warp at different collectives
  kInvalidOperand,     // barrier id, thread count, lane, copy size
  kBarrierMismatch,    // the thread count differs among participants or phases
  kBarrierReentered,   // a warp arrives twice in one phase
  kBarrierUnfinished,  // the block ends in the middle of a phase
  kDivergentBarrier,   // bar_sync() reached on different lines by different warps
  kDeadlock,
  kEndlessLoop,
};
enum class Space { kNone, kShared, kGlobal };

const char* name_of(Fault fault);

struct SourceLine {
  std::string file;
  int line = 0;

  friend bool operator==(const SourceLine&, const SourceLine&) = default;
  friend auto operator<=>(const SourceLine&, const SourceLine&) = default;
};

// A thread by its block's place in the grid and its number in the block.
struct ThreadName {
  Dim3 block{0, 0, 0};
  uint32_t thread = 0;
};

struct Finding {
  Fault fault = Fault::kDeadlock;
  Space space = Space::kNone;
  SourceLine where;
  SourceLine other;      // the earlier access of a race, the copy in flight; line 0: none
  uint64_t address = 0;  // byte offset in the arena, or in the region
  uint32_t bytes = 0;    // of the access
  ThreadName thread;     // of the first occurrence
  ThreadName other_thread;
  std::string detail;  // a sentence
  uint64_t count = 0;
};

struct Counters {
  uint64_t global_read_bytes = 0;
  uint64_t global_written_bytes = 0;
  uint64_t global_read_sectors = 0;  // distinct 32-byte sectors per warp instruction
  uint64_t global_written_sectors = 0;
  uint64_t shared_wavefronts = 0;
  uint64_t bank_conflicts = 0;  // wavefronts beyond the least possible
  uint64_t copies = 0;          // cp.async, per thread
  uint64_t mma = 0;             // per warp
  uint64_t ex2 = 0;             // per thread
  uint64_t barriers = 0;        // per warp: bar.sync, bar.arrive
  uint64_t collectives = 0;     // per warp, barriers and mma among them

  void add(const Counters& other);
};

struct Report {
  std::vector<Finding> findings;
  Counters total;
  std::map<SourceLine, Counters> lines;
  std::map<std::string, Counters> kernels;  // of a pass: total of each kernel, by its name
  uint64_t switches = 0;                    // of fibers
  uint64_t instructions = 0;                // wrapper calls that the emulator saw
  bool completed = false;                   // every thread reached its end

  void add(const Report& later);  // of a launch after this one
  bool clean() const { return completed && findings.empty(); }
  bool has(Fault fault) const { return find(fault) != nullptr; }
  const Finding* find(Fault fault) const;
  std::string text() const;
};

std::string to_string(const Finding& finding);

}  // namespace attentile::cuda::emulator

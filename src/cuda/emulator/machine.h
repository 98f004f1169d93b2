// SPDX-License-Identifier: Apache-2.0
// The machine behind Device: blocks, warps and threads of the running launch, the scheduler that
// gives them turns, and what the instructions (collectives.cc, barriers.cc, *_memory.cc) share.
//
// A thread is a fiber. It runs until it reaches a warp collective; the last lane to arrive executes
// the collective for all 32 and goes on, so a collective costs one switch per lane. Between
// collectives a thread is never interrupted: races are found by vector clocks, not by luck.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cuda/device/shared_memory.h"
#include "cuda/emulator/clock.h"
#include "cuda/emulator/device.h"
#include "cuda/emulator/fiber.h"
#include "cuda/emulator/global_shadow.h"
#include "cuda/emulator/report.h"
#include "cuda/emulator/shared_shadow.h"

namespace attentile::cuda::emulator {

// As .ftz does.
inline float flush(float x) {
  return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
}

using SiteId = uint16_t;  // index of a kernel line in Machine::sites; 0: none

// Where the arena begins in a block's shared memory; not 0, so that offsets are no addresses.
inline constexpr uint32_t kArenaBase = 1024;
inline constexpr uint32_t kFullWarp = 0xFFFFFFFFu;
inline constexpr uint8_t kPoison = 0xFF;  // NaN in every format

enum class Opcode : uint8_t {
  kWarpSync,
  kBlockSync,
  kSync,
  kArrive,
  kShfl,
  kBallot,
  kRedux,
  kLdmatrix,
  kStmatrix,
  kMma,
};

// One lane's part of a collective. Opcode, site and operands are the same in all lanes.
struct Request {
  Opcode opcode = Opcode::kWarpSync;
  SiteId site = 0;
  uint32_t operand[2] = {0, 0};
  uint32_t value = 0;    // the lane's input: address, value, predicate
  void* data = nullptr;  // the lane's registers

  // Written in place: a copy would wait for the stores before it.
  void set(Opcode code, SiteId line, uint32_t first, uint32_t second) {
    opcode = code;
    site = line;
    operand[0] = first;
    operand[1] = second;
  }
};

enum class Traffic : uint8_t { kSharedLoad, kSharedStore, kGlobalLoad, kGlobalStore };
struct Access {
  uint64_t address;
  SiteId site;
  uint8_t bytes;
  Traffic traffic;
};

struct PendingCopy {
  uint32_t destination = 0;  // offset in the arena
  const void* source = nullptr;
  uint8_t bytes = 0;
  uint8_t source_bytes = 0;
  SiteId site = 0;
  bool landed = false;
};

struct Block;
struct Warp;

struct Thread {
  Fiber fiber;
  Machine* machine = nullptr;
  Block* block = nullptr;
  Warp* warp = nullptr;
  int lane = 0;
  uint32_t idx = 0;     // in the block
  uint32_t number = 0;  // in the launch
  uint32_t epoch = 1;
  std::unique_ptr<Clock> clock;  // where it knows more than its warp
  std::vector<PendingCopy> copies;
  std::vector<size_t> groups;  // copies before the end of each committed group
  std::vector<Access> accesses;
  Request request;
  SiteId polling = 0;  // line of the acquire load it repeats
};

struct Warp {
  Block* block = nullptr;
  uint32_t index = 0;  // in the block
  Thread* lanes = nullptr;
  uint32_t runnable = 0;
  uint32_t arrived = 0;  // at the collective under way
  uint32_t exited = 0;
  bool mismatch = false;  // they arrived at different ones
  bool polled = false;
  int last_lane = 0;
  uint64_t steps = 0;
  uint32_t epoch = 1;
  Clock clock;
  SiteId waits_at = 0;  // the barrier's line
  int waits_for = -1;   // its id
};

struct Barrier {
  uint32_t expected = 0;  // threads; 0: no phase under way
  uint32_t arrived = 0;   // threads
  uint32_t present = 0;   // warps that arrived or wait
  uint32_t waiting = 0;   // warps
  SiteId site = 0;        // of the first arrival
  uint32_t first_thread = 0;
  uint32_t last_expected = 0;  // of the phase before
  Clock clock;
};

struct Block {
  uint32_t number = 0;  // in the grid
  Dim3 idx{0, 0, 0};
  uint32_t live = 0;                             // threads
  std::vector<std::unique_ptr<Thread[]>> lanes;  // 32 of each warp
  std::vector<Warp> warps;
  std::vector<uint8_t> arena;
  SharedShadow shadow;
  Barrier barriers[16];
};

class Machine {
 public:
  using Entry = void (*)(const void*, SharedAddress);

  explicit Machine(const Options& options);
  Report run(const LaunchShape& shape, Entry entry, const void* params);
  void watch(std::function<bool(double)> goes_on) { goes_on_ = std::move(goes_on); }
  void expect_blocks(uint64_t blocks);

  // --- for the instructions
  SiteId site_id(Site site);
  // Joins the collective that self.request describes.
  void collective(Thread& self);
  void poll(Thread& self);
  void count_instruction(Thread& self, SiteId site);
  Counters& counters(SiteId site) { return sites_[site].counters; }

  // An occurrence of a fault by `self`; the first of its kind and lines is kept.
  struct Occurrence {
    Fault fault;
    Space space = Space::kNone;
    SiteId where = 0;
    SiteId other = 0;
    uint64_t address = 0;
    uint32_t bytes = 0;
    uint32_t other_thread = 0;  // number in the launch
  };
  // True when this is the first. describe() adds a sentence to what was reported last.
  bool report(const Thread& self, const Occurrence& occurrence);
  void describe(const std::string& sentence) { report_.findings[reported_].detail = sentence; }
  [[noreturn]] void give_up(Thread& self);

  bool ordered(const Thread& self, uint32_t other, uint32_t epoch) const;
  void warp_publishes(Warp& warp, Clock* clock);
  void warp_learns(Warp& warp, const Clock* clock);
  void thread_publishes(Thread& self, Clock& clock);
  void thread_learns(Thread& self, const Clock& clock);

  bool shared_in_range(Thread& self, const Access& access);
  void shared_read(Thread& self, const Access& access, bool by_warp, void* value);
  void check_shared_write(Thread& self, const Access& access, bool by_warp);
  void shared_write(Thread& self, const Access& access, bool by_warp, const void* value);
  void issue_copy(Thread& self, const PendingCopy& copy);
  void land_copy(Thread& self, PendingCopy& copy);
  void finish_copies(Thread& self, size_t count);
  GlobalRegion* global_region(Thread& self, const Access& access, bool write);
  void global_read(Thread& self, const Access& access, bool read_only, void* value);
  void global_write(Thread& self, const Access& access, bool atomic, const void* value);
  void report_outside(Thread& self, const Access& access);
  void count_wavefronts(SiteId site, const uint64_t* addresses, int count, uint32_t bytes);

  uint32_t launch_number() const { return launch_number_; }
  bool coin() { return (next_random() & 1) != 0; }
  uint64_t next_random();

  Options options;
  GlobalShadow global;
  LaunchShape shape;
  std::map<uintptr_t, Clock> releases;  // by address of the atomic

 private:
  struct SiteEntry {
    const char* file = "";
    int line = 0;
    Counters counters;
  };

  static void thread_main(void* argument);
  void exit_thread(Thread& self);
  void admit(Block& block);  // std::bad_alloc without memory for its stacks
  void switch_away(Thread& self, bool leave_warp);
  Thread* pick(Warp* preferred);
  Warp* choose_warp(const Warp* than);
  bool wants_other_warp(Warp& warp);
  Thread* pick_lane(Warp& warp);
  bool perform(Warp& warp);
  bool arrive_at_barrier(Warp& warp, const Request& request);
  void check_barriers(const Thread& last);
  void report_divergence(Thread& self, Warp& warp);
  void report_deadlock();
  std::string waiting_text() const;
  std::string line_text(SiteId site) const;
  bool question_is_due() const { return goes_on_ && instructions_ >= next_question_; }
  double fraction() const;  // of the pass's blocks, ended
  void flush_accesses(Warp& warp);
  void count_group(const Access& first, const uint64_t* addresses, int count);
  void finish_report();

  Entry entry_ = nullptr;
  const void* params_ = nullptr;
  Fiber main_;
  std::vector<std::unique_ptr<Block>> slots_;
  std::vector<Warp*> warps_;  // of resident blocks
  size_t cursor_ = 0;
  std::vector<uint32_t> order_;  // of blocks
  size_t admitted_ = 0;
  std::function<bool(double)> goes_on_;
  uint64_t expected_blocks_ = 0;   // of the pass
  uint64_t blocks_before_ = 0;     // of it, in launches before this one
  uint64_t next_question_ = 0;     // in instructions of this launch
  Thread* interrupted_ = nullptr;  // whose turn it is after goes_on_ was asked
  bool given_up_ = false;
  uint64_t random_ = 1;
  uint64_t instructions_ = 0;
  uint64_t switches_ = 0;
  uint64_t polls_ = 0;  // in a row, by anybody, with nothing else happening
  uint64_t last_instructions_ = 0;
  uint32_t launch_number_ = 0;

  std::vector<SiteEntry> sites_;
  struct SiteCache {
    const char* file = nullptr;
    int line = 0;
    SiteId id = 0;
  };
  SiteCache site_cache_[1024];
  std::map<std::tuple<Fault, SiteId, SiteId>, size_t> seen_;
  Report report_;
  size_t reported_ = 0;  // index of the finding
};

// The thread that runs now; null outside a launch.
extern constinit thread_local Thread* current;

}  // namespace attentile::cuda::emulator

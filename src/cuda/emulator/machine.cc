// SPDX-License-Identifier: Apache-2.0
#include "cuda/emulator/machine.h"

#include <algorithm>
#include <new>
#include <numeric>
#include <utility>

namespace attentile::cuda::emulator {

constinit thread_local Thread* current = nullptr;

namespace {

constexpr uint64_t kInstructionsBetweenQuestions = 1 << 17;  // of goes_on: some 10 ms

}  // namespace

Machine::Machine(const Options& given) : options(given) {}

uint64_t Machine::next_random() {  // splitmix64
  uint64_t z = (random_ += 0x9E3779B97F4A7C15u);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// --- a launch ------------------------------------------------------------------------------------

Report Machine::run(const LaunchShape& given, Entry entry, const void* params) {
  shape = given;
  entry_ = entry;
  params_ = params;
  report_ = Report{};
  seen_.clear();
  sites_.assign(1, SiteEntry{});
  std::fill(std::begin(site_cache_), std::end(site_cache_), SiteCache{});
  releases.clear();
  ++launch_number_;
  random_ = options.seed;
  given_up_ = false;
  instructions_ = switches_ = polls_ = last_instructions_ = 0;
  cursor_ = SIZE_MAX;  // the first turn is warp 0's
  admitted_ = 0;
  warps_.clear();

  order_.resize(size_t{shape.grid.x} * shape.grid.y * shape.grid.z);
  std::iota(order_.begin(), order_.end(), 0u);
  if (options.block_order == BlockOrder::kReverse) std::reverse(order_.begin(), order_.end());
  if (options.block_order == BlockOrder::kRandom) {
    for (size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[next_random() % i]);
  }
  if (options.block_order == BlockOrder::kEvenFirst) {
    std::ranges::sort(order_, {}, [](uint32_t at) { return std::pair(at % 2, at); });
  }
  const size_t resident = std::min<size_t>(std::max(options.resident_blocks, 1), order_.size());
  while (slots_.size() < resident) slots_.push_back(std::make_unique<Block>());
  for (auto& slot : slots_) slot->live = 0;

  next_question_ = 0;
  interrupted_ = nullptr;
  adopt_caller(main_);
  while (!given_up_) {
    if (question_is_due()) {
      next_question_ = instructions_ + kInstructionsBetweenQuestions;
      given_up_ = !goes_on_(fraction());
      if (given_up_) break;
    }
    warps_.clear();
    for (size_t i = 0; i < resident; ++i) {
      Block& block = *slots_[i];
      if (block.live == 0 && admitted_ < order_.size()) admit(block);
      if (block.live == 0) continue;
      for (Warp& warp : block.warps) warps_.push_back(&warp);
    }
    Thread* next = std::exchange(interrupted_, nullptr);
    if (next == nullptr) {
      next = pick(nullptr);
      if (next == nullptr) break;
      ++switches_;
    }
    current = next;
    switch_fiber(main_, next->fiber);
    current = nullptr;
  }
  if (!given_up_ && !warps_.empty()) report_deadlock();
  report_.completed = !given_up_ && warps_.empty();
  blocks_before_ += order_.size();
  finish_report();
  return std::move(report_);
}

void Machine::expect_blocks(uint64_t blocks) {
  expected_blocks_ = blocks;
  blocks_before_ = 0;
}

double Machine::fraction() const {
  const bool alone = blocks_before_ + order_.size() > expected_blocks_;
  uint64_t ended = alone ? admitted_ : blocks_before_ + admitted_;
  for (const auto& slot : slots_) ended -= slot->live != 0;
  return static_cast<double>(ended) / static_cast<double>(alone ? order_.size() : expected_blocks_);
}

void Machine::admit(Block& block) {
  const uint32_t num_warps = shape.threads / kWarpSize;
  block.number = order_[admitted_++];
  block.idx = {block.number % shape.grid.x, block.number / shape.grid.x % shape.grid.y,
               block.number / shape.grid.x / shape.grid.y};
  block.live = shape.threads;
  block.arena.assign(shape.shared_bytes, kPoison);
  block.shadow.reset(shape.shared_bytes, num_warps);
  for (Barrier& barrier : block.barriers) barrier = Barrier{};
  block.warps.resize(num_warps);
  while (block.lanes.size() < num_warps) block.lanes.push_back(std::make_unique<Thread[]>(32));
  for (uint32_t w = 0; w < num_warps; ++w) {
    Warp& warp = block.warps[w];
    warp = Warp{};
    warp.block = &block;
    warp.index = w;
    warp.lanes = block.lanes[w].get();
    warp.runnable = kFullWarp;
    warp.last_lane = -1;
    warp.clock.block = block.number;
    for (int lane = 0; lane < kWarpSize; ++lane) {
      Thread& thread = warp.lanes[lane];
      thread.machine = this;
      thread.block = &block;
      thread.warp = &warp;
      thread.lane = lane;
      thread.idx = w * kWarpSize + static_cast<uint32_t>(lane);
      thread.number = block.number * shape.threads + thread.idx;
      thread.epoch = 1;
      thread.clock.reset();
      thread.copies.clear();
      thread.groups.clear();
      thread.accesses.clear();
      thread.polling = 0;
      if (!prepare(thread.fiber, options.stack_bytes, thread.idx)) throw std::bad_alloc();
      set_entry(thread.fiber, &Machine::thread_main, &thread);
    }
  }
}

void Machine::thread_main(void* argument) {
  entered_fiber();
  Thread& self = *static_cast<Thread*>(argument);
  self.machine->entry_(self.machine->params_, SharedAddress{kArenaBase});
  self.machine->exit_thread(self);
}

void Machine::exit_thread(Thread& self) {
  Warp& warp = *self.warp;
  for (const PendingCopy& copy : self.copies) {
    report(self, {Fault::kNeverWaited, Space::kShared, copy.site, 0, copy.destination, copy.bytes});
  }
  finish_copies(self, self.copies.size());
  warp.exited |= 1u << self.lane;
  warp.runnable &= ~(1u << self.lane);
  if (warp.arrived != 0 && (warp.arrived | warp.exited) == kFullWarp) {
    report_divergence(self, warp);
    give_up(self);
  }
  if (warp.exited == kFullWarp) flush_accesses(warp);
  if (--self.block->live == 0) check_barriers(self);
  Thread* next = self.block->live == 0 ? nullptr : pick(&warp);
  ++switches_;
  if (next == nullptr) {
    leave_fiber(self.fiber, main_);
  } else {
    current = next;
    leave_fiber(self.fiber, next->fiber);
  }
}

void Machine::give_up(Thread& self) {
  given_up_ = true;
  leave_fiber(self.fiber, main_);
  __builtin_unreachable();
}

// --- turns ---------------------------------------------------------------------------------------

Thread* Machine::pick_lane(Warp& warp) {
  uint32_t lane = 0;
  if (options.schedule == Schedule::kMostDelayedFirst) {
    const uint32_t below =
        warp.last_lane < 0 ? kFullWarp : (1u << (static_cast<uint32_t>(warp.last_lane) & 31u)) - 1;
    const uint32_t left = (warp.runnable & below) != 0 ? warp.runnable & below : warp.runnable;
    lane = 31u - static_cast<uint32_t>(__builtin_clz(left));
  } else {
    const uint32_t from = options.schedule == Schedule::kRandom
                              ? static_cast<uint32_t>(next_random() % 32)
                              : static_cast<uint32_t>(warp.last_lane + 1) % 32;
    const uint32_t left = warp.runnable >> from << from;
    lane = static_cast<uint32_t>(__builtin_ctz(left != 0 ? left : warp.runnable));
  }
  warp.last_lane = static_cast<int>(lane);
  return &warp.lanes[lane];
}

// The next warp by the policy among those that can run; warps that only polled come last.
Warp* Machine::choose_warp(const Warp* than) {
  const size_t count = warps_.size();
  if (count == 0) return nullptr;
  const bool turns = options.schedule == Schedule::kRoundRobin;
  const size_t start = options.schedule == Schedule::kRandom ? next_random() % count : cursor_ + 1;
  for (const bool polled : {false, true}) {
    Warp* best = nullptr;
    for (size_t i = 0; i < count; ++i) {
      Warp* warp = warps_[(start + i) % count];
      if (warp->runnable == 0 || warp->polled != polled || warp == than) continue;
      const bool better =
          best == nullptr ||
          (options.schedule == Schedule::kMostDelayedFirst && warp->steps < best->steps) ||
          (options.schedule == Schedule::kFurthestFirst && !polled && warp->steps > best->steps);
      if (better) best = warp;
      if (best != nullptr && (polled || turns || options.schedule == Schedule::kRandom)) {
        cursor_ = (start + i) % count;
        break;
      }
    }
    if (best == nullptr) continue;
    if (polled) {
      for (Warp* warp : warps_) warp->polled = false;
    }
    return best;
  }
  return nullptr;
}

Thread* Machine::pick(Warp* preferred) {
  if (preferred != nullptr && preferred->runnable != 0) return pick_lane(*preferred);
  Warp* warp = choose_warp(nullptr);
  return warp == nullptr ? nullptr : pick_lane(*warp);
}

void Machine::switch_away(Thread& self, bool leave_warp) {
  Thread* next = nullptr;
  if (leave_warp) {
    Warp* other = choose_warp(self.warp);
    next = other != nullptr ? pick_lane(*other) : pick(self.warp);
  } else {
    next = pick(self.warp);
  }
  if (next == &self) return;
  ++switches_;
  if (question_is_due()) interrupted_ = std::exchange(next, nullptr);
  current = next;
  switch_fiber(self.fiber, next == nullptr ? main_ : next->fiber);
  current = &self;
}

bool Machine::wants_other_warp(Warp& warp) {
  switch (options.schedule) {
    case Schedule::kRoundRobin: return warp.steps % 4 == 0;
    case Schedule::kRandom: return next_random() % 4 == 0;
    case Schedule::kMostDelayedFirst:
      return warp.steps % 8 == 0 && std::any_of(warps_.begin(), warps_.end(), [&](Warp* other) {
               return other->runnable != 0 && other->steps < warp.steps;
             });
    case Schedule::kFurthestFirst: return false;
  }
  return false;
}

void Machine::collective(Thread& self) {
  const Request& request = self.request;
  count_instruction(self, request.site);
  Warp& warp = *self.warp;
  const uint32_t bit = 1u << self.lane;
  if (warp.arrived != 0) {
    const Request& first = warp.lanes[__builtin_ctz(warp.arrived)].request;
    if (first.opcode != request.opcode || first.site != request.site ||
        first.operand[0] != request.operand[0] || first.operand[1] != request.operand[1]) {
      warp.mismatch = true;
    }
  }
  warp.arrived |= bit;
  warp.runnable &= ~bit;
  if ((warp.arrived | warp.exited) != kFullWarp) {
    switch_away(self, false);
    return;
  }
  if (warp.exited != 0 || warp.mismatch) {
    report_divergence(self, warp);
    give_up(self);
  }
  flush_accesses(warp);
  warp.arrived = 0;
  ++warp.steps;
  ++counters(request.site).collectives;
  const bool goes_on = perform(warp);
  if (goes_on) warp.runnable = kFullWarp;
  if (!goes_on) {
    switch_away(self, false);
  } else if (wants_other_warp(warp)) {
    switch_away(self, true);
  }
}

void Machine::count_instruction(Thread& self, SiteId site) {
  self.polling = 0;
  if (++instructions_ <= options.max_instructions) return;
  if (report(self, {.fault = Fault::kEndlessLoop, .where = site})) {
    describe("more than " + std::to_string(options.max_instructions) + " instructions\n" +
             waiting_text());
  }
  give_up(self);
}

// An acquire load, which a thread repeats until it likes the value: lets everybody else run first.
void Machine::poll(Thread& self) {
  self.warp->polled = true;
  polls_ = instructions_ == last_instructions_ ? polls_ + 1 : 0;
  last_instructions_ = instructions_;
  if (polls_ > 100 + 16 * warps_.size() * kWarpSize) {
    report_deadlock();
    give_up(self);
  }
  switch_away(self, true);
}

// --- reports -------------------------------------------------------------------------------------

SiteId Machine::site_id(Site site) {
  const auto hash =
      (reinterpret_cast<uintptr_t>(site.file) >> 3) + 7 * static_cast<size_t>(site.line);
  SiteCache& cached = site_cache_[hash % std::size(site_cache_)];
  if (cached.file == site.file && cached.line == site.line) return cached.id;
  SiteId id = 0;
  for (size_t i = 1; i < sites_.size() && id == 0; ++i) {
    const bool same = sites_[i].line == site.line && std::string_view(sites_[i].file) == site.file;
    if (same) id = static_cast<SiteId>(i);
  }
  if (id == 0) {
    id = static_cast<SiteId>(sites_.size());
    sites_.push_back({site.file, site.line, {}});
  }
  cached = {site.file, site.line, id};
  return id;
}

bool Machine::report(const Thread& self, const Occurrence& what) {
  const auto [entry, is_new] =
      seen_.try_emplace({what.fault, what.where, what.other}, report_.findings.size());
  reported_ = entry->second;
  if (!is_new) {
    ++report_.findings[entry->second].count;
    return false;
  }
  Finding finding;
  finding.fault = what.fault;
  finding.space = what.space;
  finding.where = {sites_[what.where].file, sites_[what.where].line};
  finding.other = {sites_[what.other].file, sites_[what.other].line};
  finding.address = what.address;
  finding.bytes = what.bytes;
  finding.thread = {self.block->idx, self.idx};
  const uint32_t block = what.other_thread / shape.threads;
  finding.other_thread = {{block % shape.grid.x, block / shape.grid.x % shape.grid.y,
                           block / shape.grid.x / shape.grid.y},
                          what.other_thread % shape.threads};
  finding.count = 1;
  report_.findings.push_back(std::move(finding));
  return true;
}

std::string Machine::line_text(SiteId site) const {
  return std::string(sites_[site].file) + ":" + std::to_string(sites_[site].line);
}

namespace {

std::string lanes_text(uint32_t mask) {
  std::string text;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if ((mask >> lane & 1u) == 0) continue;
    int last = lane;
    while (last + 1 < kWarpSize && (mask >> (last + 1) & 1u) != 0) ++last;
    text += (text.empty() ? "" : ",") + std::to_string(lane);
    if (last > lane) text += "-" + std::to_string(last);
    lane = last;
  }
  return text;
}

}  // namespace

void Machine::report_divergence(Thread& self, Warp& warp) {
  const SiteId first = warp.lanes[__builtin_ctz(warp.arrived)].request.site;
  report(self, {.fault = Fault::kDivergence, .where = first});
  std::map<SiteId, uint32_t> groups;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if ((warp.arrived >> lane & 1u) != 0) groups[warp.lanes[lane].request.site] |= 1u << lane;
  }
  std::string text = "warp " + std::to_string(warp.index) + ":";
  for (const auto& [site, mask] : groups) {
    text += " lanes " + lanes_text(mask) + " at " + line_text(site) + ";";
  }
  if (groups.size() == 1 && warp.mismatch) text += " with different operands;";
  if (warp.exited != 0) text += " lanes " + lanes_text(warp.exited) + " have exited;";
  text.back() = '.';
  describe(text);
}

// Who waits for what: a line per warp, the first 16 of them.
std::string Machine::waiting_text() const {
  constexpr int kMaxLines = 16;
  std::string text;
  int lines = 0;
  for (const Warp* warp : warps_) {
    if (++lines > kMaxLines) break;
    const Block& block = *warp->block;
    text += "warp " + std::to_string(warp->index) + " of block (" + std::to_string(block.idx.x) +
            "," + std::to_string(block.idx.y) + "," + std::to_string(block.idx.z) + ") ";
    const Thread* poller = nullptr;
    for (int lane = 0; lane < kWarpSize; ++lane) {
      if (warp->lanes[lane].polling != 0) poller = &warp->lanes[lane];
    }
    if (warp->waits_for >= 0) {
      const Barrier& barrier = block.barriers[warp->waits_for];
      text += "waits at barrier " + std::to_string(warp->waits_for) + " at " +
              line_text(warp->waits_at) + ": " + std::to_string(barrier.arrived) + " of " +
              std::to_string(barrier.expected) + " threads arrived";
    } else if (warp->exited == kFullWarp) {
      text += "has exited";
    } else if (poller != nullptr) {
      text +=
          "polls at " + line_text(poller->polling) + " (lane " + std::to_string(poller->lane) + ")";
    } else if (warp->arrived != 0) {
      text += "waits for lanes " + lanes_text(~warp->arrived) + " at " +
              line_text(warp->lanes[__builtin_ctz(warp->arrived)].request.site);
    } else {
      text += "can run";
    }
    text += "\n";
  }
  if (lines > kMaxLines) text += "and " + std::to_string(warps_.size() - kMaxLines) + " more\n";
  const size_t outside = order_.size() - admitted_;
  if (outside > 0) text += std::to_string(outside) + " blocks have not started\n";
  return text;
}

void Machine::report_deadlock() {
  const Warp* stuck = warps_.front();
  for (const Warp* warp : warps_) {
    if (warp->exited != kFullWarp) stuck = warp;
  }
  SiteId site = stuck->waits_at;
  for (int lane = 0; lane < kWarpSize && site == 0; ++lane) {
    site = stuck->lanes[lane].polling != 0 ? stuck->lanes[lane].polling
                                           : stuck->lanes[lane].request.site;
  }
  report(stuck->lanes[0], {.fault = Fault::kDeadlock, .where = site});
  describe(waiting_text());
}

void Machine::finish_report() {
  for (size_t i = 1; i < sites_.size(); ++i) {
    const SiteEntry& site = sites_[i];
    report_.total.add(site.counters);
    report_.lines[{site.file, site.line}].add(site.counters);
  }
  report_.switches = switches_;
  report_.instructions = instructions_;
}

}  // namespace attentile::cuda::emulator

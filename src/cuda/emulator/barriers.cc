// SPDX-License-Identifier: Apache-2.0
// Barriers and what they order: who publishes what it did, who learns of it.
#include "cuda/emulator/machine.h"

namespace attentile::cuda::emulator {

bool Machine::ordered(const Thread& self, uint32_t other, uint32_t epoch) const {
  if (other == self.number) return true;
  const uint32_t block = other / shape.threads;
  const uint32_t warp = other % shape.threads / kWarpSize;
  if (!options.strict && block == self.block->number && warp == self.warp->index) return true;
  const Clock& clock = self.clock != nullptr ? *self.clock : self.warp->clock;
  return clock.reaches(block, warp, other, epoch);
}

// All that the lanes did and know so far goes into `clock`; a new epoch begins.
void Machine::warp_publishes(Warp& warp, Clock* clock) {
  if (clock != nullptr) {
    clock->join(warp.clock);
    for (int lane = 0; lane < kWarpSize; ++lane) {
      if (warp.lanes[lane].clock != nullptr) clock->join(*warp.lanes[lane].clock);
    }
    uint32_t& epoch = clock->of_block(warp.block->number)[warp.index];
    epoch = std::max(epoch, warp.epoch);
  }
  ++warp.epoch;
  for (int lane = 0; lane < kWarpSize; ++lane) warp.lanes[lane].epoch = warp.epoch;
}

// Every lane learns what the others did before they last published, and what `clock` holds.
void Machine::warp_learns(Warp& warp, const Clock* clock) {
  warp.clock.own[warp.index] = warp.epoch - 1;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    auto& own = warp.lanes[lane].clock;
    if (own == nullptr) continue;
    warp.clock.join(*own);
    own.reset();
  }
  if (clock != nullptr) warp.clock.join(*clock);
}

void Machine::thread_publishes(Thread& self, Clock& clock) {
  clock.join(self.clock != nullptr ? *self.clock : self.warp->clock);
  clock.threads[self.number] = self.epoch;
  self.epoch = ++self.warp->epoch;
}

void Machine::thread_learns(Thread& self, const Clock& clock) {
  if (self.clock == nullptr) self.clock = std::make_unique<Clock>(self.warp->clock);
  self.clock->join(clock);
}

// Whether the warp goes on at once.
bool Machine::arrive_at_barrier(Warp& warp, const Request& request) {
  Thread& self = *current;
  Block& block = *warp.block;
  const uint32_t id = request.operand[0];
  const uint32_t threads = request.operand[1];
  const bool whole_block = request.opcode == Opcode::kBlockSync;
  if (id >= 16 || threads == 0 || threads % kWarpSize != 0 || threads > shape.threads) {
    report(self, {.fault = Fault::kInvalidOperand, .where = request.site});
    describe("barrier " + std::to_string(id) + " for " + std::to_string(threads) +
             " threads; ids are 0..15, counts multiples of 32 up to " +
             std::to_string(shape.threads));
    give_up(self);
  }
  if (id == 0 && !whole_block &&
      report(self, {.fault = Fault::kInvalidOperand, .where = request.site})) {
    describe("barrier 0 belongs to bar_sync()");
  }
  Barrier& barrier = block.barriers[id];
  const uint32_t bit = 1u << warp.index;
  if (barrier.expected == 0) {
    barrier.expected = threads;
    barrier.site = request.site;
    barrier.first_thread = self.number;
    barrier.clock.block = block.number;
  }
  Occurrence what{.fault = Fault::kBarrierMismatch,
                  .where = request.site,
                  .other = barrier.site,
                  .other_thread = barrier.first_thread};
  if (barrier.last_expected != 0 && barrier.last_expected != threads && options.strict &&
      report(self, what)) {
    describe("barrier " + std::to_string(id) + ": " + std::to_string(threads) + " threads, " +
             std::to_string(barrier.last_expected) + " in the phase before: one id, two roles");
  }
  if (barrier.expected != threads) {
    report(self, what);
    describe("barrier " + std::to_string(id) + ": " + std::to_string(threads) + " threads here, " +
             std::to_string(barrier.expected) + " there");
    give_up(self);
  }
  if ((barrier.present & bit) != 0) {
    what.fault = Fault::kBarrierReentered;
    if (report(self, what)) describe("barrier " + std::to_string(id));
  }
  if (whole_block && options.strict && barrier.site != request.site) {
    what.fault = Fault::kDivergentBarrier;
    report(self, what);
  }

  ++counters(request.site).barriers;
  warp_publishes(warp, &barrier.clock);
  barrier.present |= bit;
  barrier.arrived += kWarpSize;
  const bool waits = request.opcode != Opcode::kArrive;
  if (waits) {
    barrier.waiting |= bit;
    warp.waits_at = request.site;
    warp.waits_for = static_cast<int>(id);
  }
  if (barrier.arrived < barrier.expected) return !waits;

  for (Warp& other : block.warps) {
    if ((barrier.waiting >> other.index & 1u) == 0) continue;
    warp_learns(other, &barrier.clock);
    other.waits_for = -1;
    other.runnable = kFullWarp;
  }
  barrier = Barrier{};
  barrier.last_expected = threads;
  return true;
}

// What a block leaves behind when its last thread exits.
void Machine::check_barriers(const Thread& last) {
  for (uint32_t id = 0; id < std::size(last.block->barriers) && options.strict; ++id) {
    const Barrier& barrier = last.block->barriers[id];
    if (barrier.expected == 0 ||
        !report(last, {.fault = Fault::kBarrierUnfinished, .where = barrier.site})) {
      continue;
    }
    describe("barrier " + std::to_string(id) + ": " + std::to_string(barrier.arrived) + " of " +
             std::to_string(barrier.expected) + " threads arrived, and nobody waits");
  }
}

namespace {

void barrier(Opcode opcode, uint32_t id, uint32_t threads, Site site) {
  Thread& self = *current;
  self.request.set(opcode, self.machine->site_id(site), id, threads);
  self.machine->collective(self);
}

}  // namespace

void bar_sync_block(Site site) {
  barrier(Opcode::kBlockSync, 0, current->machine->shape.threads, site);
}
void bar_sync(uint32_t id, uint32_t threads, Site site) {
  barrier(Opcode::kSync, id, threads, site);
}
void bar_arrive(uint32_t id, uint32_t threads, Site site) {
  barrier(Opcode::kArrive, id, threads, site);
}
void bar_warp_sync(Site site) {
  barrier(Opcode::kWarpSync, 0, 0, site);
}

}  // namespace attentile::cuda::emulator

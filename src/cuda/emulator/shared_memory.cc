// SPDX-License-Identifier: Apache-2.0
// Loads and stores of shared memory, cp.async, and the checks of both.
#include <cstring>

#include "cuda/emulator/instructions.h"
#include "cuda/emulator/machine.h"

namespace attentile::cuda::emulator {
namespace {

// Bytes of cell `cell` that [offset, offset + bytes) covers, as a mask.
uint8_t bytes_in_cell(uint32_t cell, uint32_t offset, uint32_t bytes) {
  const uint32_t begin = std::max(offset, 4 * cell) - 4 * cell;
  const uint32_t end = std::min(offset + bytes, 4 * cell + 4) - 4 * cell;
  return static_cast<uint8_t>((1u << end) - (1u << begin));
}

// Whether the last write to the cell is ordered before `self`.
bool write_ordered(const Machine& machine, const Thread& self, const SharedCell& cell) {
  if (cell.writer / kWarpSize == self.warp->index) {
    if (!machine.options.strict) return true;
    if (cell.writer == self.idx && !cell.by_warp) return true;
    if (cell.by_warp) {
      const Clock& clock = self.clock != nullptr ? *self.clock : self.warp->clock;
      return clock.own[self.warp->index] >= cell.write_epoch;
    }
  }
  return machine.ordered(self, self.block->number * machine.shape.threads + cell.writer,
                         cell.write_epoch);
}

// Whether what warp `warp` read, as `reader` says, is ordered before a write of `self`.
bool read_ordered(const Machine& machine, const Thread& self, uint32_t warp, uint32_t reader,
                  bool by_warp) {
  const uint32_t epoch = reader >> 6;
  const uint32_t who = reader & 63u;
  if (epoch == 0) return true;
  if (warp == self.warp->index) {
    if (!machine.options.strict || who == kCollective) return true;
    if (who == static_cast<uint32_t>(self.lane) && !by_warp) return true;
  }
  const Clock& clock = self.clock != nullptr ? *self.clock : self.warp->clock;
  if (clock.own[warp] >= epoch) return true;
  return who < kSeveralLanes && warp != self.warp->index &&
         machine.ordered(self, self.block->number * machine.shape.threads + warp * kWarpSize + who,
                         epoch);
}

void note_reader(uint32_t& reader, uint32_t epoch, uint32_t who) {
  const uint32_t before = reader >> 6;
  if (epoch > before) {
    reader = epoch << 6 | who;
  } else if (epoch == before && who != kCollective && (reader & 63u) != who) {
    reader = epoch << 6 | ((reader & 63u) == kCollective ? who : kSeveralLanes);
  }
}

}  // namespace

bool Machine::shared_in_range(Thread& self, const Access& access) {
  const uint64_t offset = access.address - kArenaBase;
  Occurrence what{Fault::kOutOfBounds, Space::kShared, access.site, 0, offset, access.bytes};
  if (access.address < kArenaBase || offset + access.bytes > shape.shared_bytes) {
    if (report(self, what)) {
      describe("the arena has " + std::to_string(shape.shared_bytes) + " bytes");
    }
    return false;
  }
  if (access.address % access.bytes != 0) {
    what.fault = Fault::kMisaligned;
    report(self, what);
    return false;
  }
  return true;
}

void Machine::shared_read(Thread& self, const Access& access, bool by_warp, void* value) {
  if (!shared_in_range(self, access)) {
    std::memset(value, kPoison, access.bytes);
    return;
  }
  Block& block = *self.block;
  const auto offset = static_cast<uint32_t>(access.address - kArenaBase);
  const uint32_t who = by_warp ? kCollective : static_cast<uint32_t>(self.lane);
  for (uint32_t c = offset / 4; 4 * c < offset + access.bytes; ++c) {
    SharedCell& cell = block.shadow.cells[c];
    const uint8_t mask = bytes_in_cell(c, offset, access.bytes);
    Occurrence what{Fault::kInFlight,
                    Space::kShared,
                    access.site,
                    cell.write_site,
                    offset,
                    access.bytes,
                    block.number * shape.threads + cell.writer};
    if ((cell.in_flight & mask) != 0) {
      report(self, what);
    } else if ((mask & ~cell.valid) != 0) {
      what.fault = Fault::kUninitialisedRead;
      what.other = 0;
      report(self, what);
    } else if ((cell.written & mask) != 0 && !write_ordered(*this, self, cell)) {
      what.fault = Fault::kReadAfterWrite;
      report(self, what);
    }
    cell.read |= mask;
    cell.read_site = access.site;
    note_reader(block.shadow.readers_of(c)[self.warp->index], self.epoch, who);
  }
  std::memcpy(value, block.arena.data() + offset, access.bytes);
}

// Races of a write, and who wrote from now on.
void Machine::check_shared_write(Thread& self, const Access& access, bool by_warp) {
  Block& block = *self.block;
  const auto offset = static_cast<uint32_t>(access.address - kArenaBase);
  for (uint32_t c = offset / 4; 4 * c < offset + access.bytes; ++c) {
    SharedCell& cell = block.shadow.cells[c];
    const uint8_t mask = bytes_in_cell(c, offset, access.bytes);
    Occurrence what{Fault::kInFlight,
                    Space::kShared,
                    access.site,
                    cell.write_site,
                    offset,
                    access.bytes,
                    block.number * shape.threads + cell.writer};
    if ((cell.in_flight & mask) != 0) {
      report(self, what);
    } else if ((cell.written & mask) != 0 && !write_ordered(*this, self, cell)) {
      what.fault = Fault::kWriteAfterWrite;
      report(self, what);
    }
    uint32_t* readers = block.shadow.readers_of(c);
    if ((cell.read & mask) != 0) {
      for (uint32_t w = 0; w < block.shadow.num_warps; ++w) {
        if (read_ordered(*this, self, w, readers[w], by_warp)) continue;
        what.fault = Fault::kWriteAfterRead;
        what.other = cell.read_site;
        what.other_thread = block.number * shape.threads + w * kWarpSize +
                            ((readers[w] & 63u) < kSeveralLanes ? readers[w] & 63u : 0);
        report(self, what);
      }
    }
    for (uint32_t w = 0; w < block.shadow.num_warps; ++w) readers[w] = 0;
    cell.read = 0;
    cell.writer = static_cast<uint16_t>(self.idx);
    cell.write_epoch = self.epoch;
    cell.write_site = access.site;
    cell.written = mask;
    cell.by_warp = by_warp;
    cell.valid |= mask;
  }
}

void Machine::shared_write(Thread& self, const Access& access, bool by_warp, const void* value) {
  if (!shared_in_range(self, access)) return;
  check_shared_write(self, access, by_warp);
  std::memcpy(self.block->arena.data() + (access.address - kArenaBase), value, access.bytes);
}

// --- cp.async ------------------------------------------------------------------------------------

void Machine::issue_copy(Thread& self, const PendingCopy& given) {
  PendingCopy copy = given;
  const Access store{copy.destination, copy.site, copy.bytes, Traffic::kSharedStore};
  ++counters(copy.site).copies;
  if (copy.source_bytes > copy.bytes) {
    report(self, {.fault = Fault::kInvalidOperand, .where = copy.site});
    copy.source_bytes = copy.bytes;
  }
  if (copy.source_bytes > 0) {
    // Checked when issued, read when it lands.
    const auto source = reinterpret_cast<uintptr_t>(copy.source);
    const Access load{source, copy.site, copy.source_bytes, Traffic::kGlobalLoad};
    uint8_t bytes[16];
    global_read(self, load, false, bytes);
    if (source % copy.bytes != 0) {
      report(self, {Fault::kMisaligned, Space::kGlobal, copy.site, 0, source, copy.bytes});
    }
    if (global.find(source, copy.source_bytes) == nullptr) copy.source_bytes = 0;
    self.accesses.push_back(load);
  }
  if (!shared_in_range(self, store)) return;
  self.accesses.push_back(store);
  check_shared_write(self, store, false);
  copy.destination -= kArenaBase;
  for (uint32_t c = copy.destination / 4; 4 * c < copy.destination + copy.bytes; ++c) {
    self.block->shadow.cells[c].in_flight = 0xF;
  }
  const bool at_once = options.completion == Completion::kAtOnce ||
                       (options.completion == Completion::kRandom && coin());
  std::memset(self.block->arena.data() + copy.destination, kPoison, copy.bytes);
  if (at_once) land_copy(self, copy);
  self.copies.push_back(copy);
}

void Machine::land_copy(Thread& self, PendingCopy& copy) {
  if (copy.landed) return;
  uint8_t* destination = self.block->arena.data() + copy.destination;
  std::memset(destination, 0, copy.bytes);
  if (copy.source_bytes > 0) std::memcpy(destination, copy.source, copy.source_bytes);
  copy.landed = true;
}

// The oldest `count` copies are complete and visible to `self`.
void Machine::finish_copies(Thread& self, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    PendingCopy& copy = self.copies[i];
    land_copy(self, copy);
    for (uint32_t c = copy.destination / 4; 4 * c < copy.destination + copy.bytes; ++c) {
      SharedCell& cell = self.block->shadow.cells[c];
      cell.in_flight = 0;
      cell.write_epoch = self.epoch;
      cell.writer = static_cast<uint16_t>(self.idx);
      cell.write_site = copy.site;
    }
  }
  self.copies.erase(self.copies.begin(), self.copies.begin() + static_cast<ptrdiff_t>(count));
}

// --- instructions --------------------------------------------------------------------------------

void ld_shared(uint32_t address, void* value, size_t bytes, Site site) {
  Thread& self = *current;
  const SiteId line = self.machine->site_id(site);
  self.machine->count_instruction(self, line);
  const Access access{address, line, static_cast<uint8_t>(bytes), Traffic::kSharedLoad};
  self.accesses.push_back(access);
  self.machine->shared_read(self, access, false, value);
}

void st_shared(uint32_t address, const void* value, size_t bytes, Site site) {
  Thread& self = *current;
  const SiteId line = self.machine->site_id(site);
  self.machine->count_instruction(self, line);
  const Access access{address, line, static_cast<uint8_t>(bytes), Traffic::kSharedStore};
  self.accesses.push_back(access);
  self.machine->shared_write(self, access, false, value);
}

void cp_async(uint32_t destination, const void* source, CopySize size, Site site) {
  Thread& self = *current;
  const SiteId line = self.machine->site_id(site);
  self.machine->count_instruction(self, line);
  PendingCopy copy{destination, source, static_cast<uint8_t>(size.bytes), 0, line};
  copy.source_bytes = static_cast<uint8_t>(std::min(size.source_bytes, 255u));
  self.machine->issue_copy(self, copy);
}

void cp_async_commit_group(Site site) {
  Thread& self = *current;
  self.machine->count_instruction(self, self.machine->site_id(site));
  self.groups.push_back(self.copies.size());
  if (self.machine->options.completion != Completion::kRandom) return;
  for (PendingCopy& copy : self.copies) {
    if (self.machine->coin()) self.machine->land_copy(self, copy);
  }
}

void cp_async_wait_group(int pending, Site site) {
  Thread& self = *current;
  self.machine->count_instruction(self, self.machine->site_id(site));
  if (self.groups.size() <= static_cast<size_t>(pending)) return;
  const size_t groups = self.groups.size() - static_cast<size_t>(pending);
  const size_t copies = self.groups[groups - 1];
  self.machine->finish_copies(self, copies);
  self.groups.erase(self.groups.begin(), self.groups.begin() + static_cast<ptrdiff_t>(groups));
  for (size_t& end : self.groups) end -= copies;
}

}  // namespace attentile::cuda::emulator

// SPDX-License-Identifier: Apache-2.0
// Loads, stores and atomics of global memory, and their checks.
#include <cstring>

#include "cuda/emulator/instructions.h"
#include "cuda/emulator/machine.h"

namespace attentile::cuda::emulator {
namespace {

uint8_t bytes_in_cell(uintptr_t cell, uintptr_t address, size_t bytes) {
  const uintptr_t begin = std::max(address, 4 * cell) - 4 * cell;
  const uintptr_t end = std::min(address + bytes, 4 * cell + 4) - 4 * cell;
  return static_cast<uint8_t>((1u << end) - (1u << begin));
}

// Stamps of an earlier launch say nothing about this one.
void refresh(GlobalCell& cell, uint32_t launch) {
  if (cell.launch == launch) return;
  cell.launch = launch;
  cell.written = 0;
  cell.atomic = false;
  cell.num_readers = 0;
  cell.read_bytes = 0;
}

void note_reader(const Machine& machine, const Thread& self, GlobalCell& cell, SiteId site) {
  const GlobalCell::Reader now{self.number, self.epoch, site};
  for (int i = 0; i < cell.num_readers; ++i) {
    if (machine.ordered(self, cell.reader[i].thread, cell.reader[i].epoch)) {
      cell.reader[i] = now;
      return;
    }
  }
  if (cell.num_readers < 2) ++cell.num_readers;
  cell.reader[cell.num_readers - 1] = now;
}

}  // namespace

void Machine::report_outside(Thread& self, const Access& access) {
  if (!report(self, {Fault::kOutOfBounds, Space::kGlobal, access.site, 0, access.address,
                     access.bytes})) {
    return;
  }
  const GlobalRegion* nearest = nullptr;
  uint64_t distance = UINT64_MAX;
  bool after = false;
  for (const GlobalRegion& region : global.regions()) {
    const bool beyond = access.address + access.bytes > region.end;
    const uint64_t gap = beyond ? access.address + access.bytes - region.end
                                : region.begin - std::min(region.begin, access.address);
    if (gap < distance) {
      nearest = &region;
      distance = gap;
      after = beyond;
    }
  }
  if (nearest == nullptr) {
    describe("no memory is registered");
    return;
  }
  describe("it ends " + std::to_string(distance) + " bytes " +
           (after ? "beyond the end of '" : "early: it begins before '") + nearest->name + "' (" +
           std::to_string(nearest->end - nearest->begin) + " bytes)");
}

GlobalRegion* Machine::global_region(Thread& self, const Access& access, bool write) {
  GlobalRegion* region = global.find(access.address, access.bytes);
  if (region == nullptr) {
    report_outside(self, access);
    return nullptr;
  }
  Occurrence what{Fault::kReadOnlyWritten,        Space::kGlobal, access.site, 0,
                  access.address - region->begin, access.bytes};
  if (write && !region->writable) {
    if (report(self, what)) describe("'" + region->name + "'");
    return nullptr;
  }
  return region;
}

void Machine::global_read(Thread& self, const Access& access, bool read_only, void* value) {
  GlobalRegion* region = global_region(self, access, false);
  if (region == nullptr) {
    std::memset(value, kPoison, access.bytes);
    return;
  }
  counters(access.site).global_read_bytes += access.bytes;
  std::memcpy(value, reinterpret_cast<const void*>(access.address), access.bytes);
  if (region->cells.empty()) return;
  const uintptr_t first = region->begin / 4;
  for (uintptr_t c = access.address / 4; 4 * c < access.address + access.bytes; ++c) {
    GlobalCell& cell = region->cells[c - first];
    refresh(cell, launch_number_);
    const uint8_t mask = bytes_in_cell(c, access.address, access.bytes);
    Occurrence what{Fault::kUninitialisedRead,      Space::kGlobal, access.site, 0,
                    access.address - region->begin, access.bytes,   cell.writer};
    if ((mask & ~cell.valid) != 0) {
      if (report(self, what)) describe("'" + region->name + "'");
    } else if ((cell.written & mask) != 0 && read_only) {
      what.fault = Fault::kReadOnlyLoad;
      what.other = cell.write_site;
      report(self, what);
    } else if ((cell.written & mask) != 0 && !ordered(self, cell.writer, cell.write_epoch)) {
      what.fault = Fault::kReadAfterWrite;
      what.other = cell.write_site;
      if (report(self, what)) describe("'" + region->name + "'");
    }
    cell.read_bytes |= mask;
    note_reader(*this, self, cell, access.site);
  }
}

void Machine::global_write(Thread& self, const Access& access, bool atomic, const void* value) {
  GlobalRegion* region = global_region(self, access, true);
  if (region == nullptr) return;
  counters(access.site).global_written_bytes += access.bytes;
  const uintptr_t first = region->begin / 4;
  for (uintptr_t c = access.address / 4; 4 * c < access.address + access.bytes; ++c) {
    GlobalCell& cell = region->cells[c - first];
    refresh(cell, launch_number_);
    const uint8_t mask = bytes_in_cell(c, access.address, access.bytes);
    Occurrence what{Fault::kWriteAfterWrite,        Space::kGlobal, access.site, cell.write_site,
                    access.address - region->begin, access.bytes,   cell.writer};
    if ((cell.written & mask) != 0 && !(atomic && cell.atomic) &&
        !ordered(self, cell.writer, cell.write_epoch)) {
      if (report(self, what)) describe("'" + region->name + "'");
    }
    for (int i = 0; i < cell.num_readers && (cell.read_bytes & mask) != 0; ++i) {
      const GlobalCell::Reader& reader = cell.reader[i];
      if (ordered(self, reader.thread, reader.epoch)) continue;
      what.fault = Fault::kWriteAfterRead;
      what.other = reader.site;
      what.other_thread = reader.thread;
      if (report(self, what)) describe("'" + region->name + "'");
    }
    if (cell.written != 0 && cell.writer == self.number && cell.write_epoch == self.epoch) {
      cell.written |= mask;
    } else {
      cell.written = mask;
    }
    cell.num_readers = 0;
    cell.read_bytes = 0;
    cell.writer = self.number;
    cell.write_epoch = self.epoch;
    cell.write_site = access.site;
    cell.atomic = atomic;
    cell.valid |= mask;
  }
  std::memcpy(reinterpret_cast<void*>(access.address), value, access.bytes);
}

// --- instructions --------------------------------------------------------------------------------

namespace {

Access global_access(Thread& self, const void* address, size_t bytes, Traffic traffic, Site site) {
  const SiteId line = self.machine->site_id(site);
  self.machine->count_instruction(self, line);
  const Access access{reinterpret_cast<uintptr_t>(address), line, static_cast<uint8_t>(bytes),
                      traffic};
  self.accesses.push_back(access);
  return access;
}

bool misaligned(Thread& self, const Access& access) {
  if (access.address % access.bytes == 0) return false;
  self.machine->report(
      self, {Fault::kMisaligned, Space::kGlobal, access.site, 0, access.address, access.bytes});
  return true;
}

// The 4 bytes of an atomic, which orders by itself; null where they may not be touched.
template <class T>
T* atomic_word(Thread& self, const Access& access) {
  if (misaligned(self, access)) return nullptr;
  if (self.machine->global_region(self, access, access.traffic == Traffic::kGlobalStore) ==
      nullptr) {
    return nullptr;
  }
  return reinterpret_cast<T*>(access.address);
}

// What an atomic reads has to be initialised, and not be written by others' plain stores.
template <class T>
T atomic_value(Thread& self, const Access& access) {
  Machine& machine = *self.machine;
  GlobalRegion& region = *machine.global.find(access.address, access.bytes);
  if (!region.cells.empty()) {
    GlobalCell& cell = region.cells[access.address / 4 - region.begin / 4];
    refresh(cell, machine.launch_number());
    Machine::Occurrence what{Fault::kUninitialisedRead,     Space::kGlobal, access.site, 0,
                             access.address - region.begin, access.bytes,   cell.writer};
    if (cell.valid != 0xF) {
      machine.report(self, what);
    } else if (cell.written != 0 && !cell.atomic &&
               !machine.ordered(self, cell.writer, cell.write_epoch)) {
      what.fault = Fault::kReadAfterWrite;
      what.other = cell.write_site;
      machine.report(self, what);
    }
  }
  T value;
  std::memcpy(&value, reinterpret_cast<const void*>(access.address), sizeof value);
  return value;
}

}  // namespace

void ld_global(const void* address, void* value, LoadKind kind, Site site) {
  Thread& self = *current;
  const Access access = global_access(self, address, kind.bytes, Traffic::kGlobalLoad, site);
  if (misaligned(self, access)) {
    std::memset(value, kPoison, kind.bytes);
    return;
  }
  self.machine->global_read(self, access, kind.read_only, value);
}

void st_global(void* address, const void* value, size_t bytes, Site site) {
  Thread& self = *current;
  const Access access = global_access(self, address, bytes, Traffic::kGlobalStore, site);
  if (!misaligned(self, access)) self.machine->global_write(self, access, false, value);
}

float atomic_add_f32(float* address, float value, Site site) {
  Thread& self = *current;
  const Access access = global_access(self, address, 4, Traffic::kGlobalStore, site);
  if (atomic_word<float>(self, access) == nullptr) return 0.0f;
  const auto before = atomic_value<float>(self, access);
  const float after = flush(flush(before) + flush(value));
  self.machine->global_write(self, access, true, &after);
  return before;
}

int32_t atomic_add_acq_rel(int32_t* address, int32_t value, Site site) {
  Thread& self = *current;
  const Access access = global_access(self, address, 4, Traffic::kGlobalStore, site);
  if (atomic_word<int32_t>(self, access) == nullptr) return 0;
  const auto before = atomic_value<int32_t>(self, access);
  const auto after =
      static_cast<int32_t>(static_cast<uint32_t>(before) + static_cast<uint32_t>(value));
  Clock& released = self.machine->releases[access.address];
  self.machine->thread_learns(self, released);
  self.machine->global_write(self, access, true, &after);
  self.machine->thread_publishes(self, released);
  return before;
}

int32_t ld_acquire(const int32_t* address, Site site) {
  Thread& self = *current;
  Machine& machine = *self.machine;
  const SiteId line = machine.site_id(site);
  const Access access{reinterpret_cast<uintptr_t>(address), line, 4, Traffic::kGlobalLoad};
  if (atomic_word<int32_t>(self, access) == nullptr) return 0;
  self.polling = line;
  machine.poll(self);
  const auto value = atomic_value<int32_t>(self, access);
  const auto released = machine.releases.find(access.address);
  if (released != machine.releases.end()) machine.thread_learns(self, released->second);
  return value;
}

void st_release(int32_t* address, int32_t value, Site site) {
  Thread& self = *current;
  const Access access = global_access(self, address, 4, Traffic::kGlobalStore, site);
  if (atomic_word<int32_t>(self, access) == nullptr) return;
  self.machine->global_write(self, access, true, &value);
  Clock& released = self.machine->releases[access.address] = Clock{};
  self.machine->thread_publishes(self, released);
}

void fence_gpu(Site site) {
  current->machine->count_instruction(*current, current->machine->site_id(site));
}

}  // namespace attentile::cuda::emulator

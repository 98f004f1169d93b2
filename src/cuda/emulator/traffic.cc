// SPDX-License-Identifier: Apache-2.0
// Bank conflicts and sectors. A lane's accesses since the last collective are kept; at the next one
// the n-th access of every lane on the same line is taken as one instruction of the warp.
#include <algorithm>

#include "cuda/emulator/machine.h"

namespace attentile::cuda::emulator {
namespace {

// Wavefronts of one phase: the most distinct words any of the 32 banks has to serve.
int wavefronts(const uint64_t* addresses, int count, uint32_t bytes) {
  constexpr int kBanks = 32;
  constexpr int kMaxWords = 128;
  uint64_t word_of[kMaxWords];
  int next[kMaxWords];  // earlier word in the same bank
  int head[kBanks];
  int depth[kBanks] = {};
  std::fill(std::begin(head), std::end(head), -1);
  int words = 0;
  int most = 1;
  for (int i = 0; i < count; ++i) {
    const uint64_t last = (addresses[i] + bytes - 1) / 4;
    for (uint64_t word = addresses[i] / 4; word <= last; ++word) {
      const auto bank = static_cast<size_t>(word % kBanks);
      int at = head[bank];
      while (at >= 0 && word_of[at] != word) at = next[at];
      if (at >= 0) continue;
      word_of[words] = word;
      next[words] = head[bank];
      head[bank] = words++;
      most = std::max(most, ++depth[bank]);
    }
  }
  return most;
}

int sectors(const uint64_t* addresses, int count, uint32_t bytes) {
  constexpr uint64_t kSectorBytes = 32;
  uint64_t seen[64];
  int distinct = 0;
  for (int i = 0; i < count; ++i) {
    const uint64_t last = (addresses[i] + bytes - 1) / kSectorBytes;
    for (uint64_t sector = addresses[i] / kSectorBytes; sector <= last; ++sector) {
      // Neighbouring lanes share sectors: look backwards.
      int at = distinct - 1;
      while (at >= 0 && seen[at] != sector) --at;
      if (at < 0) seen[distinct++] = sector;
    }
  }
  return distinct;
}

}  // namespace

// One phase or more of the lanes' accesses of `bytes` each.
void Machine::count_wavefronts(SiteId site, const uint64_t* addresses, int count, uint32_t bytes) {
  const int lanes_of_phase = bytes <= 4 ? 32 : static_cast<int>(128 / bytes);
  Counters& counter = counters(site);
  for (int begin = 0; begin < count; begin += lanes_of_phase) {
    const int phase = std::min(lanes_of_phase, count - begin);
    const int taken = wavefronts(addresses + begin, phase, bytes);
    counter.shared_wavefronts += static_cast<uint64_t>(taken);
    counter.bank_conflicts += static_cast<uint64_t>(taken - 1);
  }
}

void Machine::count_group(const Access& first, const uint64_t* addresses, int count) {
  switch (first.traffic) {
    case Traffic::kSharedLoad:
    case Traffic::kSharedStore: count_wavefronts(first.site, addresses, count, first.bytes); break;
    case Traffic::kGlobalLoad:
      counters(first.site).global_read_sectors +=
          static_cast<uint64_t>(sectors(addresses, count, first.bytes));
      break;
    case Traffic::kGlobalStore:
      counters(first.site).global_written_sectors +=
          static_cast<uint64_t>(sectors(addresses, count, first.bytes));
      break;
  }
}

namespace {

struct Visit {
  uint32_t key;  // line, kind and how many times the lane had been there
  uint32_t lane;
  const Access* access;
};

// The same accesses in every lane, in the same order.
bool in_step(const Warp& warp) {
  const std::vector<Access>& first = warp.lanes[0].accesses;
  for (int lane = 1; lane < kWarpSize; ++lane) {
    const std::vector<Access>& other = warp.lanes[lane].accesses;
    if (other.size() != first.size()) return false;
    for (size_t i = 0; i < first.size(); ++i) {
      if (other[i].site != first[i].site || other[i].traffic != first[i].traffic ||
          other[i].bytes != first[i].bytes) {
        return false;
      }
    }
  }
  return true;
}

std::vector<Visit> by_instruction(const Warp& warp) {
  std::vector<Visit> visited;
  std::map<uint32_t, uint32_t> times;
  for (uint32_t lane = 0; lane < kWarpSize; ++lane) {
    times.clear();
    for (const Access& access : warp.lanes[lane].accesses) {
      const uint32_t line = access.site << 2 | static_cast<uint32_t>(access.traffic);
      visited.push_back({line << 14 | (times[line]++ & 0x3FFFu), lane, &access});
    }
  }
  std::sort(visited.begin(), visited.end(), [](const Visit& a, const Visit& b) {
    return a.key != b.key ? a.key < b.key : a.lane < b.lane;
  });
  return visited;
}

}  // namespace

void Machine::flush_accesses(Warp& warp) {
  uint64_t addresses[kWarpSize];
  if (in_step(warp)) {
    for (size_t i = 0; i < warp.lanes[0].accesses.size(); ++i) {
      for (int lane = 0; lane < kWarpSize; ++lane) {
        addresses[lane] = warp.lanes[lane].accesses[i].address;
      }
      count_group(warp.lanes[0].accesses[i], addresses, kWarpSize);
    }
  } else {
    const std::vector<Visit> visited = by_instruction(warp);
    for (size_t begin = 0; begin < visited.size();) {
      size_t end = begin;
      int count = 0;
      while (end < visited.size() && visited[end].key == visited[begin].key && count < kWarpSize) {
        addresses[count++] = visited[end++].access->address;
      }
      count_group(*visited[begin].access, addresses, count);
      begin = end;
    }
  }
  for (int lane = 0; lane < kWarpSize; ++lane) warp.lanes[lane].accesses.clear();
}

}  // namespace attentile::cuda::emulator

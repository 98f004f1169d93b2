// SPDX-License-Identifier: Apache-2.0
// What the 32 lanes of a warp do together. Each lane leaves its part in Thread::request; the last
// one to arrive runs perform() for all.
#include <bit>
#include <cstring>

#include "cuda/device/fragment.h"
#include "cuda/emulator/machine.h"
#include "cuda/emulator/mma_model.h"
#include "dtype.h"

namespace attentile::cuda::emulator {
namespace {

void perform_shfl(Warp& warp, Shuffle kind) {
  uint32_t values[kWarpSize];
  for (int lane = 0; lane < kWarpSize; ++lane) values[lane] = warp.lanes[lane].request.value;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    auto* result = static_cast<uint32_t*>(warp.lanes[lane].request.data);
    const int operand = static_cast<int>(*result % kWarpSize);
    int source = lane;
    switch (kind) {
      case Shuffle::kIdx: source = operand; break;
      case Shuffle::kXor: source = lane ^ operand; break;
      case Shuffle::kDown: source = lane + operand < kWarpSize ? lane + operand : lane; break;
      case Shuffle::kUp: source = lane >= operand ? lane - operand : lane; break;
    }
    *result = values[source];
  }
}

void perform_ballot(Warp& warp) {
  uint32_t mask = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) mask |= warp.lanes[lane].request.value << lane;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    *static_cast<uint32_t*>(warp.lanes[lane].request.data) = mask;
  }
}

void perform_redux(Warp& warp, Reduction kind) {
  uint32_t sum = 0;
  int32_t least = INT32_MAX;
  int32_t most = INT32_MIN;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const uint32_t value = warp.lanes[lane].request.value;
    sum += value;
    least = std::min(least, static_cast<int32_t>(value));
    most = std::max(most, static_cast<int32_t>(value));
  }
  const uint32_t result = kind == Reduction::kAdd   ? sum
                          : kind == Reduction::kMin ? static_cast<uint32_t>(least)
                                                    : static_cast<uint32_t>(most);
  for (int lane = 0; lane < kWarpSize; ++lane) {
    *static_cast<uint32_t*>(warp.lanes[lane].request.data) = result;
  }
}

// Rows of matrix j by the lanes that gave their addresses; one phase of the banks.
void count_matrix(Machine& machine, Warp& warp, int j) {
  uint64_t addresses[8];
  for (int i = 0; i < 8; ++i) addresses[i] = warp.lanes[8 * j + i].request.value;
  machine.count_wavefronts(warp.lanes[0].request.site, addresses, 8, 16);
}

void perform_ldmatrix(Machine& machine, Warp& warp, const Request& request) {
  const int count = static_cast<int>(request.operand[0]);
  for (int j = 0; j < count; ++j) {
    uint16_t element[8][8];
    for (int i = 0; i < 8; ++i) {
      Thread& lane = warp.lanes[8 * j + i];
      machine.shared_read(lane, {lane.request.value, request.site, 16, Traffic::kSharedLoad}, true,
                          element[i]);
    }
    count_matrix(machine, warp, j);
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const int row = lane / 4;
      const int pair = lane % 4 * 2;
      const bool trans = request.operand[1] != 0;
      const uint32_t low = trans ? element[pair][row] : element[row][pair];
      const uint32_t high = trans ? element[pair + 1][row] : element[row][pair + 1];
      static_cast<uint32_t*>(warp.lanes[lane].request.data)[j] = low | high << 16;
    }
  }
}

void perform_stmatrix(Machine& machine, Warp& warp, const Request& request) {
  const int count = static_cast<int>(request.operand[0]);
  for (int j = 0; j < count; ++j) {
    count_matrix(machine, warp, j);
    for (int i = 0; i < 8; ++i) {
      uint32_t row[4];
      for (int t = 0; t < 4; ++t) {
        row[t] = static_cast<const uint32_t*>(warp.lanes[4 * i + t].request.data)[j];
      }
      Thread& lane = warp.lanes[8 * j + i];
      machine.shared_write(lane, {lane.request.value, request.site, 16, Traffic::kSharedStore},
                           true, row);
    }
  }
}

float to_float(MmaInput input, uint32_t word, int half) {
  if (input == MmaInput::kTf32) return std::bit_cast<float>(word & 0xFFFFE000u);
  if (input == MmaInput::kBFloat16) {
    return std::bit_cast<float>(half == 0 ? word << 16 : word & 0xFFFF0000u);
  }
  return float16_to_float(static_cast<uint16_t>(half == 0 ? word : word >> 16));
}

void perform_mma(Machine& machine, Warp& warp, MmaInput input) {
  MmaOperands operands;
  const bool tf32 = input == MmaInput::kTf32;
  operands.depth = tf32 ? 8 : 16;
  const int halves = tf32 ? 1 : 2;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const auto& registers = *static_cast<const MmaRegisters*>(warp.lanes[lane].request.data);
    for (int half = 0; half < halves; ++half) {
      for (int r = 0; r < 4; ++r) {
        const Position at = tf32 ? fragment_a_tf32(lane, r) : fragment_a(lane, r, half);
        operands.a[at.row][at.column] = to_float(input, registers.a[r], half);
      }
      for (int r = 0; r < 2; ++r) {
        const Position at = tf32 ? fragment_b_tf32(lane, r) : fragment_b(lane, r, half);
        operands.b[at.row][at.column] = to_float(input, registers.b[r], half);
      }
    }
    for (int r = 0; r < 4; ++r) {
      const Position at = fragment_c(lane, r);
      operands.acc[at.row][at.column] = registers.acc[r];
    }
  }
  if (machine.options.mma == MmaModel::kFloat32) {
    multiply_float32(operands);
  } else {
    multiply_hardware(operands, accumulation_model(machine.options.arch, input));
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const auto& registers = *static_cast<const MmaRegisters*>(warp.lanes[lane].request.data);
    for (int r = 0; r < 4; ++r) {
      const Position at = fragment_c(lane, r);
      registers.acc[r] = operands.acc[at.row][at.column];
    }
  }
}

}  // namespace

// Whether the warp goes on at once.
bool Machine::perform(Warp& warp) {
  const Request& request = warp.lanes[0].request;
  switch (request.opcode) {
    case Opcode::kWarpSync:
      warp_publishes(warp, nullptr);
      warp_learns(warp, nullptr);
      return true;
    case Opcode::kBlockSync:
    case Opcode::kSync:
    case Opcode::kArrive: return arrive_at_barrier(warp, request);
    case Opcode::kShfl: perform_shfl(warp, static_cast<Shuffle>(request.operand[0])); return true;
    case Opcode::kBallot: perform_ballot(warp); return true;
    case Opcode::kRedux:
      perform_redux(warp, static_cast<Reduction>(request.operand[0]));
      return true;
    case Opcode::kLdmatrix: perform_ldmatrix(*this, warp, request); return true;
    case Opcode::kStmatrix: perform_stmatrix(*this, warp, request); return true;
    case Opcode::kMma:
      ++counters(request.site).mma;
      perform_mma(*this, warp, static_cast<MmaInput>(request.operand[0]));
      return true;
  }
  return true;
}

namespace {

struct Operands {
  uint32_t first = 0;
  uint32_t second = 0;
};
struct LanePart {
  uint32_t value;
  void* data;
};
void join(Thread& self, Opcode opcode, SiteId site, Operands operands, LanePart part) {
  self.request.set(opcode, site, operands.first, operands.second);
  self.request.value = part.value;
  self.request.data = part.data;
  self.machine->collective(self);
}

}  // namespace

uint32_t shfl(Shuffle kind, uint32_t value, uint32_t operand, Site site) {
  Thread& self = *current;
  const SiteId line = self.machine->site_id(site);
  if (operand >= kWarpSize &&
      self.machine->report(self, {.fault = Fault::kInvalidOperand, .where = line})) {
    self.machine->describe("shfl with " + std::to_string(operand) + ", expected less than 32");
  }
  uint32_t result = operand;
  join(self, Opcode::kShfl, line, {static_cast<uint32_t>(kind), 0}, {value, &result});
  return result;
}

uint32_t ballot(bool predicate, Site site) {
  Thread& self = *current;
  uint32_t result = 0;
  join(self, Opcode::kBallot, self.machine->site_id(site), {}, {predicate ? 1u : 0u, &result});
  return result;
}

uint32_t redux(Reduction kind, uint32_t value, Site site) {
  Thread& self = *current;
  uint32_t result = 0;
  join(self, Opcode::kRedux, self.machine->site_id(site), {static_cast<uint32_t>(kind), 0},
       {value, &result});
  return result;
}

void ldmatrix(uint32_t row, MatrixKind kind, uint32_t* registers, Site site) {
  Thread& self = *current;
  join(self, Opcode::kLdmatrix, self.machine->site_id(site),
       {static_cast<uint32_t>(kind.count), kind.trans ? 1u : 0u}, {row, registers});
}

void stmatrix(uint32_t row, int count, const uint32_t* registers, Site site) {
  Thread& self = *current;
  join(self, Opcode::kStmatrix, self.machine->site_id(site), {static_cast<uint32_t>(count), 0},
       {row, const_cast<uint32_t*>(registers)});
}

void mma(MmaInput input, MmaRegisters registers, Site site) {
  Thread& self = *current;
  join(self, Opcode::kMma, self.machine->site_id(site), {static_cast<uint32_t>(input), 0},
       {0, &registers});
}

}  // namespace attentile::cuda::emulator

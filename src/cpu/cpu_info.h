// SPDX-License-Identifier: Apache-2.0
// What this machine is: instruction sets, caches, cores. Compiled without any instruction-set flag,
// so it runs everywhere; asks the CPU and the operating system, never the compiler. Tile sizes
// depend on the cache sizes told here, thread counts on nothing told here.
#pragma once

#include <cstdint>

#include "attentile/attention.h"
#include "attentile/status.h"

namespace attentile::cpu {

struct CpuInfo {
  // Bytes of the caches of one core (L3: of the group of cores that share it); where the system
  // does not tell, 32 KiB, 1 MiB and 0.
  int64_t l1d_bytes = 32 << 10;
  int64_t l2_bytes = 1 << 20;
  int64_t l3_bytes = 0;
  int cores = 1;  // logical cores online; usable_cores() in executor.h tells what a call may use
  char model[64] = {};    // e.g. "AMD EPYC 9554P 64-Core Processor", "unknown" where not told
  uint32_t isa_bits = 0;  // bit i: this machine runs Isa(i)
};

// Found once, then cached. Safe from any thread, also after fork; never fails.
CpuInfo cpu_info();

// The instruction sets of this build's processor family, best first, kScalar last.
struct IsaList {
  const Isa* data = nullptr;
  int size = 0;
  const Isa* begin() const { return data; }
  const Isa* end() const { return data + size; }
};
IsaList isa_priority();

// Whether this machine and its operating system run this instruction set. kScalar always;
// kAuto never.
bool cpu_supports(Isa isa);

// The best instruction set of this machine by isa_priority(), built in or not, ignoring
// ATTENTILE_CPU_ISA.
Isa best_isa();

// Finds the Isa that to_string(Isa) writes as `name` ("auto", "avx512_bf16"); false: there is none.
bool parse_isa(const char* name, Isa* isa);

// The instruction set that a call runs: `requested`, or for kAuto what the environment variable
// ATTENTILE_CPU_ISA named when it was first needed, or the best there is. `built_in`: those that
// have kernels, any order. not_by_itself: one that kAuto does not take (kAuto: none). kUnavailable:
// not built in, or not on this machine. kInvalidArgument: a name or value that is no instruction
// set.
Result<Isa> resolve_isa(Isa requested, IsaList built_in, Isa not_by_itself);

// The same with the environment variable's value given; "" stands for unset.
Result<Isa> resolve_isa(Isa requested, IsaList built_in, Isa not_by_itself,
                        const char* override_name);

}  // namespace attentile::cpu

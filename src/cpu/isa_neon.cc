// SPDX-License-Identifier: Apache-2.0
// The NEON kernels.
#include "cpu/isa.h"
#include "cpu/simd/neon.h"

namespace attentile::cpu {

extern const KernelSet kNeonFloat;
extern const KernelSet kNeonDouble;
constinit const KernelSet kNeonFloat = make_kernel_set<Neon, float>();
constinit const KernelSet kNeonDouble = make_kernel_set<Neon, double>();

}  // namespace attentile::cpu

// SPDX-License-Identifier: Apache-2.0
// The AMX kernels. float64 does without the matrix unit.
#include "cpu/isa.h"
#include "cpu/simd/amx.h"

namespace attentile::cpu {

extern const KernelSet kAmxFloat;
extern const KernelSet kAmxDouble;
constinit const KernelSet kAmxFloat = make_kernel_set<Amx, float>();
constinit const KernelSet kAmxDouble = make_kernel_set<Amx, double>();

}  // namespace attentile::cpu

// SPDX-License-Identifier: Apache-2.0
// The AVX2 kernels.
#include "cpu/isa.h"
#include "cpu/simd/avx2.h"

namespace attentile::cpu {

extern const KernelSet kAvx2Float;
extern const KernelSet kAvx2Double;
constinit const KernelSet kAvx2Float = make_kernel_set<Avx2, float>();
constinit const KernelSet kAvx2Double = make_kernel_set<Avx2, double>();

}  // namespace attentile::cpu

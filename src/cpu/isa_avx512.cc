// SPDX-License-Identifier: Apache-2.0
// The AVX-512 kernels.
#include "cpu/isa.h"
#include "cpu/simd/avx512.h"

namespace attentile::cpu {

extern const KernelSet kAvx512Float;
extern const KernelSet kAvx512Double;
constinit const KernelSet kAvx512Float = make_kernel_set<Avx512, float>();
constinit const KernelSet kAvx512Double = make_kernel_set<Avx512, double>();

}  // namespace attentile::cpu

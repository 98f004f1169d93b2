// SPDX-License-Identifier: Apache-2.0
// The portable kernels.
#include "cpu/isa.h"
#include "cpu/simd/scalar.h"

namespace attentile::cpu {

extern const KernelSet kScalarFloat;
extern const KernelSet kScalarDouble;
constinit const KernelSet kScalarFloat = make_kernel_set<Scalar, float>();
constinit const KernelSet kScalarDouble = make_kernel_set<Scalar, double>();

}  // namespace attentile::cpu

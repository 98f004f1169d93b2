// SPDX-License-Identifier: Apache-2.0
// The arithmetic peak of this machine, measured: what a benchmark divides by. The clock moves, so
// it belongs into the same process and the same minute as the figures it is compared with.
#pragma once

#include "attentile/attention.h"

namespace attentile::cpu {

// GFLOP/s of fused multiply-adds in registers on `threads` threads, in the type that kernels for
// dtype accumulate in (float32, or float64 for float64); the median of so many short runs. 0 when
// the instruction set has no kernels in this build or does not run on this machine.
double measure_peak_gflops(Isa isa, DType dtype, int threads, int runs = 15);

// The same of the kernels' tile product, its operands in L1: what attention made of these could
// reach if it were products alone. Loads cost units and power, so that the clock may be lower, too.
// A matrix unit's products are not measured.
double measure_product_gflops(Isa isa, DType dtype, int threads, int runs = 15);

}  // namespace attentile::cpu

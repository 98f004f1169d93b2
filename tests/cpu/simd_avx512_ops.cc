// SPDX-License-Identifier: Apache-2.0
// The AVX-512 vectors for simd_test.cc. Their flags hold for the functions between push and pop
// alone: whatever else is included comes before.
#include "cpu/simd_ops.h"

#if defined(ATTENTILE_TEST_X86_VECTORS)

#include <immintrin.h>

#include <cmath>

#include "cpu/simd/vec.h"

#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"))), \
    apply_to = function)

#include "cpu/simd/avx512.h"
#include "cpu/simd_ops_of.h"

#pragma clang attribute pop

namespace attentile::cpu {

const SimdOps& avx512_ops() {
  static const SimdOps ops = SimdOpsOf<Avx512>::table();
  return ops;
}

}  // namespace attentile::cpu

#endif

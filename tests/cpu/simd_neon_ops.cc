// SPDX-License-Identifier: Apache-2.0
// The NEON vectors for simd_test.cc.
#include "cpu/simd_ops.h"
#if defined(__aarch64__)

#include "cpu/simd/neon.h"
#include "cpu/simd_ops_of.h"

namespace attentile::cpu {

const SimdOps& neon_ops() {
  static const SimdOps ops = SimdOpsOf<Neon>::table();
  return ops;
}

}  // namespace attentile::cpu

#endif

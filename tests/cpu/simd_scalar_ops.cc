// SPDX-License-Identifier: Apache-2.0
// The portable vectors for simd_test.cc.
#include "cpu/simd/scalar.h"
#include "cpu/simd_ops_of.h"

namespace attentile::cpu {

const SimdOps& scalar_ops() {
  static const SimdOps ops = SimdOpsOf<Scalar>::table();
  return ops;
}

}  // namespace attentile::cpu

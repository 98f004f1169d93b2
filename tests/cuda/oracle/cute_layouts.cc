// SPDX-License-Identifier: Apache-2.0
// Fragment maps and swizzles against CuTe's traits, element by element. Built and run by
// tools/check_cute_layouts.py where CUTLASS's headers are; nothing of them is kept here.
#include <cstdio>
#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/swizzle.hpp>

#include "cuda/device/fragment.h"
#include "cuda/device/swizzle.h"

namespace {

using namespace attentile::cuda;

int compared = 0;
int mismatches = 0;

void compare(int ours, int theirs) {
  ++compared;
  mismatches += ours != theirs;
}

// CuTe numbers the elements of A [M, K], B [N, K] and C [M, N] with the first index fastest.
template <class Traits>
void compare_16_bit() {
  const typename Traits::ALayout a;
  const typename Traits::BLayout b;
  const typename Traits::CLayout c;
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 8; ++i) {
      const Position at = fragment_a(lane, i / 2, i % 2);
      compare(at.row + 16 * at.column, a(lane, i));
    }
    for (int i = 0; i < 4; ++i) {
      const Position in_b = fragment_b(lane, i / 2, i % 2);
      compare(in_b.column + 8 * in_b.row, b(lane, i));
      const Position in_c = fragment_c(lane, i);
      compare(in_c.row + 16 * in_c.column, c(lane, i));
    }
  }
}

template <class Traits>
void compare_tf32() {
  const typename Traits::ALayout a;
  const typename Traits::BLayout b;
  const typename Traits::CLayout c;
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const Position in_a = fragment_a_tf32(lane, i);
      compare(in_a.row + 16 * in_a.column, a(lane, i));
      const Position in_c = fragment_c(lane, i);
      compare(in_c.row + 16 * in_c.column, c(lane, i));
    }
    for (int i = 0; i < 2; ++i) {
      const Position in_b = fragment_b_tf32(lane, i);
      compare(in_b.column + 8 * in_b.row, b(lane, i));
    }
  }
}

}  // namespace

int main() {
  compare_16_bit<cute::MMA_Traits<cute::SM80_16x8x16_F32F16F16F32_TN>>();
  compare_16_bit<cute::MMA_Traits<cute::SM80_16x8x16_F32BF16BF16F32_TN>>();
  compare_tf32<cute::MMA_Traits<cute::SM80_16x8x8_F32TF32TF32F32_TN>>();
  for (int offset = 0; offset < 65536; ++offset) {
    const auto byte = static_cast<unsigned>(offset);
    compare(static_cast<int>(swizzle<Swizzle::k128>(byte)), cute::Swizzle<3, 4, 3>::apply(offset));
    compare(static_cast<int>(swizzle<Swizzle::k64>(byte)), cute::Swizzle<2, 4, 3>::apply(offset));
    compare(static_cast<int>(swizzle<Swizzle::k32>(byte)), cute::Swizzle<1, 4, 3>::apply(offset));
  }
  std::printf("%d positions compared, %d differ\n", compared, mismatches);
  return mismatches == 0 ? 0 : 1;
}

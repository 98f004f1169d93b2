// SPDX-License-Identifier: Apache-2.0
#include "cuda/emulator/mma_model.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace attentile::cuda::emulator {
namespace {

constexpr float kCanonicalNan = std::bit_cast<float>(0x7FFFFFFFu);

// Exponent of a finite float's leading place; subnormals count as the smallest normal exponent.
int exponent_of(float x) {
  const int biased = static_cast<int>(std::bit_cast<uint32_t>(x) >> 23 & 0xFFu);
  return std::max(biased, 1) - 127;
}

// To float32 towards zero; beyond its range, infinite.
float truncate_to_float(double x) {
  const float nearest = static_cast<float>(x);
  if (std::isinf(nearest) && std::fabs(x) < 0x1p128) return std::copysign(0x1.FFFFFEp127f, nearest);
  if (std::fabs(static_cast<double>(nearest)) <= std::fabs(x)) return nearest;
  return std::nextafterf(nearest, 0.0f);
}

}  // namespace

void multiply_float32(MmaOperands& operands) {
  for (int i = 0; i < 16; ++i) {
    float row[8];
    for (int j = 0; j < 8; ++j) row[j] = operands.acc[i][j];
    for (int k = 0; k < operands.depth; ++k) {
      const float a = operands.a[i][k];
      for (int j = 0; j < 8; ++j) row[j] += a * operands.b[k][j];
    }
    for (int j = 0; j < 8; ++j) operands.acc[i][j] = row[j];
  }
}

AccumulationModel accumulation_model(int arch, MmaInput input) {
  const int depth = input == MmaInput::kTf32 ? 8 : 16;
  if (arch >= 90) return {25, depth};
  return {24, depth / 2};
}

float fused_dot(const float* a, const float* b, int count, float c, int fraction_bits) {
  // Infinities and NaN: what float arithmetic says, NaN canonical.
  double special = 0.0;
  bool finite = std::isfinite(c);
  if (!finite) special = c;
  for (int i = 0; i < count; ++i) {
    if (std::isfinite(a[i]) && std::isfinite(b[i])) continue;
    finite = false;
    special += static_cast<double>(a[i]) * b[i];
  }
  if (!finite) return std::isnan(special) ? kCanonicalNan : static_cast<float>(special);

  // A product keeps the sum of its factors' exponents: its significand may reach 4.
  int largest = -1000;
  if (c != 0.0f) largest = exponent_of(c);
  for (int i = 0; i < count; ++i) {
    if (a[i] == 0.0f || b[i] == 0.0f) continue;
    largest = std::max(largest, exponent_of(a[i]) + exponent_of(b[i]));
  }
  if (largest == -1000) return c;
  const int shift = fraction_bits - largest;
  int64_t sum = static_cast<int64_t>(std::ldexp(static_cast<double>(c), shift));
  for (int i = 0; i < count; ++i) {
    sum += static_cast<int64_t>(std::ldexp(static_cast<double>(a[i]) * b[i], shift));
  }
  return truncate_to_float(std::ldexp(static_cast<double>(sum), -shift));
}

void multiply_hardware(MmaOperands& operands, AccumulationModel model) {
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      float sum = operands.acc[i][j];
      for (int k = 0; k < operands.depth; k += model.group) {
        float column[16];
        for (int n = 0; n < model.group; ++n) column[n] = operands.b[k + n][j];
        sum = fused_dot(&operands.a[i][k], column, model.group, sum, model.fraction_bits);
      }
      operands.acc[i][j] = sum;
    }
  }
}

}  // namespace attentile::cuda::emulator

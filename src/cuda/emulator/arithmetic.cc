// SPDX-License-Identifier: Apache-2.0
// Positions and arithmetic. The approximations of the special function unit are computed in double
// and rounded once; subnormal inputs and results are flushed as .ftz does.
#include <bit>
#include <cmath>

#include "cuda/emulator/instructions.h"
#include "cuda/emulator/machine.h"
#include "dtype.h"

namespace attentile::cuda::emulator {
namespace {

constexpr float kNan = std::bit_cast<float>(0x7FFFFFFFu);

// `ulps` numbers further up; what is exact stays.
float moved(float y, float x, int ulps) {
  if (x == std::floor(x) || !std::isnormal(y)) return y;
  for (; ulps > 0; --ulps) y = std::nextafter(y, INFINITY);
  for (; ulps < 0; ++ulps) y = std::nextafter(y, 0.0f);
  return y;
}

float canonical(float x) {
  return std::isnan(x) ? kNan : x;
}

}  // namespace

uint32_t thread_idx() {
  return current->idx;
}
uint32_t block_threads() {
  return current->machine->shape.threads;
}
Dim3 block_idx() {
  return current->block->idx;
}
Dim3 grid_dim() {
  return current->machine->shape.grid;
}

float ex2_approx(float x, Site site) {
  Thread& self = *current;
  const SiteId line = self.machine->site_id(site);
  self.machine->count_instruction(self, line);
  ++self.machine->counters(line).ex2;
  const float exact = static_cast<float>(std::exp2(static_cast<double>(flush(x))));
  return canonical(flush(moved(exact, x, self.machine->options.ex2_ulps)));
}
float lg2_approx(float x, Site) {
  return canonical(static_cast<float>(std::log2(static_cast<double>(flush(x)))));
}
float rcp_approx(float x, Site) {
  return canonical(flush(1.0f / flush(x)));
}
float tanh_approx(float x, Site) {
  return canonical(static_cast<float>(std::tanh(static_cast<double>(x))));
}

float max_nan_f32(float a, float b) {
  if (std::isnan(a) || std::isnan(b)) return kNan;
  return std::fmax(a, b);
}

uint32_t cvt_f16x2(float low, float high) {
  const auto one = [](float x) -> uint32_t {
    return std::isnan(x) ? 0x7FFFu : double_to_float16(static_cast<double>(x));
  };
  return one(low) | one(high) << 16;
}
uint32_t cvt_bf16x2(float low, float high) {
  const auto one = [](float x) -> uint32_t {
    if (std::isnan(x)) return 0x7FFFu;
    const auto bits = std::bit_cast<uint32_t>(x);
    return (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
  };
  return one(low) | one(high) << 16;
}
float cvt_f32_f16(uint16_t bits) {
  return float16_to_float(bits);
}

uint32_t cvt_tf32(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  if (std::isnan(x)) return 0x7FFFFFFFu;
  if (std::isinf(x)) return bits;
  return (bits + 0x1000u) & ~0x1FFFu;  // half of the last kept place, away from zero
}

}  // namespace attentile::cuda::emulator

// SPDX-License-Identifier: Apache-2.0
#include "cuda/kernel_facts.h"

#include <algorithm>

namespace attentile::cuda {
namespace {

constexpr KernelFacts kFacts[] = {
#include "cuda/kernel_facts.inc"
};
constexpr TileCounts kCounts[] = {
#include "cuda/tile_counts.inc"
};

// Compilers differ in whether they write a template's default argument.
bool same_kernel(std::string_view name, std::string_view wanted) {
  constexpr std::string_view kDefault = ", false>";
  if (name == wanted) return true;
  return wanted.ends_with(kDefault) && name.ends_with(">") &&
         wanted.substr(0, wanted.size() - kDefault.size()) == name.substr(0, name.size() - 1);
}

}  // namespace

const KernelFacts* find_kernel_facts(std::string_view kernel, int32_t architecture) {
  const auto* found = std::ranges::find_if(kFacts, [&](const KernelFacts& facts) {
    return facts.architecture == architecture && same_kernel(facts.kernel, kernel);
  });
  return found == std::end(kFacts) ? nullptr : found;
}

const TileCounts* find_tile_counts(std::string_view kernel) {
  const auto* found = std::ranges::find_if(
      kCounts, [&](const TileCounts& counts) { return same_kernel(counts.kernel, kernel); });
  return found == std::end(kCounts) ? nullptr : found;
}

int32_t blocks_by_registers(int32_t registers, int32_t threads) {
  constexpr int32_t kQuarter = 16384;  // registers of a quarter of an SM
  constexpr int32_t kUnit = 256;       // a warp is given a multiple
  const int32_t of_warp = (32 * registers + kUnit - 1) / kUnit * kUnit;
  return 4 * (kQuarter / of_warp) / (threads / 32);
}

TileCycles tile_cycles(const KernelFacts& facts, const TileCounts& counts, int32_t threads,
                       int32_t blocks_per_sm) {
  // Per SM and cycle, from the architectures' white papers: products of two numbers on tensor
  // cores, lanes of float32 and of integers.
  const bool sm90 = facts.architecture >= 90;
  const double products = sm90 ? 2048 : 1024;
  const double float_lanes = sm90 ? 128 : 64;
  const double warps = threads / 32.0;
  const double quarters = std::min(4.0, warps * blocks_per_sm);
  const double of_all = warps * 4 / quarters;  // as if all quarters did as much as the busiest
  const TileInstructions& t = facts.tile;
  return {.tensor = counts.mma * 2048 / products,
          .issue = t.total() * of_all / 4,
          .shared = static_cast<double>(facts.wavefronts + counts.bank_conflicts),
          .exp = counts.ex2 / 16.0,
          .arithmetic = t.arithmetic * of_all * 32 / float_lanes,
          .index = t.index * of_all * 32 / 64};
}

}  // namespace attentile::cuda

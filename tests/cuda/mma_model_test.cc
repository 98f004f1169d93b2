// SPDX-License-Identifier: Apache-2.0
// How tensor cores add: the cases that tell the models apart.
#include "cuda/emulator/mma_model.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>

namespace attentile::cuda::test {
namespace {

using emulator::accumulation_model;
using emulator::fused_dot;
using emulator::MmaInput;
using emulator::MmaOperands;

float dot(std::initializer_list<float> products, float c, int fraction_bits) {
  float a[16];
  float b[16];
  int count = 0;
  for (const float product : products) {
    a[count] = product;
    b[count++] = 1.0f;
  }
  return fused_dot(a, b, count, c, fraction_bits);
}

TEST(MmaModel, CutsBelowTheLargestTerm) {
  EXPECT_EQ(dot({0x1p-24f}, 1.0f, 24), 1.0f);  // kept in the sum, cut from the float
  EXPECT_EQ(dot({0x1p-24f, 0x1p-24f}, 1.0f, 24), 1.0f + 0x1p-23f);
  EXPECT_EQ(dot({0x1p-25f, 0x1p-25f, 0x1p-25f, 0x1p-25f}, 1.0f, 24), 1.0f);
  EXPECT_EQ(dot({0x1p-25f, 0x1p-25f, 0x1p-25f, 0x1p-25f}, 1.0f, 25), 1.0f + 0x1p-23f);
}
TEST(MmaModel, CutsTowardsZero) {
  EXPECT_EQ(dot({1.5f * 0x1p-23f}, 1.0f, 24), 1.0f + 0x1p-23f);
  EXPECT_EQ(dot({-1.5f * 0x1p-23f}, -1.0f, 24), -1.0f - 0x1p-23f);
}
TEST(MmaModel, CancellationIsExactWithinTheWindow) {
  EXPECT_EQ(dot({1.0f, -1.0f, 0x1p-20f}, 0.0f, 24), 0x1p-20f);
  EXPECT_EQ(dot({0x1p20f, -0x1p20f, 0x1p-10f}, 0.0f, 24), 0.0f);
}
TEST(MmaModel, SpecialValues) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(dot({infinity, 1.0f}, 0.0f, 24), infinity);
  EXPECT_EQ(dot({1.0f}, -infinity, 24), -infinity);
  EXPECT_EQ(std::bit_cast<uint32_t>(dot({infinity, -infinity}, 0.0f, 24)), 0x7FFFFFFFu);
  const float zero = 0.0f;
  EXPECT_EQ(std::bit_cast<uint32_t>(fused_dot(&infinity, &zero, 1, 1.0f, 24)), 0x7FFFFFFFu);
  EXPECT_EQ(dot({0.0f, 0.0f}, 3.0f, 24), 3.0f);
}
TEST(MmaModel, GroupsOfTheArchitectures) {
  EXPECT_EQ(accumulation_model(80, MmaInput::kBFloat16).group, 8);
  EXPECT_EQ(accumulation_model(80, MmaInput::kBFloat16).fraction_bits, 24);
  EXPECT_EQ(accumulation_model(80, MmaInput::kTf32).group, 4);
  EXPECT_EQ(accumulation_model(90, MmaInput::kFloat16).group, 16);
  EXPECT_EQ(accumulation_model(90, MmaInput::kFloat16).fraction_bits, 25);
}
TEST(MmaModel, HalvesAreChainedOnSm80) {
  // The small terms of the second half are cut against the whole first half.
  MmaOperands operands{};
  operands.depth = 16;
  operands.a[0][0] = 1.0f;
  for (int k = 8; k < 16; ++k) operands.a[0][k] = 0x1p-25f;
  for (int k = 0; k < 16; ++k) operands.b[k][0] = 1.0f;
  MmaOperands on_sm90 = operands;
  multiply_hardware(operands, accumulation_model(80, MmaInput::kBFloat16));
  multiply_hardware(on_sm90, accumulation_model(90, MmaInput::kBFloat16));
  EXPECT_EQ(operands.acc[0][0], 1.0f);
  EXPECT_EQ(on_sm90.acc[0][0], 1.0f + 0x1p-22f);
}
TEST(MmaModel, ModelsAgreeOnIntegers) {
  std::mt19937 random(4);
  MmaOperands fast{};
  fast.depth = 16;
  for (auto& row : fast.a) {
    for (float& x : row) x = static_cast<float>(random() % 31) - 15.0f;
  }
  for (auto& row : fast.b) {
    for (float& x : row) x = static_cast<float>(random() % 31) - 15.0f;
  }
  MmaOperands hardware = fast;
  multiply_float32(fast);
  multiply_hardware(hardware, accumulation_model(80, MmaInput::kFloat16));
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) EXPECT_EQ(fast.acc[i][j], hardware.acc[i][j]);
  }
}

}  // namespace
}  // namespace attentile::cuda::test

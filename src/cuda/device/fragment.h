// SPDX-License-Identifier: Apache-2.0
// Which matrix element each register of each lane holds in the tensor-core instructions (PTX ISA,
// "Matrix fragments for mma.m16n8k16" and "mma.m16n8k8"). With g = lane / 4 and t = lane % 4:
//
//   16-bit A [16, 16]   register r, half e:  row g + 8 (r % 2),  column 2 t + e + 8 (r / 2)
//   16-bit B [16, 8]    register r, half e:  row 2 t + e + 8 r,  column g
//   f32 C, D [16, 8]    register r:          row g + 8 (r / 2),  column 2 t + r % 2
//   tf32 A [16, 8]      register r:          row g + 8 (r % 2),  column t + 4 (r / 2)
//   tf32 B [8, 8]       register r:          row t + 4 r,        column g
//
// Half 0 is the low half of a register. So the accumulators of two neighbouring m16n8 tiles,
// rounded to 16 bits and packed in pairs, are an A fragment: how P of Q K^T feeds P V without
// leaving registers. Pure, constexpr, the same on host and device.
#pragma once

#include "cuda/device/config.h"

namespace attentile::cuda {

template <int kCount>
struct Registers {
  uint32_t reg[kCount];
};

using FragmentA = Registers<4>;  // 16-bit [16, 16] or tf32 [16, 8]
using FragmentB = Registers<2>;  // 16-bit [16, 8] or tf32 [8, 8]

struct Accumulator {  // f32 [16, 8]
  float value[4];
};

struct Position {
  int row;
  int column;

  friend constexpr bool operator==(Position, Position) = default;
};

constexpr Position fragment_a(int lane, int reg, int half) {
  return {lane / 4 + 8 * (reg % 2), 2 * (lane % 4) + half + 8 * (reg / 2)};
}
constexpr Position fragment_b(int lane, int reg, int half) {
  return {2 * (lane % 4) + half + 8 * reg, lane / 4};
}
constexpr Position fragment_c(int lane, int reg) {
  return {lane / 4 + 8 * (reg / 2), 2 * (lane % 4) + reg % 2};
}
constexpr Position fragment_a_tf32(int lane, int reg) {
  return {lane / 4 + 8 * (reg % 2), lane % 4 + 4 * (reg / 2)};
}
constexpr Position fragment_b_tf32(int lane, int reg) {
  return {lane % 4 + 4 * reg, lane / 4};
}

// The element whose address a lane gives to ldmatrix<4> so that its four registers are
//   an A fragment [16, 16] of a tile stored [row, k];
//   two B fragments [16, 8] (registers 0, 1 and 2, 3: columns n and n + 8) of a tile stored [n, k];
//   either of a tile stored [k, row] or [k, n], with .trans.
constexpr Position ldmatrix_a(int lane) {
  return {lane % 16, lane / 16 * 8};
}
constexpr Position ldmatrix_b(int lane) {
  return {lane % 8 + lane / 16 * 8, lane / 8 % 2 * 8};
}
constexpr Position ldmatrix_a_trans(int lane) {
  return {lane % 8 + lane / 16 * 8, lane / 8 % 2 * 8};
}
constexpr Position ldmatrix_b_trans(int lane) {
  return {lane % 16, lane / 16 * 8};
}
// And to stmatrix<4> so that two accumulators [16, 8] (columns n and n + 8), packed to 16 bits as
// {rows 0-7, rows 8-15} of the first, then of the second, land in a tile stored [row, n].
constexpr Position stmatrix_c(int lane) {
  return {lane % 16, lane / 16 * 8};
}

}  // namespace attentile::cuda

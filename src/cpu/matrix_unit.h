// SPDX-License-Identifier: Apache-2.0
// Matrix units multiply tiles of bfloat16 into float32. An operand is handed to them as a sum of
// bfloat16 numbers per value, each the leading bits of what the ones before leave: one part holds a
// bfloat16 value, two a float16 value, three a float32 value. Parts of A are multiplied by parts of
// B; of three each, the products that would only show below float32's last bit are left out.
// MatrixUnit<Isa, Real> is specialised where there is one.
#pragma once

#include <cstdint>

namespace attentile::cpu {

// Parts that hold a float32 value exactly, unless it is faint: below 2^-kFaintExponent, where parts
// of it or their products would be subnormal. Faint weights and dS are multiplied without the unit.
inline constexpr int kExactParts = 3;
inline constexpr int kFaintExponent = 100;

// A packed operand, depth padded with zeros to ld, a multiple of 32.
//   left   [parts][rows][ld / 2][2]            rows padded with zeros to a multiple of 16
//   right  [parts][cols / 16][ld / 2][16][2]
// What makes a pair: values in depth 16 from each other along head_dim and queries, so that packing
// takes no shuffle; neighbours along keys, where a product may begin at any.
// hard: which source rows (or lanes) hold a value that has no such parts: NaN, infinity; of three
// parts also what is so large or so small that flushed parts could show. Subnormal numbers that are
// not hard, and subnormal parts, count as 0.
struct Parts {
  uint16_t* data = nullptr;  // null: not packed
  int parts = 0;
  int64_t stride = 0;  // between parts
  int64_t ld = 0;
  uint8_t* hard = nullptr;      // null: not asked
  uint8_t* any_hard = nullptr;  // whether one of them does

  [[gnu::always_inline]] bool has_hard() const { return any_hard != nullptr && *any_hard != 0; }
};

// What is packed: [rows][ld], of which `columns` are used.
template <class Real>
struct PackSource {
  const Real* data = nullptr;
  int64_t ld = 0;
  int64_t rows = 0;
  int columns = 0;
};

template <class Isa, class Real>
struct MatrixUnit {
  static constexpr bool kPresent = false;
  static void begin() {}
  static void end() {}
  template <class Pending>
  static void step(Pending&) {}
  template <class Pending>
  static void finish(Pending&) {}
  static bool pack_left(const PackSource<Real>&, const Parts&) { return false; }
  static void pack_left_transposed(const PackSource<Real>&, const Parts&) {}
  static void pack_right(const PackSource<Real>&, const Parts&) {}
  static bool pack_weights(const PackSource<Real>&, const Parts&) { return false; }
  template <int kParts, class... Arguments>
  static void store_weights(const Arguments&...) {}
  template <class Function>
  static void with_parts(const Parts&, Function) {}
};

// The same operand from row `row`, from depth `k`, or (not for marked ones) from column `column`
// on.
[[gnu::always_inline]] inline Parts rows_from(Parts left, int64_t row) {
  if (left.data != nullptr) left.data += row * left.ld;
  if (left.hard != nullptr) left.hard += row;
  return left;
}
[[gnu::always_inline]] inline Parts depth_from(Parts left, int64_t k) {
  if (left.data != nullptr) left.data += k;
  if (left.hard != nullptr) left.hard += k;
  return left;
}

[[gnu::always_inline]] inline Parts columns_from(Parts right, int64_t column) {
  right.data += column * right.ld;
  return right;
}

// Sizes in 16-bit values; `parts` may be 0.
[[gnu::always_inline]] inline int64_t left_size(int64_t parts, int64_t rows, int64_t ld) {
  return parts * ((rows + 15) / 16 * 16) * ld;
}
[[gnu::always_inline]] inline int64_t right_size(int64_t parts, int64_t cols, int64_t ld) {
  return parts * cols * ld;
}
[[gnu::always_inline]] inline int64_t padded_depth(int64_t depth) {
  return (depth + 31) / 32 * 32;
}

}  // namespace attentile::cpu

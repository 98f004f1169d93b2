// SPDX-License-Identifier: Apache-2.0
// overlap.h against brute force: every element of thousands of small random views, byte by byte,
// and the layouts that matter by name.
#include "overlap.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <set>
#include <string>
#include <vector>

namespace attentile {
namespace {

constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
constexpr int64_t kMin = std::numeric_limits<int64_t>::min();

TensorView make_view(uintptr_t address, DType dtype, std::initializer_list<int64_t> shape,
                     std::initializer_list<int64_t> stride) {
  TensorView view;
  view.data = reinterpret_cast<void*>(address);
  view.dtype = dtype;
  view.rank = static_cast<int32_t>(shape.size());
  int axis = 0;
  for (int64_t size : shape) view.shape[axis++] = size;
  axis = 0;
  for (int64_t step : stride) view.stride[axis++] = step;
  return view;
}

// Byte offsets of every element, relative to address 0.
std::vector<int64_t> elements_of(const TensorView& view) {
  std::vector<int64_t> offsets = {static_cast<int64_t>(reinterpret_cast<uintptr_t>(view.data))};
  for (int axis = 0; axis < view.rank; ++axis) {
    std::vector<int64_t> next;
    for (int64_t offset : offsets) {
      for (int64_t i = 0; i < view.shape[axis]; ++i) {
        next.push_back(offset + i * view.stride[axis] * size_of(view.dtype));
      }
    }
    offsets = next;
  }
  return offsets;
}

std::set<int64_t> bytes_of(const TensorView& view, bool* repeated) {
  std::set<int64_t> bytes;
  *repeated = false;
  for (int64_t offset : elements_of(view)) {
    for (int64_t i = 0; i < size_of(view.dtype); ++i) {
      if (!bytes.insert(offset + i).second) *repeated = true;
    }
  }
  return bytes;
}

class Generator {
 public:
  explicit Generator(uint64_t seed) : state_(seed) {}
  int64_t integer(int64_t low, int64_t high) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return low + static_cast<int64_t>((state_ >> 33) % static_cast<uint64_t>(high - low + 1));
  }
  TensorView view(int64_t spread) {
    constexpr DType kTypes[] = {DType::kUInt8, DType::kFloat16, DType::kFloat32, DType::kFloat64};
    TensorView view;
    view.data = reinterpret_cast<void*>(static_cast<uintptr_t>(4096 + integer(0, spread)));
    view.dtype = kTypes[integer(0, 3)];
    view.rank = static_cast<int32_t>(integer(0, 4));
    const bool nested = integer(0, 2) == 0;
    int64_t step = integer(1, 3);
    for (int axis = view.rank - 1; axis >= 0; --axis) {
      view.shape[axis] = integer(0, 39) == 0 ? 0 : integer(1, 5);
      view.stride[axis] = nested ? step : integer(-16, 16);
      if (nested) step *= view.shape[axis] + integer(0, 1);
      if (integer(0, 3) == 0) view.stride[axis] = -view.stride[axis];
    }
    return view;
  }

 private:
  uint64_t state_;
};

std::string text_of(const TensorView& view) {
  std::string text = std::to_string(reinterpret_cast<uintptr_t>(view.data)) + " " +
                     to_string(view.dtype) + " shape";
  for (int i = 0; i < view.rank; ++i) text += " " + std::to_string(view.shape[i]);
  text += " stride";
  for (int i = 0; i < view.rank; ++i) text += " " + std::to_string(view.stride[i]);
  return text;
}

TEST(Overlap, SelfOverlapMatchesBruteForce) {
  Generator random(1);
  int found = 0;
  constexpr int kViews = 6000;
  for (int n = 0; n < kViews; ++n) {
    const TensorView view = random.view(64);
    bool expected = false;
    bytes_of(view, &expected);
    ASSERT_EQ(self_overlaps(view), expected) << text_of(view);
    found += expected ? 1 : 0;
  }
  EXPECT_GT(found, kViews / 10);
  EXPECT_LT(found, kViews * 4 / 5);
}

TEST(Overlap, PairOverlapMatchesBruteForce) {
  Generator random(2);
  int found = 0;
  constexpr int kPairs = 6000;
  for (int n = 0; n < kPairs; ++n) {
    const TensorView a = random.view(160);
    const TensorView b = random.view(160);
    bool repeated = false;
    const std::set<int64_t> bytes_a = bytes_of(a, &repeated);
    bool expected = false;
    for (int64_t byte : bytes_of(b, &repeated)) expected = expected || bytes_a.count(byte) != 0;
    ASSERT_EQ(overlaps(a, b), expected) << text_of(a) << " | " << text_of(b);
    ASSERT_EQ(overlaps(b, a), expected) << text_of(b) << " | " << text_of(a);
    found += expected ? 1 : 0;
  }
  EXPECT_GT(found, kPairs / 5);
  EXPECT_LT(found, kPairs * 4 / 5);
}

// q, k and v of a buffer [batch, seqlen, 3, heads, dim].
TEST(Overlap, PackedTensorsInterleaveWithoutTouching) {
  const auto part = [](int64_t which, int64_t extra) {
    constexpr int64_t kHeads = 12, kDim = 64, kRow = 3 * kHeads * kDim;
    const int64_t first = which * kHeads * kDim * 4;
    return make_view(static_cast<uintptr_t>(1 << 20) + static_cast<uintptr_t>(first),
                     DType::kFloat32, {2, 1000, kHeads, kDim + extra},
                     {1000 * kRow, kRow, kDim, 1});
  };
  for (int64_t i = 0; i < 3; ++i) {
    EXPECT_FALSE(self_overlaps(part(i, 0)));
    for (int64_t j = 0; j < 3; ++j) EXPECT_EQ(overlaps(part(i, 0), part(j, 0)), i == j);
  }
  // One column too many: the last head of q reaches into k.
  EXPECT_TRUE(overlaps(part(0, 1), part(1, 0)));
  EXPECT_TRUE(self_overlaps(part(0, 1)));
}

TEST(Overlap, EvenAndOddColumns) {
  const TensorView even = make_view(1024, DType::kFloat16, {50, 40, 8, 16}, {10240, 256, 32, 2});
  const TensorView odd = make_view(1026, DType::kFloat16, {50, 40, 8, 16}, {10240, 256, 32, 2});
  EXPECT_FALSE(overlaps(even, odd));
  EXPECT_TRUE(overlaps(even, even));
  // A float32 at an even column reaches into the odd one.
  const TensorView wide = make_view(1024, DType::kFloat32, {50, 40, 8, 16}, {5120, 128, 16, 1});
  EXPECT_TRUE(overlaps(wide, odd));
  const TensorView half_off = make_view(1025, DType::kFloat16, {16}, {2});
  EXPECT_TRUE(overlaps(even, half_off));
}

TEST(Overlap, NegativeAndZeroStrides) {
  const TensorView forward = make_view(4096, DType::kFloat32, {10}, {1});
  const TensorView reversed = make_view(4096 + 36, DType::kFloat32, {10}, {-1});
  const TensorView before = make_view(4092, DType::kFloat32, {10}, {-1});
  EXPECT_FALSE(self_overlaps(reversed));
  EXPECT_TRUE(overlaps(forward, reversed));
  EXPECT_FALSE(overlaps(forward, before));
  EXPECT_TRUE(self_overlaps(make_view(4096, DType::kFloat32, {3, 2}, {1, 0})));
  EXPECT_FALSE(self_overlaps(make_view(4096, DType::kFloat32, {3, 1}, {1, 0})));
  // Opposite signs: [i, j] and [i + 1, j + 1] meet.
  EXPECT_TRUE(self_overlaps(make_view(4096, DType::kFloat32, {4, 4}, {1, -1})));
  EXPECT_FALSE(self_overlaps(make_view(4096, DType::kFloat32, {4, 4}, {4, -1})));
}

TEST(Overlap, EmptyViewsAndIgnoredStrides) {
  const TensorView empty = make_view(4096, DType::kFloat32, {3, 0, 2}, {0, 0, 0});
  const TensorView one = make_view(4096, DType::kFloat32, {1, 1}, {kMin, kMax});
  const TensorView scalar = make_view(4096, DType::kFloat64, {}, {});
  EXPECT_FALSE(self_overlaps(empty));
  EXPECT_FALSE(overlaps(empty, one));
  EXPECT_FALSE(self_overlaps(one));
  EXPECT_TRUE(overlaps(one, scalar));
  EXPECT_FALSE(overlaps(scalar, make_view(4104, DType::kUInt8, {}, {})));
  EXPECT_TRUE(overlaps(scalar, make_view(4103, DType::kUInt8, {}, {})));
}

TEST(Overlap, ExtremeExtents) {
  const TensorView endless = make_view(4096, DType::kFloat64, {kMax, kMax}, {kMax, kMin});
  EXPECT_TRUE(self_overlaps(endless));
  EXPECT_TRUE(overlaps(endless, endless));
  // Past 2^63 bytes, yet exact: rows of 2^40 elements, 2^30 of them, columns of every other one.
  const int64_t row = int64_t{1} << 40;
  const TensorView wide = make_view(4096, DType::kFloat64, {int64_t{1} << 30, row / 2}, {row, 2});
  TensorView shifted = wide;
  shifted.data = reinterpret_cast<void*>(uintptr_t{4104});
  EXPECT_FALSE(self_overlaps(wide));
  EXPECT_FALSE(overlaps(wide, shifted));
  EXPECT_TRUE(overlaps(wide, wide));
}

// Steps chosen to have no common divisor and long ranges: an answer comes soon, and it is either
// right or the cautious one, that they overlap.
TEST(Overlap, HardInstancesEnd) {
  const TensorView hard = make_view(
      4096, DType::kUInt8, {2000, 2000, 2000, 2000},
      {int64_t{1000000007} * 2, int64_t{998244353} * 2, int64_t{993244853} * 2, 999999937 * 2});
  TensorView other = hard;
  other.data = reinterpret_cast<void*>(uintptr_t{4097});
  EXPECT_FALSE(overlaps(hard, other));  // the common divisor 2 tells
  other.stride[3] = int64_t{999999937} * 2 + 1;
  EXPECT_TRUE(overlaps(hard, other));
  EXPECT_TRUE(self_overlaps(hard));
}

}  // namespace
}  // namespace attentile

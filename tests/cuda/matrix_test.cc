// SPDX-License-Identifier: Apache-2.0
// ldmatrix, stmatrix and mma against scalar definitions.
#include <random>

#include "cuda/support.h"
#include "dtype.h"

namespace attentile::cuda::test {
namespace {

template <int kCount, bool kTrans>
void load_matrices(const Words& p, SharedAddress arena) {
  for (uint32_t i = lane_idx(); i < 128; i += 32) st_shared(arena + 4 * i, ld_global(p.in + i));
  bar_warp_sync();
  // Rows in an order of their own, so that addresses matter.
  const uint32_t row = lane_idx() * 5 % 32;
  const auto m = ldmatrix<kCount, kTrans>(arena + 16 * row);
  for (int j = 0; j < kCount; ++j) st_global(p.out + lane_idx() * kCount + j, m.reg[j]);
}
template <int kCount, bool kTrans>
void expect_matrices() {
  const auto in = random_words(128);
  OneBlock<32, load_matrices<kCount, kTrans>> run(in);
  EXPECT_TRUE(run.report.clean()) << run.report.text();
  const auto element = [&](int j, int row, int column) {
    const int stored = (8 * j + row) * 5 % 32;
    return in[stored * 4 + column / 2] >> (16 * (column % 2)) & 0xFFFFu;
  };
  for (int lane = 0; lane < 32; ++lane) {
    for (int j = 0; j < kCount; ++j) {
      const int g = lane / 4;
      const int c = lane % 4 * 2;
      const uint32_t low = kTrans ? element(j, c, g) : element(j, g, c);
      const uint32_t high = kTrans ? element(j, c + 1, g) : element(j, g, c + 1);
      EXPECT_EQ(run.out[lane * kCount + j], low | high << 16);
    }
  }
}
TEST(Matrix, LdmatrixX1) {
  expect_matrices<1, false>();
}
TEST(Matrix, LdmatrixX2) {
  expect_matrices<2, false>();
}
TEST(Matrix, LdmatrixX4) {
  expect_matrices<4, false>();
}
TEST(Matrix, LdmatrixX1Trans) {
  expect_matrices<1, true>();
}
TEST(Matrix, LdmatrixX2Trans) {
  expect_matrices<2, true>();
}
TEST(Matrix, LdmatrixX4Trans) {
  expect_matrices<4, true>();
}

template <int kCount>
void store_matrices(const Words& p, SharedAddress arena) {
  Registers<kCount> m;
  for (int j = 0; j < kCount; ++j) m.reg[j] = ld_global(p.in + lane_idx() * kCount + j);
  stmatrix<kCount>(arena + 16 * lane_idx(), m);
  bar_warp_sync();
  for (uint32_t i = lane_idx(); i < 32 * kCount; i += 32) {
    st_global(p.out + i, ld_shared<uint32_t>(arena + 4 * i));
  }
}
template <int kCount>
void expect_stored() {
  const auto in = random_words(128);
  OneBlock<32, store_matrices<kCount>> run(in);
  EXPECT_TRUE(run.report.clean()) << run.report.text();
  for (int j = 0; j < kCount; ++j) {
    for (int lane = 0; lane < 32; ++lane) {
      EXPECT_EQ(run.out[(8 * j + lane / 4) * 4 + lane % 4], in[lane * kCount + j]);
    }
  }
}
TEST(Matrix, StmatrixX1) {
  expect_stored<1>();
}
TEST(Matrix, StmatrixX2) {
  expect_stored<2>();
}
TEST(Matrix, StmatrixX4) {
  expect_stored<4>();
}

struct Product16 {
  const uint16_t* a;  // [16, 16]
  const uint16_t* b;  // [16, 8]
  float* c;           // [16, 8]
};
template <class T>
void one_mma(const Product16& p, SharedAddress) {
  const int lane = static_cast<int>(lane_idx());
  FragmentA a{};
  FragmentB b{};
  Accumulator c{};
  for (int half = 0; half < 2; ++half) {
    for (int r = 0; r < 4; ++r) {
      const Position at = fragment_a(lane, r, half);
      a.reg[r] |= uint32_t{ld_global(p.a + at.row * 16 + at.column)} << (16 * half);
    }
    for (int r = 0; r < 2; ++r) {
      const Position at = fragment_b(lane, r, half);
      b.reg[r] |= uint32_t{ld_global(p.b + at.row * 8 + at.column)} << (16 * half);
    }
  }
  for (int r = 0; r < 4; ++r) {
    const Position at = fragment_c(lane, r);
    c.value[r] = ld_global(p.c + at.row * 8 + at.column);
  }
  bar_warp_sync();
  mma_m16n8k16<T>(c, a, b);
  for (int r = 0; r < 4; ++r) {
    const Position at = fragment_c(lane, r);
    st_global(p.c + at.row * 8 + at.column, c.value[r]);
  }
}
template <class T>
void expect_product() {
  Device device;
  Buffer<uint16_t> a(device, 256), b(device, 128);
  Buffer<float> c(device, 128);
  std::mt19937 random(3);
  const auto draw = [&] { return static_cast<int>(random() % 17) - 8; };
  double expected[128];
  std::vector<int> av(256), bv(128);
  const auto encode = [](int x) {
    return kIsFloat16<T> ? double_to_float16(x) : double_to_bfloat16(x);
  };
  for (int i = 0; i < 256; ++i) a[i] = encode(av[i] = draw());
  for (int i = 0; i < 128; ++i) b[i] = encode(bv[i] = draw());
  for (int i = 0; i < 128; ++i) {
    c[i] = static_cast<float>(expected[i] = draw());
    for (int k = 0; k < 16; ++k) expected[i] += av[i / 8 * 16 + k] * bv[k * 8 + i % 8];
  }
  const Report report =
      device.launch<Kernel<32, Product16, one_mma<T>>>({}, 0, {a.data(), b.data(), c.data()});
  EXPECT_TRUE(report.clean()) << report.text();
  for (int i = 0; i < 128; ++i) EXPECT_EQ(c[i], expected[i]);
}
TEST(Matrix, MmaOfBFloat16) {
  expect_product<BFloat16>();
}
TEST(Matrix, MmaOfFloat16) {
  expect_product<Float16>();
}

struct ProductTf32 {
  const float* a;  // [16, 8]
  const float* b;  // [8, 8]
  float* c;        // [16, 8]
};
void tf32_mma(const ProductTf32& p, SharedAddress) {
  const int lane = static_cast<int>(lane_idx());
  FragmentA a;
  FragmentB b;
  for (int r = 0; r < 4; ++r) {
    const Position at = fragment_a_tf32(lane, r);
    a.reg[r] = cvt_tf32(ld_global(p.a + at.row * 8 + at.column));
  }
  for (int r = 0; r < 2; ++r) {
    const Position at = fragment_b_tf32(lane, r);
    b.reg[r] = cvt_tf32(ld_global(p.b + at.row * 8 + at.column));
  }
  Accumulator c{};
  mma_m16n8k8_tf32(c, a, b);
  for (int r = 0; r < 4; ++r) {
    const Position at = fragment_c(lane, r);
    st_global(p.c + at.row * 8 + at.column, c.value[r]);
  }
}
TEST(Matrix, MmaOfTf32) {
  Device device;
  Buffer<float> a(device, 128), b(device, 64), c(device, 128);
  for (int i = 0; i < 128; ++i) a[i] = static_cast<float>(i * 37 % 23 - 11);
  for (int i = 0; i < 64; ++i) b[i] = static_cast<float>(i * 29 % 19 - 9);
  const Report report =
      device.launch<Kernel<32, ProductTf32, tf32_mma>>({}, 0, {a.data(), b.data(), c.data()});
  EXPECT_TRUE(report.clean()) << report.text();
  for (int i = 0; i < 128; ++i) {
    float expected = 0;
    for (int k = 0; k < 8; ++k) expected += a[i / 8 * 8 + k] * b[k * 8 + i % 8];
    EXPECT_EQ(c[i], expected);
  }
}

}  // namespace
}  // namespace attentile::cuda::test

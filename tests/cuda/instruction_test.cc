// SPDX-License-Identifier: Apache-2.0
// Every instruction against a scalar definition.
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "cuda/support.h"
#include "dtype.h"

namespace attentile::cuda::test {
namespace {

// --- warp ----------------------------------------------------------------------------------------

void shuffles(const Words& p, SharedAddress) {
  const uint32_t lane = lane_idx();
  const uint32_t x = ld_global(p.in + lane);
  const auto n = static_cast<uint32_t>(p.argument);
  st_global(p.out + lane, shfl_idx(x, (lane * 7 + n) % 32));
  st_global(p.out + 32 + lane, shfl_xor(x, n));
  st_global(p.out + 64 + lane, shfl_down(x, n));
  st_global(p.out + 96 + lane, shfl_up(x, n));
}
TEST(Warp, ShufflesMoveValues) {
  const auto in = random_words(32);
  for (uint32_t n = 0; n < 32; ++n) {
    OneBlock<32, shuffles> run(in, {}, static_cast<int>(n));
    EXPECT_TRUE(run.report.clean()) << run.report.text();
    for (uint32_t l = 0; l < 32; ++l) {
      EXPECT_EQ(run.out[l], in[(l * 7 + n) % 32]);
      EXPECT_EQ(run.out[32 + l], in[l ^ n]);
      EXPECT_EQ(run.out[64 + l], in[l + n < 32 ? l + n : l]);
      EXPECT_EQ(run.out[96 + l], in[l >= n ? l - n : l]);
    }
  }
}

void float_shuffle(const Words& p, SharedAddress) {
  float x = static_cast<float>(lane_idx());
  for (uint32_t mask = 16; mask > 0; mask /= 2) x += shfl_xor(x, mask);
  st_global(p.out + lane_idx(), std::bit_cast<uint32_t>(x));
}
TEST(Warp, ShufflesSumFloats) {
  OneBlock<32, float_shuffle> run;
  for (int l = 0; l < 32; ++l) EXPECT_EQ(std::bit_cast<float>(run.out[l]), 496.0f);
}

void votes(const Words& p, SharedAddress) {
  const uint32_t x = ld_global(p.in + lane_idx());
  st_global(p.out + lane_idx(), ballot((x & 1u) != 0));
  const bool any_of = any(x > 5);
  const bool all_of = all(x > 5);
  st_global(p.out + 32 + lane_idx(), (any_of ? 1u : 0u) + (all_of ? 2u : 0u));
}
TEST(Warp, Votes) {
  auto in = random_words(32);
  uint32_t mask = 0;
  for (int l = 0; l < 32; ++l) mask |= (in[l] & 1u) << l;
  OneBlock<32, votes> run(in);
  for (int l = 0; l < 32; ++l) EXPECT_EQ(run.out[l], mask);
  EXPECT_EQ(run.out[32], 3u);
  in.assign(32, 0);
  EXPECT_EQ((OneBlock<32, votes>(in).out[40]), 0u);
  in[9] = 6;
  EXPECT_EQ((OneBlock<32, votes>(in).out[40]), 1u);
}

void reductions(const Words& p, SharedAddress) {
  const uint32_t x = ld_global(p.in + lane_idx());
  st_global(p.out + lane_idx(), redux_add(x));
  st_global(p.out + 32 + lane_idx(), static_cast<uint32_t>(redux_min(static_cast<int32_t>(x))));
  st_global(p.out + 64 + lane_idx(), static_cast<uint32_t>(redux_max(static_cast<int32_t>(x))));
}
TEST(Warp, Reductions) {
  const auto in = random_words(32);
  uint32_t sum = 0;
  int32_t least = INT32_MAX;
  int32_t most = INT32_MIN;
  for (const uint32_t x : in) {
    sum += x;
    least = std::min(least, static_cast<int32_t>(x));
    most = std::max(most, static_cast<int32_t>(x));
  }
  OneBlock<32, reductions> run(in);
  for (int l = 0; l < 32; ++l) {
    EXPECT_EQ(run.out[l], sum);
    EXPECT_EQ(static_cast<int32_t>(run.out[32 + l]), least);
    EXPECT_EQ(static_cast<int32_t>(run.out[64 + l]), most);
  }
}

// --- indices -------------------------------------------------------------------------------------

void indices(const Words& p, SharedAddress) {
  const Dim3 block = block_idx();
  const Dim3 grid = grid_dim();
  const uint32_t number = (block.z * grid.y + block.y) * grid.x + block.x;
  st_global(p.out + number * block_threads() + thread_idx(),
            warp_idx() << 16 | lane_idx() << 8 | number);
}
TEST(Index, EveryThreadOnceInEveryOrder) {
  for (const BlockOrder order : kBlockOrders) {
    for (const int resident : {1, 3, 100}) {
      Device device({.block_order = order, .resident_blocks = resident});
      Buffer<uint32_t> out(device, 24 * 64, {.name = "out", .initialised = false});
      const Report report =
          device.launch<Kernel<64, Words, indices>>({2, 3, 4}, 0, {out.data(), nullptr, 0});
      EXPECT_TRUE(report.clean()) << report.text();
      for (uint32_t i = 0; i < out.size(); ++i) {
        EXPECT_EQ(out[i], (i % 64 / 32) << 16 | i % 32 << 8 | i / 64);
      }
    }
  }
}

// --- cp.async ------------------------------------------------------------------------------------

template <int kBytes>
void copy_partly(const Words& p, SharedAddress arena) {
  const uint32_t at = thread_idx() * kBytes;
  cp_async<kBytes>(arena + at, reinterpret_cast<const char*>(p.in) + at,
                   thread_idx() % (kBytes + 1));
  cp_async_commit_group();
  cp_async_wait_group<0>();
  for (uint32_t i = 0; i < kBytes / 4; ++i) {
    st_global(p.out + at / 4 + i, ld_shared<uint32_t>(arena + at + 4 * i));
  }
}
template <int kBytes>
void expect_zero_filled() {
  const auto in = random_words(8 * kBytes);
  for (const Completion completion : kCompletions) {
    OneBlock<32, copy_partly<kBytes>> run(in, {.completion = completion});
    EXPECT_TRUE(run.report.clean()) << run.report.text();
    const auto* from = reinterpret_cast<const uint8_t*>(in.data());
    const auto* to = reinterpret_cast<const uint8_t*>(run.out.data());
    for (int i = 0; i < 32 * kBytes; ++i) {
      EXPECT_EQ(to[i], i % kBytes < i / kBytes % (kBytes + 1) ? from[i] : 0);
    }
  }
}
TEST(AsyncCopy, ZeroFills4) {
  expect_zero_filled<4>();
}
TEST(AsyncCopy, ZeroFills8) {
  expect_zero_filled<8>();
}
TEST(AsyncCopy, ZeroFills16) {
  expect_zero_filled<16>();
}

void copy_of_nothing(const Words& p, SharedAddress arena) {
  cp_async<16>(arena + 16 * thread_idx(), nullptr, 0);
  cp_async_commit_group();
  cp_async_wait_group<0>();
  st_global(p.out + thread_idx(), ld_shared<uint32_t>(arena + 16 * thread_idx() + 12));
}
TEST(AsyncCopy, OfNothingReadsNothing) {
  OneBlock<32, copy_of_nothing> run;
  EXPECT_TRUE(run.report.clean()) << run.report.text();
  for (int i = 0; i < 32; ++i) EXPECT_EQ(run.out[i], 0u);
}

void three_groups(const Words& p, SharedAddress arena) {
  const uint32_t at = 4 * thread_idx();
  for (uint32_t group = 0; group < 3; ++group) {
    cp_async<4>(arena + 128 * group + at, p.in + 32 * group + thread_idx());
    cp_async_commit_group();
  }
  cp_async_wait_group<2>();
  const auto first = ld_shared<uint32_t>(arena + at);
  cp_async_wait_group<1>();
  const auto second = ld_shared<uint32_t>(arena + 128 + at);
  cp_async_wait_group<0>();
  st_global(p.out + thread_idx(), first + second + ld_shared<uint32_t>(arena + 256 + at));
}
TEST(AsyncCopy, WaitsLeaveTheYoungestPending) {
  const auto in = random_words(96);
  OneBlock<32, three_groups> run(in);
  EXPECT_TRUE(run.report.clean()) << run.report.text();
  for (int i = 0; i < 32; ++i) EXPECT_EQ(run.out[i], in[i] + in[32 + i] + in[64 + i]);
}

// --- memory --------------------------------------------------------------------------------------

template <int kBytes>
struct alignas(kBytes) Chunk {
  uint8_t byte[kBytes];
};
template <int kBytes>
void move_global(const Words& p, SharedAddress) {
  using T = Chunk<kBytes>;
  const auto* in = reinterpret_cast<const T*>(p.in) + thread_idx();
  auto* out = reinterpret_cast<T*>(p.out) + thread_idx();
  st_global(out, ld_global(in));
  st_global_cs(out + 32, ld_global_nc(in));
  st_global(out + 64, ld_global_cs(in));
}
template <int kBytes>
void expect_moved() {
  const auto in = random_words(128);
  OneBlock<32, move_global<kBytes>> run(in);
  EXPECT_TRUE(run.report.clean()) << run.report.text();
  const auto* from = reinterpret_cast<const uint8_t*>(in.data());
  const auto* to = reinterpret_cast<const uint8_t*>(run.out.data());
  for (int i = 0; i < 96 * kBytes; ++i) EXPECT_EQ(to[i], from[i % (32 * kBytes)]);
  EXPECT_EQ(run.report.total.global_written_bytes, 96u * kBytes);
  EXPECT_EQ(run.device.uninitialised_bytes(run.out.data()), 4096u - 96 * kBytes);
}
TEST(Memory, GlobalAccessesOf1Byte) {
  expect_moved<1>();
}
TEST(Memory, GlobalAccessesOf2Bytes) {
  expect_moved<2>();
}
TEST(Memory, GlobalAccessesOf4Bytes) {
  expect_moved<4>();
}
TEST(Memory, GlobalAccessesOf8Bytes) {
  expect_moved<8>();
}
TEST(Memory, GlobalAccessesOf16Bytes) {
  expect_moved<16>();
}

template <int kBytes>
void move_shared(const Words& p, SharedAddress arena) {
  using T = Chunk<kBytes>;
  const uint32_t at = kBytes * thread_idx();
  st_shared(arena + at, ld_global(reinterpret_cast<const T*>(p.in) + thread_idx()));
  bar_sync();
  const uint32_t other = kBytes * (63 - thread_idx());
  st_global(reinterpret_cast<T*>(p.out) + thread_idx(), ld_shared<T>(arena + other));
}
template <int kBytes>
void expect_shared() {
  const auto in = random_words(256);
  OneBlock<64, move_shared<kBytes>> run(in);
  EXPECT_TRUE(run.report.clean()) << run.report.text();
  const auto* from = reinterpret_cast<const Chunk<kBytes>*>(in.data());
  const auto* to = reinterpret_cast<const Chunk<kBytes>*>(run.out.data());
  for (int i = 0; i < 64; ++i) EXPECT_EQ(0, std::memcmp(to + i, from + 63 - i, kBytes));
}
TEST(Memory, SharedAccessesOf4Bytes) {
  expect_shared<4>();
}
TEST(Memory, SharedAccessesOf8Bytes) {
  expect_shared<8>();
}
TEST(Memory, SharedAccessesOf16Bytes) {
  expect_shared<16>();
}

void sum_atomically(const Words& p, SharedAddress) {
  atomic_add_f32(reinterpret_cast<float*>(p.out), 1.0f);
  atomic_add_acq_rel(reinterpret_cast<int32_t*>(p.out) + 1, -2);
}
void sum_small(const Words& p, SharedAddress) {
  if (thread_idx() != 0) return;
  float* at = reinterpret_cast<float*>(p.out);
  atomic_add_f32(at, 0x1p-127f);      // a subnormal input
  atomic_add_f32(at + 1, 0x1p-126f);  // a subnormal result
  atomic_add_f32(at + 1, -0x1.8p-126f);
}
TEST(Memory, AtomicsOfFloatsFlushSubnormals) {
  Device device;
  Buffer<uint32_t> out(device, 2);
  out[0] = out[1] = 0;
  const Report report =
      device.launch<Kernel<32, Words, sum_small>>({1}, 0, {out.data(), nullptr, 0});
  EXPECT_TRUE(report.clean()) << report.text();
  EXPECT_EQ(out[0], 0u);
  EXPECT_EQ(out[1], std::bit_cast<uint32_t>(-0.0f));
}

TEST(Memory, AtomicsAddAcrossBlocks) {
  for (const Schedule schedule : kSchedules) {
    Device device({.schedule = schedule, .resident_blocks = 4});
    Buffer<uint32_t> out(device, 2);
    out[0] = out[1] = 0;
    const Report report =
        device.launch<Kernel<64, Words, sum_atomically>>({10}, 0, {out.data(), nullptr, 0});
    EXPECT_TRUE(report.clean()) << report.text();
    EXPECT_EQ(std::bit_cast<float>(out[0]), 640.0f);
    EXPECT_EQ(static_cast<int32_t>(out[1]), -1280);
  }
}

// --- arithmetic ----------------------------------------------------------------------------------

void ex2_of_input(const Words& p, SharedAddress) {
  const auto x = std::bit_cast<float>(ld_global(p.in));
  st_global(p.out + lane_idx(), std::bit_cast<uint32_t>(ex2_approx(x)));
}
float ex2(float x) {
  OneBlock<32, ex2_of_input> run({std::bit_cast<uint32_t>(x)});
  EXPECT_EQ(run.report.total.ex2, 32u);
  return std::bit_cast<float>(run.out[0]);
}
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(Arithmetic, Ex2) {
  for (int i = -126; i <= 127; ++i) EXPECT_EQ(ex2(static_cast<float>(i)), std::ldexp(1.0f, i));
  EXPECT_EQ(ex2(-kInfinity), 0.0f);
  EXPECT_EQ(ex2(-127.0f), 0.0f);  // subnormal results are flushed
  EXPECT_EQ(ex2(kInfinity), kInfinity);
  EXPECT_EQ(ex2(128.0f), kInfinity);
  EXPECT_TRUE(std::isnan(ex2(kNan)));
  EXPECT_NEAR(ex2(0.5f), 1.41421356f, 1e-7f);
}
TEST(Arithmetic, Lg2AndRcpFlushSubnormals) {
  EXPECT_EQ(lg2_approx(8.0f), 3.0f);
  EXPECT_EQ(lg2_approx(0.0f), -kInfinity);
  EXPECT_EQ(lg2_approx(1e-40f), -kInfinity);
  EXPECT_TRUE(std::isnan(lg2_approx(-1.0f)));
  EXPECT_EQ(rcp_approx(4.0f), 0.25f);
  EXPECT_EQ(rcp_approx(-0.0f), -kInfinity);
  EXPECT_EQ(rcp_approx(1e-40f), kInfinity);
  EXPECT_EQ(rcp_approx(0x1p127f), 0.0f);
  EXPECT_EQ(rcp_approx(kInfinity), 0.0f);
}
TEST(Arithmetic, Maxima) {
  EXPECT_EQ(max_f32(kNan, 1.0f), 1.0f);
  EXPECT_EQ(max_f32(-2.0f, 1.0f), 1.0f);
  EXPECT_TRUE(std::isnan(max_nan_f32(kNan, 1.0f)));
  EXPECT_TRUE(std::isnan(max_nan_f32(1.0f, kNan)));
  EXPECT_EQ(max_nan_f32(-kInfinity, -3.0f), -3.0f);
}
TEST(Arithmetic, FmaRoundsOnce) {
  const float x = 1.0f + 0x1p-23f;
  EXPECT_EQ(fma_rn(x, x, -1.0f), 0x1p-22f + 0x1p-46f);
  EXPECT_EQ(add_rn(mul_rn(x, x), -1.0f), 0x1p-22f);
  EXPECT_EQ(div_rn(1.0f, 3.0f), 1.0f / 3.0f);
}
TEST(Arithmetic, PairsOfBFloat16RoundToNearestEven) {
  std::mt19937 random(1);
  for (int i = 0; i < 100000; ++i) {
    const auto x = std::bit_cast<float>(static_cast<uint32_t>(random()));
    if (std::isnan(x)) continue;
    const uint32_t pair = cvt_rn_x2<BFloat16>(x, 1.0f);
    EXPECT_EQ(pair, 0x3F800000u | double_to_bfloat16(static_cast<double>(x)));
    EXPECT_EQ(cvt_f32<BFloat16>(pair, 0), bfloat16_to_float(static_cast<uint16_t>(pair)));
  }
  EXPECT_EQ(cvt_rn_x2<BFloat16>(kNan, kNan), 0x7FFF7FFFu);
}
TEST(Arithmetic, PairsOfFloat16RoundToNearestEven) {
  std::mt19937 random(2);
  for (int i = 0; i < 100000; ++i) {
    const float x = std::ldexp(static_cast<float>(random() % 100000), -static_cast<int>(i % 40));
    const uint32_t pair = cvt_rn_x2<Float16>(0.5f, x);
    EXPECT_EQ(pair, 0x3800u | uint32_t{double_to_float16(static_cast<double>(x))} << 16);
  }
  EXPECT_EQ(cvt_rn_x2<Float16>(kNan, 70000.0f), 0x7C007FFFu);
  for (uint32_t bits = 0; bits < 0x7C00; ++bits) {
    EXPECT_EQ(from_f32<Float16>(to_f32(Float16{static_cast<uint16_t>(bits)})).bits, bits);
  }
}
TEST(Arithmetic, Tf32RoundsTiesAway) {
  EXPECT_EQ(cvt_tf32(1.0f), std::bit_cast<uint32_t>(1.0f));
  EXPECT_EQ(cvt_tf32(1.0f + 0x1p-11f), std::bit_cast<uint32_t>(1.0f + 0x1p-10f));
  EXPECT_EQ(cvt_tf32(-1.0f - 0x1p-11f), std::bit_cast<uint32_t>(-1.0f - 0x1p-10f));
  EXPECT_EQ(cvt_tf32(1.0f + 0x1p-12f), std::bit_cast<uint32_t>(1.0f));
  EXPECT_EQ(cvt_tf32(kInfinity), std::bit_cast<uint32_t>(kInfinity));
}

}  // namespace
}  // namespace attentile::cuda::test

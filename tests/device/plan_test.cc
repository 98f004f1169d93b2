// SPDX-License-Identifier: Apache-2.0
// Plans of a million random problems: each is refused with a sentence, or every launch is one that
// a GPU can start.
#include "cuda/plan.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>

#include "cuda/backend.h"
#include "cuda/kernel_facts.h"

namespace attentile::cuda::test {
namespace {

constexpr DeviceLimits kA100 = {.num_sms = 108, .shared_bytes_per_block = 163 * 1024};
constexpr DeviceLimits kH200 = {.num_sms = 132, .shared_bytes_per_block = 227 * 1024};
constexpr DeviceLimits kSmall = {.num_sms = 16, .shared_bytes_per_block = 99 * 1024};

using Random = std::mt19937_64;

int64_t up_to(Random& random, int64_t most) {
  return static_cast<int64_t>(random() % static_cast<uint64_t>(most + 1));
}
// Small as often as huge.
int64_t size_up_to(Random& random, int bits) {
  return up_to(random, (int64_t{1} << up_to(random, bits)) + 1);
}
bool coin(Random& random) {
  return (random() & 1) != 0;
}

Array4 array_of(Random& random, DType dtype) {
  Array4 array = {.dtype = dtype, .present = true};
  if (coin(random)) array.data = reinterpret_cast<char*>(16 * (1 + random() % 1000));
  for (int64_t& stride : array.stride) stride = size_up_to(random, 30) - 1;
  array.stride[3] = coin(random) ? 1 : array.stride[3];
  return array;
}

// Sizes within what validation lets through, features at random.
Problem random_problem(Random& random) {
  static const int32_t index = 0;
  Problem p;
  p.device = Device::kCuda;
  p.algorithm = Algorithm::kFlash2;
  p.backward = up_to(random, 3) == 0;
  p.atomic_dq = coin(random);
  p.dtype = coin(random) ? DType::kFloat16 : coin(random) ? DType::kBFloat16 : DType::kFloat32;
  p.batch = size_up_to(random, 31);
  p.num_heads_kv = size_up_to(random, 8);
  p.group_size = p.num_heads_kv > 0 ? 1 + up_to(random, 15) : 0;
  p.num_heads_q = p.num_heads_kv * p.group_size;
  p.head_dim = 1 + up_to(random, 255);
  p.head_dim_v = coin(random) ? p.head_dim : 1 + up_to(random, 255);
  p.max_seqlen_q = size_up_to(random, 32);
  p.max_seqlen_k = size_up_to(random, 32);
  p.total_q = p.max_seqlen_q;
  p.total_k = p.max_seqlen_k;
  p.batch_k = p.batch;
  p.varlen = coin(random);
  p.q = array_of(random, p.dtype);
  p.k = array_of(random, p.dtype);
  p.v = array_of(random, p.dtype);
  p.out = array_of(random, p.dtype);
  if (p.backward || coin(random)) p.lse = array_of(random, DType::kFloat32);
  if (p.backward) {
    for (Array4* array : {&p.dout, &p.dq, &p.dk, &p.dv}) *array = array_of(random, p.dtype);
  }
  if (up_to(random, 3) == 0) p.bias = array_of(random, DType::kFloat32);
  if (p.backward && p.bias.present) {
    p.dbias = array_of(random, DType::kFloat32);
    for (int64_t& size : p.dbias_shape) size = 1;
  }
  if (up_to(random, 3) == 0) p.mask = array_of(random, DType::kUInt8);
  if (up_to(random, 3) == 0) p.sink = array_of(random, DType::kFloat32);
  if (p.backward && p.sink.present && coin(random)) {
    p.dsink = array_of(random, DType::kFloat32);
  }
  if (up_to(random, 3) == 0) p.alibi_slopes = array_of(random, DType::kFloat32);
  if (coin(random)) p.window_right = 0;
  if (p.varlen) p.cu_seqlens_q = {&index, 1};
  if (coin(random)) p.seqused_k = {&index, 1};
  if (!p.backward && up_to(random, 3) == 0) {
    p.page_size = 1 + size_up_to(random, 10);
    p.block_table = &index;
  }
  p.dropout = make_dropout(coin(random) ? 0.0 : 0.1, 1, 2);
  if (p.dropout.enabled && !p.backward) p.keep = array_of(random, DType::kUInt8);
  p.softcap = coin(random) ? 0.0 : 30.0;
  p.softmax_scale = 0.125;
  return p;
}

TEST(DevicePlan, MillionRandomProblemsStartOrAreRefused) {
  Random random(5);
  int64_t planned = 0;
  int64_t refused = 0;
  for (int n = 0; n < 1'000'000; ++n) {
    const Problem problem = random_problem(random);
    const DeviceLimits& limits = n % 3 == 0 ? kA100 : n % 3 == 1 ? kH200 : kSmall;
    const Status status = check_problem(problem, limits);
    if (!status.ok()) {
      ASSERT_EQ(status.code(), StatusCode::kUnsupported);
      ASSERT_NE(status.message().find(": "), std::string::npos) << status.message();
      ++refused;
      continue;
    }
    ++planned;
    const Result<DevicePlan> plan = make_plan(problem, limits);
    ASSERT_TRUE(plan.ok());
    ASSERT_GE(plan->workspace_bytes, 0);
    int64_t tiles = 0;
    for (const LaunchPlan& launch : plan->launches) {
      ASSERT_GE(launch.blocks, 1);
      ASSERT_LE(launch.blocks, (int64_t{1} << 31) - 1);
      ASSERT_LE(launch.threads, 1024);
      ASSERT_EQ(launch.threads % 32, 0);
      ASSERT_LE(launch.shared_bytes, limits.shared_bytes_per_block);
      ASSERT_GE(launch.blocks_per_sm(limits), 1);
      if (launch.tile_m > 0) tiles = std::max(tiles, launch.blocks);
    }
    const bool rows = problem.batch > 0 && problem.num_heads_q > 0 && problem.max_seqlen_q > 0;
    if (!problem.backward) ASSERT_EQ(tiles > 0, rows);
  }
  EXPECT_GT(planned, 200'000);
  EXPECT_GT(refused, 100'000);
}

TEST(DevicePlan, LaunchLimits) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 1;
  EXPECT_TRUE(check_launch(1, 32, 0, kA100).ok());
  EXPECT_TRUE(check_launch(kMost, 1024, 163 * 1024, kA100).ok());
  EXPECT_EQ(check_launch(kMost + 1, 128, 0, kA100).message(),
            "q, k: the call takes 2147483648 blocks, but a launch has 1 to 2^31 - 1");
  EXPECT_FALSE(check_launch(0, 128, 0, kA100).ok());
  EXPECT_FALSE(check_launch(1, 1056, 0, kA100).ok());
  EXPECT_FALSE(check_launch(1, 128, 163 * 1024 + 1, kA100).ok());
  EXPECT_TRUE(check_launch(1, 128, 163 * 1024 + 1, kH200).ok());
}

TEST(DevicePlan, SaysWhyDqIsOrdered) {
  Problem p;
  p.algorithm = Algorithm::kFlash2;
  p.backward = p.atomic_dq = true;
  p.head_dim = p.head_dim_v = 64;
  p.batch = p.num_heads_q = p.num_heads_kv = p.group_size = 1;
  p.max_seqlen_q = p.max_seqlen_k = 100;
  const auto last_note = [&] {
    const Result<Plan> plan = plan_call(p, kA100);
    return plan.ok() ? plan->notes.back() : plan.status().message();
  };
  p.dtype = DType::kFloat32;
  EXPECT_EQ(last_note(), "atomic_dq: not used: q is float32");
  p.dtype = DType::kFloat16;
  EXPECT_EQ(last_note().find("DqRounding<Float16>: "), 0u) << last_note();
  p.sink = p.dsink = {.dtype = DType::kFloat32, .present = true};
  EXPECT_EQ(last_note(), "atomic_dq: not used: dsink or dbias sums over keys");
}

// Rows are counted in 32 bits: of tiles that heads of a group share, and of packed tensors.
TEST(DevicePlan, RefusesRowsBeyondThirtyOneBits) {
  static const int32_t index = 0;
  Problem p;
  p.device = Device::kCuda;
  p.algorithm = Algorithm::kFlash2;
  p.dtype = DType::kBFloat16;
  p.batch = p.num_heads_kv = p.head_dim = p.head_dim_v = 1;
  p.num_heads_q = p.group_size = int64_t{1} << 28;
  p.max_seqlen_q = p.total_q = 16;
  p.max_seqlen_k = p.total_k = 16;
  EXPECT_EQ(check_problem(p, kH200).message(),
            "q: 16 queries and 268435456 heads a group, together beyond 2^31 - 1024");
  p.num_heads_q = p.group_size = 1;
  EXPECT_TRUE(check_problem(p, kH200).ok());
  p.total_q = (int64_t{1} << 31) - 500;
  EXPECT_TRUE(check_problem(p, kH200).ok());
  p.varlen = true;
  p.cu_seqlens_q = {&index, 1};
  EXPECT_EQ(check_problem(p, kH200).message(),
            "q, k: more packed rows than 2^31 - 1024, what the CUDA kernels take");
}

TEST(DevicePlan, BlocksPerSm) {
  const LaunchPlan launch = {.kernel = "a", .threads = 128, .shared_bytes = 33040};
  EXPECT_EQ(launch.blocks_per_sm(kA100), 4);  // 164 KiB by 33,040 + 1,024 bytes
  EXPECT_EQ(launch.blocks_per_sm(kH200), 6);
  const LaunchPlan many = {.kernel = "b", .threads = 1024, .shared_bytes = 0};
  EXPECT_EQ(many.blocks_per_sm(kA100), 2);
}

// Kernel -> its launch, of whatever plans may launch.
const std::map<std::string, LaunchPlan>& all_launches() {
  static const auto launches = [] {
    Random random(6);
    std::map<std::string, LaunchPlan> found;
    for (int n = 0; n < 20'000; ++n) {
      const Problem problem = random_problem(random);
      for (const DeviceLimits& limits : {kH200, kSmall}) {
        const Result<DevicePlan> plan = make_plan(problem, limits);
        if (!plan.ok()) continue;
        for (const LaunchPlan& launch : plan->launches) found.emplace(launch.kernel, launch);
      }
    }
    return found;
  }();
  return launches;
}

// Of either architecture; and nothing that no plan launches.
TEST(KernelFacts, KnowsEveryKernelOfEveryPlan) {
  for (const auto& [kernel, launch] : all_launches()) {
    for (const int32_t architecture : {80, 90}) {
      const KernelFacts* facts = find_kernel_facts(kernel, architecture);
      ASSERT_NE(facts, nullptr) << kernel;
      EXPECT_GT(facts->registers, 10) << kernel;
      EXPECT_LE(facts->registers, 255) << kernel;
    }
  }
  EXPECT_EQ(all_launches().size(), 94u);
  EXPECT_EQ(find_kernel_facts("Forward<Float16, 48, true>", 80), nullptr);
}

// Products of two matrices for one tile, of float32: QueryGradients walks twice.
double products_of(const std::string& kernel) {
  if (kernel.starts_with("QueryGradients")) return 5;
  return kernel.starts_with("KeyGradients") ? 4 : 2;
}

// The machine code that is read as one tile does what the emulator counts for one: every mma and
// copy, hardly an exponential more; of float32 the products and hardly more; about as many
// wavefronts of shared memory, but for loads of which the compiler leaves parts out.
TEST(KernelFacts, MachineCodeAndEmulatorAgreeOnATile) {
  int tiles = 0;
  for (const auto& [kernel, launch] : all_launches()) {
    const TileCounts* counts = find_tile_counts(kernel);
    const bool has_loop = kernel.starts_with("Forward") || launch.tile_m * launch.tile_n > 0;
    ASSERT_EQ(counts != nullptr, has_loop) << kernel;
    if (!has_loop) continue;
    ++tiles;
    const bool is_float32 = kernel.find("<float") != std::string::npos;
    for (const int32_t architecture : {80, 90}) {
      const KernelFacts* facts = find_kernel_facts(kernel, architecture);
      ASSERT_NE(facts, nullptr) << kernel;
      const int32_t threads = launch.threads;
      EXPECT_EQ(facts->tile.mma * threads / 32, counts->mma) << kernel;
      EXPECT_EQ(facts->tile.copy * threads, counts->copies) << kernel;
      EXPECT_GE(facts->tile.exp * threads, counts->ex2) << kernel;
      // Of this one a quarter of the warps compute all scores: the figures are those of the
      // busiest.
      const int32_t uneven = kernel == "KeyGradients<float, 256>" ? 2 : 1;
      EXPECT_LE(facts->tile.exp * threads, counts->ex2 * 5 / 4 * uneven) << kernel;
      const int32_t wavefronts = counts->shared_wavefronts - counts->bank_conflicts;
      const int32_t walks = is_float32 && kernel.starts_with("Query") ? 2 : 1;
      EXPECT_LE(facts->wavefronts, wavefronts * 1.08) << kernel << " " << architecture;
      EXPECT_GE(facts->wavefronts, wavefronts - 96 * walks * threads / 32)
          << kernel << " " << architecture;
      if (!is_float32) continue;
      const size_t comma = kernel.find(", ");
      const double head_dim = std::stod(kernel.substr(comma + 2));
      const double products =
          products_of(kernel) * static_cast<double>(launch.tile_m * launch.tile_n) * head_dim;
      EXPECT_GE(facts->tile.arithmetic * threads, products) << kernel;
      EXPECT_LE(facts->tile.arithmetic * threads, products * 1.3 * (1 + uneven) / 2) << kernel;
    }
  }
  EXPECT_EQ(tiles, 82);
}

// Two products of a tile of 128 x 64 pairs at head_dim 128; of 64 x 32 pairs in float32.
TEST(KernelFacts, CountsTheProductsOfATile) {
  const KernelFacts* facts = find_kernel_facts("Forward<BFloat16, 128, false>", 80);
  ASSERT_NE(facts, nullptr);
  EXPECT_EQ(facts->tile.mma * 4, 2 * 128 * 64 * 128 / 2048);
  const TileCycles cycles = tile_cycles(*facts, *find_tile_counts(facts->kernel), 128, 2);
  EXPECT_EQ(cycles.tensor, 2.0 * 128 * 64 * 128 / 1024);
  EXPECT_EQ(cycles.exp, 128 * 64 / 16.0);

  const KernelFacts* single = find_kernel_facts("Forward<float, 128, true, true>", 90);
  ASSERT_NE(single, nullptr);
  EXPECT_GE(single->tile.arithmetic * 128, 2 * 64 * 32 * 128);
  const TileCycles alone = tile_cycles(*single, *find_tile_counts(single->kernel), 128, 3);
  EXPECT_EQ(alone.tensor, 0);
  EXPECT_GE(alone.arithmetic, 2.0 * 64 * 32 * 128 / 128);
}

// Two warps on an SM leave half of it without work.
TEST(KernelFacts, FewWarpsUseFewQuarters) {
  const KernelFacts* facts = find_kernel_facts("Forward<float, 256, true, true>", 80);
  ASSERT_NE(facts, nullptr);
  const TileCounts& counts = *find_tile_counts(facts->kernel);
  const TileCycles one = tile_cycles(*facts, counts, 64, 1);
  const TileCycles two = tile_cycles(*facts, counts, 64, 2);
  EXPECT_EQ(one.issue, 2 * two.issue);
  EXPECT_EQ(one.arithmetic, 2 * two.arithmetic);
  EXPECT_EQ(one.shared, two.shared);
}

TEST(KernelFacts, RegistersLimitBlocks) {
  EXPECT_EQ(blocks_by_registers(255, 128), 2);
  EXPECT_EQ(blocks_by_registers(128, 128), 4);
  EXPECT_EQ(blocks_by_registers(32, 1024), 2);
}

}  // namespace
}  // namespace attentile::cuda::test

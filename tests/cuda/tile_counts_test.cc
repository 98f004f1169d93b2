// SPDX-License-Identifier: Apache-2.0
// What one full tile of every kernel costs, as the emulator counts it: what a launch with one more
// tile counts more. src/cuda/tile_counts.inc says the same; tools/cuda_facts.py writes it from what
// is printed here.
#include <cstdio>
#include <optional>

#include "conformance/call.h"
#include "conformance/call_testing.h"
#include "cuda/backward_entry.h"
#include "cuda/backward_kernels.h"
#include "cuda/emulator_entry.h"
#include "cuda/forward_kernels.h"
#include "cuda/kernel_facts.h"
#include "cuda/kernel_name.h"
#include "cuda/support.h"

namespace attentile::cuda::test {
namespace {

using conformance::Case;
using emulator::Counters;

// Without masks, options or anything that grows the maximum of a row.
Case plain_case(DType dtype, int64_t head_dim) {
  Case c = conformance::base_case(dtype);
  c.batch = c.num_heads_q = c.num_heads_kv = 1;
  c.head_dim = c.head_dim_v = head_dim;
  c.softmax_scale = 1e-6;
  return c;
}

Report run_passes(const Case& c, bool atomic_dq, const ChangeParams& change) {
  const conformance::Values values = make_values(c);
  conformance::PlacedCall call(c, values, empty_results(c, values), c.seed,
                               conformance::Placement::kContiguous);
  AttentionOptions options = options_of(c);
  options.atomic_dq = atomic_dq;
  const Options device = {.workspace_offset = 0};  // as cudaMalloc gives it
  Report report;
  Status status = emulate_forward(call.inputs(), call.outputs(), options, device, &report, change);
  EXPECT_TRUE(status.ok()) << status.message();
  if (!status.ok()) return {};
  if (!c.backward) return report;
  call.freeze_outputs();
  status =
      emulate_backward({call.inputs(), call.outputs(), call.gradients()}, options, device, &report);
  EXPECT_TRUE(status.ok()) << status.message();
  return status.ok() ? report : Report();
}

// Which dimension has one tile more, and what the kernel is reached by.
enum class Grows { kQueries, kKeys, kHeads };
struct Way {
  Grows grows = Grows::kKeys;
  int64_t tiles = 3;  // before it grows: all stages of copies are filled
  bool atomic_dq = false;
  ChangeParams change = {};
};

// Nothing where a launch was not clean.
template <class Kernel>
std::optional<TileCounts> count_tile(Case c, const Way& way) {
  const auto counted = [&](int64_t tiles) {
    c.seqlen_q = Kernel::kTileM * (way.grows == Grows::kQueries ? tiles : 1);
    c.seqlen_k = Kernel::kTileN * (way.grows == Grows::kKeys ? tiles : 1);
    c.num_heads_q = way.grows == Grows::kHeads ? tiles : 1;
    const Report report = run_passes(c, way.atomic_dq, way.change);
    const auto found = report.kernels.find(kernel_name<Kernel>());
    EXPECT_NE(found, report.kernels.end()) << kernel_name<Kernel>();
    return found == report.kernels.end() ? Counters() : found->second;
  };
  const Counters fewer = counted(way.tiles);
  const Counters more = counted(way.tiles + 1);
  if (fewer.shared_wavefronts == 0 || more.shared_wavefronts == 0) return std::nullopt;
  const auto difference = [&](uint64_t Counters::* member) {
    return static_cast<int32_t>(more.*member - fewer.*member);
  };
  return TileCounts{.kernel = {},
                    .mma = difference(&Counters::mma),
                    .ex2 = difference(&Counters::ex2),
                    .copies = difference(&Counters::copies),
                    .shared_wavefronts = difference(&Counters::shared_wavefronts),
                    .bank_conflicts = difference(&Counters::bank_conflicts),
                    .read_bytes = difference(&Counters::global_read_bytes),
                    .read_sectors = difference(&Counters::global_read_sectors),
                    .written_bytes = difference(&Counters::global_written_bytes),
                    .written_sectors = difference(&Counters::global_written_sectors)};
}

// Warps that compute scores.
template <class Kernel>
constexpr int pair_warps() {
  if constexpr (requires { Kernel::kPairWarps; }) return Kernel::kPairWarps;
  return Kernel::kThreads / kWarpSize;
}

template <class Kernel>
void expect_counts_of_table(const Case& c, const Way& way) {
  const std::string name = kernel_name<Kernel>();
  const std::optional<TileCounts> found = count_tile<Kernel>(c, way);
  ASSERT_TRUE(found) << name;
  TileCounts counts = *found;
  std::printf("tile {\"kernel\": \"%s\", \"threads\": %d, \"pair_warps\": %d, ", name.c_str(),
              Kernel::kThreads, pair_warps<Kernel>());
  std::printf("\"tile_m\": %d, \"tile_n\": %d, ", Kernel::kTileM, Kernel::kTileN);
  std::printf("\"counts\": [%d, %d, %d, %d, %d, %d, %d, %d, %d]}\n", counts.mma, counts.ex2,
              counts.copies, counts.shared_wavefronts, counts.bank_conflicts, counts.read_bytes,
              counts.read_sectors, counts.written_bytes, counts.written_sectors);
  const TileCounts* told = find_tile_counts(name);
  ASSERT_NE(told, nullptr) << name << ": run tools/cuda_facts.py";
  counts.kernel = told->kernel;
  EXPECT_EQ(counts, *told) << name << ": run tools/cuda_facts.py";
}

template <class Kernel>
void expect_counts_of_forward(DType dtype, bool packed_rows, bool options) {
  Case c = plain_case(dtype, Kernel::kHeadDim);
  c.backward = false;
  const auto choose = [=](ForwardParams& params) {
    packed_rows ? packed(params) : one_head(params);
    params.score.has_terms = options;  // there may be some, but there are none
  };
  expect_counts_of_table<Kernel>(c, {.change = choose});
}

template <class T, int kHeadDim>
void expect_counts_of_backward(DType dtype) {
  Case c = plain_case(dtype, kHeadDim);
  c.backward = true;
  // Of fewer keys it walks over them once more.
  using Queries = QueryGradients<T, kHeadDim>;
  constexpr int64_t kTiles = kIsFloat32<T> ? 3 : Queries::kNarrow / Queries::kTileN + 1;
  expect_counts_of_table<Queries>(c, {.tiles = kTiles});
  expect_counts_of_table<KeyGradients<T, kHeadDim>>(c, {.grows = Grows::kQueries});
  if constexpr (!kIsFloat32<T>) {
    expect_counts_of_table<AtomicGradients<T, kHeadDim>>(
        c, {.grows = Grows::kQueries, .atomic_dq = true});
  }
  using Bias = BiasGradient<T, kHeadDim>;
  c.bias = {true, DType::kFloat32, {Bias::kTileM, Bias::kTileN}};
  c.dbias = true;
  expect_counts_of_table<Bias>(c, {.grows = Grows::kHeads});
}

template <class T>
void expect_counts_of_halves(DType dtype) {
  expect_counts_of_forward<Forward<T, 32, true>>(dtype, false, false);
  expect_counts_of_forward<Forward<T, 64, true>>(dtype, false, false);
  expect_counts_of_forward<Forward<T, 96, false>>(dtype, false, false);
  expect_counts_of_forward<Forward<T, 96, true>>(dtype, false, true);
  expect_counts_of_forward<Forward<T, 128, false>>(dtype, false, false);
  expect_counts_of_forward<Forward<T, 128, true>>(dtype, false, true);
  expect_counts_of_forward<Forward<T, 192, true>>(dtype, false, false);
  expect_counts_of_forward<Forward<T, 256, true>>(dtype, false, false);
  expect_counts_of_backward<T, 32>(dtype);
  expect_counts_of_backward<T, 96>(dtype);
  expect_counts_of_backward<T, 192>(dtype);
}

template <class T>
void expect_counts_of_all(DType dtype) {
  expect_counts_of_forward<Forward<T, 64, true, true>>(dtype, true, false);
  expect_counts_of_forward<Forward<T, 128, true, true>>(dtype, true, false);
  expect_counts_of_forward<Forward<T, 256, true, true>>(dtype, true, false);
  expect_counts_of_backward<T, 64>(dtype);
  expect_counts_of_backward<T, 128>(dtype);
  expect_counts_of_backward<T, 256>(dtype);
}

TEST(TileCounts, OfFloat16AreThoseOfTheTable) {
  expect_counts_of_halves<Float16>(DType::kFloat16);
  expect_counts_of_all<Float16>(DType::kFloat16);
}
TEST(TileCounts, OfBFloat16AreThoseOfTheTable) {
  expect_counts_of_halves<BFloat16>(DType::kBFloat16);
  expect_counts_of_all<BFloat16>(DType::kBFloat16);
}
TEST(TileCounts, OfFloat32AreThoseOfTheTable) {
  expect_counts_of_all<float>(DType::kFloat32);
}

}  // namespace
}  // namespace attentile::cuda::test

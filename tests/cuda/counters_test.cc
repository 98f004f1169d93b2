// SPDX-License-Identifier: Apache-2.0
// Bank conflicts and sectors, as counted per instruction of a warp.
#include "cuda/support.h"

namespace attentile::cuda::test {
namespace {

template <uint32_t kStride>
void strided_reads(const Words&, SharedAddress arena) {
  st_shared(arena + kStride * lane_idx(), 0u);
}
template <uint32_t kStride>
uint64_t conflicts() {
  const OneBlock<32, strided_reads<kStride>> run;
  clean(run);
  return run.report.total.bank_conflicts;
}
TEST(Counters, BankConflictsOfStrides) {
  EXPECT_EQ(conflicts<4>(), 0u);
  EXPECT_EQ(conflicts<8>(), 1u);
  EXPECT_EQ(conflicts<12>(), 0u);
  EXPECT_EQ(conflicts<64>(), 15u);
  EXPECT_EQ(conflicts<128>(), 31u);
}

template <Swizzle kSwizzle>
void tile_reads(const Words&, SharedAddress arena) {
  const SharedTile<BFloat16, 32, 64, kSwizzle> tile{arena};
  struct alignas(16) Row {
    uint32_t word[4];
  };
  for (uint32_t chunk = 0; chunk < 8; ++chunk) {
    st_shared(tile.at(lane_idx(), 8 * chunk), Row{});  // 4 phases of 8 rows
  }
  bar_warp_sync();
  ldmatrix<4>(tile.at(lane_idx(), 8));
}
TEST(Counters, BankConflictsOfTiles) {
  const OneBlock<32, tile_reads<Swizzle::kNone>> plain;
  clean(plain);
  // 8 stores and one ldmatrix, 4 phases each, 8 rows in one group of banks.
  EXPECT_EQ(plain.report.total.bank_conflicts, 9u * 4 * 7);
  const OneBlock<32, tile_reads<Swizzle::k128>> swizzled;
  clean(swizzled);
  EXPECT_EQ(swizzled.report.total.bank_conflicts, 0u);
  EXPECT_EQ(swizzled.report.total.shared_wavefronts, 9u * 4);
  uint64_t by_line = 0;
  for (const auto& [line, counters] : plain.report.lines) by_line += counters.bank_conflicts;
  EXPECT_EQ(by_line, plain.report.total.bank_conflicts);
}

template <int kStride>
void strided_loads(const Words& p, SharedAddress) {
  if (lane_idx() < 8) ld_global(p.in + kStride * lane_idx());
}
TEST(Counters, SectorsOfStrides) {
  const std::vector<uint32_t> in(512);
  EXPECT_EQ((OneBlock<32, strided_loads<1>>(in).report.total.global_read_sectors), 1u);
  EXPECT_EQ((OneBlock<32, strided_loads<2>>(in).report.total.global_read_sectors), 2u);
  EXPECT_EQ((OneBlock<32, strided_loads<64>>(in).report.total.global_read_sectors), 8u);
  EXPECT_EQ((OneBlock<32, strided_loads<64>>(in).report.total.global_read_bytes), 32u);
}

}  // namespace
}  // namespace attentile::cuda::test

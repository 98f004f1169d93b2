// SPDX-License-Identifier: Apache-2.0
// mma_check [TILES]: multiplies random tiles on the device and by models of how tensor cores add,
// and counts the elements that differ in a bit. One JSON object a line: per dtype the model that
// the emulator uses for this architecture, then every other that was tried. Exit status 1 if an
// element differs from the emulator's model.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "cuda/device/fragment.h"
#include "cuda/emulator/mma_model.h"
#include "dtype.h"
#include "gpu/mma_tiles.h"

namespace attentile::gpu {
namespace {

using cuda::Position;
using cuda::emulator::AccumulationModel;
using cuda::emulator::MmaInput;
using cuda::emulator::MmaOperands;

constexpr int64_t kTilesPerLaunch = 8192;
constexpr const char* kKindNames[] = {"float16", "bfloat16", "tf32"};
constexpr const char* kDataNames[] = {"normal", "wide", "cancelling", "any bits", "small integers"};
constexpr int kNumData = 5;

class Values {
 public:
  Values(TileKind kind, uint64_t seed) : kind_(kind), random_(seed) {}

  // An operand: 16 bits, or 32 of tf32.
  uint32_t operand(int data) {
    switch (data) {
      case 0: return bits_of(normal_(random_));
      case 1: return bits_of(std::ldexp(normal_(random_), exponent(-12, 12)));
      case 2: return bits_of(random_() % 2 == 0 ? 1.0F + fraction() : -1.0F - fraction());
      case 3: return kind_ == TileKind::kTf32 ? draw() : draw() & 0xFFFFU;
      default: return bits_of(static_cast<float>(exponent(-8, 8)));
    }
  }
  float accumulator(int data) {
    switch (data) {
      case 0: return normal_(random_);
      case 1: return std::ldexp(normal_(random_), exponent(-24, 24));
      case 2: return 16.0F * normal_(random_);
      case 3: return std::bit_cast<float>(draw());
      default: return static_cast<float>(exponent(-64, 64));
    }
  }

 private:
  uint32_t draw() { return static_cast<uint32_t>(random_()); }
  float fraction() { return static_cast<float>(draw() % 1024) / 1024.0F; }
  int exponent(int lo, int hi) { return lo + static_cast<int>(draw() % (hi - lo + 1)); }
  uint32_t bits_of(float x) const {
    if (kind_ == TileKind::kTf32) return std::bit_cast<uint32_t>(x);
    return kind_ == TileKind::kFloat16 ? double_to_float16(x) : double_to_bfloat16(x);
  }

  TileKind kind_;
  std::mt19937_64 random_;
  std::normal_distribution<float> normal_;
};

TileBatch make_batch(TileKind kind, int64_t count, uint64_t seed) {
  Values values(kind, seed);
  TileBatch batch{.kind = kind, .count = count, .a = {}, .b = {}, .acc = {}};
  for (int64_t tile = 0; tile < count; ++tile) {
    const int data = static_cast<int>(tile % kNumData);
    const auto word = [&] {
      if (kind == TileKind::kTf32) return values.operand(data);
      const uint32_t low = values.operand(data);
      return low | values.operand(data) << 16;
    };
    for (int i = 0; i < 32 * 4; ++i) batch.a.push_back(word());
    for (int i = 0; i < 32 * 2; ++i) batch.b.push_back(word());
    for (int i = 0; i < 32 * 4; ++i) batch.acc.push_back(values.accumulator(data));
  }
  return batch;
}

// What the unit reads of a register: one tf32, or its low or high half.
float value_of(TileKind kind, uint32_t word, int half) {
  if (kind == TileKind::kTf32) return std::bit_cast<float>(word & ~0x1FFFU);
  const auto bits = static_cast<uint16_t>(word >> (16 * half));
  return kind == TileKind::kFloat16 ? float16_to_float(bits) : bfloat16_to_float(bits);
}

MmaOperands operands_of(const TileBatch& batch, int64_t tile) {
  MmaOperands operands = {};
  const bool tf32 = batch.kind == TileKind::kTf32;
  operands.depth = tf32 ? 8 : 16;
  for (int lane = 0; lane < 32; ++lane) {
    const size_t at = static_cast<size_t>(tile * 32 + lane);
    for (int half = 0; half < (tf32 ? 1 : 2); ++half) {
      for (int r = 0; r < 4; ++r) {
        const Position p = tf32 ? cuda::fragment_a_tf32(lane, r) : cuda::fragment_a(lane, r, half);
        operands.a[p.row][p.column] = value_of(batch.kind, batch.a[4 * at + r], half);
      }
      for (int r = 0; r < 2; ++r) {
        const Position p = tf32 ? cuda::fragment_b_tf32(lane, r) : cuda::fragment_b(lane, r, half);
        operands.b[p.row][p.column] = value_of(batch.kind, batch.b[2 * at + r], half);
      }
    }
    for (int r = 0; r < 4; ++r) {
      const Position p = cuda::fragment_c(lane, r);
      operands.acc[p.row][p.column] = batch.acc[4 * at + r];
    }
  }
  return operands;
}

// Elements that differ from a model, by the kind of data.
struct Tally {
  AccumulationModel model;
  int64_t differ[kNumData] = {};
  std::string example;

  int64_t total() const {
    int64_t sum = 0;
    for (const int64_t n : differ) sum += n;
    return sum;
  }
};

void compare(const TileBatch& given, const TileBatch& found, Tally& tally) {
  for (int64_t tile = 0; tile < given.count; ++tile) {
    MmaOperands operands = operands_of(given, tile);
    cuda::emulator::multiply_hardware(operands, tally.model);
    for (int lane = 0; lane < 32; ++lane) {
      for (int r = 0; r < 4; ++r) {
        const Position p = cuda::fragment_c(lane, r);
        const auto want = std::bit_cast<uint32_t>(operands.acc[p.row][p.column]);
        const size_t at = static_cast<size_t>((tile * 32 + lane) * 4 + r);
        const auto got = std::bit_cast<uint32_t>(found.acc[at]);
        if (want == got) continue;
        ++tally.differ[tile % kNumData];
        if (!tally.example.empty()) continue;
        char text[96];
        std::snprintf(text, sizeof text, "tile %lld (%d, %d): 0x%08X, expected 0x%08X",
                      static_cast<long long>(tile), p.row, p.column, got, want);
        tally.example = text;
      }
    }
  }
}

std::vector<Tally> models_of(int architecture, TileKind kind) {
  const MmaInput inputs[] = {MmaInput::kFloat16, MmaInput::kBFloat16, MmaInput::kTf32};
  const AccumulationModel expected =
      cuda::emulator::accumulation_model(architecture, inputs[static_cast<int>(kind)]);
  std::vector<Tally> tallies = {{.model = expected, .example = {}}};
  const int depth = kind == TileKind::kTf32 ? 8 : 16;
  for (int group = 4; group <= depth; group *= 2) {
    for (int bits = 23; bits <= 27; ++bits) {
      if (bits == expected.fraction_bits && group == expected.group) continue;
      tallies.push_back({.model = {bits, group}, .example = {}});
    }
  }
  return tallies;
}

void print(TileKind kind, int64_t tiles, const Tally& tally, bool is_emulators) {
  std::printf("{\"dtype\": \"%s\", \"tiles\": %lld, \"fraction_bits\": %d, \"group\": %d, ",
              kKindNames[static_cast<int>(kind)], static_cast<long long>(tiles),
              tally.model.fraction_bits, tally.model.group);
  std::printf("\"emulator\": %s, \"elements\": %lld, \"differ\": %lld, \"by_data\": {",
              is_emulators ? "true" : "false", static_cast<long long>(tiles * 128),
              static_cast<long long>(tally.total()));
  for (int data = 0; data < kNumData; ++data) {
    std::printf("%s\"%s\": %lld", data == 0 ? "" : ", ", kDataNames[data],
                static_cast<long long>(tally.differ[data]));
  }
  std::printf("}, \"example\": \"%s\"}\n", tally.example.c_str());
  std::fflush(stdout);
}

// Elements that differ from the emulator's model; -1: nothing ran. The other models see one launch.
int64_t check(int architecture, TileKind kind, int64_t tiles) {
  std::vector<Tally> tallies = models_of(architecture, kind);
  int64_t compared = 0;
  for (int64_t first = 0; first < tiles; first += kTilesPerLaunch) {
    const int64_t count = std::min(kTilesPerLaunch, tiles - first);
    const TileBatch given = make_batch(kind, count, 1000 + static_cast<uint64_t>(first));
    TileBatch found = given;
    const std::string error = multiply_on_device(found);
    if (!error.empty()) {
      std::fprintf(stderr, "mma_check: %s\n", error.c_str());
      return -1;
    }
    for (size_t m = 0; m < (first == 0 ? tallies.size() : 1); ++m) {
      compare(given, found, tallies[m]);
    }
    if (first == 0) compared = count;
  }
  print(kind, tiles, tallies[0], true);
  for (size_t m = 1; m < tallies.size(); ++m) print(kind, compared, tallies[m], false);
  return tallies[0].total();
}

int run(int argc, char** argv) {
  const int64_t tiles = argc > 1 ? std::atoll(argv[1]) : 100000;
  const int architecture = device_architecture();
  if (tiles < 1 || architecture == 0) {
    std::fprintf(stderr, "mma_check: %s\n", tiles < 1 ? "TILES: expected at least 1" : "no GPU");
    return tiles < 1 ? 2 : 3;
  }
  int status = 0;
  for (const TileKind kind : {TileKind::kFloat16, TileKind::kBFloat16, TileKind::kTf32}) {
    const int64_t differ = check(architecture, kind, tiles);
    if (differ < 0) return 3;
    if (differ > 0) status = 1;
  }
  return status;
}

}  // namespace
}  // namespace attentile::gpu

int main(int argc, char** argv) {
  return attentile::gpu::run(argc, argv);
}

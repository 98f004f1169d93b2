// SPDX-License-Identifier: Apache-2.0
// What the machine is said to be must be consistent, and the choice of an instruction set must
// follow request, override and machine in that order.
#include "cpu/cpu_info.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

namespace attentile::cpu {
namespace {

IsaList list(const std::vector<Isa>& isas) {
  return {isas.data(), static_cast<int>(isas.size())};
}

TEST(CpuInfo, IsPlausibleAndStable) {
  const CpuInfo info = cpu_info();
  EXPECT_GE(info.cores, 1);
  EXPECT_GE(info.l1d_bytes, 4 << 10);
  EXPECT_GE(info.l2_bytes, 64 << 10);
  EXPECT_GE(info.l3_bytes, 0);
  EXPECT_GT(std::strlen(info.model), 0u);
  EXPECT_LT(std::strlen(info.model), sizeof info.model);
  std::vector<std::thread> threads;
  for (int i = 0; i < 16; ++i) {
    threads.emplace_back([&info] {
      const CpuInfo again = cpu_info();
      EXPECT_EQ(again.l2_bytes, info.l2_bytes);
      EXPECT_EQ(again.isa_bits, info.isa_bits);
      EXPECT_STREQ(again.model, info.model);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// Bytes of the data or unified cache of a level as the kernel tells them; 0 where it does not.
int64_t told_cache_bytes(int level) {
  for (int index = 0; index < 16; ++index) {
    const std::string folder =
        "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/";
    std::string type, size;
    int found = 0;
    std::ifstream(folder + "level") >> found;
    std::ifstream(folder + "type") >> type;
    std::ifstream(folder + "size") >> size;
    if (found != level || type == "Instruction" || size.empty()) continue;
    const int64_t unit = size.back() == 'K' ? 1024 : (size.back() == 'M' ? 1024 * 1024 : 1);
    return std::stoll(size) * unit;
  }
  return 0;
}

TEST(CpuInfo, CacheSizesAreThoseOfTheKernel) {
  const int64_t told[] = {told_cache_bytes(1), told_cache_bytes(2), told_cache_bytes(3)};
  if (told[0] == 0) GTEST_SKIP() << "this machine tells no cache sizes";
  const CpuInfo info = cpu_info();
  if (told[0] >= (4 << 10) && told[0] <= (1 << 20)) {
    EXPECT_EQ(info.l1d_bytes, told[0]);
  }
  if (told[1] >= (64 << 10) && told[1] <= (256 << 20)) {
    EXPECT_EQ(info.l2_bytes, told[1]);
  }
  if (told[2] > 0) {
    EXPECT_EQ(info.l3_bytes, told[2]);
  }
}

TEST(CpuInfo, InstructionSetsImplyEachOther) {
  EXPECT_TRUE(cpu_supports(Isa::kScalar));
  EXPECT_FALSE(cpu_supports(Isa::kAuto));
  EXPECT_FALSE(cpu_supports(static_cast<Isa>(31)));
  EXPECT_FALSE(cpu_supports(static_cast<Isa>(-1)));
  EXPECT_FALSE(cpu_supports(static_cast<Isa>(1000)));
  EXPECT_LE(cpu_supports(Isa::kAmx), cpu_supports(Isa::kAvx512Bf16));
  EXPECT_LE(cpu_supports(Isa::kAvx512Bf16), cpu_supports(Isa::kAvx512));
  EXPECT_LE(cpu_supports(Isa::kAvx512), cpu_supports(Isa::kAvx2));
  EXPECT_LE(cpu_supports(Isa::kNeonBf16), cpu_supports(Isa::kNeon));
  EXPECT_TRUE(cpu_supports(best_isa()));
  EXPECT_EQ(*(isa_priority().end() - 1), Isa::kScalar);
#if defined(__x86_64__)
  EXPECT_FALSE(cpu_supports(Isa::kNeon));
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
  EXPECT_EQ(cpu_supports(Isa::kAvx2), avx2);
  const bool avx512 =
      avx2 && __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
      __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("avx512dq") != 0;
  EXPECT_EQ(cpu_supports(Isa::kAvx512), avx512);
  EXPECT_EQ(cpu_supports(Isa::kAvx512Bf16), avx512 && __builtin_cpu_supports("avx512bf16") != 0);
#elif defined(__aarch64__)
  EXPECT_TRUE(cpu_supports(Isa::kNeon));
  EXPECT_FALSE(cpu_supports(Isa::kAvx2));
#endif
}

TEST(ParseIsa, KnowsEveryNameAndNoOther) {
  for (int value = 0; value <= static_cast<int>(Isa::kAmx); ++value) {
    const Isa isa = static_cast<Isa>(value);
    Isa parsed = Isa::kScalar;
    ASSERT_TRUE(parse_isa(to_string(isa), &parsed)) << to_string(isa);
    EXPECT_EQ(parsed, isa);
  }
  Isa parsed = Isa::kAvx2;
  for (const char* name : {"", "AVX2", "avx", "avx2 ", "avx512bf16", "unknown"}) {
    EXPECT_FALSE(parse_isa(name, &parsed)) << name;
  }
  EXPECT_EQ(parsed, Isa::kAvx2);
}

// The sets of this machine, best first.
std::vector<Isa> supported() {
  std::vector<Isa> isas;
  for (const Isa isa : isa_priority()) {
    if (cpu_supports(isa)) isas.push_back(isa);
  }
  return isas;
}

TEST(ResolveIsa, TakesTheBestThatIsBuiltIn) {
  std::vector<Isa> built = supported();
  std::reverse(built.begin(), built.end());  // the order does not matter
  while (!built.empty()) {
    const Result<Isa> isa = resolve_isa(Isa::kAuto, list(built), Isa::kAuto, "");
    ASSERT_TRUE(isa.ok()) << isa.status().message();
    EXPECT_EQ(*isa, built.back());
    built.pop_back();
  }
  const Result<Isa> none = resolve_isa(Isa::kAuto, {}, Isa::kAuto, "");
  EXPECT_EQ(none.status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(none.status().message(), "isa: none of this library's kernels runs on this machine");
}

TEST(ResolveIsa, RequestBeatsOverrideBeatsMachine) {
  const std::vector<Isa> built = supported();
  EXPECT_EQ(*resolve_isa(Isa::kAuto, list(built), Isa::kAuto, "scalar"), Isa::kScalar);
  EXPECT_EQ(*resolve_isa(Isa::kAuto, list(built), Isa::kAuto, "auto"), best_isa());
  EXPECT_EQ(*resolve_isa(best_isa(), list(built), Isa::kAuto, "scalar"), best_isa());
  EXPECT_EQ(*resolve_isa(Isa::kScalar, list(built), Isa::kAuto, "nonsense"), Isa::kScalar);
}

TEST(ResolveIsa, RefusesWithASentence) {
  const std::vector<Isa> scalar = {Isa::kScalar};
  const auto message = [&](Isa isa, const char* name, StatusCode code) {
    const Result<Isa> result = resolve_isa(isa, list(scalar), Isa::kAuto, name);
    EXPECT_FALSE(result.ok());
    EXPECT_EQ(result.status().code(), code);
    return result.status().message();
  };
  EXPECT_EQ(message(Isa::kAuto, "avx9", StatusCode::kInvalidArgument),
            "ATTENTILE_CPU_ISA: is \"avx9\", expected auto, scalar, avx2, avx512, avx512_bf16, "
            "amx, neon or neon_bf16");
  EXPECT_EQ(message(Isa::kAuto, "avx2", StatusCode::kUnavailable),
            "ATTENTILE_CPU_ISA: avx2 is not built into this library, which has scalar");
  EXPECT_EQ(message(Isa::kNeonBf16, "", StatusCode::kUnavailable),
            "isa: neon_bf16 is not built into this library, which has scalar");
  EXPECT_EQ(message(static_cast<Isa>(8), "", StatusCode::kInvalidArgument),
            "isa: is 8, expected 0 to 7");
  EXPECT_EQ(message(static_cast<Isa>(-1), "", StatusCode::kInvalidArgument),
            "isa: is -1, expected 0 to 7");
  const std::string long_name(1000, 'x');
  EXPECT_LT(message(Isa::kAuto, long_name.c_str(), StatusCode::kInvalidArgument).size(), 200u);

  const Isa foreign = cpu_supports(Isa::kNeon) ? Isa::kAvx2 : Isa::kNeon;
  const std::vector<Isa> both = {foreign, Isa::kScalar};
  const Result<Isa> absent = resolve_isa(foreign, list(both), Isa::kAuto, "");
  EXPECT_EQ(absent.status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(absent.status().message(), std::string("isa: ") + to_string(foreign) +
                                           " does not run on this machine, which runs scalar");
}

}  // namespace
}  // namespace attentile::cpu

// SPDX-License-Identifier: Apache-2.0
// --device: the emulated GPU through attend, verify, plan and bench, and what is said where there
// is no GPU.
#include <nlohmann/json.hpp>

#include "cli/cli_process.h"

namespace attentile::cli_test {
namespace {

using Json = nlohmann::json;

class DeviceTest : public CliTest {
 protected:
  Json json(const std::string& line) const { return Json::parse(good(line), nullptr, false); }
};

TEST_F(DeviceTest, AttendVerifiesTheEmulatedKernel) {
  const Json facts = json(
      "attend --random 2,40,70,4,2,64 --dtype bf16 --causal --device emulator --verify --json "
      "--out {dir}/out.safetensors");
  EXPECT_EQ(facts["device"], "emulator");
  EXPECT_TRUE(facts["bytes_read"].is_null());  // not counted there
  EXPECT_EQ(facts["verified"], true) << facts;
  const std::string kernel = facts["forward"]["kernel"];
  EXPECT_EQ(kernel.rfind("Forward<BFloat16, 64", 0), 0u) << kernel;
  EXPECT_EQ(load("out.safetensors").at("out").shape, (std::vector<int64_t>{2, 40, 4, 64}));
}

TEST_F(DeviceTest, AttendTakesRealDataWithoutAnOutput) {
  const std::string file = ATTENTILE_SOURCE_DIR "/data/minilm-layer2.safetensors";
  const std::string text =
      good("attend " + file + " --device emulator --causal --backward --verify --max-heads 1");
  EXPECT_NE(text.find("flash2 on emulator, KeyGradients<Float16, 32>"), std::string::npos) << text;
  for (const char* output : {"out ", "lse ", "dq ", "dk ", "dv "}) {
    EXPECT_NE(text.find(std::string("\n") + output), std::string::npos) << text;
  }
}

TEST_F(DeviceTest, AttendSaysWhatNoKernelServes) {
  const Outcome run = cli("attend --random 1,4,4,1,1,8 --dtype f64 --device emulator");
  EXPECT_EQ(run.status, 2);
  EXPECT_EQ(run.err, "q: is float64, but the CUDA kernels take float16, bfloat16 and float32\n");
}

TEST_F(DeviceTest, VerifyRunsTheTableThere) {
  const Json facts = json("verify --device emulator --count 12 --filter dtype=f16 --json");
  EXPECT_EQ(facts["failed"], 0) << facts;
  EXPECT_EQ(facts["by_entry"]["device"], facts["cells"]);
}

TEST_F(DeviceTest, PlanNamesTheKernel) {
  const Json facts =
      json("plan --shape 2,300,500,8,2,128 --dtype f16 --causal --device emulator --json");
  EXPECT_EQ(facts["device"], "emulator");
  EXPECT_EQ(facts["forward"]["tile_m"], 128);
  EXPECT_EQ(facts["forward"]["num_tasks"], 48);
  const std::string kernel = facts["forward"]["kernel"];
  EXPECT_EQ(kernel.rfind("Forward<Float16, 128, false", 0), 0u) << kernel;
}

TEST_F(DeviceTest, PlanForAGpuNeedsNone) {
  const Json facts = json("plan --shape 1,1024,1024,16,16,64 --dtype bf16 --gpu h200 --json");
  const Json& launch = facts["gpu"]["forward"]["launches"][0];
  EXPECT_EQ(facts["gpu"]["num_sms"], 132);
  EXPECT_EQ(launch["blocks"], 128);
  EXPECT_EQ(launch["threads"], 128);
  EXPECT_EQ(launch["shared_bytes"], 33040);
  EXPECT_GT(launch["registers"], 170);  // of 65,536, for 128 threads a block: at most two blocks
  EXPECT_EQ(launch["blocks_per_sm"], 2);
  const Json here =
      json("plan --shape 1,1024,1024,16,16,128 --dtype bf16 --gpu a100 --json")["gpu"];
  const Json& first = here["forward"]["launches"][0];
  EXPECT_EQ(first["blocks_per_sm"], 2);
  EXPECT_EQ(first["tile_instructions"]["mma"], 256);
  EXPECT_EQ(first["bound"], "tensor");
  EXPECT_EQ(here["forward"]["flops"], 4.0 * 1024 * 1024 * 128 * 16);
  const std::string text = good("plan --shape 1,1024,1024,16,16,64 --dtype bf16 --gpu a100");
  EXPECT_NE(text.find("Forward<BFloat16, 64, true"), std::string::npos) << text;
}

// What bounds a call is judged by the peak of its dtype and by all bytes it needs.
TEST_F(DeviceTest, PlanForAGpuCountsWhatTheCallNeeds) {
  const Json half = json("plan --shape 1,64,64,1,1,64 --dtype f16 --gpu a100 --json")["gpu"];
  const Json single = json("plan --shape 1,64,64,1,1,64 --gpu a100 --json")["gpu"];
  EXPECT_EQ(half["peak_flops"], 312e12);
  EXPECT_EQ(single["peak_flops"], 19.5e12);
  EXPECT_EQ(half["forward"]["bytes"], 4 * 64 * 64 * 2 + 64 * 4);
  const std::string narrow = good("plan --shape 1,64,64,1,1,64 --gpu a100");
  EXPECT_NE(narrow.find("bound by products (ridge 10)"), std::string::npos) << narrow;
}

TEST_F(DeviceTest, PlanForAGpuOfNothing) {
  for (const char* shape : {"0,64,64,1,1,64", "1,64,64,0,0,64"}) {
    const std::string text = good(std::string("plan --gpu a100 --backward --shape ") + shape);
    EXPECT_NE(text.find("forward: nothing to do"), std::string::npos) << text;
    EXPECT_EQ(text.find("nan"), std::string::npos) << text;
  }
  const std::string no_keys = good("plan --gpu h200 --dtype f16 --shape 1,64,0,1,1,64");
  EXPECT_EQ(no_keys.find("instructions of a warp"), std::string::npos) << no_keys;
}

TEST_F(DeviceTest, PlanForAGpuSaysWhatIsNotDone) {
  const std::string line = "plan --gpu a100 --shape 1,64,64,1,1,64 --backward --atomic-dq";
  EXPECT_NE(good(line).find("atomic_dq: not used: q is float32"), std::string::npos);
  EXPECT_EQ(good(line + " --dtype bf16").find("not used"), std::string::npos);
}

// Of every kernel with an inner loop: its instructions, what the emulator counts, what bounds it.
TEST_F(DeviceTest, PlanForAGpuCountsEveryTile) {
  for (const char* line :
       {"h200 --dtype bf16 --shape 1,64,64,1,1,256", "a100 --shape 1,64,64,1,1,128",
        "h200 --dtype f16 --shape 1,64,64,1,1,192 --atomic-dq"}) {
    const std::string plan = std::string("plan --backward --gpu ") + line;
    const std::string text = good(plan);
    const Json facts = json(plan + " --json");
    for (const char* pass : {"forward", "backward"}) {
      for (const Json& launch : facts["gpu"][pass]["launches"]) {
        if (launch["tile_n"] == 0) continue;
        EXPECT_GT(launch["tile_instructions"]["total"], 0) << launch;
        EXPECT_GT(launch["tile_counts"]["shared_wavefronts"], 0) << launch;
        EXPECT_GT(launch["tile_cycles"]["issue"], 0) << launch;
        const bool adds = launch["kernel"].get<std::string>().starts_with("AtomicGradients");
        ASSERT_EQ(launch["bound"].is_null(), adds) << launch;
        const double most =
            adds ? 1e9 : launch["tile_cycles"][launch["bound"].get<std::string>()].get<double>();
        for (const Json& cycles : launch["tile_cycles"]) EXPECT_LE(cycles, most) << launch;
        const std::string kernel = launch["kernel"];
        size_t rows = 0;
        for (size_t at = text.find(kernel); at != std::string::npos;
             at = text.find(kernel, at + 1)) {
          ++rows;
        }
        EXPECT_EQ(rows, 4u) << kernel << "\n" << text;
      }
    }
  }
}

TEST_F(DeviceTest, BenchTimesTheEmulator) {
  const std::string text =
      good("bench --shape 1,16,16,1,1,32 --dtype f16 --device emulator --min-time 0.001");
  EXPECT_NE(text.find("on emulator"), std::string::npos) << text;
  EXPECT_EQ(text.find('%'), std::string::npos) << text;  // of no peak
}

TEST_F(DeviceTest, CudaWithoutABackendIsStatusThree) {
  setenv("ATTENTILE_CUDA_LIBRARY", "/nowhere/libattentile_cuda.so", 1);
  const Outcome run = cli("attend --random 1,4,4,1,1,8 --dtype f16 --device cuda");
  const std::string text = good("info");
  unsetenv("ATTENTILE_CUDA_LIBRARY");
  EXPECT_EQ(run.status, 3);
  EXPECT_EQ(run.err,
            "--device: is cuda, but the CUDA backend was not found; tried "
            "/nowhere/libattentile_cuda.so; ATTENTILE_CUDA_LIBRARY can name the file\n");
  EXPECT_NE(text.find("none: device: is cuda, but the CUDA backend was not found"),
            std::string::npos)
      << text;
}

}  // namespace
}  // namespace attentile::cli_test

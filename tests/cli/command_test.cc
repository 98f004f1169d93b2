// SPDX-License-Identifier: Apache-2.0
// The commands around attend: help, info, plan, bench, compare, report, explain, verify.
#include <cmath>
#include <nlohmann/json.hpp>

#include "cli/cli_process.h"

namespace attentile::cli_test {
namespace {

using Json = nlohmann::json;

const char* const kRecordFields[] = {"name",
                                     "pass",
                                     "dtype",
                                     "batch",
                                     "seqlen_q",
                                     "seqlen_k",
                                     "head_dim",
                                     "num_heads_kv",
                                     "num_heads_q",
                                     "causal",
                                     "layout",
                                     "device",
                                     "varlen",
                                     "head_dim_v",
                                     "threads",
                                     "median_s",
                                     "fraction_of_peak",
                                     "bytes_per_s",
                                     "min_s",
                                     "runs",
                                     "gflops",
                                     "algorithm",
                                     "peak_gflops",
                                     "isa",
                                     "window_left",
                                     "window_right",
                                     "softcap",
                                     "softmax_scale",
                                     "alignment",
                                     "position_offset",
                                     "atomic_dq",
                                     "seqlens"};

class CommandTest : public CliTest {
 protected:
  Json json(const std::string& line) const {
    const std::string text = good(line);
    Json value = Json::parse(text, nullptr, false);
    EXPECT_FALSE(value.is_discarded()) << text;
    return value;
  }
  Json json_file(const std::string& name) const {
    return Json::parse(read_file(path(name)), nullptr, false);
  }
};

TEST_F(CommandTest, HelpListsEveryCommand) {
  const std::string text = good("--help");
  for (const char* name :
       {"attend", "info", "plan", "verify", "bench", "compare", "report", "explain"}) {
    EXPECT_NE(text.find(name), std::string::npos) << name;
    EXPECT_NE(good(std::string(name) + " --help").find("Options:"), std::string::npos) << name;
  }
}

TEST_F(CommandTest, VersionIsOneLine) {
  EXPECT_TRUE(good("--version").starts_with("attentile "));
}

TEST_F(CommandTest, AttendJsonHasTheFacts) {
  const Json facts = json("attend --random 2,32,48,4,2,16,24 --causal --backward --verify --json");
  EXPECT_EQ(facts["batch"], 2);
  EXPECT_EQ(facts["seqlen_q"], 32);
  EXPECT_EQ(facts["seqlen_k"], 48);
  EXPECT_EQ(facts["head_dim_v"], 24);
  EXPECT_EQ(facts["causal"], true);
  EXPECT_EQ(facts["verified"], true);
  EXPECT_EQ(facts["verify"].size(), 5u);
  EXPECT_GT(facts["bytes_read"].get<int64_t>(), 0);
  EXPECT_GT(facts["bytes_written"].get<int64_t>(), 0);
  EXPECT_GT(facts["seconds"].get<double>(), 0);
  EXPECT_EQ(facts["forward"]["algorithm"], "flash2");
  EXPECT_EQ(facts["backward"]["bytes_read"].get<int64_t>() +
                facts["forward"]["bytes_read"].get<int64_t>(),
            facts["bytes_read"].get<int64_t>());
}

TEST_F(CommandTest, InfoKnowsThisMachine) {
  const Json facts = json("info --json");
  EXPECT_GE(facts["usable_cores"].get<int>(), 1);
  EXPECT_FALSE(facts["isas"].empty());
  EXPECT_FALSE(facts["kernels"].empty());
  EXPECT_NE(good("info").find("cpu"), std::string::npos);
}

TEST_F(CommandTest, PlanNeedsNoMemory) {
  const Json plan = json("plan --shape 1,131072,131072,1,1,64 --causal --backward --json");
  EXPECT_EQ(plan["forward"]["visible_pairs"], int64_t{131072} * 131073 / 2);
  EXPECT_DOUBLE_EQ(plan["forward"]["flops"], 256.0 * 131072.0 * 131073.0 / 2);
  EXPECT_GT(plan["backward"]["workspace_bytes"].get<int64_t>(), 0);
  const Json& traffic = plan["forward"]["traffic"];
  EXPECT_GT(traffic["standard"]["bytes_read"], traffic["flash2"]["bytes_read"]);
  EXPECT_NE(good("plan --shape 1,64,64,1,1,64").find("of standard"), std::string::npos);
}

TEST_F(CommandTest, PlanAndBenchTakeAtomicDq) {
  const std::string line = "plan --shape 1,64,64,1,1,64 --backward --json";
  Json without = json(line);
  const Json with = json(line + " --atomic-dq");
  EXPECT_EQ(without["atomic_dq"], false);
  without["atomic_dq"] = true;
  EXPECT_EQ(with, without);
  good(
      "bench --shape 1,16,16,1,1,16 --pass backward --threads 1 --min-time 0 --atomic-dq --json "
      "{dir}/b.json");
  EXPECT_EQ(json_file("b.json")["records"][0]["atomic_dq"], true);
}

TEST_F(CommandTest, PlanReadsAFile) {
  const io::Tensor q = std::move(*io::make_tensor(DType::kFloat16, {2, 8, 4, 16}));
  const io::Tensor k = std::move(*io::make_tensor(DType::kFloat16, {2, 12, 2, 16}));
  save("in.safetensors",
       {{"q", *q.view()}, {"k", *k.view()}, {"v", *k.view()}, {"dout", *q.view()}});
  const Json plan = json("plan {dir}/in.safetensors --causal --backward --algorithm flash1 --json");
  const Json same =
      json("plan --shape 2,8,12,4,2,16 --dtype f16 --causal --backward --algorithm flash1 --json");
  EXPECT_EQ(plan, same);
  EXPECT_EQ(plan["dtype"], "f16");
  EXPECT_EQ(plan["seqlen_k"], 12);
  EXPECT_EQ(plan["forward"]["algorithm"], "flash1");
  EXPECT_GT(plan["backward"]["flops"].get<double>(), 0);
}

TEST_F(CommandTest, PlanNeedsTheTensorsByName) {
  good("attend --random 1,8,8,2,1,8 --out {dir}/o.safetensors");
  const Outcome outcome = cli("plan {dir}/o.safetensors");
  EXPECT_EQ(outcome.status, 2);  // it holds out, not q
  EXPECT_TRUE(outcome.err.starts_with("q: not in ")) << outcome.err;
}

TEST_F(CommandTest, BenchWritesTheRecordOfTheInterface) {
  const std::string table = good(
      "bench --shape 1,32,32,2,1,16 --shape 1,1,64,2,1,16 --pass both --dtype f32,bf16 --threads 1 "
      "--causal --min-time 0 --json {dir}/b.json");
  EXPECT_NE(table.find("ratio"), std::string::npos);
  const Json file = json_file("b.json");
  for (const char* field : {"version", "commit", "machine", "compiler", "date", "command"}) {
    EXPECT_TRUE(file.contains(field)) << field;
  }
  ASSERT_EQ(file["records"].size(), 16u);  // 2 shapes x 2 passes x 2 dtypes x 2 names
  for (const Json& record : file["records"]) {
    for (const char* field : kRecordFields) EXPECT_TRUE(record.contains(field)) << field;
    EXPECT_EQ(record.size(), std::size(kRecordFields));
    EXPECT_GT(record["peak_gflops"].get<double>(), 0);
    const bool decode = record["seqlen_q"] == 1 && record["pass"] == "forward";
    EXPECT_EQ(record["bytes_per_s"].is_number(), decode);
  }
}

TEST_F(CommandTest, BenchTakesPackedSequences) {
  good("bench --seqlens 5,0,17 --shape 9,9,9,2,1,16 --threads 1 --min-time 0 --json {dir}/b.json");
  const Json record = json_file("b.json")["records"][0];
  EXPECT_EQ(record["varlen"], true);
  EXPECT_EQ(record["batch"], 3);
  EXPECT_EQ(record["num_heads_q"], 2);
  EXPECT_EQ(record["seqlen_q"], 17);
}

TEST_F(CommandTest, CompareFailsAboveTheLimit) {
  good("bench --shape 1,16,16,1,1,16 --threads 1 --min-time 0 --json {dir}/a.json");
  good("compare {dir}/a.json {dir}/a.json");
  Json slower = json_file("a.json");
  for (Json& record : slower["records"])
    record["median_s"] = 1.2 * record["median_s"].get<double>();
  write_file(path("b.json"), slower.dump());
  const Outcome outcome = cli("compare {dir}/a.json {dir}/b.json --json {dir}/c.json");
  EXPECT_EQ(outcome.status, 1);
  EXPECT_EQ(outcome.err, "");
  EXPECT_NE(outcome.out.find("+20.0%  slower"), std::string::npos) << outcome.out;
  EXPECT_NEAR(json_file("c.json")["pairs"][0]["ratio"].get<double>(), 1.2, 1e-9);
  good("compare {dir}/a.json {dir}/b.json --fail-above 25%");
}

TEST_F(CommandTest, CompareReadsJsonLines) {
  good("bench --shape 1,16,16,1,1,16 --threads 1 --min-time 0 --json {dir}/a.json");
  Json file = json_file("a.json");
  std::string lines;
  for (const Json& record : file["records"]) lines += record.dump() + "\n";
  write_file(path("lines.json"), lines);
  EXPECT_NE(good("compare {dir}/a.json {dir}/lines.json").find("2 compared, 0 only"),
            std::string::npos);
}

TEST_F(CommandTest, ReportIsSelfContained) {
  good(
      "bench --shape 1,16,16,1,1,16 --shape 1,32,32,1,1,16 --shape 1,64,64,1,1,16 --threads 1 "
      "--min-time 0 --json {dir}/a.json");
  good("report {dir}/a.json --out {dir}/a.html");
  const std::string page = read_file(path("a.html"));
  EXPECT_NE(page.find("<svg"), std::string::npos);
  EXPECT_NE(page.find("Time against sequence length"), std::string::npos);
  EXPECT_EQ(page.find("<script src"), std::string::npos);
  EXPECT_EQ(page.find("<link"), std::string::npos);
}

TEST_F(CommandTest, ReportEscapesNames) {
  good("bench --shape 1,16,16,1,1,16 --threads 1 --min-time 0 --json {dir}/a.json");
  Json file = json_file("a.json");
  file["records"][0]["name"] = "<script>alert(1)</script>";
  write_file(path("a.json"), file.dump());
  good("report {dir}/a.json --out {dir}/a.html");
  EXPECT_EQ(read_file(path("a.html")).find("<script>"), std::string::npos);
}

TEST_F(CommandTest, ExplainShowsTheTilesOfACausalHead) {
  const std::string text = good(
      "explain --shape 1,8,8,2,1,16 --causal --tile 2,2 --head 1 --svg {dir}/a.svg --html "
      "{dir}/a.html");
  EXPECT_NE(text.find("6 full, 4 partly visible, 6 hidden"), std::string::npos) << text;
  EXPECT_NE(text.find("    0 + . . .\n    1 # + . .\n"), std::string::npos) << text;
  EXPECT_TRUE(read_file(path("a.svg")).starts_with("<svg"));
  EXPECT_NE(read_file(path("a.html")).find("row_sum"), std::string::npos);
}

// The tiles are those that were asked for, not the ones that a kernel would take.
TEST_F(CommandTest, ExplainSaysWhoseTilesItShows) {
  good("explain --shape 1,8,8,1,1,16 --causal --tile 2,2 --svg {dir}/a.svg --html {dir}/a.html");
  for (const char* name : {"a.svg", "a.html"}) {
    const std::string text = read_file(path(name));
    EXPECT_NE(text.find("Tiles of 2 x 2: 62 % hold a visible pair. Evaluated in float64, "
                        "independent of the kernels and their tiles."),
              std::string::npos)
        << name;
    EXPECT_EQ(text.find("flash2 computes"), std::string::npos);
  }
  EXPECT_NE(read_file(path("a.html")).find("independent of the kernels, which choose tiles of"),
            std::string::npos);
}

TEST_F(CommandTest, VerifyRunsATable) {
  const Json summary = json("verify --count 20 --isa scalar --json");
  EXPECT_GE(summary["cells"].get<int>(), 20);
  EXPECT_EQ(summary["failed"], 0);
}

TEST_F(CommandTest, VerifyRunsATableWithAtomicDq) {
  const Json summary = json("verify --count 20 --isa scalar --atomic-dq --json");
  EXPECT_GE(summary["cells"].get<int>(), 20);
  EXPECT_EQ(summary["failed"], 0);
}

// Every seed that --seed takes, --filter case= takes too.
TEST_F(CommandTest, VerifyRunsTheLargestSeed) {
  const std::string seed = "18446744073709551615";
  const Json table = json("verify --count 20 --isa scalar --json --seed " + seed);
  EXPECT_GT(table["generated_cells"].get<int>(), 0);
  EXPECT_EQ(table["failed"], 0);
  const Json one = json("verify --isa scalar --json --filter case=" + seed);
  EXPECT_EQ(one["cases"], 1);
  EXPECT_GT(one["passed"].get<int>(), 0);
}

}  // namespace
}  // namespace attentile::cli_test

// SPDX-License-Identifier: Apache-2.0
// compare and report on files that bench wrote, and on files that it would not write.
#include <filesystem>
#include <nlohmann/json.hpp>

#include "cli/cli_process.h"

namespace attentile::cli_test {
namespace {

using Json = nlohmann::json;

// As versions wrote it that knew no options but causal.
Json old_record() {
  return {
      {"name", "attentile"}, {"pass", "forward"},  {"dtype", "f32"},         {"batch", 1},
      {"seqlen_q", 8},       {"seqlen_k", 8},      {"num_heads_q", 1},       {"num_heads_kv", 1},
      {"head_dim", 8},       {"head_dim_v", 8},    {"causal", false},        {"layout", "bshd"},
      {"device", "cpu"},     {"varlen", false},    {"threads", 1},           {"median_s", 1.0},
      {"gflops", 1.0},       {"peak_gflops", 2.0}, {"fraction_of_peak", 0.5}};
}

class BenchFileTest : public CliTest {
 protected:
  void write_records(const std::string& name, const std::vector<Json>& records) const {
    write_file(path(name), Json{{"records", records}}.dump());
  }
  std::string report(const std::vector<Json>& records) const {
    write_records("in.json", records);
    good("report {dir}/in.json --out {dir}/out.html");
    return read_file(path("out.html"));
  }
};

TEST_F(BenchFileTest, OptionsMakeAnotherProblem) {
  const std::vector<std::string> options = {"",
                                            "--causal",
                                            "--causal --window 4,-1",
                                            "--window 4,0",
                                            "--scale 2",
                                            "--softcap 5",
                                            "--causal=top_left",
                                            "--causal --position-offset 3",
                                            "--window 4,4"};
  for (size_t i = 0; i < options.size(); ++i) {
    good("bench --shape 1,16,24,1,1,16 --threads 1 --min-time 0 --json {dir}/" + std::to_string(i) +
         " " + options[i]);
  }
  good("compare {dir}/1 {dir}/1");
  for (size_t i = 0; i < options.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      // --causal and --window L,0 are two spellings of one band.
      const bool same = i == 3 && j == 2;
      const Outcome outcome = cli("compare --fail-above 1e9% {dir}/" + std::to_string(i) +
                                  " {dir}/" + std::to_string(j));
      EXPECT_EQ(outcome.status, same ? 0 : 2) << options[i] << " and " << options[j];
    }
  }
  EXPECT_NE(read_file(path("1")).find("\"causal\": true"), std::string::npos);
  EXPECT_NE(read_file(path("2")).find("\"causal\": false"), std::string::npos);
  EXPECT_NE(good("compare {dir}/2 {dir}/2").find("d16 window 4,0, 1 thread"), std::string::npos);
}

TEST_F(BenchFileTest, LengthsOfPackedSequencesMakeAnotherProblem) {
  const std::string bench = "bench --shape 9,9,9,1,1,16 --threads 1 --min-time 0 --json {dir}/";
  good(bench + "a.json --seqlens 5,0,17");
  good(bench + "b.json --seqlens 6,0,17");
  EXPECT_EQ(cli("compare {dir}/a.json {dir}/b.json").status, 2);
  EXPECT_NE(good("compare {dir}/a.json {dir}/a.json").find("varlen of 22"), std::string::npos);
}

TEST_F(BenchFileTest, OldRecordsMeetNewOnes) {
  Json causal = old_record();
  causal["causal"] = true;
  Json renewed = causal;
  renewed["window_left"] = -1;
  renewed["window_right"] = 0;
  renewed["softcap"] = 0;
  renewed["alignment"] = "bottom_right";
  renewed["position_offset"] = nullptr;
  write_records("old.json", {old_record(), causal});
  write_records("new.json", {old_record(), renewed});
  EXPECT_NE(good("compare {dir}/old.json {dir}/new.json").find("2 compared, 0 only"),
            std::string::npos);
}

TEST_F(BenchFileTest, NamesReachTheTerminalHarmless) {
  Json record = old_record();
  record["name"] = "\x1b[31mred\nline";
  record["dtype"] = "\x1b]0;title\a";
  write_records("a.json", {record});
  const std::string table = good("compare {dir}/a.json {dir}/a.json");
  EXPECT_EQ(table.find('\x1b'), std::string::npos);
  EXPECT_EQ(std::count(table.begin(), table.end(), '\n'), 3) << table;
}

TEST_F(BenchFileTest, ReportOfExtremesIsFinite) {
  Json record = old_record();
  record["peak_gflops"] = 5e-324;
  std::vector<Json> records;
  for (const double seconds : {1e-9, 1e9, 1.0}) {
    for (const int64_t seqlen : {int64_t{0}, int64_t{1}, int64_t{1} << 40}) {
      record["seqlen_q"] = record["seqlen_k"] = seqlen;
      record["median_s"] = seconds;
      records.push_back(record);
    }
  }
  record["pass"] = "backward";
  record["seqlen_q"] = record["seqlen_k"] = 8;  // a chart of one length
  records.insert(records.end(), {record, record, record});
  const std::string page = report(records);
  EXPECT_NE(page.find("Time against sequence length"), std::string::npos);
  EXPECT_EQ(page.find("nan"), std::string::npos);
  EXPECT_EQ(page.find("inf"), std::string::npos);
  EXPECT_LT(page.size(), 64u << 10);
}

// A chart names those that it draws, not everybody in the file.
TEST_F(BenchFileTest, ReportGrowsWithTheFile) {
  std::vector<Json> records;
  for (int family = 0; family < 200; ++family) {
    Json record = old_record();
    record["name"] = "library number " + std::to_string(family);
    record["head_dim"] = record["head_dim_v"] = 1 + family;
    for (int seqlen : {8, 16, 32}) {
      record["seqlen_q"] = record["seqlen_k"] = seqlen;
      records.push_back(record);
    }
  }
  EXPECT_LT(report(records).size(), 10 * read_file(path("in.json")).size());
}

TEST_F(BenchFileTest, ReportNamesItsPageByTheEndOfTheName) {
  std::filesystem::create_directory(path("runs.json.d"));
  for (const char* name : {"runs.json.d/today", "a.json.old", "b.json", "c.json.json"}) {
    write_records(name, {old_record()});
    good(std::string("report {dir}/") + name);
  }
  for (const char* name : {"runs.json.d/today.html", "a.json.old.html", "b.html", "c.json.html"}) {
    EXPECT_TRUE(std::filesystem::exists(path(name))) << name;
  }
}

TEST_F(BenchFileTest, TooManyRecordsAreRefused) {
  std::string lines;
  for (int i = 0; i < 10'001; ++i) lines += "{\"name\": \"x\"}\n";
  write_file(path("many.json"), lines);
  const Outcome outcome = cli("report {dir}/many.json");
  EXPECT_EQ(outcome.status, 2);
  EXPECT_EQ(outcome.err, path("many.json") + ": holds 10001 records, expected at most 10000\n");
}

}  // namespace
}  // namespace attentile::cli_test

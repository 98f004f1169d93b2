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

// What ./dev bench writes: tables, features, streams, memory, and cells beside the records.
std::vector<Json> table_records() {
  std::vector<Json> records;
  const auto add = [&](const std::string& table, const std::string& name, const Json& fields) {
    Json record = old_record();
    record["layout"] = "bhsd";
    record["table"] = table;
    record["name"] = name;
    record["attempts"] = 2;
    record.update(fields);
    records.push_back(record);
  };
  for (const char* name : {"attentile", "torch"}) {
    const double seconds = std::string(name) == "torch" ? 0.003 : 0.001;
    for (const int64_t seqlen : {16, 64, 256}) {
      const Json square = {{"seqlen_q", seqlen}, {"seqlen_k", seqlen}, {"median_s", seconds}};
      add("grid", name, square);
      Json backward = square;
      backward.update({{"pass", "backward"}, {"peak_bytes", 4096 * seqlen}});
      add("lengths", name, square);
      add("lengths", name, backward);
      add("decode", name,
          {{"seqlen_q", 1},
           {"seqlen_k", seqlen},
           {"median_s", seconds},
           {"bytes_per_s", 1e11},
           {"stream_bytes_per_s", 2e11}});
    }
  }
  add("features", "attentile", {{"feature", "mask"}});
  add("features", "attentile", {{"feature", "sink"}});
  return records;
}

TEST_F(BenchFileTest, TablesAndFeaturesAreOtherCases) {
  std::vector<Json> before = table_records();
  write_records("a.json", before);
  for (Json& record : before) {
    if (record["table"] == "decode" && record["name"] == "torch") record["median_s"] = 0.006;
    if (record.value("feature", "") == "sink") record["median_s"] = 1.04;
  }
  write_records("b.json", before);
  const Outcome slower = cli("compare {dir}/a.json {dir}/b.json --fail-above 5%");
  EXPECT_EQ(slower.status, 1) << slower.err;
  EXPECT_NE(slower.out.find("26 compared, 0 only"), std::string::npos) << slower.out;
  EXPECT_NE(slower.out.find("d8 bhsd, 1 thread, decode"), std::string::npos) << slower.out;
  // Ours alone guard: one grew by 4 %.
  EXPECT_EQ(cli("compare {dir}/a.json {dir}/b.json --fail-above 5% --name attentile").status, 0);
  EXPECT_EQ(cli("compare {dir}/a.json {dir}/b.json --fail-above 3% --name attentile").status, 1);
  EXPECT_EQ(cli("compare {dir}/a.json {dir}/b.json --name nobody").status, 2);
}

TEST_F(BenchFileTest, ReportDrawsEveryTable) {
  Json file = {{"records", table_records()},
               {"cells",
                {{{"table", "peak"},
                  {"row", "forward <f32>"},
                  {"cell", "d64"},
                  {"unit", "fraction"},
                  {"measured", 0.5},
                  {"must", 0.9},
                  {"aim", nullptr},
                  {"verdict", "MISSED"}},
                 7,
                 {{"table", 3}}}},
               {"unmeasured", {{{"name", "standard"}, {"reason", "does not fit: needs 1 TiB"}}}}};
  write_file(path("in.json"), file.dump());
  std::filesystem::create_directory(path("svg"));
  good("report {dir}/in.json --out {dir}/out.html --svg-dir {dir}/svg");
  const std::string page = read_file(path("out.html"));
  for (const char* words :
       {"Roofline, f32", "Time of torch over attentile's", "Peak memory against sequence",
        "Decoding: K and V", "forward &lt;f32&gt;", "class=\"missed\"", "needs 1 TiB"}) {
    EXPECT_NE(page.find(words), std::string::npos) << words;
  }
  EXPECT_EQ(page.find("nan"), std::string::npos);
  EXPECT_EQ(page.find("http"), page.find("http://www.w3.org"));  // nothing is loaded
  for (const char* name : {"roofline-f32", "ratio-torch", "length-time", "length-memory",
                           "decode-f32-h1-1-d8-new1-b1"}) {
    const std::string svg = path("svg") + "/" + name + ".svg";
    ASSERT_TRUE(std::filesystem::exists(svg)) << name;
    EXPECT_NE(page.find(read_file(svg)), std::string::npos) << name;
  }
  EXPECT_EQ(cli("report {dir}/in.json --out {dir}/o.html --svg-dir {dir}/absent").status, 2);
  EXPECT_FALSE(std::filesystem::exists(path("o.html")));
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

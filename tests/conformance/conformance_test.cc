// SPDX-License-Identifier: Apache-2.0
// The conformance table as a test: 4,000 cells, 50,000 with ATTENTILE_FULL=1, or as many as
// ATTENTILE_CELLS says; the list of refused kinds; and that the generator covers the contract.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <set>
#include <string>

#include "conformance/case.h"
#include "conformance/crash_report.h"
#include "conformance/runner.h"

namespace attentile::conformance {
namespace {

int64_t cells_wanted() {
  if (const char* text = std::getenv("ATTENTILE_CELLS")) return std::atoll(text);
  return std::getenv("ATTENTILE_FULL") != nullptr ? 50000 : 4000;
}

std::string cli_path() {
#ifdef ATTENTILE_CLI
  return ATTENTILE_CLI;
#else
  return {};
#endif
}

std::set<std::string> refused_list() {
  std::set<std::string> lines;
  std::ifstream file(std::string(ATTENTILE_SOURCE_DIR) + "/tests/conformance/refused.txt");
  for (std::string line; std::getline(file, line);) {
    if (!line.empty() && line[0] != '#') lines.insert(line);
  }
  return lines;
}

TEST(Conformance, Table) {
  install_crash_report();
  Options options;
  options.count = cells_wanted();
  options.cli_path = cli_path();
  const Summary summary = run(options);
  ASSERT_TRUE(summary.status.ok()) << summary.status.message();
  for (const Failure& failure : summary.failures) {
    ADD_FAILURE() << failure.cell << "\n  " << failure.what << "\n  " << failure.command;
  }
  EXPECT_GE(summary.cells, options.count);
  EXPECT_EQ(summary.failed, 0);
  const std::set<std::string> expected = refused_list();
  for (const auto& [reason, count] : summary.refusals) {
    EXPECT_TRUE(expected.count(reason)) << count << " cells refused: " << reason;
  }
  // Zeros match an output whose exact value is nearly zero everywhere; that must stay rare.
  EXPECT_LT(summary.vacuous * 5, summary.cells);
  RecordProperty("cells", std::to_string(summary.cells));
  RecordProperty("cases", std::to_string(summary.cases));
  RecordProperty("refused", std::to_string(summary.refused));
}

TEST(Conformance, EveryFeatureIsGeneratedOften) {
  std::map<std::string, int> count;
  for (uint64_t seed = 1; seed <= 1000; ++seed) {
    for (const std::string& feature : features_of(make_case(seed))) ++count[feature];
  }
  for (const char* feature : {"backward",
                              "mha",
                              "gqa",
                              "mqa",
                              "head_dim_v",
                              "varlen",
                              "seqused_k",
                              "block_table",
                              "cache_batch_idx",
                              "leftpad_k",
                              "causal",
                              "top_left",
                              "position_offset",
                              "window",
                              "mask",
                              "bias",
                              "alibi",
                              "softcap",
                              "sink",
                              "block_mask",
                              "scale",
                              "dropout",
                              "bases",
                              "keep",
                              "dlse",
                              "dbias",
                              "dsink",
                              "poison",
                              "zero_stride"}) {
    EXPECT_GE(count[feature], 20) << feature;
  }
}

TEST(Conformance, ASeedIsTheSameCaseAlways) {
  const Case first = make_case(12345);
  const Case again = make_case(12345);
  EXPECT_EQ(describe(first), describe(again));
  EXPECT_EQ(make_values(first).q.bytes, make_values(again).q.bytes);
  std::set<std::string> names;
  for (const Case& c : named_cases()) EXPECT_TRUE(names.insert(c.name).second) << c.name;
}

TEST(Conformance, ABadFilterRunsNothing) {
  Options options;
  options.filter = "colour=red";
  Summary summary = run(options);
  EXPECT_FALSE(summary.status.ok());
  EXPECT_EQ(summary.cells, 0);
  options.filter = "case=no_such_case";
  summary = run(options);
  EXPECT_EQ(summary.status.message(),
            "filter: case is 'no_such_case', expected a seed or a name of the table");
}

}  // namespace
}  // namespace attentile::conformance

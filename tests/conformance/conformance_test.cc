// SPDX-License-Identifier: Apache-2.0
// The conformance table as a test: 4,000 generated cells, 50,000 with ATTENTILE_FULL=1, or as many
// as ATTENTILE_CELLS says, and the hand-written ones; the list of refused kinds; and that the
// generator covers the contract.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <set>
#include <string>

#include "conformance/case.h"
#include "conformance/crash_report.h"
#include "conformance/runner.h"

namespace attentile::conformance {
namespace {

// All that features_of() knows.
constexpr const char* kFeatures[] = {"backward",
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
                                     "zero_stride",
                                     "empty",
                                     "packed_q_batched_k",
                                     "packed_q_paged_k"};

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
  if (options.count >= 4000) {
    EXPECT_GE(summary.generated_cells, options.count);
  }
  const std::set<std::string> expected = refused_list();
  for (const auto& [reason, count] : summary.refusals) {
    EXPECT_TRUE(expected.count(reason)) << count << " cells refused: " << reason;
  }
  // Zeros match an output whose exact value is nearly zero everywhere; that must stay rare.
  EXPECT_LT(summary.vacuous * 5, summary.cells);
  RecordProperty("cells", std::to_string(summary.cells));
  RecordProperty("generated_cells", std::to_string(summary.generated_cells));
  RecordProperty("cases", std::to_string(summary.cases));
  RecordProperty("refused", std::to_string(summary.refused));
}

TEST(Conformance, EveryFeatureIsGeneratedOften) {
  std::map<std::string, int> count;
  for (uint64_t seed = 1; seed <= 1000; ++seed) {
    for (const std::string& feature : features_of(make_case(seed))) ++count[feature];
  }
  for (const char* feature : kFeatures) {
    EXPECT_GE(count[feature], 20) << feature;
  }
}

Summary dry_run(int64_t count, std::vector<Isa> isas) {
  Options options;
  options.count = count;
  options.isas = std::move(isas);
  options.cli_path = "never started";
  options.dry = true;
  return run(options);
}

// What runs under the sanitizers and under the emulator.
TEST(Conformance, ASliceHoldsEveryFeature) {
  for (const std::vector<Isa>& isas : {available_isas(), {Isa::kScalar, Isa::kNeon}}) {
    const Summary slice = dry_run(500, isas);
    EXPECT_LT(slice.cells, 520);
    for (const char* feature : kFeatures) EXPECT_GE(slice.by_feature.count(feature), 1u) << feature;
    EXPECT_EQ(slice.by_tier.size(), 3u);
    EXPECT_EQ(slice.by_dtype.size(), 4u);
    EXPECT_EQ(slice.by_entry.size(), 3u);
    EXPECT_EQ(slice.by_isa.size(), isas.size());
    EXPECT_GT(slice.generated_cells, 200);
    EXPECT_LT(slice.generated_cells, 300);
    const Summary small = dry_run(200, isas);
    std::vector<std::string> missing;
    for (const char* feature : kFeatures) {
      if (small.by_feature.count(feature) == 0) missing.push_back(feature);
    }
    EXPECT_LE(missing.size(), 2u) << missing[0] << " " << missing[1];
    EXPECT_EQ(small.by_tier.size(), 3u);
  }
}

TEST(Conformance, NamedCasesComeOnTop) {
  const Summary whole = dry_run(4000, {});
  EXPECT_GE(whole.generated_cells, 4000);
  EXPECT_GT(whole.cells, whole.generated_cells + 500);
  for (const auto& [feature, count] : whole.by_feature) {
    EXPECT_EQ(std::count(std::begin(kFeatures), std::end(kFeatures), feature), 1) << feature;
  }
}

TEST(Conformance, SeedsGoRound) {
  Options options;
  options.seed0 = std::numeric_limits<uint64_t>::max();
  options.count = 100;
  options.named = false;
  options.dry = true;
  const Summary summary = run(options);
  EXPECT_GE(summary.cells, 100);
  EXPECT_GT(summary.cases, 1);
  const auto last = find_case("18446744073709551615");
  ASSERT_TRUE(last.has_value());
  EXPECT_EQ(describe(*last), describe(make_case(options.seed0)));
  EXPECT_FALSE(find_case("18446744073709551616").has_value());
  EXPECT_FALSE(find_case("12x").has_value());
  EXPECT_FALSE(find_case("").has_value());
}

TEST(Conformance, ASeedIsTheSameCaseAlways) {
  const Case first = make_case(12345);
  const Case again = make_case(12345);
  EXPECT_EQ(describe(first), describe(again));
  EXPECT_EQ(make_values(first).q.bytes, make_values(again).q.bytes);
  std::set<std::string> names;
  for (const Case& c : named_cases()) EXPECT_TRUE(names.insert(c.name).second) << c.name;
}

TEST(Conformance, AFailureTellsTheCommandThatRepeatsIt) {
  Options options;
  options.entries = {Entry::kCli};
  options.cli_path = "/nowhere/attentile";
  options.filter = "case=1/algorithm=flash2/isa=scalar";
  const std::string cell = "--filter case=1/entry=cli/algorithm=flash2/isa=scalar";
  Summary summary = run(options);
  ASSERT_EQ(summary.failures.size(), 1u);
  EXPECT_EQ(summary.failures[0].command, "attentile verify " + cell);
  options.atomic_dq = true;
  summary = run(options);
  ASSERT_EQ(summary.failures.size(), 1u);
  EXPECT_EQ(summary.failures[0].command, "attentile verify --atomic-dq " + cell);
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

// SPDX-License-Identifier: Apache-2.0
// The conformance table: cases x entry points x algorithms x instruction sets, each cell run on
// NaN-poisoned, guarded, randomly strided tensors and judged against the float64 oracle by the two
// tiers of the accuracy rule. `attentile verify`, the test binary and the driver all call run().
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "attentile/attention.h"

namespace attentile::conformance {

enum class Entry { kCpp, kC, kCli, kEmulator, kDevice };

const char* to_string(Entry entry);

struct Case;
struct Oracle;
struct EntryResult;

// One cell's coordinates besides its case.
struct Cell {
  Entry entry = Entry::kCpp;
  Algorithm algorithm = Algorithm::kFlash2;
  Isa isa = Isa::kScalar;
  bool atomic_dq = false;
};

// Runs one cell; layout_seed as of the functions of entry.h.
using EntryFunction = EntryResult (*)(const Case& c, const Oracle& oracle, const Cell& cell,
                                      uint64_t layout_seed);

struct Options {
  // Cells of generated cases to run; those of the hand-written cases come first and on top. A count
  // below the size of the hand-written table asks for a slice: so many cells in all, alternately of
  // a hand-written case (spread over their list) and of a generated one, fewer cells per case.
  int64_t count = 4000;
  uint64_t seed0 = 1;     // seed of the first generated case; the next have seed0 + 1, ... mod 2^64
  bool named = true;      // the hand-written cases
  bool generated = true;  // the generated ones
  bool product = false;   // every entry x algorithm x ISA of each case, else a sample of them
  bool dry = false;       // count the cells that would run, run none
  // key=value pairs joined by '/': case (a seed or a name), entry (cpp, c, cli, emulator,
  // device), algorithm, isa, dtype, tier. With a filter every matching cell runs, sampled or not.
  std::string filter;
  std::vector<Isa> isas;              // empty: all that this machine has
  std::vector<Algorithm> algorithms;  // empty: standard, flash1, flash2
  std::vector<Entry> entries;         // empty: cpp, c and, with cli_path, cli
  EntryFunction emulator = nullptr;   // runs entry=emulator, in programs that hold the emulator
  bool forward_only = false;          // cases without their backward pass
  bool atomic_dq = false;             // of every cell's options
  std::string cli_path;               // the attentile binary that entry=cli cells start
  int64_t max_failures = 20;          // stop after so many failed cells; 0: never
};

struct Failure {
  std::string cell;     // case=.../entry=.../algorithm=.../isa=...
  std::string what;     // which output, where, by how much
  std::string command;  // reproduces this cell alone
};

struct Summary {
  Status status;  // not ok: the request itself was wrong (a bad filter), nothing ran
  int64_t cases = 0;
  int64_t cells = 0;            // run: passed + failed + refused
  int64_t generated_cells = 0;  // of these, of generated cases
  int64_t passed = 0;
  int64_t failed = 0;
  int64_t refused = 0;                         // kUnsupported
  int64_t vacuous = 0;                         // passed, but the case could not have failed
  std::map<std::string, int64_t> refusals;     // reason -> cells; algorithm and sentence
  std::map<std::string, int64_t> by_entry;     // cells run
  std::map<std::string, int64_t> by_tier;      // likewise
  std::map<std::string, int64_t> by_dtype;     // likewise
  std::map<std::string, int64_t> by_isa;       // likewise
  std::map<std::string, int64_t> by_feature;   // cells that had the feature
  std::map<std::string, double> worst_ratios;  // dtype and output -> largest error / allowed
  std::vector<Failure> failures;
};

// Called after every case with the counts so far and the fraction done; false stops.
using ProgressCallback = std::function<bool(const Summary&, double fraction)>;

Summary run(const Options& options, const ProgressCallback& progress = {});

// "case=1 ..." lines: what the cases that match the filter are, without running them.
std::vector<std::string> describe(const Options& options);

}  // namespace attentile::conformance

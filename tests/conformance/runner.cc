// SPDX-License-Identifier: Apache-2.0
// Runs the table: picks cases and cells, calls the entry points, counts.
#include "conformance/runner.h"

#include <algorithm>
#include <charconv>
#include <numeric>
#include <optional>

#include "conformance/crash_report.h"
#include "conformance/entry.h"
#include "conformance/oracle.h"
#include "support/random.h"

namespace attentile::conformance {
namespace {

using testing::mix_seed;
using testing::Random;

struct Filter {
  std::string text[6];  // by Key; empty: anything
  enum Key { kCase, kEntry, kAlgorithm, kIsa, kDtype, kTier };
  static constexpr const char* kKeys[6] = {"case", "entry", "algorithm", "isa", "dtype", "tier"};

  bool any() const {
    return std::any_of(std::begin(text), std::end(text),
                       [](const std::string& t) { return !t.empty(); });
  }
  bool accepts(Key key, const std::string& value) const {
    return text[key].empty() || text[key] == value;
  }
};

const char* short_name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return "f32";
    case DType::kFloat16: return "f16";
    case DType::kBFloat16: return "bf16";
    case DType::kFloat64: return "f64";
    default: return "other";
  }
}

Result<Filter> parse_filter(const std::string& text) {
  Filter filter;
  size_t begin = 0;
  while (begin < text.size()) {
    const size_t end = std::min(text.find('/', begin), text.size());
    const std::string part = text.substr(begin, end - begin);
    const size_t equals = part.find('=');
    const std::string key = part.substr(0, equals);
    const auto known = std::find(std::begin(Filter::kKeys), std::end(Filter::kKeys), key);
    if (equals == std::string::npos || known == std::end(Filter::kKeys)) {
      return Status(
          StatusCode::kInvalidArgument,
          "filter: '" + part + "' is not one of case=, entry=, algorithm=, isa=, dtype=, tier=");
    }
    filter.text[known - std::begin(Filter::kKeys)] = part.substr(equals + 1);
    begin = end + 1;
  }
  const std::string& name = filter.text[Filter::kCase];
  if (!name.empty() && !find_case(name)) {
    return Status(StatusCode::kInvalidArgument,
                  "filter: case is '" + name + "', expected a seed or a name of the table");
  }
  return filter;
}

bool accepts_case(const Filter& filter, const Case& c) {
  return filter.accepts(Filter::kDtype, short_name(c.dtype)) &&
         filter.accepts(Filter::kTier, to_string(c.tier));
}

std::string cell_name(const Case& c, const Cell& cell) {
  return "case=" + c.name + "/entry=" + to_string(cell.entry) +
         "/algorithm=" + attentile::to_string(cell.algorithm) +
         "/isa=" + attentile::to_string(cell.isa);
}

// Runs that cell alone.
std::string command_of(const Cell& cell, const std::string& name) {
  const std::string flags = cell.atomic_dq ? " --atomic-dq" : "";
  if (cell.entry == Entry::kDevice) {
    return "attentile verify --device cuda" + flags + " --filter " + name;
  }
  if (cell.entry != Entry::kEmulator) return "attentile verify" + flags + " --filter " + name;
  return std::string(cell.atomic_dq ? "ATTENTILE_ATOMIC_DQ=1 " : "") + "ATTENTILE_FILTER=" + name +
         " build/release/tests/attentile_cuda_tests --gtest_filter='*Table.*'";
}

// What differs from cell to cell, but not from run to run.
uint64_t layout_seed_of(const Case& c, const Cell& cell) {
  const uint64_t at = static_cast<uint64_t>(cell.entry) * 64 +
                      static_cast<uint64_t>(cell.algorithm) * 8 + static_cast<uint64_t>(cell.isa);
  return mix_seed(c.seed, 1000 + at);
}

class Table {
 public:
  Table(const Options& options, const ProgressCallback& progress)
      : options_(options), progress_(progress) {
    if (options_.isas.empty()) options_.isas = available_isas();
    if (options_.algorithms.empty()) {
      options_.algorithms = {Algorithm::kStandard, Algorithm::kFlash1, Algorithm::kFlash2};
    }
    if (options_.entries.empty()) options_.entries = {Entry::kCpp, Entry::kC, Entry::kCli};
    if (options_.cli_path.empty()) std::erase(options_.entries, Entry::kCli);
  }

  Summary run() {
    const Result<Filter> filter = parse_filter(options_.filter);
    if (!filter.ok()) {
      summary_.status = filter.status();
      return summary_;
    }
    filter_ = *filter;
    const std::string& name = filter_.text[Filter::kCase];
    if (!name.empty()) {
      run_case(*find_case(name));
      return summary_;
    }
    int64_t named_cells = 0;
    for (const Case& c : named_cases()) {
      if (options_.named && accepts_case(filter_, c)) {
        named_cells += static_cast<int64_t>(cells_of(c).size());
      }
    }
    slice_ = options_.count < named_cells;
    wanted_ = slice_ || !options_.generated ? options_.count : options_.count + named_cells;
    slice_ ? run_slice() : run_all();
    return summary_;
  }

 private:
  bool done() const { return summary_.cells >= wanted_; }

  void run_all() {
    for (const Case& c : named_cases()) {
      if (options_.named && !run_case(c)) return;
    }
    run_generated([](int64_t) { return true; });
  }

  // The named cases in steps of about their number over the golden ratio, so that any first few are
  // spread over the list; after each a generated one.
  void run_slice() {
    const std::vector<Case>& named = named_cases();
    const int64_t size = static_cast<int64_t>(named.size());
    int64_t step = size * 618 / 1000;
    while (std::gcd(step, size) != 1) ++step;
    const auto run_named = [&](int64_t n) {
      return n >= size || run_case(named[static_cast<size_t>(n * step % size)]);
    };
    if (options_.generated) return run_generated(run_named);
    for (int64_t n = 0; n < size && !done() && run_named(n);) ++n;
  }

  // Generated cases until there are enough cells; before(n) goes before the n-th.
  template <class Before>
  void run_generated(const Before& before) {
    if (!options_.generated) return;
    // A filter may match no cell of any case: stop looking some time.
    for (int64_t n = 0; n / 4 <= options_.count && !done(); ++n) {
      if (!before(n) || done()) return;
      const int64_t cells = summary_.cells;
      const bool go_on = run_case(make_case(options_.seed0 + static_cast<uint64_t>(n)));
      summary_.generated_cells += summary_.cells - cells;
      if (!go_on) return;
    }
  }

  // False: stop.
  bool run_case(Case c) {
    if (!accepts_case(filter_, c)) return true;
    if (options_.forward_only) c.backward = c.dlse = c.dbias = c.dsink = false;
    const std::vector<Cell> cells = cells_of(c);
    if (cells.empty()) return true;
    ++summary_.cases;
    if (options_.dry) {
      for (const Cell& cell : cells) count_cell(c, cell);
      return true;
    }
    Oracle oracle(c);
    for (const Cell& cell : cells) {
      run_cell(c, oracle, cell);
      if (options_.max_failures > 0 && summary_.failed >= options_.max_failures) return false;
    }
    const double fraction =
        std::min(1.0, static_cast<double>(summary_.cells) / static_cast<double>(wanted_));
    return !progress_ || progress_(summary_, fraction);
  }

  // All cells of the product that the filter accepts or, unfiltered, a sample: C++ with every
  // algorithm on two instruction sets, C and the command line with one each. In a slice: C++ with
  // every algorithm on one instruction set, and C or the command line.
  std::vector<Cell> cells_of(const Case& c) const {
    std::vector<Cell> cells;
    Random random(mix_seed(c.seed, 3));
    const bool product = options_.product || filter_.any();
    const bool fewer = slice_ && !product;
    const bool over_c = random.chance(0.5) || !cli_can_express(c);
    for (Entry entry : options_.entries) {
      if (fewer && options_.entries.size() == 3 && entry == (over_c ? Entry::kCli : Entry::kC)) {
        continue;
      }
      if (entry == Entry::kCli && !cli_can_express(c)) continue;
      if (!filter_.accepts(Filter::kEntry, to_string(entry))) continue;
      const size_t first_algorithm = random.bits() % options_.algorithms.size();
      for (size_t n = 0; n < options_.algorithms.size(); ++n) {
        const Algorithm algorithm =
            options_.algorithms[(first_algorithm + n) % options_.algorithms.size()];
        if (!filter_.accepts(Filter::kAlgorithm, attentile::to_string(algorithm))) continue;
        const size_t first_isa = random.bits() % std::max<size_t>(options_.isas.size(), 1);
        const size_t wanted = entry == Entry::kCpp && !fewer ? 2 : 1;
        for (size_t m = 0; m < options_.isas.size(); ++m) {
          const Isa isa = options_.isas[(first_isa + m) % options_.isas.size()];
          if (!filter_.accepts(Filter::kIsa, attentile::to_string(isa))) continue;
          if (!product && (m >= wanted || (entry != Entry::kCpp && n > 0))) continue;
          cells.push_back({entry, algorithm, isa, options_.atomic_dq});
        }
      }
    }
    return cells;
  }

  void count_cell(const Case& c, const Cell& cell) {
    ++summary_.cells;
    ++summary_.by_entry[to_string(cell.entry)];
    ++summary_.by_tier[to_string(c.tier)];
    ++summary_.by_dtype[short_name(c.dtype)];
    ++summary_.by_isa[attentile::to_string(cell.isa)];
    for (const std::string& feature : features_of(c)) ++summary_.by_feature[feature];
  }

  void run_cell(const Case& c, Oracle& oracle, const Cell& cell) {
    count_cell(c, cell);
    if (!oracle.status.ok()) {
      fail(c, cell, "the oracle: " + oracle.status.message());
      return;
    }
    set_current_cell(cell_name(c, cell));
    const EntryResult result = run_entry(c, oracle, cell);
    set_current_cell({});
    if (result.status.code() == StatusCode::kUnsupported) {
      ++summary_.refused;
      ++summary_.refusals[std::string(attentile::to_string(cell.algorithm)) + ": " +
                          result.status.message()];
      return;
    }
    if (!result.status.ok()) {
      fail(
          c, cell,
          std::string(attentile::to_string(result.status.code())) + ": " + result.status.message());
      return;
    }
    if (!result.damage.empty()) {
      fail(c, cell, result.damage);
      return;
    }
    const Judgement judgement = judge(c, oracle, result.results);
    for (const auto& [output, ratio] : judgement.ratios) {
      double& worst = summary_.worst_ratios[std::string(short_name(c.dtype)) + " " + output];
      worst = std::max(worst, ratio);
    }
    if (!judgement.failure.empty()) {
      fail(c, cell, judgement.failure);
      return;
    }
    ++summary_.passed;
    if (judgement.vacuous) ++summary_.vacuous;
  }

  EntryResult run_entry(const Case& c, const Oracle& oracle, const Cell& cell) const {
    const uint64_t seed = layout_seed_of(c, cell);
    switch (cell.entry) {
      case Entry::kCpp: return run_cpp(c, oracle, cell, seed);
      case Entry::kC: return run_c(c, oracle, cell, seed);
      case Entry::kCli: return run_cli(c, oracle, cell, seed, options_.cli_path);
      case Entry::kEmulator: return options_.emulator(c, oracle, cell, seed);
      case Entry::kDevice: return run_device(c, oracle, cell, seed);
    }
    return {};
  }

  void fail(const Case& c, const Cell& cell, const std::string& what) {
    ++summary_.failed;
    const std::string name = cell_name(c, cell);
    summary_.failures.push_back({name, what + " (" + describe(c) + ")", command_of(cell, name)});
  }

  Options options_;
  const ProgressCallback& progress_;
  Filter filter_;
  bool slice_ = false;
  int64_t wanted_ = 1;  // cells, at least
  Summary summary_;
};

}  // namespace

const char* to_string(Entry entry) {
  switch (entry) {
    case Entry::kCpp: return "cpp";
    case Entry::kC: return "c";
    case Entry::kCli: return "cli";
    case Entry::kEmulator: return "emulator";
    case Entry::kDevice: return "device";
  }
  return "unknown";
}

std::optional<Case> find_case(const std::string& name) {
  for (const Case& c : named_cases()) {
    if (c.name == name) return c;
  }
  uint64_t seed = 0;
  const char* end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data(), end, seed);
  if (error != std::errc() || stop != end) return std::nullopt;
  return make_case(seed);
}

Summary run(const Options& options, const ProgressCallback& progress) {
  return Table(options, progress).run();
}

std::vector<std::string> describe(const Options& options) {
  std::vector<std::string> lines;
  const Result<Filter> filter = parse_filter(options.filter);
  if (!filter.ok()) return lines;
  const std::string& name = filter->text[Filter::kCase];
  if (!name.empty()) return {describe(*find_case(name))};
  for (const Case& c : named_cases()) {
    if (options.named && accepts_case(*filter, c)) lines.push_back(describe(c));
  }
  for (int64_t n = 0; options.generated && n < options.count; ++n) {
    const Case c = make_case(options.seed0 + static_cast<uint64_t>(n));
    if (accepts_case(*filter, c)) lines.push_back(describe(c));
  }
  return lines;
}

}  // namespace attentile::conformance

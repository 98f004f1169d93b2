// SPDX-License-Identifier: Apache-2.0
// Counted slow-memory traffic shows the theory. Per head of N queries and keys, head dimensions d,
// M values of fast memory, in values of 4 bytes (closed forms, from the algorithms' definitions):
//
//   flash1     B_c = ceil(M / 4d) keys, T = ceil(N / B_c) key tiles outside; per tile K and V once;
//              inside, every query row with its state (O, m, l: d + 2): read q and the state, write
//              the state. Before: the state is initialised. After: it is read, O and lse written.
//              read    2 N d + T N (d + d + 2) + N (d + 2)
//              written N (d + 2) + T N (d + 2) + N (d + 1)
//   standard   S written, S read and P written, P read; Q and O once, K and V once per block of
//              tile_m queries.
//              read    N d + ceil(N / tile_m) 2 N d + 2 N^2        written 2 N^2 + N (d + 1)
//   flash2     Q, O once; K and V once per block of tile_m queries.
//              read    N d + ceil(N / tile_m) 2 N d                written N (d + 1)
//
// So flash1 grows as N^2 d^2 / M, standard as N d + N^2, and a block pattern scales the N^2 part by
// its density.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include "attentile/attention.h"
#include "support/dense_tensor.h"

namespace attentile::property {
namespace {

using testing::DenseTensor;

constexpr int64_t kValue = 4;  // bytes, float32

struct Sizes {
  int64_t n;
  int64_t d;
  int64_t fast_values;  // M
};

int64_t ceil_of(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

Traffic flash1_closed_form(const Sizes& s) {
  const int64_t tile = std::min(ceil_of(s.fast_values, 4 * s.d), s.n);
  const int64_t visits = ceil_of(s.n, tile) * s.n;
  const int64_t state = s.d + 2;
  return {kValue * (2 * s.n * s.d + visits * (s.d + state) + s.n * state),
          kValue * (s.n * state + visits * state + s.n * (s.d + 1))};
}

Traffic standard_closed_form(const Sizes& s, int64_t tile_m) {
  return {kValue * (s.n * s.d + ceil_of(s.n, tile_m) * 2 * s.n * s.d + 2 * s.n * s.n),
          kValue * (2 * s.n * s.n + s.n * (s.d + 1))};
}

Traffic flash2_closed_form(const Sizes& s, int64_t tile_m) {
  return {kValue * (s.n * s.d + ceil_of(s.n, tile_m) * 2 * s.n * s.d), kValue * s.n * (s.d + 1)};
}

double total(const Traffic& t) {
  return static_cast<double>(t.bytes_read + t.bytes_written);
}

class Measurement {
 public:
  explicit Measurement(const Sizes& s)
      : s_(s),
        q_(DType::kFloat32, {1, s.n, 1, s.d}),
        k_(DType::kFloat32, {1, s.n, 1, s.d}),
        v_(DType::kFloat32, {1, s.n, 1, s.d}),
        out_(DType::kFloat32, {1, s.n, 1, s.d}),
        lse_(DType::kFloat32, {1, 1, s.n}) {}

  // A visible square of every `keep` along both axes; 1: no pattern.
  void set_pattern(int64_t tile, const std::vector<uint8_t>& pattern) {
    const int64_t tiles = ceil_of(s_.n, tile);
    pattern_ = DenseTensor(DType::kUInt8, {1, tiles, tiles});
    std::copy(pattern.begin(), pattern.end(), pattern_.bytes.begin());
    block_ = tile;
  }

  // Counts in *given, if that is not null.
  Traffic run(Algorithm algorithm, int num_threads = 1, Traffic* given = nullptr) {
    Traffic traffic;
    ExecutionContext context;
    context.num_threads = num_threads;
    context.traffic = given != nullptr ? given : &traffic;
    const Status status = attention_forward(inputs(), outputs(), options(algorithm), context);
    EXPECT_TRUE(status.ok()) << status.message();
    return *context.traffic;
  }
  Plan plan(Algorithm algorithm, int num_threads = 1) {
    ExecutionContext context;
    context.num_threads = num_threads;
    const Result<Plan> plan = plan_forward(inputs(), outputs(), options(algorithm), context);
    EXPECT_TRUE(plan.ok()) << plan.status().message();
    return plan.ok() ? *plan : Plan{};
  }

 private:
  AttentionInputs inputs() const {
    AttentionInputs inputs;
    inputs.q = q_.view();
    inputs.k = k_.view();
    inputs.v = v_.view();
    inputs.block_mask = pattern_.view();
    return inputs;
  }
  AttentionOutputs outputs() const {
    AttentionOutputs outputs;
    outputs.out = out_.view();
    outputs.lse = lse_.view();
    return outputs;
  }
  AttentionOptions options(Algorithm algorithm) const {
    AttentionOptions options;
    options.algorithm = algorithm;
    options.fast_memory_bytes = kValue * s_.fast_values;
    options.block_size_q = options.block_size_k = block_;
    return options;
  }

  Sizes s_;
  DenseTensor q_, k_, v_, out_, lse_, pattern_;
  int64_t block_ = 0;
};

void expect_within_one_percent(const Traffic& expected, const Traffic& got, const char* what) {
  const auto close = [](int64_t a, int64_t b) {
    return std::fabs(static_cast<double>(a - b)) <= 0.01 * static_cast<double>(a);
  };
  EXPECT_TRUE(close(expected.bytes_read, got.bytes_read))
      << what << ": read " << got.bytes_read << ", expected " << expected.bytes_read;
  EXPECT_TRUE(close(expected.bytes_written, got.bytes_written))
      << what << ": written " << got.bytes_written << ", expected " << expected.bytes_written;
}

// Least squares of log y = c + sum of exponent * log x over rows (x_1 .. x_k, y).
std::vector<double> fit_exponents(const std::vector<std::vector<double>>& rows) {
  const size_t unknowns = rows[0].size();  // the constant and one per x
  std::vector<std::vector<double>> a(unknowns, std::vector<double>(unknowns + 1, 0.0));
  for (const std::vector<double>& row : rows) {
    std::vector<double> x = {1.0};
    for (size_t i = 0; i + 1 < row.size(); ++i) x.push_back(std::log(row[i]));
    for (size_t i = 0; i < unknowns; ++i) {
      for (size_t j = 0; j < unknowns; ++j) a[i][j] += x[i] * x[j];
      a[i][unknowns] += x[i] * std::log(row.back());
    }
  }
  for (size_t i = 0; i < unknowns; ++i) {  // symmetric positive definite: no pivoting needed
    for (size_t r = 0; r < unknowns; ++r) {
      if (r == i) continue;
      const double factor = a[r][i] / a[i][i];
      for (size_t j = i; j <= unknowns; ++j) a[r][j] -= factor * a[i][j];
    }
  }
  std::vector<double> exponents;
  for (size_t i = 1; i < unknowns; ++i) exponents.push_back(a[i][unknowns] / a[i][i]);
  return exponents;
}

const int64_t kLengths[] = {512, 1024, 2048, 4096};
const int64_t kDims[] = {32, 64, 128};
const int64_t kFastValues[] = {2048, 4096, 8192, 16384};

// The largest steps take seconds each; they run with ATTENTILE_FULL, else the plan's figure, which
// the others show to be right, stands for them.
bool affordable(const Sizes& s) {
  if (std::getenv("ATTENTILE_FULL") != nullptr) return true;
  const double tile =
      std::ceil(static_cast<double>(s.fast_values) / (4.0 * static_cast<double>(s.d)));
  const double steps = static_cast<double>(s.n) * static_cast<double>(s.n) /
                       (tile * std::min(tile, static_cast<double>(s.d)));
  return steps <= 70000.0;
}

TEST(Traffic, Flash1CountsItsClosedFormAndGrowsAsTheorySays) {
  std::vector<std::vector<double>> rows;
  int measured = 0;
  for (int64_t n : kLengths) {
    for (int64_t d : kDims) {
      for (int64_t fast_values : kFastValues) {
        const Sizes s = {n, d, fast_values};
        SCOPED_TRACE("N " + std::to_string(n) + " d " + std::to_string(d) + " M " +
                     std::to_string(fast_values));
        Measurement measurement(s);
        const Traffic planned = measurement.plan(Algorithm::kFlash1).traffic_flash1;
        expect_within_one_percent(flash1_closed_form(s), planned, "planned");
        Traffic counted = planned;
        if (affordable(s)) {
          ++measured;
          counted = measurement.run(Algorithm::kFlash1);
          expect_within_one_percent(flash1_closed_form(s), counted, "counted");
          EXPECT_EQ(planned.bytes_read, counted.bytes_read);
          EXPECT_EQ(planned.bytes_written, counted.bytes_written);
        }
        rows.push_back({static_cast<double>(n), static_cast<double>(d),
                        static_cast<double>(fast_values), total(counted)});
      }
    }
  }
  EXPECT_GE(measured, 24);
  const std::vector<double> exponents = fit_exponents(rows);
  EXPECT_NEAR(exponents[0], 2.0, 0.1) << "N";
  EXPECT_NEAR(exponents[1], 2.0, 0.1) << "d";
  EXPECT_NEAR(exponents[2], -1.0, 0.1) << "M";
}

TEST(Traffic, StandardAndFlash2CountTheirClosedForms) {
  std::vector<std::vector<double>> measured, read_once, theory, closed;
  for (int64_t n : kLengths) {
    for (int64_t d : kDims) {
      const Sizes s = {n, d, 8192};
      SCOPED_TRACE("N " + std::to_string(n) + " d " + std::to_string(d));
      Measurement measurement(s);
      const Plan standard = measurement.plan(Algorithm::kStandard);
      const Plan flash2 = measurement.plan(Algorithm::kFlash2);
      const Traffic counted = measurement.run(Algorithm::kStandard);
      expect_within_one_percent(standard_closed_form(s, standard.tile_m), counted, "standard");
      EXPECT_EQ(total(standard.traffic_standard), total(counted));
      const Traffic streamed = measurement.run(Algorithm::kFlash2);
      expect_within_one_percent(flash2_closed_form(s, flash2.tile_m), streamed, "flash2");
      EXPECT_EQ(total(flash2.traffic_flash2), total(streamed));
      EXPECT_LT(total(streamed), total(counted));
      measured.push_back({static_cast<double>(n), static_cast<double>(d), total(counted)});
      closed.push_back({static_cast<double>(n), static_cast<double>(d),
                        total(standard_closed_form(s, standard.tile_m))});
      // The theory's O(N d + N^2) lets K and V be read once; each further block of tile_m queries
      // reads them again, and how many there are depends on the caches of the machine.
      const int64_t again = kValue * (ceil_of(n, standard.tile_m) - 1) * 2 * n * d;
      read_once.push_back({static_cast<double>(n), static_cast<double>(d),
                           total(counted) - static_cast<double>(again)});
      theory.push_back({static_cast<double>(n), static_cast<double>(d),
                        4.0 * static_cast<double>(n * d) + 4.0 * static_cast<double>(n * n)});
    }
  }
  const std::vector<double> got = fit_exponents(measured);
  const std::vector<double> once = fit_exponents(read_once);
  EXPECT_NEAR(once[0], fit_exponents(theory)[0], 0.01) << "N";
  EXPECT_NEAR(once[1], fit_exponents(theory)[1], 0.01) << "d";
  EXPECT_NEAR(got[0], fit_exponents(closed)[0], 0.1) << "N";
  EXPECT_NEAR(got[1], fit_exponents(closed)[1], 0.1) << "d";
}

TEST(Traffic, SwappingTheLoopsChangesTheCount) {
  Measurement measurement({2048, 64, 8192});
  const Traffic flash1 = measurement.run(Algorithm::kFlash1);
  const Traffic flash2 = measurement.run(Algorithm::kFlash2);
  EXPECT_GT(flash1.bytes_written, 20 * flash2.bytes_written);  // O goes out once per key tile
  EXPECT_NE(flash1.bytes_read, flash2.bytes_read);
}

TEST(Traffic, ABlockPatternScalesItByItsDensity) {
  const Sizes s = {2048, 64, 8192};
  const int64_t tile = 256;
  const int64_t tiles = s.n / tile;
  for (Algorithm algorithm : {Algorithm::kFlash1, Algorithm::kFlash2}) {
    SCOPED_TRACE(to_string(algorithm));
    Measurement dense(s);
    dense.set_pattern(tile, std::vector<uint8_t>(static_cast<size_t>(tiles * tiles), 1));
    const Traffic all = dense.run(algorithm);
    const Traffic none = [&] {
      Measurement empty(s);
      empty.set_pattern(tile, std::vector<uint8_t>(static_cast<size_t>(tiles * tiles), 0));
      return empty.run(algorithm);
    }();
    for (int64_t stride : {2, 4}) {  // density 1 / stride, the same number in every row and column
      std::vector<uint8_t> pattern;
      for (int64_t i = 0; i < tiles; ++i) {
        for (int64_t j = 0; j < tiles; ++j) pattern.push_back((i + j) % stride == 0);
      }
      Measurement sparse(s);
      sparse.set_pattern(tile, pattern);
      const double part = total(sparse.run(algorithm)) - total(none);
      const double whole = total(all) - total(none);
      // flash1 reads a key tile once, however few queries see it.
      EXPECT_NEAR(part / whole, 1.0 / static_cast<double>(stride), 0.05) << "one in " << stride;
    }
  }
}

// flash1's tiles follow from M alone. standard and flash2 give each task fewer queries when there
// are more threads to feed, and read K and V once per task: their closed forms at that tile_m.
TEST(Traffic, DependsOnThreadsOnlyByTheQueriesOfATask) {
  const Sizes s = {1024, 64, 8192};
  Measurement measurement(s);
  const Traffic flash1 = measurement.run(Algorithm::kFlash1, 1);
  int64_t tile_m = s.n;
  for (int threads : {1, 2, 3, 8, 16}) {
    SCOPED_TRACE(std::to_string(threads) + " threads");
    const Traffic again = measurement.run(Algorithm::kFlash1, threads);
    EXPECT_EQ(flash1.bytes_read, again.bytes_read);
    EXPECT_EQ(flash1.bytes_written, again.bytes_written);
    const Plan standard = measurement.plan(Algorithm::kStandard, threads);
    const Plan flash2 = measurement.plan(Algorithm::kFlash2, threads);
    EXPECT_EQ(total(standard_closed_form(s, standard.tile_m)),
              total(measurement.run(Algorithm::kStandard, threads)));
    EXPECT_EQ(total(flash2_closed_form(s, flash2.tile_m)),
              total(measurement.run(Algorithm::kFlash2, threads)));
    EXPECT_LE(flash2.tile_m, tile_m);
    tile_m = flash2.tile_m;
  }
  EXPECT_LT(tile_m, measurement.plan(Algorithm::kFlash2, 1).tile_m);
}

TEST(Traffic, IsThatOfTheLastCallAlone) {
  const Sizes s = {200, 32, 2048};
  Measurement measurement(s);
  for (Algorithm algorithm : {Algorithm::kStandard, Algorithm::kFlash1, Algorithm::kFlash2}) {
    Traffic traffic = {-5, 1 << 20};
    const Traffic first = measurement.run(algorithm, 1, &traffic);
    const Traffic second = measurement.run(algorithm, 1, &traffic);
    EXPECT_GT(first.bytes_read, 0);
    EXPECT_EQ(first.bytes_read, second.bytes_read);
    EXPECT_EQ(first.bytes_written, second.bytes_written);
  }
}

// Algorithms without tiles move nothing that is counted, and say so.
TEST(Traffic, OfReferenceAndMergeIsZero) {
  Measurement measurement({40, 16, 2048});
  Traffic traffic = {7, 7};
  EXPECT_EQ(total(measurement.run(Algorithm::kReference, 1, &traffic)), 0.0);
  DenseTensor out(DType::kFloat32, {1, 4, 1, 8}), lse(DType::kFloat32, {1, 1, 4});
  DenseTensor merged = out, merged_lse = lse;
  ExecutionContext context;
  traffic = {7, 7};
  context.traffic = &traffic;
  const Status status =
      merge({{out.view(), lse.view()}}, {merged.view(), merged_lse.view()}, context);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(total(traffic), 0.0);
}

}  // namespace
}  // namespace attentile::property

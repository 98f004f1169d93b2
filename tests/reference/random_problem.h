// SPDX-License-Identifier: Apache-2.0
// Small float64 problems with random shapes and features, and the memory they point to. Made
// without the public entry points, so that the oracle can be tested alone.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "problem.h"
#include "reference/attention.h"

namespace attentile::reference {

// SplitMix64: the same numbers on every platform.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}
  uint64_t bits() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  int64_t integer(int64_t low, int64_t high) {  // both included
    return low + static_cast<int64_t>(bits() % static_cast<uint64_t>(high - low + 1));
  }
  bool chance(double p) { return uniform() < p; }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  double normal() {
    const double radius = std::sqrt(-2 * std::log(1 - uniform()));
    return radius * std::cos(6.283185307179586 * uniform());
  }
  void fill(std::vector<double>* values, int64_t n) {
    values->resize(static_cast<size_t>(n));
    for (double& value : *values) value = normal();
  }

 private:
  uint64_t state_;
};

inline Array4 array4(void* data, DType dtype, int64_t s0, int64_t s1, int64_t s2, int64_t s3) {
  return {.data = static_cast<char*>(data),
          .dtype = dtype,
          .present = true,
          .stride = {s0, s1, s2, s3}};
}

struct TestShape {
  int64_t batch, seqlen_q, seqlen_k, heads_q, heads_kv, head_dim, head_dim_v;
};

// Batch of equal lengths, contiguous, no feature: the start of every test.
struct TestProblem {
  explicit TestProblem(const TestShape& shape) {
    const auto [batch, seqlen_q, seqlen_k, heads_q, heads_kv, head_dim, head_dim_v] = shape;
    problem.backward = true;
    problem.dtype = DType::kFloat64;
    problem.batch = batch;
    problem.num_heads_q = heads_q;
    problem.num_heads_kv = heads_kv;
    problem.group_size = heads_kv == 0 ? 0 : heads_q / heads_kv;
    problem.head_dim = head_dim;
    problem.head_dim_v = head_dim_v;
    problem.max_seqlen_q = seqlen_q;
    problem.max_seqlen_k = seqlen_k;
    problem.total_q = batch * seqlen_q;
    problem.total_k = batch * seqlen_k;
    problem.softmax_scale = head_dim > 0 ? 1 / std::sqrt(static_cast<double>(head_dim)) : 1;
    problem.dropout.num_heads_q = heads_q;
  }
  TestProblem(const TestProblem&) = delete;
  TestProblem& operator=(const TestProblem&) = delete;

  // Allocates the inputs, sets their values, and points the problem at them.
  void fill(Random* random) {
    Problem& p = problem;
    random->fill(&q, p.total_q * p.num_heads_q * p.head_dim);
    random->fill(&k, p.total_k * p.num_heads_kv * p.head_dim);
    random->fill(&v, p.total_k * p.num_heads_kv * p.head_dim_v);
    random->fill(&dout, p.total_q * p.num_heads_q * p.head_dim_v);
    p.q = tokens(&q, p.num_heads_q, p.head_dim, p.varlen ? 0 : p.max_seqlen_q);
    p.k = tokens(&k, p.num_heads_kv, p.head_dim, p.varlen ? 0 : p.max_seqlen_k);
    p.v = tokens(&v, p.num_heads_kv, p.head_dim_v, p.varlen ? 0 : p.max_seqlen_k);
    p.dout = tokens(&dout, p.num_heads_q, p.head_dim_v, p.varlen ? 0 : p.max_seqlen_q);
  }
  void add_dlse(Random* random) {
    random->fill(&dlse, problem.total_q * problem.num_heads_q);
    const int64_t rows = problem.varlen ? problem.total_q : problem.max_seqlen_q;
    problem.dlse = array4(dlse.data(), DType::kFloat64,
                          problem.varlen ? 0 : problem.num_heads_q * rows, rows, 1, 0);
  }
  void add_sink(Random* random) {
    random->fill(&sink, problem.num_heads_q);
    problem.sink = array4(sink.data(), DType::kFloat64, 1, 0, 0, 0);
    problem.dsink.present = true;
  }
  // shape: 1 where the axis broadcasts.
  void add_bias(Random* random, int64_t b, int64_t h, int64_t i, int64_t j) {
    random->fill(&bias, b * h * i * j);
    problem.bias = array4(bias.data(), DType::kFloat64, b == 1 ? 0 : h * i * j, h == 1 ? 0 : i * j,
                          i == 1 ? 0 : j, j == 1 ? 0 : 1);
    problem.dbias.present = true;
    const int64_t shape[4] = {b, h, i, j};
    for (int axis = 0; axis < 4; ++axis) problem.dbias_shape[axis] = shape[axis];
  }
  // The oracle's answer; nothing present when it failed.
  ExactResult exact(int num_threads = 1) const { return exact_of(problem, num_threads); }
  ExactResult exact_forward() const {
    Problem forward = problem;
    forward.backward = false;
    return exact_of(forward, 1);
  }
  static ExactResult exact_of(const Problem& problem, int num_threads) {
    ExecutionContext context;
    context.num_threads = num_threads;
    ExactResult result;
    const Status status = compute_exact(problem, context, &result);
    if (!status.ok()) result = {};
    return result;
  }

  Problem problem;
  std::vector<double> q, k, v, dout, dlse, bias, sink;
  std::vector<float> slopes;
  std::vector<uint8_t> mask, block_mask;
  std::vector<int32_t> cu_q, cu_k, used_k;
  std::string features;  // what random_problem switched on

 private:
  static Array4 tokens(std::vector<double>* data, int64_t heads, int64_t columns, int64_t rows) {
    return array4(data->data(), DType::kFloat64, rows * heads * columns, heads * columns, columns,
                  1);
  }
};

inline std::unique_ptr<TestProblem> make_shapes(Random* random) {
  const int64_t heads_kv = random->integer(1, 2);
  const int64_t batch = random->integer(1, 3);
  const bool varlen = random->chance(0.3);
  const int64_t seqlen_q = random->integer(1, 8);
  const int64_t seqlen_k = random->integer(1, 9);
  auto test = std::make_unique<TestProblem>(
      TestShape{batch, seqlen_q, seqlen_k, heads_kv * random->integer(1, 3), heads_kv,
                random->integer(1, 10), random->integer(1, 6)});
  if (!varlen) return test;
  Problem& p = test->problem;
  p.varlen = true;
  test->cu_q = {0};
  test->cu_k = {0};
  for (int64_t b = 0; b < batch; ++b) {
    test->cu_q.push_back(test->cu_q.back() + static_cast<int32_t>(random->integer(0, seqlen_q)));
    test->cu_k.push_back(test->cu_k.back() + static_cast<int32_t>(random->integer(0, seqlen_k)));
  }
  p.cu_seqlens_q = {test->cu_q.data(), 1};
  p.cu_seqlens_k = {test->cu_k.data(), 1};
  p.total_q = test->cu_q.back();
  p.total_k = test->cu_k.back();
  test->features += " varlen";
  return test;
}

inline void add_masks(Random* random, TestProblem* test) {
  Problem& p = test->problem;
  const auto flag = [&](double chance, const char* name) {
    const bool on = random->chance(chance);
    if (on) test->features += std::string(" ") + name;
    return on;
  };
  if (flag(0.4, "causal")) p.window_right = 0;
  if (flag(0.3, "window")) {
    p.window_left = random->integer(0, 5);
    if (p.window_right == kUnbounded) p.window_right = random->integer(0, 4);
  }
  if (flag(0.4, "top_left")) p.alignment = Alignment::kTopLeft;
  if (flag(0.2, "position_offset")) {
    p.has_position_offset = true;
    p.position_offset = random->integer(-6, 6);
  }
  if (flag(0.3, "mask")) {
    test->mask.resize(static_cast<size_t>(p.max_seqlen_q * p.max_seqlen_k));
    for (uint8_t& cell : test->mask) cell = random->chance(0.7) ? 1 : 0;
    p.mask = array4(test->mask.data(), DType::kBool, 0, 0, p.max_seqlen_k, 1);
  }
  if (flag(0.2, "block_mask")) {
    p.block_size_q = random->integer(1, 4);
    p.block_size_k = random->integer(1, 4);
    const int64_t tiles_q = ceil_div(p.max_seqlen_q, p.block_size_q);
    const int64_t tiles_k = ceil_div(p.max_seqlen_k, p.block_size_k);
    test->block_mask.resize(static_cast<size_t>(p.num_heads_q * tiles_q * tiles_k));
    for (uint8_t& cell : test->block_mask) cell = random->chance(0.7) ? 1 : 0;
    p.block_mask = array4(test->block_mask.data(), DType::kUInt8, tiles_q * tiles_k, tiles_k, 1, 0);
  }
  if (!p.varlen && flag(0.3, "seqused_k")) {
    for (int64_t b = 0; b < p.batch; ++b) {
      test->used_k.push_back(static_cast<int32_t>(random->integer(0, p.max_seqlen_k)));
    }
    p.seqused_k = {test->used_k.data(), 1};
  }
}

// A problem that depends on the seed alone; features says what it has.
inline std::unique_ptr<TestProblem> random_problem(uint64_t seed) {
  Random random(seed);
  std::unique_ptr<TestProblem> test = make_shapes(&random);
  Problem& p = test->problem;
  test->fill(&random);
  add_masks(&random, test.get());
  const auto flag = [&](double chance, const char* name) {
    const bool on = random.chance(chance);
    if (on) test->features += std::string(" ") + name;
    return on;
  };
  const auto broadcast = [&](int64_t size) { return random.chance(0.4) ? 1 : size; };
  if (flag(0.4, "softcap")) p.softcap = 0.5 + random.uniform();
  if (flag(0.4, "dlse")) test->add_dlse(&random);
  if (flag(0.4, "sink")) test->add_sink(&random);
  if (flag(0.5, "bias")) {
    const int64_t b = broadcast(p.batch), h = broadcast(p.num_heads_q);
    const int64_t i = broadcast(p.max_seqlen_q), j = broadcast(p.max_seqlen_k);
    test->add_bias(&random, b, h, i, j);
  }
  if (flag(0.3, "alibi")) {
    for (int64_t n = 0; n < p.batch * p.num_heads_q; ++n) {
      test->slopes.push_back(static_cast<float>(random.uniform()));
    }
    p.alibi_slopes = array4(test->slopes.data(), DType::kFloat32, p.num_heads_q, 1, 0, 0);
  }
  if (flag(0.3, "dropout")) {
    p.dropout = make_dropout(0.1 + 0.5 * random.uniform(), random.bits(), random.bits());
    p.dropout.num_heads_q = p.num_heads_q;
  }
  if (flag(0.2, "scale")) p.softmax_scale = random.normal();
  return test;
}

}  // namespace attentile::reference

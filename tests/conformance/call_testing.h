// SPDX-License-Identifier: Apache-2.0
// For the tests of edge values and properties: the algorithms and instruction sets they run on, one
// call on guarded memory, and comparison of its results, bit for bit or by the accuracy rule. All
// in this header, as it needs GoogleTest and the library beside it must not.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "attentile/attention.h"
#include "conformance/call.h"
#include "conformance/case.h"
#include "conformance/crash_report.h"
#include "conformance/oracle.h"

namespace attentile::conformance {

// An algorithm on an instruction set.
struct Target {
  Algorithm algorithm = Algorithm::kReference;
  Isa isa = Isa::kAuto;
};

inline std::vector<int64_t> coordinates_of(const std::vector<int64_t>& shape, int64_t flat) {
  std::vector<int64_t> at(shape.size());
  for (size_t axis = shape.size(); axis-- > 0;) {
    at[axis] = flat % shape[axis];
    flat /= shape[axis];
  }
  return at;
}

struct NamedPair {
  const char* name;
  const DenseTensor* expected;
  const DenseTensor* got;
};

// standard, flash1 and flash2 on every instruction set of this machine, and the reference.
inline std::vector<Target> targets() {
  std::vector<Target> list = {{Algorithm::kReference, Isa::kAuto}};
  for (Isa isa : available_isas()) {
    for (Algorithm algorithm : {Algorithm::kStandard, Algorithm::kFlash1, Algorithm::kFlash2}) {
      list.push_back({algorithm, isa});
    }
  }
  return list;
}

inline std::string name_of(const Target& target) {
  if (target.algorithm == Algorithm::kReference) return "reference";
  return std::string(to_string(target.algorithm)) + "_" + to_string(target.isa);
}

// A small problem with several key tiles, seeded; the caller adds features.
inline Case base_case(DType dtype) {
  Case c;
  c.name = "edge";
  c.seed = 20260101;
  c.dtype = dtype;
  c.batch = 2;
  c.seqlen_q = 37;
  c.seqlen_k = 75;
  c.num_heads_q = 4;
  c.num_heads_kv = 2;
  c.head_dim = 20;
  c.head_dim_v = 12;
  c.backward = true;
  c.fast_memory_bytes = 4096;
  c.num_threads = 2;
  return c;
}

// Forward and, if the case says so, backward, on guarded memory with random strides. Fails the test
// when the call fails or touches what it must not.
inline Results run_call(const Case& c, const Values& values, const Target& target) {
  install_crash_report();
  set_current_cell("edge/" + name_of(target));
  const Results shapes = empty_results(c, values);
  PlacedCall call(c, values, shapes, c.seed);
  AttentionOptions options = options_of(c);
  options.algorithm = target.algorithm;
  options.isa = target.isa;
  ExecutionContext context;
  context.num_threads = c.num_threads;
  Status status = attention_forward(call.inputs(), call.outputs(), options, context);
  EXPECT_TRUE(status.ok()) << "forward: " << status.message();
  EXPECT_EQ(call.damage(), "") << "forward";
  if (c.backward && status.ok()) {
    call.freeze_outputs();
    status = attention_backward(call.inputs(), call.outputs(), call.gradients(), options, context);
    EXPECT_TRUE(status.ok()) << "backward: " << status.message();
    EXPECT_EQ(call.damage(), "") << "backward";
  }
  set_current_cell({});
  return call.results();
}

// Whether the element (row-major coordinates) of a named result may differ.
using MayDiffer = std::function<bool(const std::string& output, const std::vector<int64_t>& at)>;

// Compares all results bit for bit, except where may_differ says so.
inline ::testing::AssertionResult same_bits(const Results& expected, const Results& got,
                                            const MayDiffer& may_differ = {}) {
  const NamedPair pairs[] = {
      {"out", &expected.out, &got.out},       {"lse", &expected.lse, &got.lse},
      {"keep", &expected.keep, &got.keep},    {"dq", &expected.dq, &got.dq},
      {"dk", &expected.dk, &got.dk},          {"dv", &expected.dv, &got.dv},
      {"dbias", &expected.dbias, &got.dbias}, {"dsink", &expected.dsink, &got.dsink}};
  for (const NamedPair& pair : pairs) {
    if (!pair.expected->present) continue;
    if (pair.expected->shape != pair.got->shape) {
      return ::testing::AssertionFailure() << pair.name << ": shapes differ";
    }
    if (pair.expected->bytes == pair.got->bytes) continue;
    const size_t item = static_cast<size_t>(size_of(pair.expected->dtype));
    for (int64_t flat = 0; flat < pair.expected->count(); ++flat) {
      const size_t offset = static_cast<size_t>(flat) * item;
      if (std::memcmp(pair.expected->bytes.data() + offset, pair.got->bytes.data() + offset,
                      item) == 0) {
        continue;
      }
      if (may_differ && may_differ(pair.name, coordinates_of(pair.expected->shape, flat))) continue;
      return ::testing::AssertionFailure()
             << pair.name << attentile::testing::coordinates_text(pair.expected->shape, flat)
             << " is " << pair.got->get(flat) << ", expected the bits of "
             << pair.expected->get(flat);
    }
  }
  return ::testing::AssertionSuccess();
}

// Judges by the oracle and the accuracy rule.
inline ::testing::AssertionResult accurate(const Case& c, const Values& values,
                                           const Results& results) {
  Oracle& oracle = oracle_of(c, values);
  if (!oracle.status.ok()) return ::testing::AssertionFailure() << oracle.status.message();
  const Judgement judgement = judge(c, oracle, results);
  if (judgement.failure.empty()) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << judgement.failure;
}

inline bool all_zero(const DenseTensor& tensor) {
  for (int64_t i = 0; i < tensor.count(); ++i) {
    if (!(tensor.get(i) == 0.0)) return false;
  }
  return true;
}

inline bool all_finite(const DenseTensor& tensor) {
  for (int64_t i = 0; i < tensor.count(); ++i) {
    if (!std::isfinite(tensor.get(i))) return false;
  }
  return true;
}

// Runs body once per target, each with its name in the failure's trace.
inline void for_each_target(const std::function<void(const Target&)>& body) {
  for (const Target& target : targets()) {
    SCOPED_TRACE(name_of(target));
    body(target);
  }
}

}  // namespace attentile::conformance

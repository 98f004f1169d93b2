// SPDX-License-Identifier: Apache-2.0
// The accuracy rule must catch what it is there for: each test breaks a right answer in one way and
// expects the verdict to say so. Right answers are those of standard attention itself.
#include "reference/accuracy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "dtype.h"
#include "reference/random_problem.h"
#include "reference/rounded_standard.h"

namespace attentile::reference {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

// A causal GQA problem in `dtype` with every kind of output, its oracle and its yardstick, and
// output arrays that hold the yardstick's values.
struct Judged {
  explicit Judged(DType dtype, int64_t seqlen = 33) : test({2, seqlen, seqlen, 4, 2, 24, 16}) {
    Random random(17);
    test.fill(&random);
    test.add_dlse(&random);
    test.add_sink(&random);
    test.add_bias(&random, 1, 4, seqlen, seqlen);
    Problem& p = test.problem;
    p.dtype = dtype;
    p.window_right = 0;
    store(&p.q, test.q, &inputs[0]);
    store(&p.k, test.k, &inputs[1]);
    store(&p.v, test.v, &inputs[2]);
    store(&p.dout, test.dout, &inputs[3]);
    store(&p.bias, test.bias, &inputs[4]);
    p.dbias.dtype = dtype;
    EXPECT_TRUE(compute_exact(p, {}, &exact).ok());
    EXPECT_TRUE(compute_standard(p, {}, &standard).ok());
    const DType wide = dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
    place(&p.out, standard.out, dtype, &outputs[0]);
    place(&p.lse, standard.lse, wide, &outputs[1]);
    place(&p.dq, standard.dq, dtype, &outputs[2]);
    place(&p.dk, standard.dk, dtype, &outputs[3]);
    place(&p.dv, standard.dv, dtype, &outputs[4]);
    place(&p.dbias, standard.dbias, dtype, &outputs[5]);
    place(&p.dsink, standard.dsink, DType::kFloat32, &outputs[6]);
  }

  // Rounds the values to the problem's dtype and points the array at them.
  void store(Array4* array, const std::vector<double>& values, std::vector<char>* memory) {
    array->dtype = test.problem.dtype;
    memory->resize(values.size() * static_cast<size_t>(size_of(array->dtype)));
    for (size_t n = 0; n < values.size(); ++n) {
      store_from_double(memory->data(), array->dtype, static_cast<int64_t>(n), values[n]);
    }
    array->data = memory->data();
  }
  void place(Array4* array, const ExactArray& values, DType dtype, std::vector<char>* memory) {
    const int64_t* s = values.shape;
    *array = array4(nullptr, dtype, s[1] * s[2] * s[3], s[2] * s[3], s[3], 1);
    memory->resize(values.value.size() * static_cast<size_t>(size_of(dtype)));
    for (size_t n = 0; n < values.value.size(); ++n) {
      store_from_double(memory->data(), dtype, static_cast<int64_t>(n), values.value[n]);
    }
    array->data = memory->data();
  }

  std::vector<Verdict> verdicts(const AccuracyOptions& options = {}) const {
    std::vector<Verdict> all = check_forward(test.problem, exact, standard, options);
    for (Verdict& v : check_backward(test.problem, exact, standard, options)) all.push_back(v);
    return all;
  }
  Verdict verdict(const std::string& name) const {
    for (const Verdict& v : verdicts()) {
      if (v.name == name) return v;
    }
    ADD_FAILURE() << name;
    return {};
  }
  const Array4& array(const std::string& name) const {
    const Problem& p = test.problem;
    if (name == "out") return p.out;
    if (name == "lse") return p.lse;
    if (name == "dq") return p.dq;
    if (name == "dk") return p.dk;
    if (name == "dv") return p.dv;
    return name == "dbias" ? p.dbias : p.dsink;
  }

  const ExactArray& oracle(const std::string& name) const {
    if (name == "out") return exact.out;
    if (name == "lse") return exact.lse;
    if (name == "dq") return exact.dq;
    if (name == "dk") return exact.dk;
    if (name == "dv") return exact.dv;
    return name == "dbias" ? exact.dbias : exact.dsink;
  }

  TestProblem test;
  std::vector<char> inputs[5], outputs[7];
  ExactResult exact, standard;
};

const char* const kOutputs[] = {"out", "lse", "dq", "dk", "dv", "dbias", "dsink"};
constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64};

TEST(Accuracy, StandardAttentionItselfPasses) {
  for (const DType dtype : kDTypes) {
    const Judged judged(dtype);
    const std::vector<Verdict> verdicts = judged.verdicts({.normal_inputs = true});
    EXPECT_EQ(verdicts.size(), 7u);
    EXPECT_TRUE(all_pass(verdicts));
    for (const Verdict& v : verdicts) EXPECT_TRUE(v.passed) << to_string(dtype) << to_text(v);
  }
}

TEST(Accuracy, OneNanFails) {
  for (const DType dtype : kDTypes) {
    for (const char* name : kOutputs) {
      const Judged judged(dtype);
      store_from_double(judged.array(name).data, judged.array(name).dtype, 3, NAN);
      const Verdict v = judged.verdict(name);
      EXPECT_FALSE(v.passed) << name;
      EXPECT_EQ(v.failures, 1);
      EXPECT_EQ(v.max_error, kInf);
      EXPECT_TRUE(std::isnan(v.got));
    }
  }
}

TEST(Accuracy, OneInfinityFails) {
  for (const char* name : kOutputs) {
    const Judged judged(DType::kFloat16);
    store_from_double(judged.array(name).data, judged.array(name).dtype, 2, -kInf);
    EXPECT_FALSE(judged.verdict(name).passed) << name;
  }
}

TEST(Accuracy, OneWrongElementFailsAndIsNamed) {
  for (const DType dtype : kDTypes) {
    for (const char* name : kOutputs) {
      const Judged judged(dtype);
      const Array4& array = judged.array(name);
      const int64_t index = 1;
      const double right = load_as_double(array.data, array.dtype, index);
      const Verdict before = judged.verdict(name);
      store_from_double(array.data, array.dtype, index, right + 0.3 * before.max_reference);
      const Verdict v = judged.verdict(name);
      EXPECT_FALSE(v.passed) << name;
      EXPECT_EQ(v.failures, 1);
      EXPECT_NE(v.reason.find(name), std::string::npos) << v.reason;
      EXPECT_NEAR(v.got, right + 0.3 * before.max_reference, 0.01 * before.max_reference);
    }
  }
}

// One element moved to 3 (forward) or 4 (gradients) times standard attention's largest error, plus
// twice the floor: just outside. At 1.5 times it still passes.
TEST(Accuracy, ThreeTimesTheErrorFails) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    for (const char* name : kOutputs) {
      const Judged judged(dtype);
      const Array4& array = judged.array(name);
      const Verdict before = judged.verdict(name);
      const double exact = judged.oracle(name).value[1];
      const double factor = name[0] == 'd' ? 4 : 3;
      const double floor = array.dtype == DType::kFloat32 ? 1e-5 : 0x1p-6;
      store_from_double(array.data, array.dtype, 1, exact + 1.5 * before.standard_error);
      EXPECT_TRUE(judged.verdict(name).passed) << to_text(judged.verdict(name));
      store_from_double(array.data, array.dtype, 1,
                        exact + factor * before.standard_error + floor * before.max_reference);
      EXPECT_FALSE(judged.verdict(name).passed) << to_text(judged.verdict(name));
    }
  }
}

TEST(Accuracy, ZeroedRowFails) {
  for (const DType dtype : kDTypes) {
    const Judged judged(dtype);
    for (int64_t c = 0; c < 16; ++c) store_from_double(judged.array("out").data, dtype, c, 0);
    EXPECT_FALSE(judged.verdict("out").passed);
  }
}

TEST(Accuracy, MissingRescaleAndOffByOneMaskFail) {
  const Judged judged(DType::kBFloat16);
  Problem other = judged.test.problem;
  other.window_right = 1;
  ExactResult wrong;
  ASSERT_TRUE(compute_standard(other, {}, &wrong).ok());
  const std::vector<Verdict> verdicts = [&] {
    Judged copy(DType::kBFloat16);
    copy.place(&copy.test.problem.out, wrong.out, DType::kBFloat16, &copy.outputs[0]);
    copy.place(&copy.test.problem.dv, wrong.dv, DType::kBFloat16, &copy.outputs[4]);
    return copy.verdicts();
  }();
  EXPECT_FALSE(verdicts[0].passed);
  EXPECT_FALSE(verdicts[4].passed);
}

TEST(Accuracy, HiddenRowsMustBeExactlyRight) {
  TestProblem test({1, 4, 2, 1, 1, 4, 4});  // queries 0 and 1 see nothing
  Random random(2);
  test.fill(&random);
  Problem& p = test.problem;
  p.window_right = 0;
  p.backward = false;
  ExactResult exact = test.exact_forward();
  std::vector<double> out = exact.out.value, lse = exact.lse.value;
  p.out = array4(out.data(), DType::kFloat64, 16, 4, 4, 1);
  p.lse = array4(lse.data(), DType::kFloat64, 4, 4, 1, 0);
  EXPECT_TRUE(all_pass(check_forward(p, exact, exact, {})));
  lse[0] = -1e30;
  EXPECT_FALSE(check_forward(p, exact, exact, {})[1].passed);
  lse[0] = NAN;
  EXPECT_FALSE(check_forward(p, exact, exact, {})[1].passed);
  lse[0] = -kInf;
  out[0] = 1e-3;
  EXPECT_FALSE(check_forward(p, exact, exact, {})[0].passed);
}

TEST(Accuracy, NanMustBeWhereTheOracleHasIt) {
  TestProblem test({1, 3, 3, 1, 1, 2, 2});
  Random random(2);
  test.fill(&random);
  test.problem.window_right = 0;
  test.v[2 * 1] = NAN;  // key 1, column 0
  const ExactResult exact = test.exact();
  Problem p = test.problem;
  std::vector<double> out = exact.out.value, dq = exact.dq.value;
  p.out = array4(out.data(), DType::kFloat64, 6, 2, 2, 1);
  p.dq = array4(dq.data(), DType::kFloat64, 6, 2, 2, 1);
  EXPECT_TRUE(check_forward(p, exact, exact, {})[0].passed);
  out[2] = 1;  // query 1, column 0 must be NaN
  EXPECT_FALSE(check_forward(p, exact, exact, {})[0].passed);
  out = exact.out.value;
  out[3] = NAN;  // query 1, column 1 must not
  EXPECT_FALSE(check_forward(p, exact, exact, {})[0].passed);
  // Gradients: NaN may or may not reach rows that see it, and no others.
  EXPECT_TRUE(check_backward(p, exact, exact, {})[0].passed);
  dq[2] = 5;
  EXPECT_TRUE(check_backward(p, exact, exact, {})[0].passed);
  dq[0] = NAN;
  EXPECT_FALSE(check_backward(p, exact, exact, {})[0].passed);
}

TEST(Accuracy, ExactTierWantsEveryBit) {
  TestProblem test({1, 2, 4, 1, 1, 1, 3});
  Random random(2);
  test.fill(&random);
  Problem& p = test.problem;
  p.dtype = DType::kFloat32;
  p.backward = false;
  for (double& x : test.q) x = 0;  // equal weights, a power of two in number
  for (double& x : test.v) x = static_cast<double>(random.integer(-8, 8));
  const ExactResult exact = test.exact_forward();
  std::vector<float> out(exact.out.value.begin(), exact.out.value.end());
  std::vector<float> lse(exact.lse.value.begin(), exact.lse.value.end());
  p.out = array4(out.data(), DType::kFloat32, 6, 3, 3, 1);
  p.lse = array4(lse.data(), DType::kFloat32, 2, 2, 1, 0);
  const AccuracyOptions options = {.tier = Tier::kExact};
  EXPECT_TRUE(all_pass(check_forward(p, exact, exact, options)));
  out[4] = std::nextafter(out[4], 100.0f);
  EXPECT_FALSE(check_forward(p, exact, exact, options)[0].passed);
  lse[0] = std::nextafter(lse[0], 100.0f);
  EXPECT_TRUE(check_forward(p, exact, exact, options)[1].passed);
  lse[0] = std::nextafter(std::nextafter(lse[0], 100.0f), 100.0f);
  EXPECT_FALSE(check_forward(p, exact, exact, options)[1].passed);
}

TEST(Accuracy, ExactTierWantsEveryBitOfDv) {
  TestProblem test({1, 4, 4, 1, 1, 1, 3});
  Random random(2);
  test.fill(&random);
  Problem& p = test.problem;
  p.dtype = DType::kFloat32;
  for (double& x : test.q) x = 0;  // equal weights, a power of two in number
  for (double& x : test.dout) x = static_cast<double>(random.integer(-8, 8));
  const ExactResult exact = test.exact();
  std::vector<float> dv(exact.dv.value.begin(), exact.dv.value.end());
  p.dv = array4(dv.data(), DType::kFloat32, 12, 3, 3, 1);
  const AccuracyOptions options = {.tier = Tier::kExact};
  ASSERT_EQ(check_backward(p, exact, exact, options).size(), 1u);
  EXPECT_TRUE(all_pass(check_backward(p, exact, exact, options)));
  dv[4] = std::nextafter(dv[4], 100.0f);
  EXPECT_FALSE(check_backward(p, exact, exact, options)[0].passed);
  EXPECT_TRUE(check_backward(p, exact, exact, {})[0].passed);
}

TEST(Accuracy, CeilingHoldsOnNormalInputs) {
  Judged judged(DType::kBFloat16);
  // A yardstick that is far off would allow anything; the ceiling does not.
  for (double& value : judged.standard.out.value) value += 1;
  const Array4& array = judged.array("out");
  store_from_double(array.data, array.dtype, 5, judged.exact.out.value[5] + 0.5);
  EXPECT_TRUE(judged.verdicts()[0].passed);
  EXPECT_FALSE(judged.verdicts({.normal_inputs = true})[0].passed);
}

// A yardstick without error leaves the floor alone, in units of the arithmetic whatever the dtype.
TEST(Accuracy, FloorIsThatOfTheArithmetic) {
  const double units[] = {0x1p-24, 0x1p-24, 0x1p-24, 0x1p-53};
  for (int n = 0; n < 4; ++n) {
    Judged judged(kDTypes[n]);
    judged.standard.lse = judged.exact.lse;
    Problem& p = judged.test.problem;
    judged.place(&p.lse, judged.exact.lse, p.lse.dtype, &judged.outputs[1]);
    const double floor = 4 * units[n] * judged.exact.lse.condition[5];
    for (const double share : {0.9, 1.1}) {
      store_from_double(p.lse.data, p.lse.dtype, 5, judged.exact.lse.value[5] + share * floor);
      EXPECT_EQ(judged.verdicts()[1].passed, share < 1) << to_string(kDTypes[n]) << share;
    }
  }
}

TEST(Accuracy, CaseThatCouldNotFailIsMistrusted) {
  Judged judged(DType::kBFloat16);
  for (double& value : judged.standard.dk.value) value += 100;
  const std::vector<Verdict> verdicts = judged.verdicts();
  EXPECT_TRUE(verdicts[3].passed);
  EXPECT_TRUE(verdicts[3].mistrusted);
  EXPECT_FALSE(all_pass(verdicts));
  EXPECT_NE(to_text(verdicts[3]).find("MISTRUSTED"), std::string::npos);
}

TEST(Accuracy, TextNamesTheOutputAndTheVerdict) {
  const Judged judged(DType::kFloat32);
  const std::string line = to_text(judged.verdict("dq"));
  EXPECT_EQ(line.rfind("dq ", 0), 0u);
  EXPECT_NE(line.find("pass"), std::string::npos);
  EXPECT_EQ(line.find('\n'), std::string::npos);
}

TEST(Accuracy, CheckRunsOracleAndYardstick) {
  const Judged judged(DType::kFloat32);
  const Result<std::vector<Verdict>> verdicts = check(judged.test.problem, {}, {});
  ASSERT_TRUE(verdicts.ok());
  EXPECT_EQ(verdicts->size(), 5u);
  EXPECT_TRUE(all_pass(*verdicts));
}

}  // namespace
}  // namespace attentile::reference

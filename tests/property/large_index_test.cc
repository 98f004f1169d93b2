// SPDX-License-Identifier: Apache-2.0
// Elements past 2^31 and 2^32 of their tensor, reached by strides in address space that has no
// memory behind it: the results have the bits of the same values laid out contiguously. Every
// tensor on its own and all at once, every axis, forward and backward.
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "conformance/call_testing.h"
#include "property/slices.h"
#include "support/guarded_buffer.h"

namespace attentile::property {
namespace {

using conformance::for_each_target;
using conformance::same_bits;
using conformance::Target;
using testing::GuardedBuffer;

// A copy of a contiguous tensor whose elements along one axis lie `step` elements apart.
class SparseTensor {
 public:
  SparseTensor(const DenseTensor& dense, int axis, int64_t step) : dense_(dense) {
    view_ = dense.view();
    const int64_t item = size_of(dense.dtype);
    const int64_t steps = dense.shape[static_cast<size_t>(axis)] - 1;
    const int64_t magnitude = step < 0 ? -step : step;
    buffer_ = GuardedBuffer::sparse((steps * magnitude + dense.count()) * item);
    if (!buffer_.valid()) return;
    view_.stride[axis] = step;
    view_.data = buffer_.data() + (step < 0 ? steps * magnitude * item : 0);
    for_each([&](char* address, int64_t flat) {
      std::memcpy(address, dense_.bytes.data() + flat * item, static_cast<size_t>(item));
    });
  }

  bool valid() const { return buffer_.valid(); }
  const TensorView& view() const { return view_; }
  DenseTensor read() {
    const int64_t item = size_of(dense_.dtype);
    for_each([&](char* address, int64_t flat) {
      std::memcpy(dense_.bytes.data() + flat * item, address, static_cast<size_t>(item));
    });
    return dense_;
  }

 private:
  template <class Visit>
  void for_each(Visit visit) {
    for (int64_t flat = 0; flat < dense_.count(); ++flat) {
      int64_t rest = flat;
      int64_t offset = 0;
      for (int axis = view_.rank - 1; axis >= 0; --axis) {
        offset += rest % view_.shape[axis] * view_.stride[axis];
        rest /= view_.shape[axis];
      }
      visit(static_cast<char*>(view_.data) + offset * size_of(view_.dtype), flat);
    }
  }

  DenseTensor dense_;
  TensorView view_;
  GuardedBuffer buffer_;
};

Case small_case() {
  Case c = conformance::base_case(DType::kFloat32);
  c.seqlen_q = 3;
  c.seqlen_k = 5;
  c.head_dim = 9;
  c.head_dim_v = 6;
  c.causal = true;
  c.bias = {true, DType::kFloat32, {c.batch, c.num_heads_q, c.seqlen_q, c.seqlen_k}};
  c.mask = {true, DType::kUInt8, {c.batch, c.num_heads_q, c.seqlen_q, c.seqlen_k}};
  c.dbias = true;
  c.dlse = true;
  return c;
}

struct NamedView {
  const char* name;
  const DenseTensor* dense;
  TensorView* view;
};

struct Call {
  AttentionInputs inputs;
  AttentionOutputs outputs;
  AttentionGradients gradients;
};

Status run_both(const Case& c, const Call& call, const Target& target) {
  AttentionOptions options = conformance::options_of(c);
  options.algorithm = target.algorithm;
  options.isa = target.isa;
  ExecutionContext context;
  context.num_threads = 2;
  Status status = attention_forward(call.inputs, call.outputs, options, context);
  if (!status.ok()) return status;
  return attention_backward(call.inputs, call.outputs, call.gradients, options, context);
}

// Runs the case with the tensors that `axis_of` names moved apart along that axis.
void expect_same_bits(const Case& c, const Values& values, const Target& target,
                      const std::map<std::string, int>& axis_of, int64_t step) {
  Results expected = conformance::empty_results(c, values);
  Results got = expected;
  Call plain{conformance::inputs_of(values), conformance::outputs_of(expected),
             conformance::gradients_of(values, expected)};
  Status status = run_both(c, plain, target);
  ASSERT_TRUE(status.ok()) << status.message();
  Call call{conformance::inputs_of(values), conformance::outputs_of(got),
            conformance::gradients_of(values, got)};
  const NamedView all[] = {{"q", &values.q, &call.inputs.q},
                           {"k", &values.k, &call.inputs.k},
                           {"v", &values.v, &call.inputs.v},
                           {"bias", &values.bias, &call.inputs.bias},
                           {"mask", &values.mask, &call.inputs.mask},
                           {"dout", &values.dout, &call.gradients.dout},
                           {"dlse", &values.dlse, &call.gradients.dlse},
                           {"out", &got.out, &call.outputs.out},
                           {"lse", &got.lse, &call.outputs.lse},
                           {"dq", &got.dq, &call.gradients.dq},
                           {"dk", &got.dk, &call.gradients.dk},
                           {"dv", &got.dv, &call.gradients.dv},
                           {"dbias", &got.dbias, &call.gradients.dbias}};
  std::map<std::string, SparseTensor> sparse;
  for (const NamedView& named : all) {
    const auto found = axis_of.find(named.name);
    if (found == axis_of.end()) continue;
    const int axis = found->second % named.dense->rank();
    const auto placed = sparse.emplace(named.name, SparseTensor(*named.dense, axis, step)).first;
    if (!placed->second.valid()) GTEST_SKIP() << "this system refuses the address space";
    *named.view = placed->second.view();
  }
  status = run_both(c, call, target);
  ASSERT_TRUE(status.ok()) << status.message();
  DenseTensor* outputs[] = {&got.out, &got.lse, &got.dq, &got.dk, &got.dv, &got.dbias};
  const char* names[] = {"out", "lse", "dq", "dk", "dv", "dbias"};
  for (size_t n = 0; n < std::size(names); ++n) {
    const auto found = sparse.find(names[n]);
    if (found != sparse.end()) *outputs[n] = found->second.read();
  }
  EXPECT_TRUE(same_bits(expected, got));
}

const char* const kNames[] = {"q",   "k",   "v",  "bias", "mask", "dout", "dlse",
                              "out", "lse", "dq", "dk",   "dv",   "dbias"};

// From 2^30 + 1 the third element lies past 2^31 and the fifth past 2^32; 2^32 + 1 is past both.
constexpr int64_t kSteps[] = {(int64_t{1} << 30) + 1, (int64_t{1} << 32) + 1,
                              -((int64_t{1} << 31) + 1)};

class LargeIndex : public ::testing::TestWithParam<const char*> {};

TEST_P(LargeIndex, OneTensorAlongEachAxis) {
  const Case c = small_case();
  const Values values = conformance::make_values(c);
  for_each_target([&](const Target& target) {
    for (int axis = 0; axis < 4; ++axis) {
      for (int64_t step : kSteps) {
        SCOPED_TRACE("axis " + std::to_string(axis) + " step " + std::to_string(step));
        expect_same_bits(c, values, target, {{GetParam(), axis}}, step);
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Property, LargeIndex, ::testing::ValuesIn(kNames),
                         [](const auto& parameter) { return std::string(parameter.param); });

TEST(LargeIndex, AllTensorsAtOnce) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat64}) {
    Case c = small_case();
    c.dtype = dtype;
    const Values values = conformance::make_values(c);
    std::map<std::string, int> axis_of;
    for (size_t n = 0; n < std::size(kNames); ++n) axis_of[kNames[n]] = static_cast<int>(n % 4);
    for_each_target([&](const Target& target) {
      expect_same_bits(c, values, target, axis_of, (int64_t{1} << 31) + 1);
    });
  }
}

TEST(LargeIndex, PagesFarApart) {
  Case c = conformance::base_case(DType::kBFloat16);
  c.backward = false;
  c.seqlen_q = 3;
  c.page_size = 2;
  c.num_pages = 5;
  c.max_pages = 2;
  c.seqused_k = {4, 3};
  c.seqlen_k = 4;
  c.block_table = {4, 0, 3, 2};
  const Values values = conformance::make_values(c);
  for_each_target([&](const Target& target) {
    AttentionOptions options = conformance::options_of(c);
    options.algorithm = target.algorithm;
    options.isa = target.isa;
    Results expected = conformance::empty_results(c, values);
    Results got = expected;
    AttentionInputs inputs = conformance::inputs_of(values);
    ASSERT_TRUE(attention_forward(inputs, conformance::outputs_of(expected), options).ok());
    const SparseTensor k(values.k, 0, (int64_t{1} << 31) + 3);
    const SparseTensor v(values.v, 0, (int64_t{1} << 32) + 5);
    if (!k.valid() || !v.valid()) GTEST_SKIP() << "this system refuses the address space";
    inputs.k = k.view();
    inputs.v = v.view();
    const Status status = attention_forward(inputs, conformance::outputs_of(got), options);
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_TRUE(same_bits(expected, got));
  });
}

}  // namespace
}  // namespace attentile::property

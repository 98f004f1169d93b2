// SPDX-License-Identifier: Apache-2.0
// A device whose passes are over when they return asks the context's poll meanwhile.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "attentile/attention.h"
#include "device/device_array.h"
#include "device/emulated.h"

namespace attentile::cuda::test {
namespace {

constexpr int64_t kSeqlen = 256;
constexpr int64_t kHeads = 3;
constexpr int64_t kHeadDim = 64;
constexpr int64_t kBytes = kSeqlen * kHeads * kHeadDim * 2;

TensorView view_of(const DeviceArray& array) {
  TensorView view =
      contiguous_view(array.memory(), DType::kFloat16, {1, kSeqlen, kHeads, kHeadDim});
  view.device = Device::kCuda;
  return view;
}

// Both passes, on arrays of the device.
class DevicePoll : public ::testing::Test {
 protected:
  DevicePoll() {
    int seed = 1;
    for (DeviceArray* input : {&q_, &k_, &v_, &dout_}) input->fill(seed++);
    outputs_.lse = contiguous_view(lse_.memory(), DType::kFloat32, {1, kHeads, kSeqlen});
    outputs_.lse.device = Device::kCuda;
    context_.poll = [](void* test, double fraction) {
      auto* self = static_cast<DevicePoll*>(test);
      self->fractions_.push_back(fraction);
      return fraction < self->until_ ? 0 : 7;
    };
    context_.poll_data = this;
  }

  Status run(bool backward) {
    return backward ? attention_backward(inputs_, outputs_, gradients_, {}, context_)
                    : attention_forward(inputs_, outputs_, {}, context_);
  }
  std::vector<std::vector<char>> results() const {
    return {out_.bytes(), lse_.bytes(), dq_.bytes(), dk_.bytes(), dv_.bytes()};
  }

  // The first member, so that it is done first.
  bool emulated_ = (use_emulated_backend(), true);
  DeviceArray q_{kBytes}, k_{kBytes}, v_{kBytes}, out_{kBytes}, lse_{kSeqlen * kHeads * 4};
  DeviceArray dout_{kBytes}, dq_{kBytes}, dk_{kBytes}, dv_{kBytes};
  AttentionInputs inputs_ = {.q = view_of(q_), .k = view_of(k_), .v = view_of(v_)};
  AttentionOutputs outputs_ = {.out = view_of(out_)};
  AttentionGradients gradients_ = {
      .dout = view_of(dout_), .dq = view_of(dq_), .dk = view_of(dk_), .dv = view_of(dv_)};
  ExecutionContext context_;
  std::vector<double> fractions_;
  double until_ = 2;
};

TEST_F(DevicePoll, HearsHowFarAPassIs) {
  for (const bool backward : {false, true}) {
    fractions_.clear();
    const Status status = run(backward);
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_GE(fractions_.size(), backward ? 8u : 4u);
    EXPECT_TRUE(std::is_sorted(fractions_.begin(), fractions_.end()));
    EXPECT_EQ(fractions_.front(), 0);
    EXPECT_LE(fractions_.back(), 1);
    EXPECT_NE(std::find_if(fractions_.begin(), fractions_.end(),
                           [](double f) { return f > 0.2 && f < 0.8; }),
              fractions_.end());
  }
}

TEST_F(DevicePoll, EndsAPassAndTheNextIsWhole) {
  for (const bool backward : {false, true}) ASSERT_TRUE(run(backward).ok());
  const auto expected = results();
  for (const bool backward : {false, true}) {
    until_ = 0.4;
    fractions_.clear();
    const Status status = run(backward);
    EXPECT_EQ(status.code(), StatusCode::kCancelled);
    EXPECT_TRUE(status.message().starts_with("poll: returned 7, so the call was cancelled at "))
        << status.message();
    EXPECT_LT(fractions_.back(), 0.8);  // nobody was asked again
    EXPECT_EQ(
        std::count_if(fractions_.begin(), fractions_.end(), [&](double f) { return f >= until_; }),
        1);
    until_ = 2;
    ASSERT_TRUE(run(backward).ok());
  }
  EXPECT_EQ(results(), expected);
}

TEST_F(DevicePoll, MayThrow) {
  int asked = 0;
  context_.poll = [](void* count, double) -> int {
    ++*static_cast<int*>(count);
    throw 1;
  };
  context_.poll_data = &asked;
  const Status status = run(false);
  EXPECT_EQ(status.code(), StatusCode::kInternal);
  EXPECT_EQ(status.message(), "call: an exception left poll");
  context_ = {};
  EXPECT_TRUE(run(false).ok());
  EXPECT_EQ(asked, 1);
}

TEST_F(DevicePoll, MayNotCallTheEmulator) {
  Status inner;
  context_.poll = [](void* status, double) {
    Sentence sentence;
    void* memory = nullptr;
    const int32_t code = DeviceArray::table().allocate(64, &memory, &sentence);
    *static_cast<Status*>(status) = {static_cast<StatusCode>(code), sentence.text};
    return 0;
  };
  context_.poll_data = &inner;
  EXPECT_TRUE(run(false).ok());
  EXPECT_EQ(inner.code(), StatusCode::kUnsupported);
  EXPECT_EQ(inner.message(), "device: poll calls the emulator, which is at work");
}

}  // namespace
}  // namespace attentile::cuda::test

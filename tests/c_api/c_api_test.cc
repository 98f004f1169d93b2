// SPDX-License-Identifier: Apache-2.0
// What the C ABI adds to the C++ functions: struct sizes, last_error, plans, threads, poll and
// traffic passed through. Bad input is in tests/validate, in one table with C++.
#include "attentile/c_api.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "attentile/attention.h"
#include "c_api/c_api_c11_test.h"

namespace {

TEST(CApi, ForwardAndBackwardFromC) {
  EXPECT_STREQ(c11_forward_and_backward(), nullptr);
}
TEST(CApi, InitialisersFromC) {
  EXPECT_STREQ(c11_initialisers(), nullptr);
}
TEST(CApi, NamesFromC) {
  EXPECT_STREQ(c11_names(), nullptr);
}

// A causal call, [2, 32, 4, 16] with 2 KV heads.
class CApiCall : public testing::Test {
 protected:
  static constexpr int64_t kBatch = 2, kRows = 32, kHeads = 4, kHeadsKv = 2, kDim = 16;

  CApiCall() {
    q = tokens(&q_data, kHeads);
    k = tokens(&k_data, kHeadsKv);
    v = tokens(&v_data, kHeadsKv);
    out = tokens(&out_data, kHeads);
    dout = tokens(&dout_data, kHeads);
    dq = tokens(&dq_data, kHeads);
    dk = tokens(&dk_data, kHeadsKv);
    dv = tokens(&dv_data, kHeadsKv);
    lse_data.resize(kBatch * kHeads * kRows);
    lse.data = lse_data.data();
    lse.rank = 3;
    const int64_t shape[] = {kBatch, kHeads, kRows};
    const int64_t stride[] = {kHeads * kRows, kRows, 1};
    std::memcpy(lse.shape, shape, sizeof shape);
    std::memcpy(lse.stride, stride, sizeof stride);
    for (size_t i = 0; i < q_data.size(); ++i) {
      q_data[i] = static_cast<float>(i % 13) / 8 - 0.75f;
      dout_data[i] = static_cast<float>(i % 5) - 2;
    }
    for (size_t i = 0; i < k_data.size(); ++i) {
      k_data[i] = static_cast<float>(i % 11) / 8 - 0.5f;
      v_data[i] = static_cast<float>(i % 7) - 3;
    }
    inputs.q = &q;
    inputs.k = &k;
    inputs.v = &v;
    outputs.out = &out;
    outputs.lse = &lse;
    gradients.dout = &dout;
    gradients.dq = &dq;
    gradients.dk = &dk;
    gradients.dv = &dv;
    options.causal = 1;
  }

  static attentile_tensor tokens(std::vector<float>* data, int64_t heads) {
    data->resize(static_cast<size_t>(kBatch * kRows * heads * kDim));
    attentile_tensor t = ATTENTILE_TENSOR_INIT;
    t.data = data->data();
    t.rank = 4;
    const int64_t shape[] = {kBatch, kRows, heads, kDim};
    const int64_t stride[] = {kRows * heads * kDim, heads * kDim, kDim, 1};
    std::memcpy(t.shape, shape, sizeof shape);
    std::memcpy(t.stride, stride, sizeof stride);
    return t;
  }

  int32_t forward() { return attentile_attention_forward(&inputs, &outputs, &options, &context); }

  std::vector<float> q_data, k_data, v_data, out_data, dout_data, dq_data, dk_data, dv_data;
  std::vector<float> lse_data;
  attentile_tensor q, k, v, out, dout, dq, dk, dv;
  attentile_tensor lse = ATTENTILE_TENSOR_INIT;
  attentile_attention_inputs inputs = ATTENTILE_INPUTS_INIT;
  attentile_attention_outputs outputs = ATTENTILE_OUTPUTS_INIT;
  attentile_attention_gradients gradients = ATTENTILE_GRADIENTS_INIT;
  attentile_options options = ATTENTILE_OPTIONS_INIT;
  attentile_context context = ATTENTILE_CONTEXT_INIT;
};

TEST_F(CApiCall, EqualsTheCppCallBitForBit) {
  ASSERT_EQ(forward(), ATTENTILE_OK) << attentile_last_error();
  using attentile::contiguous_view;
  using attentile::DType;
  std::vector<float> expected(out_data.size());
  const attentile::AttentionInputs cpp = {
      .q = contiguous_view(q_data.data(), DType::kFloat32, {kBatch, kRows, kHeads, kDim}),
      .k = contiguous_view(k_data.data(), DType::kFloat32, {kBatch, kRows, kHeadsKv, kDim}),
      .v = contiguous_view(v_data.data(), DType::kFloat32, {kBatch, kRows, kHeadsKv, kDim})};
  const attentile::AttentionOutputs results = {
      .out = contiguous_view(expected.data(), DType::kFloat32, {kBatch, kRows, kHeads, kDim})};
  ASSERT_TRUE(attentile::attention_forward(cpp, results, {.causal = true}).ok());
  EXPECT_EQ(std::memcmp(expected.data(), out_data.data(), expected.size() * sizeof(float)), 0);
}

// A caller compiled before options had max_seqlen_q and max_seqlen_k: they are 0, whatever follows.
TEST_F(CApiCall, OptionsOfTheFirstVersion) {
  options.struct_size = 160;
  options.max_seqlen_q = options.max_seqlen_k = -7;
  EXPECT_EQ(attentile_attention_forward(&inputs, &outputs, &options, nullptr), ATTENTILE_OK)
      << attentile_last_error();
  options.struct_size = 159;
  EXPECT_EQ(attentile_attention_forward(&inputs, &outputs, &options, nullptr),
            ATTENTILE_INVALID_ARGUMENT);
  EXPECT_STREQ(attentile_last_error(),
               "options: struct_size is 159, but it must be in [160, 4096]");
  options = ATTENTILE_OPTIONS_INIT;
  options.max_seqlen_q = -7;
  EXPECT_EQ(attentile_attention_forward(&inputs, &outputs, &options, nullptr),
            ATTENTILE_INVALID_ARGUMENT);
  EXPECT_STREQ(attentile_last_error(), "max_seqlen_q: is -7, but it must be at least 0");
}

// A caller compiled before options had atomic_dq: the fields that it has count, whatever follows.
TEST_F(CApiCall, OptionsOfTheSecondVersion) {
  options.struct_size = 176;
  options.atomic_dq = options.reserved = -7;
  EXPECT_EQ(attentile_attention_forward(&inputs, &outputs, &options, nullptr), ATTENTILE_OK)
      << attentile_last_error();
  options.max_seqlen_k = -7;
  EXPECT_EQ(attentile_attention_forward(&inputs, &outputs, &options, nullptr),
            ATTENTILE_INVALID_ARGUMENT);
  EXPECT_STREQ(attentile_last_error(), "max_seqlen_k: is -7, but it must be at least 0");
}

// On the CPU atomic_dq changes no bit; any non-zero value is true.
TEST_F(CApiCall, AtomicDqChangesNothingOnTheCpu) {
  ASSERT_EQ(forward(), ATTENTILE_OK) << attentile_last_error();
  const auto backward = [&] {
    for (auto* data : {&dq_data, &dk_data, &dv_data}) std::fill(data->begin(), data->end(), -1.0F);
    EXPECT_EQ(attentile_attention_backward(&inputs, &outputs, &gradients, &options, &context),
              ATTENTILE_OK)
        << attentile_last_error();
    return std::vector{dq_data, dk_data, dv_data};
  };
  const auto ordered = backward();
  for (const int32_t word : {1, -1, 1 << 30}) {
    options.atomic_dq = word;
    EXPECT_EQ(backward(), ordered) << word;
  }
}

// A caller compiled against a later version: larger structs are fine while the rest is zero.
TEST_F(CApiCall, LargerStructsWithZeroTails) {
  struct {
    attentile_options known;
    int64_t later[3];
  } newer = {options, {0, 0, 0}};
  newer.known.struct_size = sizeof newer;
  EXPECT_EQ(attentile_attention_forward(&inputs, &outputs, &newer.known, nullptr), ATTENTILE_OK)
      << attentile_last_error();
  newer.later[2] = int64_t{1} << 40;
  EXPECT_EQ(attentile_attention_forward(&inputs, &outputs, &newer.known, nullptr),
            ATTENTILE_INVALID_ARGUMENT);
  EXPECT_STREQ(attentile_last_error(),
               "options: struct_size is 208 with byte 205 not 0, but this version knows only 184 "
               "bytes");
  struct {
    attentile_tensor known;
    int32_t later[2];
  } tensor = {q, {0, 5}};
  tensor.known.struct_size = sizeof tensor;
  inputs.q = &tensor.known;
  EXPECT_EQ(forward(), ATTENTILE_INVALID_ARGUMENT);
  EXPECT_STREQ(attentile_last_error(),
               "q: struct_size is 104 with byte 100 not 0, but this version knows only 96 bytes");
}

TEST_F(CApiCall, NullStructs) {
  const auto refused = [](int32_t code, const char* sentence) {
    EXPECT_EQ(code, ATTENTILE_INVALID_ARGUMENT);
    EXPECT_STREQ(attentile_last_error(), sentence);
  };
  refused(attentile_attention_forward(nullptr, &outputs, nullptr, nullptr),
          "inputs: is null, but it must be given");
  refused(attentile_attention_forward(&inputs, nullptr, nullptr, nullptr),
          "outputs: is null, but it must be given");
  refused(attentile_attention_backward(&inputs, &outputs, nullptr, nullptr, nullptr),
          "gradients: is null, but it must be given");
  refused(attentile_workspace_size(&inputs, &outputs, nullptr, nullptr, nullptr, nullptr),
          "bytes: is null, but it must be given");
  refused(attentile_plan(&inputs, &outputs, nullptr, nullptr, nullptr, nullptr),
          "plan: is null, but it must be given");
  EXPECT_EQ(attentile_attention_forward(&inputs, &outputs, nullptr, nullptr), ATTENTILE_OK);
}

TEST_F(CApiCall, LastErrorIsPerThreadAndCleared) {
  options.softcap = -1;
  EXPECT_EQ(forward(), ATTENTILE_INVALID_ARGUMENT);
  EXPECT_STREQ(attentile_last_error(), "softcap: is -1, but it must be at least 0 (0: none)");
  std::thread([] { EXPECT_STREQ(attentile_last_error(), ""); }).join();
  EXPECT_STRNE(attentile_last_error(), "");
  options.softcap = 0;
  EXPECT_EQ(forward(), ATTENTILE_OK);
  EXPECT_STREQ(attentile_last_error(), "");
}

TEST_F(CApiCall, PlansAndWorkspace) {
  for (attentile_tensor* t : {&q, &k, &v, &out, &lse}) t->data = nullptr;
  attentile_plan_info plan = ATTENTILE_PLAN_INFO_INIT;
  ASSERT_EQ(attentile_plan(&inputs, &outputs, nullptr, &options, nullptr, &plan), ATTENTILE_OK)
      << attentile_last_error();
  EXPECT_EQ(plan.struct_size, sizeof plan);
  EXPECT_EQ(plan.backward, 0);
  EXPECT_EQ(plan.algorithm, ATTENTILE_FLASH2);
  EXPECT_NE(plan.isa, ATTENTILE_ISA_AUTO);
  EXPECT_GE(plan.threads, 1);
  EXPECT_EQ(plan.visible_pairs, kBatch * kHeads * kRows * (kRows + 1) / 2);
  EXPECT_DOUBLE_EQ(plan.flops, 2.0 * 2 * kDim * static_cast<double>(plan.visible_pairs));
  ASSERT_NE(plan.notes, nullptr);
  EXPECT_NE(std::string(plan.notes), "");
  int64_t bytes = -1;
  ASSERT_EQ(attentile_workspace_size(&inputs, &outputs, nullptr, &options, nullptr, &bytes),
            ATTENTILE_OK);
  EXPECT_EQ(bytes, plan.workspace_bytes);
  for (attentile_tensor* t : {&dout, &dq, &dk, &dv}) t->data = nullptr;
  ASSERT_EQ(attentile_plan(&inputs, &outputs, &gradients, &options, nullptr, &plan), ATTENTILE_OK)
      << attentile_last_error();
  EXPECT_EQ(plan.backward, 1);
  plan.struct_size = 136;  // its first version
  plan.kernel = "kept";
  ASSERT_EQ(attentile_plan(&inputs, &outputs, nullptr, &options, nullptr, &plan), ATTENTILE_OK)
      << attentile_last_error();
  EXPECT_EQ(plan.backward, 0);
  EXPECT_STREQ(plan.kernel, "kept");
  plan.struct_size = 100;
  EXPECT_EQ(attentile_plan(&inputs, &outputs, nullptr, &options, nullptr, &plan),
            ATTENTILE_INVALID_ARGUMENT);
  EXPECT_STREQ(attentile_last_error(), "plan: struct_size is 100, but it must be in [136, 4096]");
}

TEST_F(CApiCall, WorkspaceOfTheCaller) {
  int64_t bytes = 0;
  ASSERT_EQ(attentile_workspace_size(&inputs, &outputs, nullptr, &options, &context, &bytes),
            ATTENTILE_OK);
  std::vector<char> workspace(static_cast<size_t>(bytes) + 1);
  context.workspace = workspace.data();
  context.workspace_bytes = bytes;
  EXPECT_EQ(forward(), ATTENTILE_OK) << attentile_last_error();
}

TEST_F(CApiCall, TrafficIsReturned) {
  attentile_traffic traffic = ATTENTILE_TRAFFIC_INIT;
  context.traffic = &traffic;
  ASSERT_EQ(forward(), ATTENTILE_OK) << attentile_last_error();
  EXPECT_GE(traffic.bytes_read, static_cast<int64_t>((q_data.size() + k_data.size()) * 4));
  EXPECT_GE(traffic.bytes_written, static_cast<int64_t>(out_data.size() * 4));
}

TEST_F(CApiCall, ExecutorAndPollArePassedOn) {
  struct Counts {
    int submitted = 0;
    std::vector<std::thread> threads;
  } counts;
  attentile_executor executor = ATTENTILE_EXECUTOR_INIT;
  executor.context = &counts;
  executor.num_threads = 3;
  executor.submit = [](void* data, void (*task)(void*), void* argument) {
    Counts* seen = static_cast<Counts*>(data);
    ++seen->submitted;
    seen->threads.emplace_back(task, argument);
    return 0;
  };
  context.executor = &executor;
  context.num_threads = 3;  // also where the machine has fewer
  EXPECT_EQ(forward(), ATTENTILE_OK) << attentile_last_error();
  for (std::thread& thread : counts.threads) thread.join();
  EXPECT_GE(counts.submitted, 1);  // the first helper may leave no work to the second
  EXPECT_LE(counts.submitted, 2);
}

TEST_F(CApiCall, AForkJoinExecutorIsPassedOn) {
  std::atomic<int> entered{0};
  attentile_executor executor = ATTENTILE_EXECUTOR_INIT;
  executor.context = &entered;
  executor.num_threads = 2;
  executor.parallel = [](void* data, int32_t num_threads, void (*task)(void*), void* argument) {
    static_cast<std::atomic<int>*>(data)->fetch_add(1);
    EXPECT_EQ(num_threads, 2);
    std::thread other(task, argument);
    task(argument);
    other.join();
  };
  context.executor = &executor;
  context.num_threads = 3;  // the executor's two are fewer
  EXPECT_EQ(forward(), ATTENTILE_OK) << attentile_last_error();
  EXPECT_GE(entered, 1);
}

// Without dropout everything is kept, and that is written.
TEST_F(CApiCall, KeepWithoutDropoutIsAllOnes) {
  std::vector<uint8_t> cells(static_cast<size_t>(kBatch * kHeads * kRows * kRows), 9);
  attentile_tensor keep = ATTENTILE_TENSOR_INIT;
  keep.data = cells.data();
  keep.dtype = ATTENTILE_UINT8;
  keep.rank = 4;
  const int64_t shape[] = {kBatch, kHeads, kRows, kRows};
  const int64_t stride[] = {kHeads * kRows * kRows, kRows * kRows, kRows, 1};
  std::memcpy(keep.shape, shape, sizeof shape);
  std::memcpy(keep.stride, stride, sizeof stride);
  outputs.keep = &keep;
  ASSERT_EQ(forward(), ATTENTILE_OK) << attentile_last_error();
  EXPECT_EQ(std::count(cells.begin(), cells.end(), 1), static_cast<int64_t>(cells.size()));
}

TEST(CApi, IsasWithinTheCapacity) {
  int32_t isas[3] = {-5, -5, -5};
  const int32_t count = attentile_available_isas(isas, 1);
  EXPECT_GE(count, 1);
  EXPECT_NE(isas[0], -5);
  EXPECT_EQ(isas[1], -5);
  EXPECT_EQ(attentile_available_isas(&isas[1], 0), count);
  EXPECT_EQ(isas[1], -5);
  static_assert(noexcept(attentile::available_isas()), "no exception crosses the C interface");
}

}  // namespace

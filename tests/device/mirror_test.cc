// SPDX-License-Identifier: Apache-2.0
// What lies around the mirrors of io::DeviceCall, and the lines that `./dev gpu` reads. The device
// is made up: host memory, and a list of what was asked for.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>

#include "gpu/json_line.h"
#include "io/device_call.h"

namespace attentile::io {
namespace {

struct Seen {
  std::map<void*, int64_t> bytes;     // of allocations
  std::map<void*, int64_t> uploaded;  // of these
  int64_t downloads = 0;
};
Seen seen;

int32_t allocate(int64_t bytes, void** memory, cuda::Sentence*) {
  *memory = std::calloc(1, static_cast<size_t>(bytes));
  seen.bytes[*memory] = bytes;
  return 0;
}
int32_t release(void* memory, cuda::Sentence*) {
  std::free(memory);
  return 0;
}
int32_t copy_to_device(void* to, const void* from, int64_t bytes, cuda::Sentence*) {
  std::memcpy(to, from, static_cast<size_t>(bytes));
  seen.uploaded[to] = bytes;
  return 0;
}
int32_t copy_to_host(void* to, const void* from, int64_t bytes, cuda::Sentence*) {
  std::memcpy(to, from, static_cast<size_t>(bytes));
  ++seen.downloads;
  return 0;
}

cuda::BackendTable made_up_table() {
  cuda::BackendTable table = {};
  table.allocate = allocate;
  table.release = release;
  table.copy_to_device = copy_to_device;
  table.copy_to_host = copy_to_host;
  return table;
}

struct Call {
  std::vector<char> q = std::vector<char>(6, 1), out = q, dq = q;
  AttentionInputs inputs = {.q = contiguous_view(q.data(), DType::kFloat16, {1, 1, 1, 3})};
  AttentionOutputs outputs = {.out = contiguous_view(out.data(), DType::kFloat16, {1, 1, 1, 3})};
  AttentionGradients gradients = {.dq = contiguous_view(dq.data(), DType::kFloat16, {1, 1, 1, 3})};
};

TEST(Mirror, OfBareTensorsHoldsNothingElse) {
  seen = {};
  const cuda::BackendTable table = made_up_table();
  Call call;
  DeviceCall device(table, call.inputs, call.outputs, call.gradients, Surroundings::kNothing);
  ASSERT_TRUE(device.status().ok());
  ASSERT_EQ(seen.bytes.size(), 3U);
  for (const auto& [memory, bytes] : seen.bytes) EXPECT_EQ(bytes, 6);
  const std::map<void*, int64_t> inputs = {{device.inputs().q.data, 6}};
  EXPECT_EQ(seen.uploaded, inputs);  // no result
  ASSERT_TRUE(device.download(false).ok());
  EXPECT_EQ(seen.downloads, 2);  // dq has no value yet
  EXPECT_EQ(device.damage(), "");
  EXPECT_EQ(call.out, std::vector<char>(6, 0));
  ASSERT_TRUE(device.download(true).ok());
  EXPECT_EQ(call.dq, std::vector<char>(6, 0));
  EXPECT_EQ(device.damage(), "");
}

TEST(Mirror, OfBareTensorsSeesWrittenInputs) {
  const cuda::BackendTable table = made_up_table();
  Call call;
  DeviceCall device(table, call.inputs, call.outputs, call.gradients, Surroundings::kNothing);
  static_cast<char*>(device.inputs().q.data)[5] = 2;
  ASSERT_TRUE(device.download(false).ok());
  EXPECT_EQ(device.damage(), "q: was written on the device; ");
}

TEST(Mirror, LiesInPoison) {
  seen = {};
  const cuda::BackendTable table = made_up_table();
  Call call;
  DeviceCall device(table, call.inputs, call.outputs, call.gradients);
  EXPECT_EQ(seen.uploaded.size(), 3U);
  for (const auto& [memory, bytes] : seen.bytes) EXPECT_GE(bytes, 6 + 2 * 512);
  char* const out = static_cast<char*>(device.outputs().out.data);
  EXPECT_EQ(out[-1], '\xFF');
  out[6] = 0;
  ASSERT_TRUE(device.download(false).ok());
  EXPECT_EQ(device.damage(), "out: was written on the device; ");
}

TEST(JsonLine, IsJsonWhateverItHolds) {
  ::testing::internal::CaptureStdout();
  gpu::JsonLine()
      .text("a", "say \"no\"\n\\")
      .real("b", INFINITY)
      .real("c", std::nan(""))
      .real("d", 0.25)
      .counts("e", {{"f", 3}})
      .print();
  EXPECT_EQ(::testing::internal::GetCapturedStdout(),
            "{\"a\": \"say \\\"no\\\"\\u000a\\\\\", \"b\": null, \"c\": null, \"d\": 0.25, "
            "\"e\": {\"f\": 3}}\n");
}

}  // namespace
}  // namespace attentile::io

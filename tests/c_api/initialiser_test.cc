// SPDX-License-Identifier: Apache-2.0
// The initialisers of a caller whose structs are smaller or larger than the library's: they write
// the caller's bytes and no others.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "attentile/c_api.h"
#include "support/guarded_buffer.h"

namespace {

using attentile::testing::GuardedBuffer;

// `size` bytes right before a page that cannot be touched, initialised.
template <class Struct>
std::vector<char> initialised(void (*init)(Struct*, size_t), size_t size) {
  GuardedBuffer memory(static_cast<int64_t>(size));
  std::memset(memory.data(), 0x5A, size);
  init(reinterpret_cast<Struct*>(memory.data()), size);
  return {memory.data(), memory.data() + size};
}

template <class Struct>
void expect_sizes(void (*init)(Struct*, size_t), Struct defaults) {
  for (const size_t size :
       {sizeof(size_t), sizeof(Struct) - 8, sizeof(Struct), sizeof(Struct) + 24}) {
    std::vector<char> expected(size, 0);
    defaults.struct_size = size;
    std::memcpy(expected.data(), &defaults, std::min(size, sizeof defaults));
    EXPECT_EQ(initialised(init, size), expected) << size;
  }
  Struct untouched = defaults;
  init(&untouched, sizeof(size_t) - 1);
  EXPECT_EQ(std::memcmp(&untouched, &defaults, sizeof defaults), 0);
  init(nullptr, sizeof defaults);
}

TEST(CApiInitialisers, WriteTheCallersSize) {
  expect_sizes<attentile_tensor>(attentile_tensor_init, ATTENTILE_TENSOR_INIT);
  expect_sizes<attentile_attention_inputs>(attentile_inputs_init, ATTENTILE_INPUTS_INIT);
  expect_sizes<attentile_attention_outputs>(attentile_outputs_init, ATTENTILE_OUTPUTS_INIT);
  expect_sizes<attentile_attention_gradients>(attentile_gradients_init, ATTENTILE_GRADIENTS_INIT);
  expect_sizes<attentile_options>(attentile_options_init, ATTENTILE_OPTIONS_INIT);
  expect_sizes<attentile_executor>(attentile_executor_init, ATTENTILE_EXECUTOR_INIT);
  expect_sizes<attentile_traffic>(attentile_traffic_init, ATTENTILE_TRAFFIC_INIT);
  expect_sizes<attentile_context>(attentile_context_init, ATTENTILE_CONTEXT_INIT);
  expect_sizes<attentile_plan_info>(attentile_plan_info_init, ATTENTILE_PLAN_INFO_INIT);
  expect_sizes<attentile_partial_state>(attentile_partial_state_init, ATTENTILE_PARTIAL_STATE_INIT);
}

}  // namespace

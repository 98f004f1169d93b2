// SPDX-License-Identifier: Apache-2.0
// NaN or infinity in whatever no query sees (masked keys and values, hidden bias, rows beyond the
// used length, unused pages, left padding, unused cache rows, rows of q and dout that see nothing):
// no effect, bit for bit, on any output or gradient.
#include <limits>
#include <string>
#include <vector>

#include "edge/edge.h"

namespace attentile::edge {
namespace {

struct Hiding {
  const char* name;
  void (*apply)(Case& c);
};

const Hiding kHidings[] = {
    {"bool_mask_per_key",
     [](Case& c) { c.mask = {true, DType::kBool, {c.batch, 1, 1, c.seqlen_k}}; }},
    {"byte_mask_per_pair",
     [](Case& c) {
       c.mask = {true, DType::kUInt8, {c.batch, c.num_heads_q, c.seqlen_q, c.seqlen_k}};
     }},
    {"mask_hides_rows", [](Case& c) { c.mask = {true, DType::kBool, {c.seqlen_q, 1}}; }},
    {"causal_top_left",
     [](Case& c) {
       c.causal = true;
       c.alignment = Alignment::kTopLeft;
     }},
    {"causal_offset_hides_rows",
     [](Case& c) {
       c.causal = true;
       c.position_offset = -11;
     }},
    {"window",
     [](Case& c) {
       c.window_left = 3;
       c.window_right = 2;
       c.position_offset = 30;
     }},
    {"block_mask",
     [](Case& c) {
       c.block_mask_heads = c.num_heads_q;
       c.block_size_q = 16;
       c.block_size_k = 13;
     }},
    {"seqused_k", [](Case& c) { c.seqused_k = {41, 0}; }},
    {"seqused_k_and_causal",
     [](Case& c) {
       c.seqused_k = {17, 64};
       c.causal = true;
     }},
    {"varlen_with_used_lengths",
     [](Case& c) {
       c.varlen = true;
       c.lengths_q = {37, 12};
       c.lengths_k = {75, 33};
       c.seqused_k = {60, 1};
     }},
    {"unused_pages",
     [](Case& c) {
       c.page_size = 8;
       c.seqlen_k = 77;
       c.max_pages = 10;
       c.num_pages = 30;
       c.seqused_k = {77, 9};
       for (int32_t page = 0; page < 20; ++page) c.block_table.push_back(29 - page);
       c.backward = false;
     }},
    {"cache_rows",
     [](Case& c) {
       c.cache_rows = 4;
       c.cache_batch_idx = {3, 1};
       c.seqused_k = {75, 20};
       c.backward = false;
     }},
    {"left_padding",
     [](Case& c) {
       c.leftpad_k = {9, 70};
       c.backward = false;
     }},
    {"bias_under_mask",
     [](Case& c) {
       c.bias = {true, DType::kFloat32, {c.num_heads_q, c.seqlen_q, c.seqlen_k}};
       c.mask = {true, DType::kBool, {1, 1, c.seqlen_q, c.seqlen_k}};
       c.dbias = true;
     }},
    {"bias_beyond_causal",
     [](Case& c) {
       c.bias = {true, c.dtype, {c.seqlen_q, c.seqlen_k}};
       c.causal = true;
       c.dbias = true;
     }},
    {"dropout_and_mask",
     [](Case& c) {
       c.dropout_p = 0.3;
       c.dropout_seed = 5;
       c.mask = {true, DType::kBool, {c.batch, 1, 1, c.seqlen_k}};
     }},
    {"softcap_and_alibi_and_mask",
     [](Case& c) {
       c.softcap = 3.0;
       c.alibi_rank = 1;
       c.mask = {true, DType::kBool, {c.batch, 1, 1, c.seqlen_k}};
     }},
};

class Hidden : public ::testing::TestWithParam<int> {};

TEST_P(Hidden, HasNoEffect) {
  const Hiding& hiding = kHidings[GetParam()];
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64}) {
    SCOPED_TRACE(to_string(dtype));
    Case c = base_case(dtype);
    hiding.apply(c);
    const Values clean = make_values(c);
    for_each_target([&](const Target& target) {
      const Results expected = run_call(c, clean, target);
      for (double poison : {std::numeric_limits<double>::quiet_NaN(), kInfinity, -kInfinity}) {
        SCOPED_TRACE(poison);
        const Values values = poisoned(c, clean, poison);
        EXPECT_TRUE(same_bits(expected, run_call(c, values, target)));
      }
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Edge, Hidden, ::testing::Range(0, static_cast<int>(std::size(kHidings))),
                         [](const auto& parameter) {
                           return std::string(kHidings[parameter.param].name);
                         });

}  // namespace
}  // namespace attentile::edge

// SPDX-License-Identifier: Apache-2.0
// The hand-written cases: shapes and combinations that once broke some attention library, and every
// feature once on its own, so that a failure here says what is broken.
#include <algorithm>
#include <functional>
#include <limits>
#include <string>
#include <utility>

#include "conformance/case.h"
#include "support/random.h"

namespace attentile::conformance {
namespace {

struct Sizes {
  int64_t batch, seqlen_q, seqlen_k, num_heads_q, num_heads_kv, head_dim, head_dim_v;
};

class CaseList {
 public:
  using Change = std::function<void(Case&)>;

  void add(const char* name, const Sizes& sizes, const Change& change = {}) {
    Case c;
    c.name = name;
    for (char letter : c.name) c.seed = testing::mix_seed(c.seed, static_cast<uint64_t>(letter));
    c.batch = sizes.batch;
    c.seqlen_q = sizes.seqlen_q;
    c.seqlen_k = sizes.seqlen_k;
    c.num_heads_q = sizes.num_heads_q;
    c.num_heads_kv = sizes.num_heads_kv;
    c.head_dim = sizes.head_dim;
    c.head_dim_v = sizes.head_dim_v;
    c.backward = true;
    c.poison = true;
    c.num_threads = 2;
    c.fast_memory_bytes = 16384;
    if (change) change(c);
    if (c.page_size > 0 || !c.cache_batch_idx.empty() || !c.leftpad_k.empty()) c.backward = false;
    c.dbias = c.backward && c.bias.present;
    c.dsink = c.backward && c.sink;
    cases_.push_back(std::move(c));
  }

  std::vector<Case> take() { return std::move(cases_); }

 private:
  std::vector<Case> cases_;
};

void add_dtypes_and_heads(CaseList& list) {
  const Sizes plain = {2, 65, 65, 2, 2, 64, 64};
  list.add("plain_f32", plain);
  list.add("plain_f16", plain, [](Case& c) { c.dtype = DType::kFloat16; });
  list.add("plain_bf16", plain, [](Case& c) { c.dtype = DType::kBFloat16; });
  list.add("plain_f64", plain, [](Case& c) { c.dtype = DType::kFloat64; });
  list.add("one_by_one", {1, 1, 1, 1, 1, 1, 1});
  list.add("gqa_9_3", {1, 65, 65, 9, 3, 64, 64}, [](Case& c) { c.causal = true; });
  list.add("mqa_8_1", {2, 33, 65, 8, 1, 32, 32});
  list.add("gqa_unequal_dims", {2, 17, 33, 6, 2, 40, 72});
  list.add("head_dim_v_smaller", {1, 33, 65, 2, 2, 96, 5});
  list.add("head_dim_512", {1, 9, 17, 1, 1, 512, 512});
  list.add("panels_of_512_queries", {1, 513, 17, 1, 1, 512, 512},
           [](Case& c) { c.fast_memory_bytes = int64_t{8} << 20; });
  list.add("head_dim_257_f16", {1, 17, 33, 2, 1, 257, 129},
           [](Case& c) { c.dtype = DType::kFloat16; });
  list.add("decode_gqa", {3, 1, 257, 8, 2, 64, 64}, [](Case& c) { c.backward = false; });
  list.add("decode_causal_bf16", {2, 1, 129, 8, 2, 128, 128}, [](Case& c) {
    c.dtype = DType::kBFloat16;
    c.causal = true;
  });
  // Rows of V in place that end, with the caller's memory, between two vectors.
  list.add("values_of_62_in_place", {1, 33, 65, 1, 1, 32, 62});
  list.add("values_of_63_in_place", {1, 33, 65, 1, 1, 32, 63});
  list.add("long_rows", {1, 3, 1025, 1, 1, 16, 16}, [](Case& c) { c.dtype = DType::kBFloat16; });
  list.add("long_columns", {1, 1025, 3, 1, 1, 16, 16}, [](Case& c) { c.dtype = DType::kFloat16; });
}

// Few queries over keys in several pieces; 16,385 keys are cut into larger pieces than 16,384.
void add_few_queries(CaseList& list) {
  const Sizes pieces = {2, 3, 1100, 6, 2, 32, 48};
  list.add("few_queries_causal", pieces, [](Case& c) { c.causal = true; });
  list.add("few_queries_f16_strided", pieces, [](Case& c) {
    c.dtype = DType::kFloat16;
    c.zero_stride_v = 0b1000;
  });
  list.add("few_queries_bf16_tail", {1, 8, 1537, 5, 1, 40, 24},
           [](Case& c) { c.dtype = DType::kBFloat16; });
  list.add("few_queries_window_between_pieces", pieces, [](Case& c) {
    c.window_left = 700;
    c.window_right = -1;
    c.position_offset = 900;
  });
  list.add("few_queries_window_of_one", pieces, [](Case& c) {
    c.window_left = c.window_right = 0;
    c.position_offset = 511;
  });
  list.add("few_queries_mask_bias_softcap", {1, 2, 1025, 4, 2, 16, 16}, [](Case& c) {
    c.mask = {true, DType::kBool, {4, 2, 1025}};
    c.bias = {true, DType::kFloat32, {4, 2, 1025}};
    c.softcap = 3.0;
  });
  list.add("few_queries_alibi_sink", pieces, [](Case& c) {
    c.alibi_rank = 2;
    c.sink = true;
    c.causal = true;
  });
  list.add("few_queries_seqused", {4, 1, 1100, 4, 1, 64, 64}, [](Case& c) {
    c.seqused_k = {0, 1, 512, 1100};
    c.dtype = DType::kBFloat16;
  });
  list.add("few_and_many_queries", {4, 65, 1100, 4, 2, 32, 32}, [](Case& c) {
    c.varlen = true;
    c.lengths_q = {8, 65, 1, 9};
    c.lengths_k = {1100, 65, 513, 40};
    c.causal = true;
  });
  list.add("few_queries_of_many_heads", {1, 7, 700, 20, 1, 16, 16},
           [](Case& c) { c.alibi_rank = 1; });
  list.add("few_queries_peaked", {1, 4, 2049, 2, 2, 64, 64},
           [](Case& c) { c.fill = Fill::kPeaked; });
  // The backward pass must find the very scores of the forward pass.
  list.add("few_queries_very_negative", {3, 5, 7, 1, 1, 128, 128}, [](Case& c) {
    c.fill = Fill::kVeryNegative;
    c.causal = true;
  });
  for (const int64_t keys : {16384, 16385}) {
    list.add(("few_queries_" + std::to_string(keys)).c_str(), {1, 2, keys, 2, 1, 16, 16},
             [](Case& c) { c.causal = true; });
  }
}

void add_bands(CaseList& list) {
  const Sizes square = {1, 65, 65, 2, 1, 32, 32};
  const Sizes wide = {2, 33, 129, 2, 2, 32, 32};
  const Sizes tall = {2, 129, 33, 2, 2, 32, 32};  // hidden rows with bottom-right causal
  for (const auto& [suffix, sizes] :
       {std::pair{"square", square}, {"wide", wide}, {"tall", tall}}) {
    const std::string s = suffix;
    list.add(("causal_" + s).c_str(), sizes, [](Case& c) { c.causal = true; });
    list.add(("causal_top_left_" + s).c_str(), sizes, [](Case& c) {
      c.causal = true;
      c.alignment = Alignment::kTopLeft;
    });
    list.add(("window_7_3_" + s).c_str(), sizes, [](Case& c) {
      c.window_left = 7;
      c.window_right = 3;
    });
    list.add(("window_0_0_" + s).c_str(), sizes,
             [](Case& c) { c.window_left = c.window_right = 0; });
    list.add(("window_right_beyond_" + s).c_str(), sizes, [](Case& c) {
      c.window_left = 2;
      c.window_right = 1000;
    });
    list.add(("offset_minus_9_" + s).c_str(), sizes, [](Case& c) {
      c.causal = true;
      c.position_offset = -9;
    });
  }
  list.add("causal_and_window_right", square, [](Case& c) {
    c.causal = true;  // causal is the tighter one
    c.window_left = 15;
    c.window_right = 4;
  });
  list.add("offset_huge", square, [](Case& c) {
    c.causal = true;
    c.position_offset = int64_t{1} << 62;
  });
  list.add("offset_huge_negative_hides_all", square, [](Case& c) {
    c.causal = true;
    c.position_offset = -(int64_t{1} << 62);
  });
  list.add("window_huge", square,
           [](Case& c) { c.window_left = c.window_right = std::numeric_limits<int64_t>::max(); });
}

void add_scores(CaseList& list) {
  const Sizes sizes = {2, 33, 65, 4, 2, 24, 24};
  const auto whole = [&](DType dtype) {
    return Broadcast{true, dtype, {sizes.batch, sizes.num_heads_q, sizes.seqlen_q, sizes.seqlen_k}};
  };
  list.add("bias_full", sizes, [&](Case& c) { c.bias = whole(DType::kFloat32); });
  list.add("bias_bf16_summed_over_batch", sizes, [](Case& c) {
    c.dtype = DType::kBFloat16;
    c.bias = {true, DType::kBFloat16, {4, 33, 65}};
  });
  list.add("bias_per_key", sizes, [](Case& c) { c.bias = {true, DType::kFloat32, {65}}; });
  list.add("bias_per_query_f16", sizes, [](Case& c) {
    c.dtype = DType::kFloat16;
    c.bias = {true, DType::kFloat16, {2, 1, 33, 1}};
  });
  list.add("bias_scalar", sizes, [](Case& c) { c.bias = {true, DType::kFloat32, {}}; });
  // dbias is 0 but for rounding, and shows what 16-bit rounding of out leaves in delta.
  list.add("bias_scalar_bf16_long", {5, 8, 97, 2, 2, 27, 19}, [](Case& c) {
    c.dtype = DType::kBFloat16;
    c.fill = Fill::kPeaked;
    c.dropout_p = 0.3;
    c.bias = {true, DType::kFloat32, {}};
  });
  list.add("mask_full", sizes, [&](Case& c) { c.mask = whole(DType::kBool); });
  list.add("mask_bytes_per_key", sizes,
           [](Case& c) { c.mask = {true, DType::kUInt8, {2, 1, 1, 65}}; });
  list.add("mask_per_query_hides_rows", sizes,
           [](Case& c) { c.mask = {true, DType::kBool, {33, 1}}; });
  list.add("alibi_per_head", sizes, [](Case& c) { c.alibi_rank = 1; });
  list.add("alibi_per_batch_causal", sizes, [](Case& c) {
    c.alibi_rank = 2;
    c.causal = true;
  });
  list.add("softcap", sizes, [](Case& c) { c.softcap = 2.0; });
  list.add("softcap_bias_alibi", sizes, [&](Case& c) {
    c.softcap = 5.0;
    c.bias = whole(DType::kFloat32);
    c.alibi_rank = 1;
  });
  list.add("sink", sizes, [](Case& c) { c.sink = true; });
  for (const bool sink : {false, true}) {  // weights down to those that are dropped
    list.add(sink ? "far_apart_sink" : "far_apart", {1, 65, 300, 2, 1, 64, 64}, [=](Case& c) {
      c.softmax_scale = 10.0;
      c.sink = sink;
    });
  }
  // lse is the sink's, far above all logits, and the repeated keys have no errors that cancel.
  list.add("sink_far_above_keys", {1, 63, 79, 1, 1, 127, 127}, [](Case& c) {
    c.seed = 828;
    c.alignment = Alignment::kTopLeft;
    c.alibi_rank = 1;
    c.sink = true;
    c.zero_stride_k = 6;
    c.zero_stride_v = 3;
    c.dropout_p = 0.9;
    c.dropout_seed = 6777081919314634090;
    c.dropout_offset = 2;
    c.query_base = 620;
    c.key_base = 2147483648;
    c.head_base = 1;
    c.batch_base = 2;
    c.dropout_num_heads_q = 4;
  });
  // A single dsink: it shows what 16-bit rounding of out leaves in delta.
  list.add("sink_bf16_long", {3, 61, 257, 1, 1, 2, 26}, [](Case& c) {
    c.seed = 44395;
    c.dtype = DType::kBFloat16;
    c.fill = Fill::kOutliers;
    c.causal = true;
    c.softcap = 2.0;
    c.softmax_scale = 1.0;
    c.sink = true;
  });
  list.add("sink_causal_tall_dlse", {1, 65, 17, 2, 1, 16, 16}, [](Case& c) {
    c.sink = true;
    c.causal = true;
    c.dlse = true;
  });
  list.add("dlse", sizes, [](Case& c) { c.dlse = true; });
  list.add("scale_zero", sizes, [](Case& c) { c.softmax_scale = 0.0; });
  list.add("scale_negative", sizes, [](Case& c) { c.softmax_scale = -0.4; });
  list.add("very_negative_logits", {1, 64, 191, 2, 2, 64, 64},
           [](Case& c) { c.fill = Fill::kVeryNegative; });
  list.add("very_negative_causal_f16", {1, 65, 65, 2, 2, 64, 64}, [](Case& c) {
    c.fill = Fill::kVeryNegative;
    c.dtype = DType::kFloat16;
    c.causal = true;
  });
  list.add("peaked_bf16", {1, 65, 129, 2, 2, 64, 64}, [](Case& c) {
    c.fill = Fill::kPeaked;
    c.dtype = DType::kBFloat16;
  });
  list.add("outliers_f16", {1, 65, 129, 2, 2, 64, 64}, [](Case& c) {
    c.fill = Fill::kOutliers;
    c.dtype = DType::kFloat16;
  });
  list.add("block_mask_per_head", {2, 129, 129, 2, 1, 16, 16}, [](Case& c) {
    c.block_mask_heads = 2;
    c.block_size_q = 32;
    c.block_size_k = 16;
  });
  list.add("block_mask_odd_causal", {1, 65, 97, 2, 2, 16, 16}, [](Case& c) {
    c.block_mask_heads = 1;
    c.block_size_q = 7;
    c.block_size_k = 13;
    c.causal = true;
  });
}

void add_dropout(CaseList& list) {
  const Sizes sizes = {2, 33, 65, 4, 2, 24, 24};
  const auto drop = [](double p) {
    return [p](Case& c) {
      c.dropout_p = p;
      c.dropout_seed = 0x0123456789ABCDEFu;
      c.dropout_offset = 0xFEDCBA9876543210u;
      c.keep = true;
    };
  };
  list.add("dropout_0_1", sizes, drop(0.1));
  list.add("dropout_0_5_bf16", sizes, [&](Case& c) {
    drop(0.5)(c);
    c.dtype = DType::kBFloat16;
  });
  list.add("dropout_1", sizes, drop(1.0));
  list.add("dropout_tiny", sizes, drop(1e-6));
  list.add("dropout_causal_bases", {2, 65, 65, 2, 2, 16, 16}, [&](Case& c) {
    drop(0.3)(c);
    c.causal = true;
    c.query_base = 5;
    c.key_base = 37;
    c.head_base = 3;
    c.batch_base = 2;
    c.dropout_num_heads_q = 16;
  });
  list.add("dropout_key_base_wraps", {1, 17, 65, 1, 1, 16, 16}, [&](Case& c) {
    drop(0.5)(c);
    c.key_base = (int64_t{1} << 35) - 3;
    c.query_base = (int64_t{1} << 32) - 5;
  });
}

CaseList::Change paged(int64_t page_size, std::vector<int32_t> used) {
  return [page_size, used](Case& c) {
    c.page_size = page_size;
    c.max_pages = (c.seqlen_k + page_size - 1) / page_size;
    c.num_pages = c.batch * c.max_pages + 2;
    c.seqused_k = used;
    c.seqlen_k = *std::max_element(used.begin(), used.end());
    for (int64_t n = 0; n < c.batch * c.max_pages; ++n) {
      c.block_table.push_back(static_cast<int32_t>(c.num_pages - 1 - n));
    }
    c.causal = true;
  };
}

// cu_seqlens_q alone: the keys have a batch axis, or lie in pages.
void add_packed_queries(CaseList& list) {
  const Sizes sizes = {4, 65, 47, 4, 2, 32, 32};
  const auto packed = [](Case& c) {
    c.varlen = true;
    c.lengths_q = {65, 0, 7, 33};
  };
  list.add("packed_q_batched_k", sizes, packed);
  list.add("packed_q_batched_k_causal_seqused_f16", sizes, [&](Case& c) {
    packed(c);
    c.dtype = DType::kFloat16;
    c.causal = true;
    c.seqused_k = {33, 5, 9, 0};
    c.dlse = true;
  });
  list.add("packed_q_batched_k_bias_dropout_bf16", sizes, [&](Case& c) {
    packed(c);
    c.dtype = DType::kBFloat16;
    c.bias = {true, DType::kFloat32, {4, 1, 65, 47}};
    c.dropout_p = 0.4;
    c.dropout_seed = 9;
  });
  list.add("packed_q_batched_k_dominant", sizes, [&](Case& c) {
    packed(c);
    c.tier = Tier::kDominant;
    c.softmax_scale = 256.0;
    c.causal = true;
    c.alignment = Alignment::kTopLeft;
  });
  list.add("packed_q_cache_rows_left_padding", sizes, [&](Case& c) {
    packed(c);
    c.cache_rows = 5;
    c.cache_batch_idx = {4, 0, 4, 1};
    c.seqused_k = {47, 5, 9, 40};
    c.leftpad_k = {0, 5, 3, 17};
    c.causal = true;
  });
  list.add("packed_q_pages_of_3", sizes, [&](Case& c) {
    packed(c);
    paged(3, {47, 5, 0, 31})(c);
  });
  list.add("packed_q_pages_of_16_f16", {3, 9, 129, 4, 2, 64, 64}, [](Case& c) {
    c.varlen = true;
    c.lengths_q = {1, 9, 4};
    c.dtype = DType::kFloat16;
    paged(16, {129, 64, 17})(c);
  });
}

void add_storage(CaseList& list) {
  list.add("varlen", {4, 65, 65, 4, 2, 32, 32}, [](Case& c) {
    c.varlen = true;
    c.lengths_q = {65, 0, 7, 33};
    c.lengths_k = {65, 5, 0, 34};
  });
  list.add("varlen_causal_seqused", {4, 65, 65, 4, 2, 32, 32}, [](Case& c) {
    c.varlen = true;
    c.causal = true;
    c.lengths_q = {65, 0, 7, 33};
    c.lengths_k = {64, 5, 9, 65};
    c.seqused_k = {33, 0, 9, 64};
  });
  list.add("varlen_bias_dropout", {3, 33, 47, 2, 1, 16, 16}, [](Case& c) {
    c.varlen = true;
    c.lengths_q = {33, 1, 17};
    c.lengths_k = {47, 16, 3};
    c.bias = {true, DType::kFloat32, {2, 33, 47}};
    c.dropout_p = 0.4;
    c.dropout_seed = 9;
  });
  list.add("seqused_with_zero", {3, 33, 65, 2, 2, 32, 32}, [](Case& c) {
    c.seqused_k = {0, 65, 31};
    c.dtype = DType::kFloat16;
  });
  list.add("pages_of_1", {2, 5, 33, 2, 1, 32, 32}, paged(1, {33, 17}));
  list.add("pages_of_3_bf16", {2, 5, 64, 4, 2, 64, 64}, [&](Case& c) {
    paged(3, {64, 1})(c);
    c.dtype = DType::kBFloat16;
  });
  list.add("pages_of_16", {3, 1, 129, 4, 2, 64, 64}, paged(16, {129, 0, 16}));
  list.add("pages_of_64_f16", {2, 17, 190, 2, 2, 64, 64}, [&](Case& c) {
    paged(64, {190, 65})(c);
    c.dtype = DType::kFloat16;
  });
  list.add("cache_rows_repeated", {3, 4, 65, 2, 1, 32, 32}, [](Case& c) {
    c.cache_rows = 5;
    c.cache_batch_idx = {4, 0, 4};
    c.seqused_k = {65, 9, 33};
    c.causal = true;
  });
  list.add("left_padding", {3, 9, 65, 2, 1, 32, 32}, [](Case& c) {
    c.leftpad_k = {0, 17, 65};
    c.causal = true;
  });
  list.add("zero_stride_keys", {2, 33, 97, 2, 2, 32, 32}, [](Case& c) {
    c.zero_stride_k = 0b0110;
    c.zero_stride_v = 0b0001;
    c.mask = {true, DType::kBool, {33, 97}};
    c.poison = false;
  });
}

void add_exact(CaseList& list) {
  for (const auto& [name, dtype] : {std::pair{"f32", DType::kFloat32},
                                    {"f16", DType::kFloat16},
                                    {"bf16", DType::kBFloat16},
                                    {"f64", DType::kFloat64}}) {
    const std::string s = name;
    const DType type = dtype;
    list.add(("dominant_causal_" + s).c_str(), {2, 65, 129, 4, 2, 33, 17}, [type](Case& c) {
      c.dtype = type;
      c.tier = Tier::kDominant;
      c.softmax_scale = 256.0;
      c.causal = true;
    });
    list.add(("equal_window_dropout_" + s).c_str(), {1, 65, 97, 2, 1, 16, 24}, [type](Case& c) {
      c.dtype = type;
      c.tier = Tier::kEqual;
      c.window_left = 40;
      c.window_right = 5;
      c.mask = {true, DType::kUInt8, {1, 2, 65, 97}};
      c.dropout_p = 0.5;
      c.dropout_seed = 3;
    });
  }
}

void add_empty(CaseList& list) {
  list.add("no_batch", {0, 5, 7, 2, 1, 8, 8});
  list.add("no_queries", {2, 0, 7, 2, 1, 8, 8});
  list.add("no_keys", {2, 5, 0, 2, 1, 8, 8});
  list.add("no_keys_sink", {2, 5, 0, 2, 1, 8, 8}, [](Case& c) {
    c.sink = true;
    c.dlse = true;
  });
  list.add("no_queries_bias_sink", {2, 0, 7, 2, 1, 8, 8}, [](Case& c) {
    c.bias = {true, DType::kFloat32, {1, 7}};
    c.sink = true;
  });
}

std::vector<Case> make_named_cases() {
  CaseList list;
  add_dtypes_and_heads(list);
  add_few_queries(list);
  add_bands(list);
  add_scores(list);
  add_dropout(list);
  add_storage(list);
  add_packed_queries(list);
  add_exact(list);
  add_empty(list);
  return list.take();
}

}  // namespace

const std::vector<Case>& named_cases() {
  static const std::vector<Case> cases = make_named_cases();
  return cases;
}

}  // namespace attentile::conformance

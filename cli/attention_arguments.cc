// SPDX-License-Identifier: Apache-2.0
// What the shared options are called, what values they take and what they become.
#include "cli/attention_arguments.h"

#include "cli/device_argument.h"
#include "cli/error.h"
#include "cli/numbers.h"

namespace attentile::cli {
namespace {

const std::vector<Choice<Alignment>> kAlignments = {{"bottom_right", Alignment::kBottomRight},
                                                    {"top_left", Alignment::kTopLeft}};
const std::vector<Choice<Algorithm>> kAlgorithms = {
    {"auto", Algorithm::kAuto},         {"reference", Algorithm::kReference},
    {"standard", Algorithm::kStandard}, {"flash1", Algorithm::kFlash1},
    {"flash2", Algorithm::kFlash2},
};
const std::vector<Choice<Isa>> kIsas = {{"auto", Isa::kAuto}, {"scalar", Isa::kScalar},
                                        {"avx2", Isa::kAvx2}, {"avx512", Isa::kAvx512},
                                        {"neon", Isa::kNeon}, {"avx512_bf16", Isa::kAvx512Bf16},
                                        {"amx", Isa::kAmx},   {"neon_bf16", Isa::kNeonBf16}};
const std::vector<Choice<DType>> kDTypes = {{"f32", DType::kFloat32},
                                            {"f64", DType::kFloat64},
                                            {"f16", DType::kFloat16},
                                            {"bf16", DType::kBFloat16}};
const std::vector<Choice<Layout>> kLayouts = {{"bshd", Layout::kBshd}, {"bhsd", Layout::kBhsd}};

void read_alignment(const Arguments& arguments, AttentionOptions& options) {
  options.alignment = choose(arguments, "--alignment", kAlignments, Alignment::kBottomRight);
  const std::string* causal = arguments.find("--causal");
  if (causal == nullptr) return;
  options.causal = true;
  if (causal->empty()) return;
  const Alignment alignment = choose(arguments, "--causal", kAlignments, Alignment::kBottomRight);
  if (arguments.has("--alignment") && alignment != options.alignment) {
    wrong_request("--causal: {}, but --alignment is {}, expected the same", *causal,
                  *arguments.find("--alignment"));
  }
  options.alignment = alignment;
}

void read_window(const Arguments& arguments, AttentionOptions& options) {
  const std::string* window = arguments.find("--window");
  if (window == nullptr) return;
  const ListFormat format{.pattern = "L,R", .min_count = 2, .max_count = 2};
  const std::vector<int64_t> sides = parse_int_list("--window", *window, format, {.min = -1});
  options.window_left = sides[0];
  options.window_right = sides[1];
}

void read_dropout(const Arguments& arguments, AttentionOptions& options) {
  const std::string* dropout = arguments.find("--dropout");
  for (const char* name : {"--seed", "--offset", "--keep-mask"}) {
    if (dropout == nullptr && arguments.has(name)) {
      wrong_request("{}: given without --dropout, expected both", name);
    }
  }
  if (dropout == nullptr) return;
  options.dropout_p = parse_real("--dropout", *dropout);
  if (options.dropout_p < 0 || options.dropout_p > 1) {
    wrong_request("--dropout: {}, expected 0 to 1", options.dropout_p);
  }
  if (const std::string* seed = arguments.find("--seed")) {
    options.dropout_seed = parse_uint64("--seed", *seed);
  }
  if (const std::string* offset = arguments.find("--offset")) {
    options.dropout_offset = parse_uint64("--offset", *offset);
  }
}

void read_block_size(const Arguments& arguments, AttentionOptions& options) {
  const std::string* text = arguments.find("--block-size");
  if (text == nullptr) return;
  const ListFormat format{.pattern = "M,N", .min_count = 2, .max_count = 2};
  const auto sizes = parse_int_list("--block-size", *text, format, {.min = 1, .max = kMaxSize});
  options.block_size_q = sizes[0];
  options.block_size_k = sizes[1];
}

}  // namespace

Shape parse_shape(std::string_view name, std::string_view text) {
  const ListFormat format{.pattern = "B,SQ,SK,HQ,HK,D[,DV]", .min_count = 6, .max_count = 7};
  const auto sizes = parse_int_list(name, text, format, {.min = 0, .max = kMaxSize});
  Shape shape;
  shape.batch = sizes[0];
  shape.seqlen_q = sizes[1];
  shape.seqlen_k = sizes[2];
  shape.num_heads_q = sizes[3];
  shape.num_heads_kv = sizes[4];
  shape.head_dim = sizes[5];
  shape.head_dim_v = sizes.size() == 7 ? sizes[6] : sizes[5];
  return shape;
}

void declare_mask_options(Arguments& arguments) {
  arguments.flag_or_value("--causal", "top_left", "key j is visible to query i if j <= i + offset");
  arguments.value("--alignment", "WORD",
                  "bottom_right (default; offset = seqlen_k - seqlen_q) or top_left (offset = 0)");
  arguments.value("--position-offset", "N", "the offset itself, in place of an alignment");
  arguments.value("--window", "L,R", "keys from L before to R after the position; -1: unbounded");
  arguments.value("--softcap", "X", "S = X tanh(S / X); 0: none");
  arguments.value("--scale", "X", "softmax scale; default 1/sqrt(head_dim)");
}

void declare_dropout_options(Arguments& arguments) {
  arguments.value("--dropout", "P", "drop weights with this probability");
  arguments.value("--seed", "S", "dropout seed, default 0");
  arguments.value("--offset", "O", "dropout offset, default 0");
  arguments.value("--block-size", "M,N", "queries and keys of a tile of block_mask");
}

void declare_machine_options(Arguments& arguments) {
  arguments.value("--algorithm", "NAME", "auto (default), reference, standard, flash1 or flash2");
  arguments.value("--isa", "NAME", "instruction set; default the best of this machine");
  arguments.value("--fast-memory", "BYTES",
                  "fast memory size M of flash1's tiles and of the traffic; default one core's L2");
  arguments.value("--threads", "N", "1 to 4096; default all cores");
  declare_device(arguments);
  declare_atomic_dq(arguments);
}

void declare_atomic_dq(Arguments& arguments) {
  arguments.flag("--atomic-dq",
                 "on a GPU: dq may be summed by atomic additions, its bits differ from run to run");
}

void declare_layout_option(Arguments& arguments) {
  arguments.value("--layout", "NAME",
                  "bshd (default) or bhsd: order of batch, seqlen, heads, head_dim");
}

void declare_dtype_option(Arguments& arguments, const std::string& help) {
  arguments.value("--dtype", "NAME", help);
}

AttentionOptions read_options(const Arguments& arguments) {
  AttentionOptions options;
  read_alignment(arguments, options);
  read_window(arguments, options);
  read_dropout(arguments, options);
  read_block_size(arguments, options);
  if (const std::string* text = arguments.find("--position-offset")) {
    options.position_offset = parse_int("--position-offset", *text);
  }
  if (const std::string* text = arguments.find("--softcap")) {
    options.softcap = parse_real("--softcap", *text);
    if (options.softcap < 0) {
      wrong_request("--softcap: {}, expected at least 0", options.softcap);
    }
  }
  if (const std::string* text = arguments.find("--scale")) {
    options.softmax_scale = parse_real("--scale", *text);
  }
  options.algorithm = read_algorithm(arguments);
  options.isa = read_isa(arguments);
  if (const std::string* text = arguments.find("--fast-memory")) {
    options.fast_memory_bytes = parse_int("--fast-memory", *text, {.min = 1, .max = kMaxSize});
  }
  options.atomic_dq = arguments.has("--atomic-dq");
  return options;
}

Algorithm read_algorithm(const Arguments& arguments) {
  return choose(arguments, "--algorithm", kAlgorithms, Algorithm::kAuto);
}

Isa read_isa(const Arguments& arguments) {
  return choose(arguments, "--isa", kIsas, Isa::kAuto);
}

int read_threads(const Arguments& arguments) {
  const std::string* text = arguments.find("--threads");
  if (text == nullptr) return 0;
  return static_cast<int>(parse_int("--threads", *text, {.min = 1, .max = 4096}));
}

Layout read_layout(const Arguments& arguments) {
  return choose(arguments, "--layout", kLayouts, Layout::kBshd);
}

std::optional<DType> read_dtype(const Arguments& arguments) {
  const std::string* text = arguments.find("--dtype");
  if (text == nullptr) return std::nullopt;
  return parse_dtype("--dtype", *text);
}

DType parse_dtype(std::string_view name, std::string_view text) {
  std::vector<std::string_view> words;
  for (const auto& choice : kDTypes) words.push_back(choice.word);
  return kDTypes[parse_choice(name, text, words)].value;
}

std::string_view short_name(DType dtype) {
  for (const auto& choice : kDTypes) {
    if (choice.value == dtype) return choice.word;
  }
  return attentile::to_string(dtype);
}

std::string_view to_string(Layout layout) {
  return layout == Layout::kBshd ? "bshd" : "bhsd";
}

}  // namespace attentile::cli

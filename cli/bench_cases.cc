// SPDX-License-Identifier: Apache-2.0
// Arguments and presets of `bench`.
#include "cli/bench_cases.h"

#include "cli/error.h"
#include "cli/numbers.h"
#include "cpu/executor.h"

namespace attentile::cli {
namespace {

struct Preset {
  std::string_view name;
  std::vector<Shape> shapes;
};

Shape square(int64_t seqlen, int64_t heads, int64_t head_dim) {
  return {.batch = 1,
          .seqlen_q = seqlen,
          .seqlen_k = seqlen,
          .num_heads_q = heads,
          .num_heads_kv = heads,
          .head_dim = head_dim,
          .head_dim_v = head_dim};
}

Shape grouped(Shape shape, int64_t seqlen_q, int64_t num_heads_kv) {
  shape.seqlen_q = seqlen_q;
  shape.num_heads_kv = num_heads_kv;
  return shape;
}

const std::vector<Preset>& presets() {
  static const std::vector<Preset> kPresets = {
      {"quick", {square(512, 8, 64), square(1024, 8, 64), square(1024, 4, 128)}},
      {"prefill",
       {square(512, 32, 64), square(1024, 16, 64), square(4096, 8, 64), square(16384, 2, 64),
        square(1024, 8, 128), square(4096, 4, 128), square(16384, 1, 128)}},
      {"seqlens",
       {square(256, 4, 64), square(512, 4, 64), square(1024, 4, 64), square(2048, 4, 64),
        square(4096, 4, 64), square(8192, 4, 64)}},
      {"decode",
       {grouped(square(4096, 32, 128), 1, 8), grouped(square(16384, 32, 128), 1, 8),
        grouped(square(4096, 32, 128), 1, 32), grouped(square(4096, 32, 128), 8, 8)}},
      {"smollm2", {grouped(square(1024, 9, 64), 1024, 3), grouped(square(8192, 9, 64), 8192, 3)}},
  };
  return kPresets;
}

// --dtype: one name or several.
std::vector<DType> read_dtypes(const Arguments& arguments) {
  const std::string* given = arguments.find("--dtype");
  const std::string text = given == nullptr ? "f32" : *given;
  constexpr size_t kMaxNames = 16;
  std::vector<DType> dtypes;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    if (dtypes.size() == kMaxNames) {
      wrong_request(
          "--dtype: {} has more than {} names, expected f32, f64, f16 or bf16, or several",
          in_quotes(text), kMaxNames);
    }
    dtypes.push_back(parse_dtype("--dtype", text.substr(begin, end - begin)));
    begin = end + 1;
  }
  return dtypes;
}

std::vector<Shape> read_shapes(const Arguments& arguments) {
  std::vector<Shape> shapes;
  if (const std::string* name = arguments.find("--preset")) {
    std::vector<std::string_view> words;
    for (const Preset& preset : presets()) words.push_back(preset.name);
    shapes = presets()[parse_choice("--preset", *name, words)].shapes;
    if (arguments.has("--shape") || arguments.has("--seqlens")) {
      wrong_request("--preset: given with {}, expected one of them",
                    arguments.has("--shape") ? "--shape" : "--seqlens");
    }
  }
  for (const std::string& text : arguments.all("--shape")) {
    shapes.push_back(parse_shape("--shape", text));
  }
  if (shapes.empty() && arguments.has("--seqlens")) shapes.push_back(square(0, 8, 64));
  if (shapes.empty()) {
    wrong_request("--shape: not given, expected a shape, --seqlens or --preset");
  }
  return shapes;
}

// --seqlens takes heads and head_dim from the one --shape, or 8 heads of 64.
void apply_seqlens(const Arguments& arguments, std::vector<SyntheticCall>& calls) {
  const std::string* text = arguments.find("--seqlens");
  if (text == nullptr) return;
  if (calls.size() != 1) {
    wrong_request("--seqlens: given with {} shapes, expected at most one", calls.size());
  }
  const ListFormat format{.pattern = "L1,L2,...", .min_count = 1, .max_count = 4096};
  SyntheticCall& call = calls.front();
  call.seqlens = parse_int_list("--seqlens", *text, format, {.min = 0, .max = INT32_MAX});
  if (call.layout == Layout::kBhsd) {
    wrong_request("--layout: bhsd with --seqlens, expected bshd for packed sequences");
  }
  call.shape.batch = static_cast<int64_t>(call.seqlens.size());
}

std::vector<int> read_thread_counts(const Arguments& arguments) {
  const std::string* text = arguments.find("--threads");
  if (text == nullptr) return {cpu::usable_cores()};
  std::vector<int> counts;
  const ListFormat format{.pattern = "N or N1,N2,...", .min_count = 1, .max_count = 16};
  for (int64_t count : parse_int_list("--threads", *text, format, {.min = 1, .max = 4096})) {
    counts.push_back(static_cast<int>(count));
  }
  return counts;
}

std::vector<bool> read_passes(const Arguments& arguments) {
  const std::vector<Choice<std::vector<bool>>> choices = {
      {"forward", {false}}, {"backward", {true}}, {"both", {false, true}}};
  return choose(arguments, "--pass", choices, std::vector<bool>{false});
}

}  // namespace

void declare_bench(Arguments& arguments) {
  arguments.repeated("--shape", "B,SQ,SK,HQ,HK,D[,DV]", "sizes to measure; may be repeated");
  arguments.value("--seqlens", "L1,L2,...", "packed sequences of these lengths; heads of --shape");
  arguments.value("--preset", "NAME", "quick, prefill, seqlens, decode or smollm2");
  declare_layout_option(arguments);
  arguments.value("--pass", "NAME", "forward (default), backward or both");
  arguments.value("--dtype", "NAMES", "f32 (default), f64, f16, bf16, or several with commas");
  declare_mask_options(arguments);
  arguments.value("--threads", "N", "1 to 4096, or several with commas; default all cores");
  arguments.value("--algorithm", "NAME", "what to hold against standard; default auto");
  arguments.value("--isa", "NAME", "instruction set; default the best of this machine");
  arguments.value("--fast-memory", "BYTES", "flash1's M; default one core's L2");
  declare_device(arguments);
  declare_atomic_dq(arguments);
  arguments.value("--min-time", "SECONDS", "measure each case at least so long; default 0.5");
  arguments.value("--json", "FILE", "write the records there");
}

BenchRequest read_bench(const Arguments& arguments) {
  BenchRequest request;
  request.device = read_device(arguments);
  request.options = read_options(arguments);
  std::vector<SyntheticCall> calls;
  for (const Shape& shape : read_shapes(arguments)) {
    SyntheticCall call;
    call.shape = shape;
    call.layout = read_layout(arguments);
    calls.push_back(std::move(call));
  }
  apply_seqlens(arguments, calls);
  if (const std::string* text = arguments.find("--min-time")) {
    request.min_time_s = parse_real("--min-time", *text);
    if (request.min_time_s < 0 || request.min_time_s > 3600) {
      wrong_request("--min-time: {}, expected 0 to 3600", request.min_time_s);
    }
  }
  if (const std::string* text = arguments.find("--json")) request.json = *text;
  for (const DType dtype : read_dtypes(arguments)) {
    for (int threads : read_thread_counts(arguments)) {
      for (bool backward : read_passes(arguments)) {
        for (SyntheticCall call : calls) {
          call.dtype = dtype;
          call.backward = backward;
          request.cases.push_back({std::move(call), threads});
        }
      }
    }
  }
  return request;
}

}  // namespace attentile::cli

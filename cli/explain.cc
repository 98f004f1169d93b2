// SPDX-License-Identifier: Apache-2.0
// `attentile explain`: how flash2 goes through one head, tile by tile, with the running maximum and
// sum of a row after each tile, from a real evaluation.
#include <algorithm>

#include "attentile/attention.h"
#include "cli/commands.h"
#include "cli/explain_svg.h"
#include "cli/explain_trace.h"
#include "cli/facts.h"
#include "cli/numbers.h"
#include "cli/output_file.h"
#include "cli/progress.h"
#include "cli/svg.h"
#include "cli/tensors.h"
#include "io/text.h"
#include "validate.h"

namespace attentile::cli {
namespace {

struct ExplainRequest {
  TensorRequest tensors;
  AttentionOptions options;
  int64_t batch = 0;
  int64_t head = 0;
  std::optional<int64_t> row;
  std::optional<Tiling> tiling;
  std::optional<std::string> svg;
  std::optional<std::string> html;
};

struct Explained {
  Explanation picture;
  RowTrace trace;
};

void declare(Arguments& arguments) {
  arguments.positional("IN.safetensors", "explain a head of this file's q, k and v");
  arguments.value("--shape", "B,SQ,SK,HQ,HK,D[,DV]", "N(0,1) input of these sizes instead");
  arguments.value("--fill-seed", "S", "seed of --shape's values, default 0");
  declare_mask_options(arguments);
  declare_layout_option(arguments);
  arguments.value("--head", "H", "query head, default 0");
  arguments.value("--batch", "B", "batch entry, default 0");
  arguments.value("--row", "I", "query whose running maximum and sum are shown, default the last");
  arguments.value("--tile", "M,N", "queries and keys of a tile; default a sixteenth of the length");
  arguments.value("--svg", "FILE", "draw the head's attention pattern and the tiles");
  arguments.value("--html", "FILE", "the picture and the trace as one page");
}

std::optional<std::string> optional_text(const Arguments& arguments, std::string_view name) {
  const std::string* text = arguments.find(name);
  return text == nullptr ? std::nullopt : std::optional<std::string>(*text);
}

int64_t index_or_zero(const Arguments& arguments, std::string_view name) {
  const std::string* text = arguments.find(name);
  return text == nullptr ? 0 : parse_int(name, *text, {.min = 0, .max = kMaxSize});
}

ExplainRequest read_request(const Arguments& arguments) {
  ExplainRequest request;
  request.tensors.random_option = "--shape";
  request.tensors.safetensors = optional_text(arguments, "IN.safetensors");
  if (const std::string* text = arguments.find("--shape")) {
    request.tensors.random = parse_shape("--shape", *text);
  }
  if (request.tensors.safetensors.has_value() == request.tensors.random.has_value()) {
    wrong_request("--shape: {}, expected a shape or a file",
                  request.tensors.random
                      ? "given with the file " + in_quotes(*request.tensors.safetensors)
                      : "not given, nor a file");
  }
  if (const std::string* text = arguments.find("--fill-seed")) {
    if (!request.tensors.random) wrong_request("--fill-seed: given without --shape, expected both");
    request.tensors.fill_seed = parse_uint64("--fill-seed", *text);
  }
  request.options = read_options(arguments);
  request.tensors.layout = read_layout(arguments);
  request.batch = index_or_zero(arguments, "--batch");
  request.head = index_or_zero(arguments, "--head");
  if (arguments.has("--row")) request.row = index_or_zero(arguments, "--row");
  if (const std::string* text = arguments.find("--tile")) {
    const ListFormat format{.pattern = "M,N", .min_count = 2, .max_count = 2};
    const auto sizes = parse_int_list("--tile", *text, format, {.min = 1, .max = kMaxSize});
    request.tiling = Tiling{sizes[0], sizes[1]};
  }
  request.svg = optional_text(arguments, "--svg");
  request.html = optional_text(arguments, "--html");
  return request;
}

void check_index(std::string_view name, int64_t index, int64_t size) {
  if (index >= size) wrong_request("{}: {}, expected below {}", name, index, size);
}

// The trace knows logits, the band and lengths. What else changes the result is not left out.
void refuse_other_tensors(const ExplainRequest& request, const CallTensors& call) {
  constexpr std::string_view kShown[] = {"q",        "k", "v", "cu_seqlens_q", "cu_seqlens_k",
                                         "seqused_k"};
  for (const auto& [name, tensor] : call.owned) {
    if (std::find(std::begin(kShown), std::end(kShown), name) != std::end(kShown)) continue;
    wrong_request("{}: in {}, but explain shows scale, softcap, causal, window and lengths only",
                  name, io::printable_path(*request.tensors.safetensors));
  }
}

Explained explain_head(const ExplainRequest& request, ProgressBar& bar) {
  const CallTensors call = load_call(request.tensors);
  refuse_other_tensors(request, call);
  const Problem problem =
      take(validate_forward(call.inputs, call.outputs, request.options, Check::kPlan));
  check_index("--batch", request.batch, problem.batch);
  check_index("--head", request.head, problem.num_heads_q);
  const Head head = make_head(problem, request.batch, request.head);
  const int64_t seqlen_q = head.sequence.seqlen_q;
  const int64_t seqlen_k = head.sequence.seqlen_k;
  if (seqlen_q == 0 || seqlen_k == 0) {
    wrong_request("q: {} queries and {} keys, expected at least one of each", seqlen_q, seqlen_k);
  }
  const int64_t row = request.row.value_or(seqlen_q - 1);
  check_index("--row", row, seqlen_q);

  const int64_t side = std::max<int64_t>(1, ceil_div(std::max(seqlen_q, seqlen_k), 16));
  Explained explained;
  Explanation& picture = explained.picture;
  picture.tiling = request.tiling.value_or(Tiling{side, side});
  const double tiles = static_cast<double>(ceil_div(seqlen_q, picture.tiling.tile_m)) *
                       static_cast<double>(ceil_div(seqlen_k, picture.tiling.tile_n));
  if (tiles > 16384) {
    wrong_request("--tile: {},{} makes {:.0f} tiles, expected at most 16384", picture.tiling.tile_m,
                  picture.tiling.tile_n, tiles);
  }
  const std::string source = request.tensors.safetensors.value_or("synthetic input");
  const std::string file = source.substr(source.find_last_of('/') + 1);
  picture.title =
      fmt::format("Attention pattern of {}, head {}", io::printable(file), request.head);
  picture.subtitle = shape_words(problem);
  picture.seqlen_q = seqlen_q;
  picture.seqlen_k = seqlen_k;
  picture.grid = classify_tiles(head.sequence, picture.tiling);
  if (request.svg || request.html) {
    picture.map = probability_map(head, 256, [&bar](double fraction) {
      bar.update(fraction);
      InterruptGuard::check();
    });
  }
  explained.trace = trace_row(head, picture.tiling, row);
  return explained;
}

const char* class_word(TileClass tile_class) {
  return tile_class == TileClass::kFull ? "full" : "partial";
}

void print_grid(std::FILE* out, const TileGrid& grid) {
  if (grid.tiles_k > 100 || grid.tiles_q > 64) return;
  fmt::print(out,
             "\ntiles: # full, + partly visible, . hidden (skipped); queries down, keys across\n");
  for (int64_t q = 0; q < grid.tiles_q; ++q) {
    std::string line;
    for (int64_t k = 0; k < grid.tiles_k; ++k) {
      const TileClass tile_class = grid.at(q, k);
      line += tile_class == TileClass::kHidden ? " ."
              : tile_class == TileClass::kFull ? " #"
                                               : " +";
    }
    fmt::print(out, "{:>5}{}\n", q, line);
  }
}

void print_text(std::FILE* out, const Explained& explained) {
  const Explanation& picture = explained.picture;
  const RowTrace& trace = explained.trace;
  fmt::print(out, "{}\n{}\ntiles of {} queries x {} keys: {} full, {} partly visible, {} hidden\n",
             picture.title, picture.subtitle, picture.tiling.tile_m, picture.tiling.tile_n,
             picture.grid.full, picture.grid.partial, picture.grid.hidden);
  print_grid(out, picture.grid);
  fmt::print(out,
             "\nquery {}: the running softmax after each visited tile, in float64, independent of "
             "the kernels\n",
             trace.row);
  fmt::print(out, "{:>6}  {:<9}{:>12}{:>12}{:>12}{:>14}\n", "tile", "class", "tile max", "row_max",
             "rescale", "row_sum");
  for (const TraceStep& step : trace.steps) {
    fmt::print(out, "{:>6}  {:<9}{:>12.5f}{:>12.5f}{:>12.6f}{:>14.6f}\n", step.key_tile,
               class_word(step.tile_class), step.tile_max, step.row_max, step.rescale,
               step.row_sum);
  }
  fmt::print(out,
             "lse = row_max + log(row_sum) = {:.6f}; largest difference from the softmax taken "
             "at once: {:.1e}\n",
             trace.lse, trace.error);
}

std::string to_html(const Explained& explained) {
  const RowTrace& trace = explained.trace;
  std::string rows;
  for (const TraceStep& step : trace.steps) {
    rows += fmt::format(
        "<tr><td>{}</td><td>{}</td><td>{:.5f}</td><td>{:.5f}</td><td>{:.6f}</td>"
        "<td>{:.6f}</td></tr>\n",
        step.key_tile, class_word(step.tile_class), step.tile_max, step.row_max, step.rescale,
        step.row_sum);
  }
  return fmt::format(
      R"(<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{0}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto;
       padding: 0 1em; color: #24292f; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .2em .9em; text-align: right; border-bottom: 1px solid #d0d7de; }}
svg {{ max-width: 100%; height: auto; }}
</style></head><body>
{1}
<h2>Query {2}: the running softmax after each visited tile</h2>
<p>flash2 keeps one maximum and one sum per query. When a tile raises the maximum, the sum and the
output so far are multiplied by <i>rescale</i> = exp(old maximum - new maximum); hidden tiles are
never read. At the end lse = row_max + log(row_sum) = {3:.6f}; the result differs from the softmax
taken at once by at most {4:.1e}.</p>
<p>This page evaluates the algorithm for itself, in float64 and with the tiles drawn above. It is
independent of the kernels, which choose tiles of their own: attentile plan tells which.</p>
<table><tr><th>key tile</th><th>class</th><th>tile max</th><th>row_max</th><th>rescale</th>
<th>row_sum</th></tr>
{5}</table>
</body></html>
)",
      escape_xml(explained.picture.title), draw_explanation(explained.picture), trace.row,
      trace.lse, trace.error, rows);
}

}  // namespace

Exit explain(const Words& words, const Streams& streams) {
  Arguments arguments("explain", "flash2 on one head, tile by tile.");
  declare(arguments);
  if (!parse_or_help(arguments, words, streams)) return Exit::kDone;
  const ExplainRequest request = read_request(arguments);
  const std::vector<std::string> inputs = input_paths(request.tensors);
  if (request.svg) check_output("--svg", *request.svg, inputs);
  if (request.html) {
    check_output("--html", *request.html, inputs);
    if (request.svg && same_output(*request.svg, *request.html)) {
      wrong_request("--html: {} is --svg's file too, expected another", in_quotes(*request.html));
    }
  }
  const InterruptGuard guard;
  const Explained explained = [&] {
    ProgressBar bar(streams.err, "explain");
    return explain_head(request, bar);
  }();
  if (request.svg) write_text_file("--svg", *request.svg, draw_explanation(explained.picture));
  if (request.html) write_text_file("--html", *request.html, to_html(explained));
  print_text(streams.out, explained);
  return Exit::kDone;
}

}  // namespace attentile::cli

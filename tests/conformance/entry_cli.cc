// SPDX-License-Identifier: Apache-2.0
// Entry point command line: the case goes into a .safetensors file, `attentile attend` runs as a
// process of its own, the results are read back. Layout bshd or bhsd, as the layout seed says.
#include <cstdio>
#include <cstring>

#include "conformance/call.h"
#include "conformance/entry.h"
#include "io/safetensors.h"
#include "support/random.h"
#include "support/subprocess.h"

namespace attentile::conformance {
namespace {

std::string number(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%.17g", value);
  return text;
}

TensorView swap_heads(TensorView view) {
  std::swap(view.shape[1], view.shape[2]);
  std::swap(view.stride[1], view.stride[2]);
  return view;
}

std::map<std::string, TensorView> file_contents(const Case& c, const Values& values,
                                                bool heads_first) {
  std::map<std::string, TensorView> tensors;
  const auto add = [&](const char* name, const DenseTensor& tensor, bool swaps = false) {
    if (!tensor.present) return;
    const TensorView view = tensor.view();
    tensors[name] = swaps && heads_first ? swap_heads(view) : view;
  };
  add("q", values.q, true);
  add("k", values.k, true);
  add("v", values.v, true);
  if (c.backward) add("dout", values.dout, true);
  add("dlse", values.dlse);
  add("bias", values.bias);
  add("mask", values.mask);
  add("sink", values.sink);
  add("alibi_slopes", values.alibi_slopes);
  add("cu_seqlens_q", values.cu_seqlens_q);
  add("cu_seqlens_k", values.cu_seqlens_k);
  add("seqused_k", values.seqused_k);
  add("block_table", values.block_table);
  add("cache_batch_idx", values.cache_batch_idx);
  add("leftpad_k", values.leftpad_k);
  add("block_mask", values.block_mask);
  return tensors;
}

std::vector<std::string> flags_of(const Case& c, const Cell& cell, bool heads_first,
                                  bool short_causal) {
  std::vector<std::string> flags;
  const auto add = [&](std::initializer_list<std::string> more) {
    flags.insert(flags.end(), more.begin(), more.end());
  };
  const bool top_left = c.alignment == Alignment::kTopLeft;
  if (c.causal && top_left && short_causal) {
    add({"--causal=top_left"});
  } else {
    if (c.causal) add({"--causal"});
    if (top_left) add({"--alignment", "top_left"});
  }
  if (c.position_offset) add({"--position-offset", std::to_string(*c.position_offset)});
  if (c.window_left != -1 || c.window_right != -1) {
    add({"--window", std::to_string(c.window_left) + "," + std::to_string(c.window_right)});
  }
  if (c.softcap > 0) add({"--softcap", number(c.softcap)});
  if (c.softmax_scale) add({"--scale", number(*c.softmax_scale)});
  if (c.backward) add({"--backward"});
  if (c.dropout_p > 0) {
    add({"--dropout", number(c.dropout_p), "--seed", std::to_string(c.dropout_seed), "--offset",
         std::to_string(c.dropout_offset)});
    if (c.keep) add({"--keep-mask"});
  }
  if (c.block_mask_heads > 0) {
    add({"--block-size", std::to_string(c.block_size_q) + "," + std::to_string(c.block_size_k)});
  }
  if (heads_first) add({"--layout", "bhsd"});
  if (c.fast_memory_bytes > 0) add({"--fast-memory", std::to_string(c.fast_memory_bytes)});
  if (cell.atomic_dq) add({"--atomic-dq"});
  add({"--algorithm", attentile::to_string(cell.algorithm), "--isa", attentile::to_string(cell.isa),
       "--threads", std::to_string(c.num_threads)});
  return flags;
}

// The tensor of a result file, heads moved back where the layout moved them.
DenseTensor take(const io::TensorMap& file, const char* name, bool swapped) {
  const auto found = file.find(name);
  if (found == file.end()) return {};
  const io::Tensor& tensor = found->second;
  DenseTensor stored(tensor.dtype, tensor.shape);
  if (!stored.bytes.empty()) {
    std::memcpy(stored.bytes.data(), tensor.buffer.data(), stored.bytes.size());
  }
  if (!swapped || stored.rank() != 4) return stored;
  DenseTensor dense(tensor.dtype,
                    {tensor.shape[0], tensor.shape[2], tensor.shape[1], tensor.shape[3]});
  const size_t row = static_cast<size_t>(tensor.shape[3] * size_of(tensor.dtype));
  for (int64_t b = 0; b < tensor.shape[0]; ++b) {
    for (int64_t h = 0; h < tensor.shape[1]; ++h) {
      for (int64_t s = 0; s < tensor.shape[2]; ++s) {
        const size_t to = static_cast<size_t>((b * tensor.shape[2] + s) * tensor.shape[1] + h);
        const size_t from = static_cast<size_t>((b * tensor.shape[1] + h) * tensor.shape[2] + s);
        std::memcpy(dense.bytes.data() + to * row, stored.bytes.data() + from * row, row);
      }
    }
  }
  return dense;
}

// A refusal and a wrong request have the same exit status; the plan of the same call tells which.
Status failed(const testing::ProcessResult& process, const Case& c, const Oracle& oracle,
              const Cell& cell) {
  std::string message = process.standard_error;
  while (!message.empty() && message.back() == '\n') message.pop_back();
  if (!process.started) return {StatusCode::kUnavailable, "the binary could not be started"};
  if (process.exit_status == 2) {
    AttentionOptions options = options_of(c);
    options.algorithm = cell.algorithm;
    options.isa = cell.isa;
    options.atomic_dq = cell.atomic_dq;
    const AttentionInputs inputs = inputs_of(oracle.values);
    const AttentionOutputs outputs = outputs_of(oracle.slots);
    const Result<Plan> plan =
        c.backward
            ? plan_backward(inputs, outputs, gradients_of(oracle.values, oracle.slots), options)
            : plan_forward(inputs, outputs, options);
    if (plan.status().code() == StatusCode::kUnsupported) return plan.status();
  }
  return {StatusCode::kInternal,
          "exit status " + std::to_string(process.exit_status) + ": " + message};
}

std::string shape_problem(const char* name, const DenseTensor& got, const DenseTensor& expected) {
  if (!expected.present) return {};
  if (!got.present) return std::string(name) + " is not in the file";
  if (got.shape == expected.shape && got.dtype == expected.dtype) return {};
  return std::string(name) + " is " + attentile::to_string(got.dtype) + " " +
         testing::to_string(got.shape) + ", expected " + attentile::to_string(expected.dtype) +
         " " + testing::to_string(expected.shape);
}

}  // namespace

bool cli_can_express(const Case& c) {
  return !c.has_bases();
}

EntryResult run_cli(const Case& c, const Oracle& oracle, const Cell& cell, uint64_t layout_seed,
                    const std::string& cli_path) {
  static const testing::ScratchFolder folder;
  testing::Random random(layout_seed);
  const bool heads_first = !c.varlen && random.chance(0.5);
  const std::string input = folder.path() + "/in.safetensors";
  const std::string output = folder.path() + "/out.safetensors";
  EntryResult result;
  result.status = io::write_safetensors(input, file_contents(c, oracle.given, heads_first));
  if (!result.status.ok()) return result;
  std::vector<std::string> arguments = {cli_path, "attend", input, "--out", output};
  for (std::string& flag : flags_of(c, cell, heads_first, random.chance(0.5))) {
    arguments.push_back(std::move(flag));
  }
  const testing::ProcessResult process = testing::run_process(arguments, folder.path());
  if (process.exit_status != 0) {
    result.status = failed(process, c, oracle, cell);
    return result;
  }
  const Result<io::TensorMap> file = io::read_safetensors(output);
  if (!file.ok()) {
    result.status = file.status();
    return result;
  }
  Results& r = result.results;
  r = {.out = take(*file, "out", heads_first),
       .lse = take(*file, "lse", false),
       .keep = take(*file, "keep", false),
       .dq = take(*file, "dq", heads_first),
       .dk = take(*file, "dk", heads_first),
       .dv = take(*file, "dv", heads_first),
       .dbias = take(*file, "dbias", false),
       .dsink = take(*file, "dsink", false)};
  const Results& expected = oracle.slots;
  for (const std::string& problem :
       {shape_problem("out", r.out, expected.out), shape_problem("lse", r.lse, expected.lse),
        shape_problem("keep", r.keep, expected.keep), shape_problem("dq", r.dq, expected.dq),
        shape_problem("dk", r.dk, expected.dk), shape_problem("dv", r.dv, expected.dv),
        shape_problem("dbias", r.dbias, expected.dbias),
        shape_problem("dsink", r.dsink, expected.dsink)}) {
    if (!problem.empty()) result.damage += (result.damage.empty() ? "" : "; ") + problem;
  }
  return result;
}

}  // namespace attentile::conformance

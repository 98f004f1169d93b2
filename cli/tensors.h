// SPDX-License-Identifier: Apache-2.0
// The tensors of one call: where they come from (a safetensors file, .npy files, a random fill),
// how --dtype, --layout and --max-heads change the views, and the results' memory.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "attentile/attention.h"
#include "cli/attention_arguments.h"
#include "io/tensor_file.h"

namespace attentile::cli {

// Every tensor that attend reads, by its name in files and flags.
const std::vector<std::string>& input_names();

struct TensorRequest {
  std::optional<std::string> safetensors;
  std::map<std::string, std::string> npy;  // tensor name -> path
  std::optional<Shape> random;
  std::string_view random_option = "--random";  // what gave the sizes, for error sentences
  uint64_t fill_seed = 0;
  std::optional<DType> dtype;
  Layout layout = Layout::kBshd;
  std::optional<int64_t> max_heads;
  bool backward = false;
  bool keep = false;
};

// The views of one call and the memory behind them. Views of q, k, v, out and their gradients are
// batch-first, seqlen, heads, dim whatever the layout; `results` holds what is to be written.
struct CallTensors {
  AttentionInputs inputs;
  AttentionOutputs outputs;
  AttentionGradients gradients;
  io::TensorMap owned;
  io::TensorMap results;
};

// Paths of all files that the request reads.
std::vector<std::string> input_paths(const TensorRequest& request);

// The member that holds input `name`.
TensorView* input_slot(CallTensors& call, std::string_view name);

// Reads or fills the inputs; the outputs' views get their shapes and strides, but no data.
CallTensors load_call(const TensorRequest& request);

// An Error if --block-size came without the tensor that it describes.
void check_block_size(const CallTensors& call, const AttentionOptions& options);

// Bytes that the results need.
int64_t result_bytes(const CallTensors& call);

// Gives the outputs' views their memory, in `results`.
void allocate_results(CallTensors& call, Layout layout);

}  // namespace attentile::cli

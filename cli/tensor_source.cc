// SPDX-License-Identifier: Apache-2.0
// The three sources of input tensors. Each tensor comes from exactly one of them.
#include "cli/tensor_source.h"

#include <set>

#include "cli/error.h"
#include "cli/memory.h"
#include "cli/numbers.h"
#include "cli/progress.h"
#include "cli/random_fill.h"
#include "io/npy.h"
#include "io/safetensors.h"
#include "io/text.h"

namespace attentile::cli {
namespace {

std::set<std::string> wanted_names(const TensorRequest& request) {
  std::set<std::string> names(input_names().begin(), input_names().end());
  if (!request.backward) {
    names.erase("dout");
    names.erase("dlse");
  }
  return names;
}

std::vector<int64_t> stored_shape(Layout layout, int64_t batch, int64_t seqlen, int64_t heads,
                                  int64_t dim) {
  if (layout == Layout::kBhsd) return {batch, heads, seqlen, dim};
  return {batch, seqlen, heads, dim};
}

struct RandomTensor {
  const char* name;
  int64_t seqlen, heads, dim;
};

void fill_random(const TensorRequest& request, io::TensorMap& tensors) {
  const Shape& shape = *request.random;
  const DType dtype = request.dtype.value_or(DType::kFloat32);
  std::vector<RandomTensor> wanted = {
      {"q", shape.seqlen_q, shape.num_heads_q, shape.head_dim},
      {"k", shape.seqlen_k, shape.num_heads_kv, shape.head_dim},
      {"v", shape.seqlen_k, shape.num_heads_kv, shape.head_dim_v},
  };
  if (request.backward && request.npy.count("dout") == 0) {
    wanted.push_back({"dout", shape.seqlen_q, shape.num_heads_q, shape.head_dim_v});
  }
  double bytes = 0;
  for (const RandomTensor& tensor : wanted) {
    bytes += static_cast<double>(shape.batch) * static_cast<double>(tensor.seqlen) *
             static_cast<double>(tensor.heads) * static_cast<double>(tensor.dim) *
             static_cast<double>(size_of(dtype));
  }
  require_memory(request.random_option, bytes);
  for (const RandomTensor& tensor : wanted) {
    InterruptGuard::check();
    io::Tensor made = take(io::make_tensor(
        dtype, stored_shape(request.layout, shape.batch, tensor.seqlen, tensor.heads, tensor.dim),
        tensor.name));
    fill_normal({.data = made.buffer.data(), .dtype = dtype, .num_elements = made.num_elements()},
                request.fill_seed, tensor.name);
    tensors.emplace(tensor.name, std::move(made));
  }
}

void read_npy_files(const TensorRequest& request, io::TensorMap& tensors) {
  for (const auto& [name, path] : request.npy) {
    if (!request.backward && (name == "dout" || name == "dlse")) {
      wrong_request("--{}: given without --backward, expected both", name);
    }
    if (tensors.count(name) != 0) {
      wrong_request("--{}: {}, but {} holds {} too, expected one source", name,
                    io::printable_path(path),
                    request.random ? std::string(request.random_option)
                                   : io::printable_path(*request.safetensors),
                    name);
    }
    tensors.emplace(name, take(io::read_npy(path)));
  }
}

}  // namespace

io::TensorMap read_inputs(const TensorRequest& request) {
  io::TensorMap tensors;
  if (request.safetensors) {
    const std::set<std::string> names = wanted_names(request);
    tensors = take(io::read_safetensors(*request.safetensors, &names));
  }
  if (request.random) fill_random(request, tensors);
  read_npy_files(request, tensors);

  std::vector<std::string> needed = {"q", "k", "v"};
  if (request.backward) needed.push_back("dout");
  for (const std::string& name : needed) {
    if (tensors.count(name) != 0) continue;
    const std::string why = name == "dout" ? ", which --backward needs" : "";
    if (request.safetensors) {
      wrong_request("{}: not in {}, expected a tensor of this name{}", name,
                    io::printable_path(*request.safetensors), why);
    }
    wrong_request("--{}: not given, expected a .npy file{}", name, why);
  }
  return tensors;
}

}  // namespace attentile::cli

// SPDX-License-Identifier: Apache-2.0
// The header of a .safetensors file: a JSON object that gives, per tensor, its dtype, its shape and
// the two ends of its bytes in the data that follows. The JSON grammar is nlohmann-json's, used as
// a stream of events so that neither depth nor size of the text costs memory beyond what is kept;
// every check of meaning is made here. Internal to safetensors.cc and the fuzzers.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "attentile/status.h"
#include "attentile/tensor.h"

namespace attentile::io {

inline constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;  // bytes
inline constexpr size_t kMaxSafetensorsEntries = 1'000'000;     // tensors; metadata entries too

// One wanted tensor: bytes [begin, end) of the data.
struct SafetensorsEntry {
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;
  uint64_t begin = 0;
  uint64_t end = 0;
};

using SafetensorsHeader = std::map<std::string, SafetensorsEntry>;

// Checks the whole header against `data_size` bytes of data and returns the wanted tensors: those
// in only_names, or all if that is null. Error sentences begin with file_name.
Result<SafetensorsHeader> parse_safetensors_header(std::string_view json,
                                                   const std::string& file_name, uint64_t data_size,
                                                   const std::set<std::string>* only_names);

// A safetensors dtype: its width in bits, and our type if we have it.
struct SafetensorsDType {
  std::string_view name;
  uint64_t num_bits;
  std::optional<DType> dtype;
};

// Null if the name is not one of the format's.
const SafetensorsDType* find_safetensors_dtype(std::string_view name);
std::string_view safetensors_name(DType dtype);

// The first bytes of a file, length word and padding included, and the order in which the tensors'
// row-major bytes follow: wider elements first, so that each tensor is aligned to its element size.
struct SafetensorsPreamble {
  std::string bytes;
  std::vector<std::pair<std::string, TensorView>> order;
};

// Errors begin with file_name.
Result<SafetensorsPreamble> make_safetensors_preamble(
    const std::string& file_name, const std::map<std::string, TensorView>& tensors,
    const std::map<std::string, std::string>& metadata);

}  // namespace attentile::io

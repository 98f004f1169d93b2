// SPDX-License-Identifier: Apache-2.0
// The header of a .npy file: a Python dict literal of three keys. Internal to npy.cc and the
// fuzzer.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "attentile/status.h"
#include "attentile/tensor.h"

namespace attentile::io {

inline constexpr uint64_t kMaxNpyHeader = 65536;  // bytes of text, without magic and length

struct NpyHeader {
  DType dtype = DType::kFloat32;
  bool fortran_order = false;
  std::vector<int64_t> shape;
};

// Parses the text between the length field and the data; sentences begin with file_name.
Result<NpyHeader> parse_npy_header(std::string_view text, const std::string& file_name);

// Everything that stands before the data of a version 1.0 file, padded to 64 bytes. The dtype must
// have a descr.
std::string make_npy_preamble(const NpyHeader& header);

// "<f4" and so on; empty for bfloat16.
std::string_view npy_descr(DType dtype);

}  // namespace attentile::io

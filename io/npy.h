// SPDX-License-Identifier: Apache-2.0
// .npy files, NumPy's format for one array, versions 1.0, 2.0 and 3.0. The reader is strict: the
// header must be the dict that NumPy writes (descr, fortran_order, shape, each once), its size is
// compared with the file's before any memory is taken, and bytes after the array are an error.
// Nothing is ever unpickled.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "attentile/status.h"
#include "attentile/tensor.h"
#include "io/tensor_file.h"

namespace attentile::io {

// Reads <f4, <f2, <f8, <i4, |u1 or |b1 of rank up to 32 (a view needs rank <= 4); column-major
// files (fortran_order) arrive row-major. Errors: kInvalidArgument for what is wrong with the path
// or the contents, kOutOfMemory, kUnavailable when the system fails; sentences begin with the path.
Result<Tensor> read_npy(const std::string& path);

// The same for a file that is in memory; `name` begins the sentences.
Result<Tensor> parse_npy(std::span<const std::byte> bytes, const std::string& name = "npy");

// Writes version 1.0, row-major, atomically. bfloat16 is an error: .npy has no name for it.
Status write_npy(const std::string& path, const TensorView& view);

}  // namespace attentile::io

// SPDX-License-Identifier: Apache-2.0
// .safetensors files: an 8-byte length, a JSON header and the tensors' bytes. The reader is strict:
// it accepts what the format allows and nothing else, compares every size with the file's before it
// allocates, and says in one sentence what is wrong. No single allocation is larger than the file
// plus 1 MiB, except the JSON scanner's own buffer, which may reach twice the header's length.
// The writer is atomic (atomic_file.h says what that means for links and permissions).
#pragma once

#include <cstddef>
#include <map>
#include <set>
#include <span>
#include <string>

#include "attentile/status.h"
#include "attentile/tensor.h"
#include "io/tensor_file.h"

namespace attentile::io {

// Reads the tensors named in only_names, or all if it is null. A name that the file does not hold
// is no error here. Tensors with other names are checked (place, size) but not read, and may have
// any dtype; a wanted tensor must be F32, F16, BF16, F64, I32, U8 or BOOL. Ranks up to 32. Errors:
// kInvalidArgument for what is wrong with the path or the contents, kOutOfMemory, kUnavailable when
// the system fails; sentences begin with the path.
Result<TensorMap> read_safetensors(const std::string& path,
                                   const std::set<std::string>* only_names = nullptr);

// The same for a file that is in memory; `name` begins the sentences.
Result<TensorMap> parse_safetensors(std::span<const std::byte> bytes,
                                    const std::set<std::string>* only_names = nullptr,
                                    const std::string& name = "safetensors");

using Metadata = std::map<std::string, std::string>;

// Writes contiguous or strided CPU tensors, atomically. Tensors follow each other by element size,
// widest first, then by name, so each is aligned to its element size within the file.
Status write_safetensors(const std::string& path, const std::map<std::string, TensorView>& tensors,
                         const Metadata& metadata = {});
Status write_safetensors(const std::string& path, const TensorMap& tensors,
                         const Metadata& metadata = {});

}  // namespace attentile::io

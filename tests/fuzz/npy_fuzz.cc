// SPDX-License-Identifier: Apache-2.0
// Fuzz target: any bytes as a .npy file. Beyond not crashing, what is accepted must be consistent:
// the bytes fit the shape, and the array written again and read again is the same.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>

#include "io/npy.h"
#include "io/npy_header.h"

namespace {

using attentile::Result;
using attentile::io::parse_npy;
using attentile::io::Tensor;

void require(bool condition) {
  if (!condition) std::abort();
}

std::string contents_of(const Tensor& tensor) {
  if (tensor.buffer.size() == 0) return {};
  return {reinterpret_cast<const char*>(tensor.buffer.data()), tensor.buffer.size()};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const Result<Tensor> tensor = parse_npy(std::as_bytes(std::span(data, size)));
  if (!tensor.ok()) {
    require(tensor.status().message().find('\n') == std::string::npos);
    return 0;
  }
  int64_t num_elements = 1;
  for (const int64_t extent : tensor->shape) num_elements *= extent;
  require(num_elements == tensor->num_elements());
  require(tensor->view().ok() == (tensor->shape.size() <= 4));

  const std::string contents = contents_of(*tensor);
  require(contents.size() < size);
  const std::string file =
      attentile::io::make_npy_preamble({tensor->dtype, false, tensor->shape}) + contents;
  const Result<Tensor> again = parse_npy(std::as_bytes(std::span(file)));
  require(again.ok() && again->dtype == tensor->dtype && again->shape == tensor->shape);
  require(contents_of(*again) == contents);
  return 0;
}

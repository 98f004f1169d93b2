// SPDX-License-Identifier: Apache-2.0
// Fuzz target: any bytes as a .safetensors file. Beyond not crashing, what is accepted must be
// consistent: the tensors' bytes are the file's data, reading some names agrees with reading all,
// and the tensors written again and read again are the same.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>

#include "io/safetensors.h"
#include "io/safetensors_header.h"

namespace {

using attentile::Result;
using attentile::TensorView;
using attentile::io::parse_safetensors;
using attentile::io::Tensor;
using attentile::io::TensorMap;

void require(bool condition) {
  if (!condition) std::abort();
}

bool equal(const Tensor& a, const Tensor& b) {
  const size_t size = a.buffer.size();
  return a.dtype == b.dtype && a.shape == b.shape && size == b.buffer.size() &&
         (size == 0 || std::memcmp(a.buffer.data(), b.buffer.data(), size) == 0);
}

void check_rewritten(const TensorMap& tensors) {
  std::map<std::string, TensorView> views;
  for (const auto& [name, tensor] : tensors) {
    const Result<TensorView> view = tensor.view(name);
    if (!view.ok()) {
      require(tensor.shape.size() > static_cast<size_t>(attentile::kMaxRank));
      return;
    }
    views.emplace(name, *view);
  }
  const auto preamble = attentile::io::make_safetensors_preamble("file", views, {{"a", "b"}});
  require(preamble.ok());
  std::string file = preamble->bytes;
  require(file.size() % 8 == 0);
  for (const auto& [name, view] : preamble->order) {
    const Tensor& tensor = tensors.at(name);
    require(file.size() % static_cast<size_t>(size_of(view.dtype)) == 0 ||
            tensor.num_elements() == 0);
    if (tensor.buffer.size() > 0) {
      file.append(reinterpret_cast<const char*>(tensor.buffer.data()), tensor.buffer.size());
    }
  }
  const Result<TensorMap> again = parse_safetensors(std::as_bytes(std::span(file)));
  require(again.ok() && again->size() == tensors.size());
  for (const auto& [name, tensor] : tensors) require(equal(tensor, again->at(name)));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> bytes = std::as_bytes(std::span(data, size));
  const std::set<std::string> names = {"q", "k"};
  const Result<TensorMap> all = parse_safetensors(bytes);
  const Result<TensorMap> some = parse_safetensors(bytes, &names);
  if (!all.ok()) {
    require(all.status().message().find('\n') == std::string::npos);
    return 0;
  }
  require(some.ok());
  size_t total = 0;
  size_t num_named = 0;
  for (const auto& [name, tensor] : *all) {
    total += tensor.buffer.size();
    if (!names.contains(name)) continue;
    ++num_named;
    require(equal(tensor, some->at(name)));
  }
  require(num_named == some->size());
  uint64_t header_size = 0;
  std::memcpy(&header_size, data, sizeof header_size);
  require(8 + header_size + total == size);
  check_rewritten(*all);
  return 0;
}

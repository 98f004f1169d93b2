// SPDX-License-Identifier: Apache-2.0
// The writing half of safetensors_header.h: which bytes stand before the tensors' data, and in
// which order the tensors follow.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "io/safetensors_header.h"
#include "io/tensor_file.h"
#include "io/text.h"
#include "io/view_writer.h"

namespace attentile::io {
namespace {

constexpr size_t kAlignment = 8;

// A JSON string, or nullopt if the text is not UTF-8.
std::optional<std::string> quoted(const std::string& text) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    return std::nullopt;
  }
}

Result<std::string> metadata_json(const std::string& file_name,
                                  const std::map<std::string, std::string>& metadata) {
  std::string json = "\"__metadata__\":{";
  for (const auto& [key, value] : metadata) {
    const std::optional<std::string> quoted_key = quoted(key);
    const std::optional<std::string> quoted_value = quoted(value);
    if (!quoted_key || !quoted_value) {
      return bad_content(file_name, fmt::format("__metadata__: '{}' is not valid UTF-8",
                                                printable(quoted_key ? value : key)));
    }
    if (json.back() != '{') json += ',';
    json += *quoted_key + ":" + *quoted_value;
  }
  return json + "}";
}

}  // namespace

Result<SafetensorsPreamble> make_safetensors_preamble(
    const std::string& file_name, const std::map<std::string, TensorView>& tensors,
    const std::map<std::string, std::string>& metadata) {
  SafetensorsPreamble preamble;
  for (const auto& [name, view] : tensors) {
    std::string fault = fault_of(view);
    if (name == "__metadata__") fault = "the name is reserved by the format";
    if (!fault.empty()) {
      return bad_content(file_name, fmt::format("tensor '{}': {}", printable(name), fault));
    }
  }
  for (const int64_t item_bytes : {8, 4, 2, 1}) {
    for (const auto& [name, view] : tensors) {
      if (size_of(view.dtype) == item_bytes) preamble.order.emplace_back(name, view);
    }
  }

  std::string json = "{";
  if (!metadata.empty()) {
    Result<std::string> entry = metadata_json(file_name, metadata);
    if (!entry.ok()) return entry.status();
    json += *entry;
  }
  uint64_t position = 0;
  for (const auto& [name, view] : preamble.order) {
    const std::optional<std::string> key = quoted(name);
    if (!key) {
      return bad_content(file_name,
                         fmt::format("tensor '{}': the name is not valid UTF-8", printable(name)));
    }
    const std::span<const int64_t> shape(view.shape, static_cast<size_t>(view.rank));
    const uint64_t num_bytes =
        *checked_num_bits(shape, static_cast<uint64_t>(size_of(view.dtype)) * 8) / 8;
    if (json.size() > 1) json += ',';
    json += fmt::format(R"({}:{{"dtype":"{}","shape":{},"data_offsets":[{},{}]}})", *key,
                        safetensors_name(view.dtype), shape_text(shape), position,
                        position + num_bytes);
    position += num_bytes;
  }
  json += '}';
  json.resize((json.size() + kAlignment - 1) / kAlignment * kAlignment, ' ');
  if (json.size() > kMaxSafetensorsHeader) {
    return bad_content(file_name, fmt::format("header length is {}, but at most {} is allowed",
                                              json.size(), kMaxSafetensorsHeader));
  }
  for (size_t byte = 0; byte < sizeof(uint64_t); ++byte) {
    preamble.bytes += static_cast<char>(json.size() >> (8 * byte) & 0xFFu);
  }
  preamble.bytes += json;
  return preamble;
}

}  // namespace attentile::io

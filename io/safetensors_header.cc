// SPDX-License-Identifier: Apache-2.0
// The .safetensors header: see safetensors_header.h. A small state machine (HeaderHandler) receives
// the JSON parser's events; anything that is not at its place stops the parse, so nesting is never
// deeper than the format's three levels. check_layout then proves that the tensors' bytes cover the
// data without hole or overlap.
#include "io/safetensors_header.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "io/tensor_file.h"
#include "io/text.h"

namespace attentile::io {
namespace {

using nlohmann::json;

constexpr SafetensorsDType kDTypes[] = {
    {"BOOL", 8, DType::kBool},        {"U8", 8, DType::kUInt8},
    {"F16", 16, DType::kFloat16},     {"BF16", 16, DType::kBFloat16},
    {"I32", 32, DType::kInt32},       {"F32", 32, DType::kFloat32},
    {"F64", 64, DType::kFloat64},     {"F4", 4, std::nullopt},
    {"F6_E2M3", 6, std::nullopt},     {"F6_E3M2", 6, std::nullopt},
    {"I8", 8, std::nullopt},          {"F8_E4M3", 8, std::nullopt},
    {"F8_E5M2", 8, std::nullopt},     {"F8_E8M0", 8, std::nullopt},
    {"F8_E4M3FNUZ", 8, std::nullopt}, {"F8_E5M2FNUZ", 8, std::nullopt},
    {"I16", 16, std::nullopt},        {"U16", 16, std::nullopt},
    {"U32", 32, std::nullopt},        {"I64", 64, std::nullopt},
    {"U64", 64, std::nullopt},        {"C64", 64, std::nullopt},
};

constexpr const char* kReadableDTypes = "F32, F16, BF16, F64, I32, U8 or BOOL is expected";
constexpr const char* kMetadataKey = "__metadata__";
constexpr const char* kInteger = "a whole number from 0 to 9223372036854775807 is expected";

// Where a tensor lies in the data; kept for every tensor, wanted or not.
struct Extent {
  uint64_t begin;
  uint64_t end;
};

class HeaderHandler final : public nlohmann::json_sax<json> {
 public:
  HeaderHandler(const std::string& file_name, uint64_t data_size,
                const std::set<std::string>* only_names)
      : file_name_(file_name), data_size_(data_size), only_names_(only_names) {}

  bool null() override { return misplaced("null"); }
  bool boolean(bool value) override { return misplaced(value ? "true" : "false"); }
  bool number_integer(number_integer_t value) override {
    return misplaced(value == 0 ? "-0" : fmt::to_string(value));
  }
  bool number_unsigned(number_unsigned_t value) override;
  bool number_float(number_float_t, const string_t& text) override { return misplaced(text); }
  bool string(string_t& value) override;
  bool binary(binary_t&) override { return misplaced("binary data"); }
  bool start_object(size_t) override;
  bool key(string_t& name) override;
  bool end_object() override;
  bool start_array(size_t) override;
  bool end_array() override;
  bool parse_error(size_t position, const std::string&, const json::exception&) override {
    return fail(fmt::format("the header is not valid JSON at byte {}", position));
  }

  Status check_layout() const;
  const Status& status() const { return status_; }
  SafetensorsHeader take_wanted() { return std::move(wanted_); }

 private:
  enum class Place { kStart, kRoot, kMetadata, kTensor, kShape, kOffsets, kDone };
  enum class Field { kNone, kDType, kShape, kOffsets };

  // The tensor whose object is being read.
  struct Current {
    std::string name;
    Field field = Field::kNone;
    std::string dtype_name;
    std::vector<int64_t> shape;
    std::vector<uint64_t> offsets;
    bool has_dtype = false;
    bool has_shape = false;
    bool has_offsets = false;
  };

  bool fail(std::string_view what) {
    if (status_.ok()) status_ = bad_content(file_name_, what);
    return false;
  }
  bool fail_tensor(std::string_view what) {
    return fail(fmt::format("tensor '{}': {}", printable(current_.name), what));
  }
  bool misplaced(std::string_view what);
  bool root_key(const std::string& name);
  bool tensor_key(const std::string& name);
  bool finish_tensor();
  bool wanted(const std::string& name) const {
    return only_names_ == nullptr || only_names_->contains(name);
  }

  const std::string& file_name_;
  const uint64_t data_size_;
  const std::set<std::string>* const only_names_;
  Status status_;
  Place place_ = Place::kStart;
  Current current_;
  bool has_metadata_ = false;
  std::string metadata_key_;
  std::set<std::string> metadata_keys_;
  std::map<std::string, Extent> extents_;
  SafetensorsHeader wanted_;
};

// A value of the wrong kind at the present place; `what` is a literal or the name of a kind.
bool HeaderHandler::misplaced(std::string_view what) {
  const std::string found = printable(what, 40);
  switch (place_) {
    case Place::kRoot:
      if (current_.name == kMetadataKey) {
        return fail(
            fmt::format("{}: it is {}, but an object of strings is expected", kMetadataKey, found));
      }
      return fail_tensor(fmt::format(
          "it is {}, but an object of dtype, shape and data_offsets is expected", found));
    case Place::kMetadata:
      return fail(fmt::format("{}: '{}' is {}, but a string is expected", kMetadataKey,
                              printable(metadata_key_), found));
    case Place::kTensor:
      return fail_tensor(
          current_.field == Field::kDType
              ? fmt::format("dtype is {}, but a string is expected", found)
              : fmt::format("{} is {}, but an array of whole numbers is expected",
                            current_.field == Field::kShape ? "shape" : "data_offsets", found));
    case Place::kShape: return fail_tensor(fmt::format("shape holds {}, but {}", found, kInteger));
    case Place::kOffsets:
      return fail_tensor(fmt::format("data_offsets holds {}, but {}", found, kInteger));
    case Place::kStart:
    case Place::kDone: break;
  }
  return fail(fmt::format("the header is {}, but a JSON object is expected", found));
}

bool HeaderHandler::number_unsigned(number_unsigned_t value) {
  const bool fits = value <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  if (place_ == Place::kShape && fits) {
    if (current_.shape.size() == kMaxFileRank) {
      return fail_tensor(fmt::format("shape has more than {} dimensions", kMaxFileRank));
    }
    current_.shape.push_back(static_cast<int64_t>(value));
    return true;
  }
  if (place_ == Place::kOffsets && fits) {
    if (current_.offsets.size() == 2) {
      return fail_tensor(
          "data_offsets has more than 2 numbers, but a begin and an end are expected");
    }
    current_.offsets.push_back(value);
    return true;
  }
  return misplaced(fmt::to_string(value));
}

bool HeaderHandler::string(string_t& value) {
  if (place_ == Place::kMetadata) return true;
  if (place_ == Place::kTensor && current_.field == Field::kDType) {
    current_.dtype_name = std::move(value);
    return true;
  }
  return misplaced("a string");
}

bool HeaderHandler::start_object(size_t) {
  if (place_ == Place::kStart) {
    place_ = Place::kRoot;
    return true;
  }
  if (place_ != Place::kRoot) return misplaced("an object");
  place_ = current_.name == kMetadataKey ? Place::kMetadata : Place::kTensor;
  return true;
}

bool HeaderHandler::key(string_t& name) {
  if (place_ == Place::kRoot) return root_key(name);
  if (place_ == Place::kTensor) return tensor_key(name);
  if (metadata_keys_.size() == kMaxSafetensorsEntries) {
    return fail(
        fmt::format("{}: it has more than {} entries", kMetadataKey, kMaxSafetensorsEntries));
  }
  if (!metadata_keys_.insert(name).second) {
    return fail(fmt::format("{}: the key '{}' appears twice", kMetadataKey, printable(name)));
  }
  metadata_key_ = std::move(name);
  return true;
}

bool HeaderHandler::root_key(const std::string& name) {
  current_ = Current{};
  current_.name = name;
  if (name == kMetadataKey) {
    if (has_metadata_) return fail(fmt::format("{}: it appears twice in the header", name));
    has_metadata_ = true;
    return true;
  }
  if (extents_.size() == kMaxSafetensorsEntries) {
    return fail(fmt::format("the header has more than {} tensors", kMaxSafetensorsEntries));
  }
  if (!extents_.try_emplace(name, Extent{}).second) {
    return fail_tensor("the name appears twice in the header");
  }
  return true;
}

bool HeaderHandler::tensor_key(const std::string& name) {
  bool* seen = nullptr;
  if (name == "dtype") {
    seen = &current_.has_dtype;
    current_.field = Field::kDType;
  } else if (name == "shape") {
    seen = &current_.has_shape;
    current_.field = Field::kShape;
  } else if (name == "data_offsets") {
    seen = &current_.has_offsets;
    current_.field = Field::kOffsets;
  } else {
    return fail_tensor(
        fmt::format("the key '{}' is not one of dtype, shape and data_offsets", printable(name)));
  }
  if (*seen) return fail_tensor(fmt::format("{} appears twice", name));
  *seen = true;
  return true;
}

bool HeaderHandler::start_array(size_t) {
  if (place_ == Place::kTensor && current_.field == Field::kShape) {
    place_ = Place::kShape;
    return true;
  }
  if (place_ == Place::kTensor && current_.field == Field::kOffsets) {
    place_ = Place::kOffsets;
    return true;
  }
  return misplaced("an array");
}

bool HeaderHandler::end_array() {
  if (place_ == Place::kOffsets && current_.offsets.size() != 2) {
    return fail_tensor(
        fmt::format("data_offsets has {} number{}, but a begin and an end are expected",
                    current_.offsets.size(), current_.offsets.size() == 1 ? "" : "s"));
  }
  place_ = Place::kTensor;
  return true;
}

bool HeaderHandler::end_object() {
  if (place_ == Place::kTensor && !finish_tensor()) return false;
  place_ = place_ == Place::kRoot ? Place::kDone : Place::kRoot;
  return true;
}

// Every check that needs one tensor only.
bool HeaderHandler::finish_tensor() {
  if (!current_.has_dtype) return fail_tensor("dtype is missing");
  if (!current_.has_shape) return fail_tensor("shape is missing");
  if (!current_.has_offsets) return fail_tensor("data_offsets is missing");
  const uint64_t begin = current_.offsets[0];
  const uint64_t end = current_.offsets[1];
  if (begin > end) {
    return fail_tensor(fmt::format(
        "data_offsets are [{}, {}], but the begin must not exceed the end", begin, end));
  }
  if (end > data_size_) {
    return fail_tensor(fmt::format("data_offsets end at {}, but the file holds {} of data", end,
                                   bytes_text(data_size_)));
  }
  const SafetensorsDType* const dtype = find_safetensors_dtype(current_.dtype_name);
  const bool is_wanted = wanted(current_.name);
  if (is_wanted && (dtype == nullptr || !dtype->dtype)) {
    return fail_tensor(
        fmt::format("dtype is '{}', but {}", printable(current_.dtype_name, 40), kReadableDTypes));
  }
  // A dtype that the format did not have yet: eight bits stand in, so that the shape is checked.
  const std::optional<uint64_t> num_bits =
      checked_num_bits(current_.shape, dtype != nullptr ? dtype->num_bits : 8);
  if (!num_bits) {
    return fail_tensor(fmt::format("shape is {}, but its size in bits must be below 2^63",
                                   shape_text(current_.shape)));
  }
  if (dtype != nullptr && (*num_bits % 8 != 0 || *num_bits / 8 != end - begin)) {
    return fail_tensor(fmt::format(
        "data_offsets span {}, but {} of shape {} takes {}", bytes_text(end - begin), dtype->name,
        shape_text(current_.shape),
        *num_bits % 8 == 0 ? bytes_text(*num_bits / 8) : fmt::format("{} bits", *num_bits)));
  }
  extents_.find(current_.name)->second = {begin, end};
  if (is_wanted) {
    wanted_.emplace(current_.name,
                    SafetensorsEntry{*dtype->dtype, std::move(current_.shape), begin, end});
  }
  return true;
}

// The tensors, taken by their begin, must follow each other and end with the file.
Status HeaderHandler::check_layout() const {
  std::vector<const std::pair<const std::string, Extent>*> order;
  order.reserve(extents_.size());
  for (const auto& entry : extents_) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  uint64_t position = 0;
  for (const auto* entry : order) {
    const uint64_t begin = entry->second.begin;
    if (begin != position) {
      return bad_content(
          file_name_,
          fmt::format(
              "tensor '{}': its data begins at {}, but the tensors before it end at {} ({})",
              printable(entry->first), begin, position,
              begin > position ? "a hole" : "an overlap"));
    }
    position = entry->second.end;
  }
  if (position != data_size_) {
    return bad_content(
        file_name_, fmt::format("the tensors end at byte {} of the data, but the file holds {} of "
                                "data (trailing bytes)",
                                position, bytes_text(data_size_)));
  }
  return {};
}

}  // namespace

const SafetensorsDType* find_safetensors_dtype(std::string_view name) {
  const auto* const found =
      std::find_if(std::begin(kDTypes), std::end(kDTypes),
                   [&](const SafetensorsDType& dtype) { return dtype.name == name; });
  return found == std::end(kDTypes) ? nullptr : found;
}

std::string_view safetensors_name(DType dtype) {
  for (const SafetensorsDType& known : kDTypes) {
    if (known.dtype == dtype) return known.name;
  }
  return "unknown";
}

Result<SafetensorsHeader> parse_safetensors_header(std::string_view json_text,
                                                   const std::string& file_name, uint64_t data_size,
                                                   const std::set<std::string>* only_names) {
  if (json_text.empty() || json_text.front() != '{') {
    return bad_content(file_name, json_text.empty()
                                      ? "the header is empty, but a JSON object is expected"
                                      : "the header does not begin with '{'");
  }
  // The JSON scanner takes a NUL for the end of its input and would not look at what follows.
  if (const size_t nul = json_text.find('\0'); nul != std::string_view::npos) {
    return bad_content(file_name, fmt::format("the header is not valid JSON at byte {}", nul + 1));
  }
  HeaderHandler handler(file_name, data_size, only_names);
  const bool parsed = json::sax_parse(json_text.begin(), json_text.end(), &handler);
  if (!handler.status().ok()) return handler.status();
  if (!parsed) return bad_content(file_name, "the header is not valid JSON");
  if (Status status = handler.check_layout(); !status.ok()) return status;
  return handler.take_wanted();
}

}  // namespace attentile::io

// SPDX-License-Identifier: Apache-2.0
// Reading and writing .safetensors: see safetensors.h; the header is safetensors_header.cc's.
#include "io/safetensors.h"

#include <fmt/format.h>

#include <memory>
#include <utility>

#include "io/atomic_file.h"
#include "io/byte_source.h"
#include "io/safetensors_header.h"
#include "io/text.h"
#include "io/view_writer.h"

namespace attentile::io {
namespace {

constexpr uint64_t kLengthBytes = 8;

Result<TensorMap> read_from(ByteSource& source, const std::set<std::string>* only_names) {
  const uint64_t file_size = source.size();
  if (file_size < kLengthBytes) {
    return bad_content(source.name(),
                       file_size == 0
                           ? std::string("the file is empty")
                           : fmt::format("the file has {}, but a safetensors file has at least {}",
                                         bytes_text(file_size), kLengthBytes));
  }
  unsigned char word[kLengthBytes];
  if (Status status = source.read(0, kLengthBytes, word); !status.ok()) return status;
  uint64_t header_size = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) header_size |= uint64_t{word[i]} << (8 * i);
  if (header_size > file_size - kLengthBytes) {
    return bad_content(source.name(), fmt::format("header length is {}, but the file has {}",
                                                  header_size, bytes_text(file_size)));
  }
  if (header_size > kMaxSafetensorsHeader) {
    return bad_content(source.name(), fmt::format("header length is {}, but at most {} is allowed",
                                                  header_size, kMaxSafetensorsHeader));
  }
  const uint64_t data_begin = kLengthBytes + header_size;
  SafetensorsHeader entries;
  {
    std::string json(header_size, '\0');
    if (Status status = source.read(kLengthBytes, json.size(), json.data()); !status.ok()) {
      return status;
    }
    Result<SafetensorsHeader> header =
        parse_safetensors_header(json, source.name(), file_size - data_begin, only_names);
    if (!header.ok()) return header.status();
    entries = std::move(*header);
  }
  TensorMap tensors;
  for (auto& [name, entry] : entries) {
    const std::string subject = fmt::format("{}: tensor '{}'", source.name(), printable(name));
    Result<Tensor> tensor = make_tensor(entry.dtype, std::move(entry.shape), subject);
    if (!tensor.ok()) return tensor.status();
    const Status status =
        source.read(data_begin + entry.begin, tensor->buffer.size(), tensor->buffer.data());
    if (!status.ok()) return status;
    tensors.emplace(name, std::move(*tensor));
  }
  return tensors;
}

}  // namespace

Result<TensorMap> read_safetensors(const std::string& path,
                                   const std::set<std::string>* only_names) {
  return without_exceptions(path, [&]() -> Result<TensorMap> {
    const Result<std::unique_ptr<ByteSource>> source = open_file(path);
    if (!source.ok()) return source.status();
    return read_from(**source, only_names);
  });
}

Result<TensorMap> parse_safetensors(std::span<const std::byte> bytes,
                                    const std::set<std::string>* only_names,
                                    const std::string& name) {
  return without_exceptions(name, [&]() -> Result<TensorMap> {
    return read_from(*memory_source(name, bytes), only_names);
  });
}

Status write_safetensors(const std::string& path, const std::map<std::string, TensorView>& tensors,
                         const Metadata& metadata) {
  return without_exceptions(path, [&]() -> Status {
    const Result<SafetensorsPreamble> preamble = make_safetensors_preamble(path, tensors, metadata);
    if (!preamble.ok()) return preamble.status();
    Result<AtomicFile> file = AtomicFile::create(path);
    if (!file.ok()) return file.status();
    Status status = file->write(preamble->bytes.data(), preamble->bytes.size());
    for (const auto& [name, view] : preamble->order) {
      if (status.ok()) status = write_elements(*file, view);
    }
    return status.ok() ? file->commit() : status;
  });
}

Status write_safetensors(const std::string& path, const TensorMap& tensors,
                         const Metadata& metadata) {
  return without_exceptions(path, [&]() -> Status {
    std::map<std::string, TensorView> views;
    for (const auto& [name, tensor] : tensors) {
      const Result<TensorView> view =
          tensor.view(fmt::format("{}: tensor '{}'", path, printable(name)));
      if (!view.ok()) return view.status();
      views.emplace(name, *view);
    }
    return write_safetensors(path, views, metadata);
  });
}

}  // namespace attentile::io

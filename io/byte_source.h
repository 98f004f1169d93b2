// SPDX-License-Identifier: Apache-2.0
// ByteSource: where a reader takes its bytes from, a regular file or memory. A reader asks for the
// size first and compares everything with it, so that no length inside a file is believed before
// bytes of that number are known to exist.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "attentile/status.h"

namespace attentile::io {

class ByteSource {
 public:
  ByteSource(const ByteSource&) = delete;
  ByteSource& operator=(const ByteSource&) = delete;
  virtual ~ByteSource() = default;

  const std::string& name() const { return name_; }  // begins the error sentences
  uint64_t size() const { return size_; }

  // Copies bytes [offset, offset + count) to destination; the range must lie within size().
  virtual Status read(uint64_t offset, size_t count, void* destination) = 0;

 protected:
  ByteSource(std::string name, uint64_t size) : name_(std::move(name)), size_(size) {}

 private:
  std::string name_;
  uint64_t size_;
};

// Opens a regular file; anything else (a directory, a FIFO, a device) is an error, at once.
Result<std::unique_ptr<ByteSource>> open_file(const std::string& path);

// Bytes that stay the caller's.
std::unique_ptr<ByteSource> memory_source(std::string name, std::span<const std::byte> bytes);

}  // namespace attentile::io

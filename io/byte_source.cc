// SPDX-License-Identifier: Apache-2.0
// Files and memory as sources of bytes: see byte_source.h.
#include "io/byte_source.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "io/descriptor.h"
#include "io/text.h"

namespace attentile::io {
namespace {

constexpr size_t kLargestRead = size_t{1} << 30;  // Linux moves at most 2^31 - 4096 bytes per call

class FileSource final : public ByteSource {
 public:
  FileSource(std::string name, uint64_t size, Descriptor descriptor)
      : ByteSource(std::move(name), size), descriptor_(std::move(descriptor)) {}

  Status read(uint64_t offset, size_t count, void* destination) override {
    auto* out = static_cast<char*>(destination);
    while (count > 0) {
      const ssize_t got = ::pread(descriptor_.get(), out, std::min(count, kLargestRead),
                                  static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return system_failure(name(), "the file cannot be read", errno);
      if (got == 0) return bad_content(name(), "the file became shorter while it was read");
      out += got;
      offset += static_cast<uint64_t>(got);
      count -= static_cast<size_t>(got);
    }
    return {};
  }

 private:
  Descriptor descriptor_;
};

class MemorySource final : public ByteSource {
 public:
  MemorySource(std::string name, std::span<const std::byte> bytes)
      : ByteSource(std::move(name), bytes.size()), bytes_(bytes) {}

  Status read(uint64_t offset, size_t count, void* destination) override {
    if (count > 0) std::memcpy(destination, bytes_.data() + offset, count);
    return {};
  }

 private:
  std::span<const std::byte> bytes_;
};

}  // namespace

Result<std::unique_ptr<ByteSource>> open_file(const std::string& path) {
  if (path.empty()) return bad_content("path", "it is empty, but the name of a file is expected");
  if (path.find('\0') != std::string::npos) {
    return bad_content(path, "the path holds a NUL character, so it cannot name a file");
  }
  // O_NONBLOCK: opening a FIFO that nobody writes to must not wait.
  Descriptor descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!descriptor.valid()) return system_failure(path, "the file cannot be opened", errno);
  struct stat info = {};
  if (::fstat(descriptor.get(), &info) != 0) {
    return system_failure(path, "the file cannot be examined", errno);
  }
  if (!S_ISREG(info.st_mode)) {
    return bad_content(path,
                       S_ISDIR(info.st_mode)
                           ? "it is a directory, but a regular file is expected"
                           : "it is a device, pipe or socket, but a regular file is expected");
  }
  return std::unique_ptr<ByteSource>(std::make_unique<FileSource>(
      path, static_cast<uint64_t>(info.st_size), std::move(descriptor)));
}

std::unique_ptr<ByteSource> memory_source(std::string name, std::span<const std::byte> bytes) {
  return std::make_unique<MemorySource>(std::move(name), bytes);
}

}  // namespace attentile::io

// SPDX-License-Identifier: Apache-2.0
// Atomic writes: see atomic_file.h.
#include "io/atomic_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdint>
#include <utility>

#include "io/text.h"

namespace attentile::io {
namespace {

constexpr int kMaxLinks = 40;       // as the kernel counts
constexpr int kMaxAttempts = 1000;  // names tried for the temporary file
constexpr size_t kLargestWrite = size_t{1} << 30;
constexpr mode_t kPermissionBits = 0777;

// With its slash: "./" where the path names no directory.
std::string directory_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? std::string("./") : path.substr(0, slash + 1);
}

// Follows symbolic links in the last component, so that a link whose file does not exist yet works
// too; the directories before it are the kernel's.
Result<std::string> resolve_links(const std::string& path) {
  std::string target = path;
  for (int link = 0; link <= kMaxLinks; ++link) {
    struct stat info = {};
    if (::lstat(target.c_str(), &info) != 0) {
      if (errno == ENOENT) return target;
      return system_failure(path, "the file cannot be written", errno);
    }
    if (!S_ISLNK(info.st_mode)) return target;
    char buffer[PATH_MAX];
    const ssize_t length = ::readlink(target.c_str(), buffer, sizeof buffer);
    if (length < 0) return system_failure(path, "the link cannot be read", errno);
    const std::string next(buffer, static_cast<size_t>(length));
    target = !next.empty() && next.front() == '/' ? next : directory_of(target) + next;
  }
  return system_failure(path, "the file cannot be written", ELOOP);
}

// The old file, if there is one, must be a regular file that we may write. Returns its permission
// bits, or -1 when there is none.
Result<int> examine_old_file(const std::string& path, const std::string& target) {
  struct stat info = {};
  if (::stat(target.c_str(), &info) != 0) {
    if (errno == ENOENT) return -1;
    return system_failure(path, "the file cannot be written", errno);
  }
  if (S_ISDIR(info.st_mode)) {
    return bad_content(path, "it is a directory, but the name of a regular file is expected");
  }
  if (!S_ISREG(info.st_mode)) {
    return bad_content(path,
                       "it is a device, pipe or socket, but the name of a regular file is "
                       "expected");
  }
  if (::faccessat(AT_FDCWD, target.c_str(), W_OK, AT_EACCESS) != 0) {
    return system_failure(path, "the file cannot be written", errno);
  }
  return static_cast<int>(info.st_mode & kPermissionBits);
}

}  // namespace

Result<AtomicFile> AtomicFile::create(const std::string& path) {
  if (path.empty()) return bad_content("path", "it is empty, but the name of a file is expected");
  if (path.find('\0') != std::string::npos) {
    return bad_content(path, "the path holds a NUL character, so it cannot name a file");
  }
  if (path.back() == '/') {
    return bad_content(path, "it is a directory, but the name of a regular file is expected");
  }
  Result<std::string> target = resolve_links(path);
  if (!target.ok()) return target.status();
  const Result<int> old_permissions = examine_old_file(path, *target);
  if (!old_permissions.ok()) return old_permissions.status();

  static std::atomic<uint64_t> counter = 0;
  std::string name = path;  // copied now: nothing may throw once the temporary file exists
  for (int attempt = 0; attempt < kMaxAttempts; ++attempt) {
    std::string temporary =
        fmt::format("{}.attentile-{}-{}.tmp", directory_of(*target), ::getpid(), counter++);
    Descriptor descriptor(
        ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666));
    if (!descriptor.valid()) {
      if (errno == EEXIST || errno == EINTR) continue;
      return system_failure(path, "no file can be created in its directory", errno);
    }
    AtomicFile file(std::move(name), std::move(*target), std::move(temporary),
                    std::move(descriptor));
    if (*old_permissions >= 0 &&
        ::fchmod(file.descriptor_.get(), static_cast<mode_t>(*old_permissions)) != 0) {
      return system_failure(path, "the permissions of the old file cannot be kept", errno);
    }
    return file;
  }
  return system_failure(path, "no file can be created in its directory", EEXIST);
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      target_(std::move(other.target_)),
      temporary_(std::exchange(other.temporary_, std::string())),
      descriptor_(std::move(other.descriptor_)) {}

AtomicFile::~AtomicFile() {
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

Status AtomicFile::write(const void* data, size_t num_bytes) {
  const auto* bytes = static_cast<const char*>(data);
  while (num_bytes > 0) {
    const ssize_t written = ::write(descriptor_.get(), bytes, std::min(num_bytes, kLargestWrite));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      return system_failure(path_, "the file cannot be written", written < 0 ? errno : EIO);
    }
    bytes += written;
    num_bytes -= static_cast<size_t>(written);
  }
  return {};
}

Status AtomicFile::commit() {
  // Some file systems know no fsync and say EINVAL; there is then nothing to wait for.
  if (::fsync(descriptor_.get()) != 0 && errno != EINVAL) {
    return system_failure(path_, "the file cannot be written", errno);
  }
  // Named now: after the rename nothing may fail.
  const std::string directory = directory_of(target_);
  if (!descriptor_.close()) return system_failure(path_, "the file cannot be written", errno);
  if (::rename(temporary_.c_str(), target_.c_str()) != 0) {
    return system_failure(path_, "the old file cannot be replaced", errno);
  }
  temporary_.clear();
  // The new name reaches the disk with its directory. Failing here loses nothing that was promised.
  const Descriptor parent(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (parent.valid()) static_cast<void>(::fsync(parent.get()));
  return {};
}

Status write_file(const std::string& path, std::string_view contents) {
  return without_exceptions(path, [&]() -> Status {
    Result<AtomicFile> file = AtomicFile::create(path);
    if (!file.ok()) return file.status();
    if (Status status = file->write(contents.data(), contents.size()); !status.ok()) return status;
    return file->commit();
  });
}

bool same_file(const std::string& first, const std::string& second) {
  struct stat a = {};
  struct stat b = {};
  return ::stat(first.c_str(), &a) == 0 && ::stat(second.c_str(), &b) == 0 &&
         a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

}  // namespace attentile::io

// SPDX-License-Identifier: Apache-2.0
// AtomicFile: writes a file so that its name shows either the old contents or all of the new ones.
// The bytes go to a temporary file in the same directory, are forced to the disk, and the temporary
// file is then renamed over the old one. On any failure the temporary file is removed and the old
// file stays as it was.
//
// A symbolic link is followed: the file it points to is replaced (or created) and the link stays.
// Other hard links to the old file keep the old contents. A new file gets the permissions that the
// umask leaves; a replaced one keeps the permission bits it had, and must be writable. The name
// must not belong to a directory, device, pipe or socket. A process killed while it writes leaves
// the temporary file, named .attentile-PID-NUMBER.tmp, behind.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "attentile/status.h"
#include "io/descriptor.h"

namespace attentile::io {

class AtomicFile {
 public:
  // Opens the temporary file. Errors begin with `path`, as given.
  static Result<AtomicFile> create(const std::string& path);

  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile();  // removes the temporary file unless commit() succeeded

  Status write(const void* data, size_t num_bytes);
  Status commit();

 private:
  AtomicFile(std::string path, std::string target, std::string temporary, Descriptor descriptor)
      : path_(std::move(path)),
        target_(std::move(target)),
        temporary_(std::move(temporary)),
        descriptor_(std::move(descriptor)) {}

  std::string path_;       // as given, for the error sentences
  std::string target_;     // with links resolved
  std::string temporary_;  // empty once it is renamed or gone
  Descriptor descriptor_;
};

// Replaces the file's contents by these bytes, atomically.
Status write_file(const std::string& path, std::string_view contents);

// True when both names lead to the same existing file, through links of any kind.
bool same_file(const std::string& first, const std::string& second);

}  // namespace attentile::io

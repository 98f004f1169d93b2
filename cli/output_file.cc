// SPDX-License-Identifier: Apache-2.0
// An output file is probed by opening (and dropping) the temporary file that would become it.
#include "cli/output_file.h"

#include <filesystem>

#include "cli/error.h"
#include "io/atomic_file.h"
#include "io/text.h"

namespace attentile::cli {
namespace {

namespace fs = std::filesystem;

// The file that would be written, without links and dots on the way to it.
fs::path target_of(const std::string& path) {
  constexpr int kMaxLinks = 40;  // as the kernel counts
  fs::path target = path;
  std::error_code error;
  for (int link = 0; link < kMaxLinks && fs::is_symlink(target, error); ++link) {
    target = target.parent_path() / fs::read_symlink(target, error);
  }
  const fs::path resolved = fs::weakly_canonical(fs::absolute(target, error), error);
  return error ? target : resolved;
}

}  // namespace

void check_output(std::string_view option, const std::string& path,
                  const std::vector<std::string>& inputs) {
  for (const std::string& input : inputs) {
    if (io::same_file(path, input)) {
      wrong_request("{}: {} is the input file {}, expected another file", option,
                    io::printable_path(path), io::printable_path(input));
    }
  }
  const Status status = io::AtomicFile::create(path).status();
  if (!status.ok())
    throw Error(exit_of(status.code()), fmt::format("{}: {}", option, status.message()));
}

bool same_output(const std::string& first, const std::string& second) {
  return target_of(first) == target_of(second);
}

void write_text_file(std::string_view option, const std::string& path, std::string_view contents) {
  const Status status = io::write_file(path, contents);
  if (!status.ok()) {
    throw Error(Exit::kEnvironmentFailed, fmt::format("{}: {}", option, status.message()));
  }
}

}  // namespace attentile::cli

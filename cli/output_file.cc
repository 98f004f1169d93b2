// SPDX-License-Identifier: Apache-2.0
// An output file is probed by opening (and dropping) the temporary file that would become it.
#include "cli/output_file.h"

#include "cli/error.h"
#include "io/atomic_file.h"
#include "io/text.h"

namespace attentile::cli {

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

void write_text_file(std::string_view option, const std::string& path, std::string_view contents) {
  const Status status = io::write_file(path, contents);
  if (!status.ok()) {
    throw Error(Exit::kEnvironmentFailed, fmt::format("{}: {}", option, status.message()));
  }
}

}  // namespace attentile::cli

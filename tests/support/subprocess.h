// SPDX-License-Identifier: Apache-2.0
// Starts a program, waits for it, and hands back what it said; and a scratch folder that removes
// itself.
#pragma once

#include <string>
#include <vector>

namespace attentile::testing {

struct ProcessResult {
  bool started = false;
  int exit_status = -1;  // 128 + the signal when one ended it
  std::string standard_output;
  std::string standard_error;
};

// arguments[0] is the program's path. `folder` holds the two output files while it runs.
ProcessResult run_process(const std::vector<std::string>& arguments, const std::string& folder);

// In /dev/shm where that can be written (no disk), else in the system's folder for such things.
class ScratchFolder {
 public:
  ScratchFolder();
  ~ScratchFolder();
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace attentile::testing

// SPDX-License-Identifier: Apache-2.0
// The program `attentile`; see run.h.
#include <csignal>

#include "cli/run.h"

int main(int argc, char** argv) {
  // A closed pipe and a limit on file sizes are failed writes, reported with status 3, not a death.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  return attentile::cli::run(argc, argv);
}

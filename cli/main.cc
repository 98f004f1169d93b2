// SPDX-License-Identifier: Apache-2.0
// The program `attentile`; see run.h.
#include <csignal>

#include "cli/run.h"

int main(int argc, char** argv) {
  // A closed pipe is a failed write, reported with status 3, not a death.
  std::signal(SIGPIPE, SIG_IGN);
  return attentile::cli::run(argc, argv);
}

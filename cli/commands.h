// SPDX-License-Identifier: Apache-2.0
// The commands. Each declares its arguments, parses `words` (what follows the command's name),
// does the work and returns the exit status; failures are thrown as Error.
#pragma once

#include <string>
#include <vector>

#include "cli/arguments.h"
#include "cli/error.h"
#include "cli/run.h"

namespace attentile::cli {

using Words = std::vector<std::string>;

Exit attend(const Words& words, const Streams& streams);
Exit info(const Words& words, const Streams& streams);
Exit plan(const Words& words, const Streams& streams);
Exit verify(const Words& words, const Streams& streams);
Exit bench(const Words& words, const Streams& streams);
Exit compare(const Words& words, const Streams& streams);
Exit report(const Words& words, const Streams& streams);
Exit explain(const Words& words, const Streams& streams);

// Parses; false after printing the help that was asked for.
inline bool parse_or_help(Arguments& arguments, const Words& words, const Streams& streams) {
  if (arguments.parse(words)) return true;
  fmt::print(streams.out, "{}", arguments.help());
  return false;
}

}  // namespace attentile::cli

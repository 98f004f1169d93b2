// SPDX-License-Identifier: Apache-2.0
// The whole program as a function, so that tests and fuzzers can call it in their own process.
//
// Exit status: 0 done, 1 a check failed, 2 the request was wrong, 3 the environment failed, 130
// interrupted by Ctrl-C. A failure is one line on `err`.
#pragma once

#include <cstdio>

namespace attentile::cli {

struct Streams {
  std::FILE* out = stdout;
  std::FILE* err = stderr;
};

int run(int argc, const char* const* argv, const Streams& streams = {});

}  // namespace attentile::cli

// SPDX-License-Identifier: Apache-2.0
// How a command fails: an exception that carries the exit status and one sentence. run() turns it
// into a line on stderr; nothing else in the program prints errors.
#pragma once

#include <fmt/format.h>

#include <exception>
#include <string>
#include <utility>

#include "attentile/status.h"

namespace attentile::cli {

enum class Exit : int {
  kDone = 0,
  kCheckFailed = 1,        // verify, compare
  kWrongRequest = 2,       // nothing was written
  kEnvironmentFailed = 3,  // memory, disk, device
  kInterrupted = 130,      // Ctrl-C, as a shell reports it; nothing was written
};

class Error : public std::exception {
 public:
  Error(Exit exit, std::string sentence) : exit_(exit), sentence_(std::move(sentence)) {}

  Exit exit() const { return exit_; }
  const char* what() const noexcept override { return sentence_.c_str(); }

 private:
  Exit exit_;
  std::string sentence_;
};

// "argument: what it was, what was expected", as status 2.
template <class... Args>
[[noreturn]] void wrong_request(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(Exit::kWrongRequest, fmt::format(format, std::forward<Args>(args)...));
}

// Likewise as status 3.
template <class... Args>
[[noreturn]] void environment_failed(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(Exit::kEnvironmentFailed, fmt::format(format, std::forward<Args>(args)...));
}

// The exit status that a library status becomes.
constexpr Exit exit_of(StatusCode code) {
  switch (code) {
    case StatusCode::kOk: return Exit::kDone;
    case StatusCode::kInvalidArgument:
    case StatusCode::kUnsupported: return Exit::kWrongRequest;
    case StatusCode::kCancelled: return Exit::kInterrupted;
    case StatusCode::kOutOfMemory:
    case StatusCode::kUnavailable:
    case StatusCode::kInternal: return Exit::kEnvironmentFailed;
  }
  return Exit::kEnvironmentFailed;
}

inline void require_ok(const Status& status) {
  if (!status.ok()) throw Error(exit_of(status.code()), status.message());
}

template <class T>
T take(Result<T> result) {
  require_ok(result.status());
  return std::move(*result);
}

}  // namespace attentile::cli

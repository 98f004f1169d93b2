// SPDX-License-Identifier: Apache-2.0
// The words of the readers and writers: how a name out of an untrusted file, a shape or an errno
// becomes part of a one-line error sentence, and how an exception of the standard library becomes a
// Status.
#pragma once

#include <cstdint>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "attentile/status.h"

namespace attentile::io {

// `text` on one line and as valid UTF-8: control characters and bytes that are no UTF-8 become \n,
// \t or \xNN, and what is longer than max_bytes is cut at a character boundary and ends in "...".
std::string printable(std::string_view text, size_t max_bytes = 100);

// A path as it appears in a sentence: on one line, never cut.
std::string printable_path(std::string_view path);

// "[2, 3]"
std::string shape_text(std::span<const int64_t> shape);

// "1 byte", "24 bytes"
std::string bytes_text(uint64_t count);

// kInvalidArgument with "subject: what".
Status bad_content(std::string_view subject, std::string_view what);

// The failure of a system call with this errno: "subject: what: No such file or directory". A path
// that names nothing usable is the caller's mistake (kInvalidArgument); a full disk, a missing
// permission and the rest are the machine's (kUnavailable).
Status system_failure(std::string_view subject, std::string_view what, int error_number);

// kOutOfMemory with "subject: num_bytes bytes of memory could not be allocated".
Status out_of_memory(std::string_view subject, uint64_t num_bytes);

// kOutOfMemory when nobody knows of what: "subject: memory ran out", or without the subject if
// there is no memory left even for that (the rest fits in the string object).
inline Status memory_ran_out(std::string_view subject) noexcept {
  try {
    return {StatusCode::kOutOfMemory, printable_path(subject) + ": memory ran out"};
  } catch (...) {
    return {StatusCode::kOutOfMemory, "memory ran out"};
  }
}

// Runs `body`, which returns a Status or a Result, and turns what it throws into a Status.
template <class Body>
auto without_exceptions(std::string_view subject, Body&& body) noexcept
    -> decltype(std::forward<Body>(body)()) {
  try {
    return std::forward<Body>(body)();
  } catch (const std::bad_alloc&) {
    return memory_ran_out(subject);
  } catch (...) {
    return Status(StatusCode::kInternal, "io: a bug");
  }
}

}  // namespace attentile::io

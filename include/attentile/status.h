// SPDX-License-Identifier: Apache-2.0
// Status and Result<T>: how every function of this library reports failure. The library throws
// nothing, prints nothing and never aborts; a failure is a code and one sentence that names the
// argument, what it was and what was expected.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

namespace attentile {

enum class StatusCode : int32_t {
  kOk = 0,
  kInvalidArgument = 1,  // the request was wrong; nothing was written
  kUnsupported = 2,      // a correct request that this backend or build cannot serve
  kOutOfMemory = 3,      // an allocation failed; outputs are undefined
  kCancelled = 4,        // poll returned non-zero; outputs are undefined
  kUnavailable = 5,      // the device, driver or instruction set is not there
  kInternal = 6,         // a bug in this library
};

// The lower-case name of a code, e.g. "invalid_argument".
constexpr const char* to_string(StatusCode code) {
  switch (code) {
    case StatusCode::kOk: return "ok";
    case StatusCode::kInvalidArgument: return "invalid_argument";
    case StatusCode::kUnsupported: return "unsupported";
    case StatusCode::kOutOfMemory: return "out_of_memory";
    case StatusCode::kCancelled: return "cancelled";
    case StatusCode::kUnavailable: return "unavailable";
    case StatusCode::kInternal: return "internal";
  }
  return "unknown";
}

// A code and, unless ok, one sentence.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

// A value, or the Status that says why there is none. Read the value only when ok().
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}          // NOLINT(google-explicit-constructor)
  Result(Status status) : status_(std::move(status)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const { return status_.ok() && value_.has_value(); }
  const Status& status() const { return status_; }
  T& operator*() { return *value_; }
  const T& operator*() const { return *value_; }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }

 private:
  Status status_;
  std::optional<T> value_;
};

}  // namespace attentile

// SPDX-License-Identifier: Apache-2.0
// Descriptor: owns one file descriptor, so that no early return and no exception leaks it.
#pragma once

#include <unistd.h>

#include <utility>

namespace attentile::io {

class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int value) : value_(value) {}
  Descriptor(Descriptor&& other) noexcept : value_(std::exchange(other.value_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(value_, other.value_);
    return *this;
  }
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }

  int get() const { return value_; }
  bool valid() const { return value_ >= 0; }

  // Closes now; false when the system reports a failure (errno says which).
  bool close() { return ::close(std::exchange(value_, -1)) == 0; }

 private:
  int value_ = -1;
};

}  // namespace attentile::io

// SPDX-License-Identifier: Apache-2.0
// Memory between two pages that cannot be touched, so that a read or write one byte past either
// end is a fault at once. The bytes lie flush with the page behind (kAfter) or with the page in
// front (kBefore).
#pragma once

#include <cstddef>
#include <cstdint>

namespace attentile::testing {

class GuardedBuffer {
 public:
  enum class Flush { kAfter, kBefore };

  GuardedBuffer() = default;
  explicit GuardedBuffer(int64_t size, Flush flush = Flush::kAfter);
  ~GuardedBuffer();
  GuardedBuffer(GuardedBuffer&& other) noexcept;
  GuardedBuffer& operator=(GuardedBuffer&& other) noexcept;
  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;

  // An address space of this many bytes without real memory behind it: reads give zeros, writes
  // take one page each. Guarded like the others.
  static GuardedBuffer sparse(int64_t size);

  char* data() const { return data_; }
  int64_t size() const { return size_; }
  // False when the system refused the address space.
  bool valid() const { return mapping_ != nullptr; }

 private:
  void release();

  char* mapping_ = nullptr;
  size_t mapping_size_ = 0;
  char* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace attentile::testing

// SPDX-License-Identifier: Apache-2.0
// The library's memory: every workspace and every job record comes from allocate_bytes(), so one
// hook can make any allocation fail (tests/faults) and one place decides on alignment. Nothing here
// throws; a failure is a null pointer or a buffer that is not ok().
//
// A workspace that is given back is kept for the next call, two of them and up to 16 MiB each: the
// system would take its pages and hand out cleared ones, which costs a short call more than its
// arithmetic. Builds with an address sanitizer keep none.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attentile/status.h"

namespace attentile {

inline constexpr int64_t kCacheLineBytes = 64;
inline constexpr int64_t kHugePageBytes = int64_t{2} << 20;

#if defined(__SANITIZE_ADDRESS__)
inline constexpr bool kKeepsWorkspaces = false;
#elif defined(__has_feature)
inline constexpr bool kKeepsWorkspaces = !__has_feature(address_sanitizer);
#else
inline constexpr bool kKeepsWorkspaces = true;
#endif

// size bytes, not cleared, aligned to 64; from 2 MiB on aligned to 2 MiB and offered to the kernel
// as huge pages. size 0 gives a distinct address. Null when size is negative or there is no memory.
void* allocate_bytes(int64_t size);
void free_bytes(void* address);  // null is allowed

// The same for `size` bytes of allocate_bytes(size), which may be kept.
void give_back_bytes(void* address, int64_t size);

// A Status that can be built without memory: where the sentence finds none, it is left out.
Status make_status(StatusCode code, const char* sentence) noexcept;

// kOutOfMemory with the sentence "<argument>: <size> bytes could not be allocated".
Status out_of_memory(const char* argument, int64_t size) noexcept;

// Owns one allocation.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;            // holds nothing; not ok
  explicit AlignedBuffer(int64_t size)  // not ok when the memory is not there
      : data_(allocate_bytes(size)), size_(data_ != nullptr ? size : 0) {}
  AlignedBuffer(AlignedBuffer&& other) noexcept : data_(other.data_), size_(other.size_) {
    other.data_ = nullptr;
    other.size_ = 0;
  }
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    if (this == &other) return *this;
    give_back_bytes(data_, size_);
    data_ = other.data_;
    size_ = other.size_;
    other.data_ = nullptr;
    other.size_ = 0;
    return *this;
  }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  ~AlignedBuffer() { give_back_bytes(data_, size_); }

  bool ok() const { return data_ != nullptr; }
  char* data() const { return static_cast<char*>(data_); }
  int64_t size() const { return size_; }

 private:
  void* data_ = nullptr;
  int64_t size_ = 0;
};

// The first multiple of alignment (a power of two) at or after size.
constexpr int64_t align_up(int64_t size, int64_t alignment) {
  return (size + alignment - 1) & ~(alignment - 1);
}

namespace internal {

// Test hook: the k-th allocation from now (0 = the next one) fails, once; a negative k disarms.
// Counts allocations of all threads.
void fail_allocation_after(int64_t k);

// Allocations since the program began, failed ones included.
int64_t allocation_count();

// Allocations that were not freed yet.
int64_t live_allocation_count();

}  // namespace internal
}  // namespace attentile

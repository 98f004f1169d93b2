// SPDX-License-Identifier: Apache-2.0
// allocate_bytes() on top of posix_memalign: 64-byte alignment for everything, 2 MiB and an offer
// of huge pages for what is large, so that a workspace of many MiB costs few TLB entries.
#include "memory.h"

#include <sys/mman.h>

#include <atomic>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>

namespace attentile {
namespace {

// Beyond any address space, so refused before the arithmetic below can overflow.
constexpr int64_t kMaxBytes = int64_t{1} << 47;

std::atomic<int64_t> allocations{0};
std::atomic<int64_t> live_allocations{0};
std::atomic<int64_t> allocations_until_failure{-1};

bool should_fail() {
  allocations.fetch_add(1, std::memory_order_relaxed);
  if (allocations_until_failure.load(std::memory_order_relaxed) < 0) return false;
  return allocations_until_failure.fetch_sub(1, std::memory_order_relaxed) == 0;
}

// Blocks that wait for the next call. While one does, its first bytes hold its size.
class Shelf {
 public:
  static constexpr int64_t kLeast = int64_t{64} << 10;
  static constexpr int64_t kMost = int64_t{16} << 20;

  Shelf() = default;
  Shelf(const Shelf&) = delete;
  Shelf& operator=(const Shelf&) = delete;
  ~Shelf() {
    for (std::atomic<void*>& place : places_) std::free(place.exchange(nullptr));
  }

  // A block of at least `size` bytes, but not many times as much, or null.
  void* take(int64_t size) {
    if (!is_kept(size)) return nullptr;
    for (std::atomic<void*>& place : places_) {
      void* block = place.exchange(nullptr, std::memory_order_acquire);
      if (block == nullptr) continue;
      const int64_t kept = *static_cast<int64_t*>(block);
      if (kept >= size && kept / 4 <= size) return block;
      void* nothing = nullptr;
      if (!place.compare_exchange_strong(nothing, block, std::memory_order_release)) {
        std::free(block);
      }
    }
    return nullptr;
  }

  // The oldest makes room.
  bool put(void* block, int64_t size) {
    if (!is_kept(size)) return false;
    *static_cast<int64_t*>(block) = size;
    for (std::atomic<void*>& place : places_) {
      void* nothing = nullptr;
      if (place.compare_exchange_strong(nothing, block, std::memory_order_release)) return true;
    }
    const uint32_t turn = turn_.fetch_add(1, std::memory_order_relaxed);
    std::free(places_[turn % kPlaces].exchange(block, std::memory_order_acq_rel));
    return true;
  }

 private:
  static bool is_kept(int64_t size) { return kKeepsWorkspaces && size >= kLeast && size <= kMost; }

  static constexpr int kPlaces = 2;
  std::atomic<void*> places_[kPlaces] = {};
  std::atomic<uint32_t> turn_{0};
};
Shelf shelf;

}  // namespace

void* allocate_bytes(int64_t size) {
  if (should_fail() || size < 0 || size > kMaxBytes) return nullptr;
  if (void* kept = shelf.take(size); kept != nullptr) {
    live_allocations.fetch_add(1, std::memory_order_relaxed);
    return kept;
  }
  const bool large = size >= kHugePageBytes;
  const int64_t alignment = large ? kHugePageBytes : kCacheLineBytes;
  const int64_t rounded = align_up(size > 0 ? size : 1, alignment);
  void* address = nullptr;
  if (posix_memalign(&address, static_cast<size_t>(alignment), static_cast<size_t>(rounded)) != 0) {
    return nullptr;
  }
#if defined(MADV_HUGEPAGE)
  if (large) madvise(address, static_cast<size_t>(rounded), MADV_HUGEPAGE);  // advice: may fail
#endif
  live_allocations.fetch_add(1, std::memory_order_relaxed);
  return address;
}

void free_bytes(void* address) {
  if (address == nullptr) return;
  live_allocations.fetch_sub(1, std::memory_order_relaxed);
  std::free(address);
}

void give_back_bytes(void* address, int64_t size) {
  if (address == nullptr || !shelf.put(address, size)) return free_bytes(address);
  live_allocations.fetch_sub(1, std::memory_order_relaxed);
}

Status make_status(StatusCode code, const char* sentence) noexcept {
  try {
    return {code, std::string(sentence)};
  } catch (const std::exception&) {
    return {code, std::string()};
  }
}

Status out_of_memory(const char* argument, int64_t size) noexcept {
  char sentence[160];
  std::snprintf(sentence, sizeof sentence, "%s: %" PRId64 " bytes could not be allocated", argument,
                size);
  return make_status(StatusCode::kOutOfMemory, sentence);
}

namespace internal {

void fail_allocation_after(int64_t k) {
  allocations_until_failure.store(k < 0 ? -1 : k, std::memory_order_relaxed);
}

int64_t allocation_count() {
  return allocations.load(std::memory_order_relaxed);
}

int64_t live_allocation_count() {
  return live_allocations.load(std::memory_order_relaxed);
}

}  // namespace internal
}  // namespace attentile

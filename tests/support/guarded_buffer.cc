// SPDX-License-Identifier: Apache-2.0
// Guarded memory by mmap: [page without access][the bytes, padded to pages][page without access].
#include "support/guarded_buffer.h"

#include <sys/mman.h>
#include <unistd.h>

#include <utility>

namespace attentile::testing {
namespace {

size_t page_bytes() {
  static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

size_t round_to_pages(int64_t size) {
  const size_t page = page_bytes();
  return (static_cast<size_t>(size) + page - 1) / page * page;
}

}  // namespace

GuardedBuffer::GuardedBuffer(int64_t size, Flush flush) {
  const size_t inner = round_to_pages(size);
  mapping_size_ = inner + 2 * page_bytes();
  void* mapping =
      mmap(nullptr, mapping_size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return;
  char* begin = static_cast<char*>(mapping) + page_bytes();
  if (inner > 0 && mprotect(begin, inner, PROT_READ | PROT_WRITE) != 0) {
    munmap(mapping, mapping_size_);
    return;
  }
  mapping_ = static_cast<char*>(mapping);
  size_ = size;
  data_ = flush == Flush::kBefore ? begin : begin + (inner - static_cast<size_t>(size));
}

GuardedBuffer GuardedBuffer::sparse(int64_t size) {
  return GuardedBuffer(size, Flush::kAfter);
}

GuardedBuffer::~GuardedBuffer() {
  release();
}

GuardedBuffer::GuardedBuffer(GuardedBuffer&& other) noexcept {
  *this = std::move(other);
}

GuardedBuffer& GuardedBuffer::operator=(GuardedBuffer&& other) noexcept {
  if (this == &other) return *this;
  release();
  mapping_ = std::exchange(other.mapping_, nullptr);
  mapping_size_ = std::exchange(other.mapping_size_, 0);
  data_ = std::exchange(other.data_, nullptr);
  size_ = std::exchange(other.size_, 0);
  return *this;
}

void GuardedBuffer::release() {
  if (mapping_ != nullptr) munmap(mapping_, mapping_size_);
  mapping_ = nullptr;
}

}  // namespace attentile::testing

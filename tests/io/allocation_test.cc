// SPDX-License-Identifier: Apache-2.0
// A reader believes no length before it has compared it with the file: no allocation is larger than
// the file plus 1 MiB (the JSON scanner's buffer: twice the header), and an allocation that fails
// is a status, for every one of them. Watched through this binary's operator new, which counts
// nothing unless a test asks. Not built with clang's ThreadSanitizer, whose runtime admits no
// second operator new; there are no threads here.
#if !defined(__has_feature)
#define __has_feature(feature) 0
#endif
#if !__has_feature(thread_sanitizer)

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "io/npy.h"
#include "io/safetensors.h"
#include "io_test_util.h"

namespace {

std::atomic<size_t> largest_allocation = 0;
thread_local int64_t allocations_left = -1;  // -1: none fails

void* allocate(size_t num_bytes, size_t alignment) noexcept {
  size_t seen = largest_allocation.load();
  while (num_bytes > seen && !largest_allocation.compare_exchange_weak(seen, num_bytes)) {
  }
  if (allocations_left == 0) return nullptr;
  if (allocations_left > 0) --allocations_left;
  const size_t rounded = (num_bytes + alignment - 1) / alignment * alignment;
  return std::aligned_alloc(alignment, rounded == 0 ? alignment : rounded);
}

void* allocate_or_throw(size_t num_bytes, size_t alignment) {
  void* const memory = allocate(num_bytes, alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

// Not inlined, or g++ takes the pair of a replaced new and this free for a mistake.
[[gnu::noinline]] void release(void* memory) noexcept {
  std::free(memory);
}

constexpr size_t kAlignment = alignof(std::max_align_t);

}  // namespace

void* operator new(size_t n) {
  return allocate_or_throw(n, kAlignment);
}
void* operator new[](size_t n) {
  return allocate_or_throw(n, kAlignment);
}
void* operator new(size_t n, const std::nothrow_t&) noexcept {
  return allocate(n, kAlignment);
}
void* operator new[](size_t n, const std::nothrow_t&) noexcept {
  return allocate(n, kAlignment);
}
void* operator new(size_t n, std::align_val_t alignment) {
  return allocate_or_throw(n, static_cast<size_t>(alignment));
}
void* operator new[](size_t n, std::align_val_t alignment) {
  return allocate_or_throw(n, static_cast<size_t>(alignment));
}
void* operator new(size_t n, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return allocate(n, static_cast<size_t>(alignment));
}
void* operator new[](size_t n, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return allocate(n, static_cast<size_t>(alignment));
}
void operator delete(void* memory) noexcept {
  release(memory);
}
void operator delete[](void* memory) noexcept {
  release(memory);
}
void operator delete(void* memory, size_t) noexcept {
  release(memory);
}
void operator delete[](void* memory, size_t) noexcept {
  release(memory);
}
void operator delete(void* memory, const std::nothrow_t&) noexcept {
  release(memory);
}
void operator delete[](void* memory, const std::nothrow_t&) noexcept {
  release(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
  release(memory);
}
void operator delete[](void* memory, std::align_val_t) noexcept {
  release(memory);
}
void operator delete(void* memory, size_t, std::align_val_t) noexcept {
  release(memory);
}
void operator delete[](void* memory, size_t, std::align_val_t) noexcept {
  release(memory);
}
void operator delete(void* memory, std::align_val_t, const std::nothrow_t&) noexcept {
  release(memory);
}
void operator delete[](void* memory, std::align_val_t, const std::nothrow_t&) noexcept {
  release(memory);
}

namespace attentile::io::test {
namespace {

constexpr size_t kSlack = size_t{1} << 20;

// A header of this many tensors without elements.
std::string header_of(int num_tensors) {
  std::string json = "{";
  for (int i = 0; i < num_tensors; ++i) {
    json += '"';
    json += std::to_string(i);
    json += R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)";
  }
  json.back() = '}';
  return json;
}

class Allocation : public ::testing::Test {
 protected:
  template <class Body>
  size_t largest_in(Body body) {
    largest_allocation = 0;
    body();
    return largest_allocation;
  }

  // Fails the first allocation of `body`, then the second, and so on until it succeeds; each
  // failure must be reported as kOutOfMemory. Returns how many failed.
  template <class Body>
  int fail_each(Body body) {
    for (int k = 0; k < 10000; ++k) {
      allocations_left = k;
      const auto result = body();
      allocations_left = -1;
      const Status& status = status_of(result);
      if (status.ok()) return k;
      EXPECT_EQ(status.code(), StatusCode::kOutOfMemory) << k << ": " << status.message();
    }
    return -1;
  }

  static const Status& status_of(const Status& status) { return status; }
  template <class T>
  static const Status& status_of(const Result<T>& result) {
    return result.status();
  }

  TempDir directory_;
};

std::string small_safetensors() {
  return safetensors_file(
      R"({"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},)"
      R"("a tensor with a long name":{"dtype":"U8","shape":[3],"data_offsets":[16,19]},)"
      R"("__metadata__":{"a key that is longer than a few bytes":"and a value as well"}})",
      std::string(19, 'x'));
}

TEST_F(Allocation, LengthsAreNotBelieved) {
  const std::string huge = "1099511627776";
  const std::string files[] = {
      little_endian(99'999'999, 8) + "{}",
      little_endian(UINT64_MAX, 8) + "{}",
      safetensors_file(R"({"q":{"dtype":"U8","shape":[)" + huge + R"(],"data_offsets":[0,)" + huge +
                       "]}}"),
      safetensors_file(R"({"q":{"dtype":"U8","shape":[)" + huge + R"(],"data_offsets":[0,0]}})"),
      npy_file("{'descr': '|u1', 'fortran_order': True, 'shape': (" + huge + ", 2), }"),
      std::string("\x93NUMPY\2\0\xFF\xFF\xFF\x7F{}", 14),
  };
  for (const std::string& bytes : files) {
    const std::string path = directory_.file("in");
    write_all(path, bytes);
    EXPECT_LE(largest_in([&] { EXPECT_FALSE(read_safetensors(path).ok()); }), kSlack);
    EXPECT_LE(largest_in([&] { EXPECT_FALSE(read_npy(path).ok()); }), kSlack);
  }
}

TEST_F(Allocation, GoodFilesTakeTheirOwnSize) {
  const std::string data(4 << 20, 'x');
  const std::string n = std::to_string(data.size());
  const std::string path = directory_.file("in");
  write_all(path, safetensors_file(
                      R"({"q":{"dtype":"U8","shape":[)" + n + R"(],"data_offsets":[0,)" + n + "]}}",
                      data));
  EXPECT_LE(largest_in([&] { EXPECT_TRUE(read_safetensors(path).ok()); }), data.size() + kSlack);
  // What is not wanted is not read.
  const std::set<std::string> names = {"k"};
  EXPECT_LE(largest_in([&] { EXPECT_TRUE(read_safetensors(path, &names).ok()); }), kSlack);
  write_all(path, npy_file("{'descr': '|u1', 'fortran_order': True, 'shape': (2, " +
                               std::to_string(data.size() / 2) + "), }",
                           data));
  EXPECT_LE(largest_in([&] { EXPECT_TRUE(read_npy(path).ok()); }), data.size() + kSlack);
}

TEST_F(Allocation, LongHeadersTakeAtMostTwiceTheirLength) {
  const std::string path = directory_.file("in");
  const std::string headers[] = {
      "{" + std::string(5 << 20, ' ') + "}",
      R"({"__metadata__":{"a":")" + std::string(5 << 20, 'x') + "\"}}",
      R"({"q":{"shape":[)" + std::string(5 << 20, '9') + "]}}",
      header_of(100000),
  };
  for (const std::string& header : headers) {
    write_all(path, safetensors_file(header));
    EXPECT_LE(largest_in([&] { static_cast<void>(read_safetensors(path)); }), 2 * header.size());
  }
}

TEST_F(Allocation, AMillionTensorsAndNoMore) {
  const std::string file = safetensors_file(header_of(1'000'001));
  const std::set<std::string> none;
  EXPECT_EQ(parse_safetensors(as_bytes(file), &none).status().message(),
            "safetensors: the header has more than 1000000 tensors");
}

TEST_F(Allocation, EveryFailureIsReported) {
  const std::string tensors_path = directory_.file("in.safetensors");
  write_all(tensors_path, small_safetensors());
  EXPECT_GT(fail_each([&] { return read_safetensors(tensors_path); }), 10);

  const std::string array_path = directory_.file("in.npy");
  write_all(array_path,
            npy_file("{'descr': '|u1', 'fortran_order': True, 'shape': (2, 3), }", "abcdef"));
  EXPECT_GT(fail_each([&] { return read_npy(array_path); }), 4);
}

TEST_F(Allocation, EveryFailureOfAWriterLeavesTheOldFile) {
  const std::vector<std::string> only = {"out-file-with-a-long-name.safetensors"};
  const std::string path = directory_.file(only[0]);
  write_all(path, "old");
  const Result<TensorMap> tensors = parse_safetensors(as_bytes(small_safetensors()));
  ASSERT_TRUE(tensors.ok());
  TensorView strided = *tensors->at("a").view();
  std::swap(strided.stride[0], strided.stride[1]);
  const std::map<std::string, TensorView> views = {{"a", strided}};
  const auto unharmed = [&](Status status) {
    const int64_t left = std::exchange(allocations_left, -1);
    if (!status.ok()) {
      EXPECT_EQ(read_all(path), "old");
      EXPECT_EQ(directory_.names(), only);
    }
    allocations_left = left;
    return status;
  };
  const Metadata metadata = {{"made", "by hand"}};
  EXPECT_GT(fail_each([&] { return unharmed(write_safetensors(path, views, metadata)); }), 10);
  write_all(path, "old");
  EXPECT_GT(fail_each([&] { return unharmed(write_npy(path, strided)); }), 4);
}

}  // namespace
}  // namespace attentile::io::test
#endif

// SPDX-License-Identifier: Apache-2.0
// Memory of the backend's device, freed with its owner.
#pragma once

#include <gtest/gtest.h>

#include <vector>

#include "cuda/backend.h"
#include "dtype.h"

namespace attentile::cuda::test {

class DeviceArray {
 public:
  explicit DeviceArray(int64_t bytes) : bytes_(bytes) {
    Sentence sentence;
    EXPECT_EQ(table().allocate(bytes, &memory_, &sentence), 0) << sentence.text;
  }
  ~DeviceArray() {
    Sentence sentence;
    (void)table().release(memory_, &sentence);
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  static const BackendTable& table() { return **backend(); }
  void* memory() const { return memory_; }
  // Values of float16 in [-1, 1].
  void fill(int seed) {
    std::vector<uint16_t> values(static_cast<size_t>(bytes_) / 2);
    for (size_t i = 0; i < values.size(); ++i) {
      const auto mixed = static_cast<uint32_t>(i * 2654435761u + static_cast<uint32_t>(seed) * 97);
      values[i] = round_to_16_bits<5, 10>(static_cast<double>(mixed % 2001) / 1000.0 - 1.0);
    }
    Sentence sentence;
    ASSERT_EQ(table().copy_to_device(memory_, values.data(), bytes_, &sentence), 0);
  }
  std::vector<char> bytes() const {
    std::vector<char> found(static_cast<size_t>(bytes_));
    Sentence sentence;
    EXPECT_EQ(table().copy_to_host(found.data(), memory_, bytes_, &sentence), 0);
    return found;
  }

 private:
  void* memory_ = nullptr;
  int64_t bytes_;
};

}  // namespace attentile::cuda::test

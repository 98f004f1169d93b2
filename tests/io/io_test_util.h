// SPDX-License-Identifier: Apache-2.0
// What the tests of io/ share: hand-made files, a directory that cleans up after itself, and a
// child process for what must not happen to the test runner (limits, other users).
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "attentile/status.h"
#include "io/tensor_file.h"

namespace attentile::io::test {

inline std::string little_endian(uint64_t value, int num_bytes) {
  std::string bytes;
  for (int i = 0; i < num_bytes; ++i) bytes += static_cast<char>(value >> (8 * i) & 0xFFu);
  return bytes;
}

inline std::string safetensors_file(const std::string& json, const std::string& data = "") {
  return little_endian(json.size(), 8) + json + data;
}

// A .npy file of version 1.0, or of another one with its 4-byte length.
inline std::string npy_file(const std::string& header, const std::string& data = "",
                            char major = 1) {
  const std::string version = {major, '\0'};
  return "\x93NUMPY" + version + little_endian(header.size(), major == 1 ? 2 : 4) + header + data;
}

inline std::span<const std::byte> as_bytes(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

inline std::string contents_of(const Tensor& tensor) {
  return {reinterpret_cast<const char*>(tensor.buffer.data()), tensor.buffer.size()};
}

inline std::string read_all(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline void write_all(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

class TempDir {
 public:
  TempDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "attentile-io-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
    std::filesystem::permissions(path_, std::filesystem::perms(0755));
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  ~TempDir() { std::filesystem::remove_all(path_); }

  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }
  std::vector<std::string> names() const {
    std::vector<std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator(path_)) {
      found.push_back(entry.path().filename().string());
    }
    std::sort(found.begin(), found.end());
    return found;
  }

 private:
  std::string path_;
};

// Runs `body` in a forked child and returns the Status it made, as "code: sentence", or how the
// child died.
template <class Body>
std::string status_in_child(Body body) {
  int ends[2];
  if (::pipe(ends) != 0) return "no pipe";
  const pid_t child = ::fork();
  if (child == 0) {
    const Status status = body();
    const std::string text = std::string(to_string(status.code())) + ": " + status.message();
    const bool sent =
        ::write(ends[1], text.data(), text.size()) == static_cast<ssize_t>(text.size());
    ::_exit(sent ? 0 : 1);
  }
  ::close(ends[1]);
  std::string text;
  char buffer[512];
  for (ssize_t got; (got = ::read(ends[0], buffer, sizeof buffer)) > 0;) {
    text.append(buffer, static_cast<size_t>(got));
  }
  ::close(ends[0]);
  int state = 0;
  ::waitpid(child, &state, 0);
  return state == 0 ? text : "the child died with state " + std::to_string(state);
}

// A hostile file and the sentence it must be refused with, after "name: ".
struct Hostile {
  const char* name;
  std::string bytes;
  std::string sentence;
};

inline void PrintTo(const Hostile& hostile, std::ostream* out) {
  *out << hostile.name;
}

}  // namespace attentile::io::test

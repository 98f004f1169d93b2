// SPDX-License-Identifier: Apache-2.0
// Runs the program `attentile` and tells what it printed and how it ended; and a folder per test
// for its files.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "io/safetensors.h"

namespace attentile::cli_test {

struct Outcome {
  int status = -1;  // exit status; 128 + signal when killed
  std::string out;
  std::string err;
};

// How a run differs from a plain one.
struct Surroundings {
  // Not empty: stderr is a terminal, and SIGINT is sent once this was written to it.
  std::string interrupt_at = {};
  // Not empty: what the shell's ulimit is told first, "-f 8".
  std::string limit = {};
};

// argv[0] is added.
Outcome run_cli(const std::vector<std::string>& words, const Surroundings& surroundings = {});

// "attend --random 1,2" cut at blanks.
std::vector<std::string> words_of(const std::string& line);

std::string read_file(const std::string& path);
void write_file(const std::string& path, const std::string& bytes);

// A fresh folder, removed afterwards. {dir} in a line of words becomes its path.
class CliTest : public ::testing::Test {
 protected:
  void SetUp() override;
  void TearDown() override;

  std::string path(const std::string& name) const { return (directory_ / name).string(); }
  Outcome cli(const std::string& line, const Surroundings& surroundings = {}) const;
  // Expects status 0 and an empty stderr; returns stdout.
  std::string good(const std::string& line) const;

  // Writes {dir}/NAME from these views.
  void save(const std::string& name, const std::map<std::string, TensorView>& tensors) const;
  io::TensorMap load(const std::string& name) const;

  std::filesystem::path directory_;
};

// Element by element, bit for bit.
::testing::AssertionResult same_bytes(const io::Tensor& a, const io::Tensor& b);

}  // namespace attentile::cli_test

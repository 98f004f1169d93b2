// SPDX-License-Identifier: Apache-2.0
// Starts the program with its output in temporary files.
#include "cli/cli_process.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <thread>

extern char** environ;

namespace attentile::cli_test {
namespace {

// The program that the build made, or the one that ATTENTILE_TEST_CLI names.
std::string cli_path() {
  const char* path = std::getenv("ATTENTILE_TEST_CLI");
#if defined(ATTENTILE_CLI)
  if (path == nullptr) path = ATTENTILE_CLI;
#endif
  return path == nullptr ? "attentile" : path;
}

std::filesystem::path fresh_directory() {
  std::string pattern = (std::filesystem::temp_directory_path() / "attentile-cli-XXXXXX").string();
  return mkdtemp(pattern.data());
}

}  // namespace

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream bytes;
  bytes << file.rdbuf();
  return bytes.str();
}

void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary);
  file << bytes;
}

std::vector<std::string> words_of(const std::string& line) {
  std::istringstream stream(line);
  std::vector<std::string> words;
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

Outcome run_cli(const std::vector<std::string>& words, int interrupt_after_ms) {
  const std::filesystem::path folder = fresh_directory();
  const std::string out = (folder / "out").string();
  const std::string err = (folder / "err").string();
  std::string program = cli_path();
  std::vector<std::string> copy = words;
  std::vector<char*> argv = {program.data()};
  for (std::string& word : copy) argv.push_back(word.data());
  argv.push_back(nullptr);

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  constexpr int kFlags = O_WRONLY | O_CREAT | O_TRUNC;
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 1, out.c_str(), kFlags, 0600);
  posix_spawn_file_actions_addopen(&actions, 2, err.c_str(), kFlags, 0600);
  pid_t child = -1;
  Outcome outcome;
  const int error = posix_spawn(&child, program.c_str(), &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    ADD_FAILURE() << program << ": " << std::strerror(error);
  } else {
    int state = 0;
    if (interrupt_after_ms > 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(interrupt_after_ms));
      kill(child, SIGINT);
    }
    waitpid(child, &state, 0);
    outcome.status = WIFEXITED(state) ? WEXITSTATUS(state) : 128 + WTERMSIG(state);
    outcome.out = read_file(out);
    outcome.err = read_file(err);
  }
  std::filesystem::remove_all(folder);
  return outcome;
}

void CliTest::SetUp() {
  directory_ = fresh_directory();
}

void CliTest::TearDown() {
  std::filesystem::remove_all(directory_);
}

Outcome CliTest::cli(const std::string& line, int interrupt_after_ms) const {
  std::vector<std::string> words = words_of(line);
  for (std::string& word : words) {
    for (size_t at; (at = word.find("{dir}")) != std::string::npos;) {
      word.replace(at, 5, directory_.string());
    }
  }
  return run_cli(words, interrupt_after_ms);
}

std::string CliTest::good(const std::string& line) const {
  const Outcome outcome = cli(line);
  EXPECT_EQ(outcome.status, 0) << line;
  EXPECT_EQ(outcome.err, "") << line;
  return outcome.out;
}

void CliTest::save(const std::string& name,
                   const std::map<std::string, TensorView>& tensors) const {
  const Status status = io::write_safetensors(path(name), tensors);
  ASSERT_TRUE(status.ok()) << status.message();
}

io::TensorMap CliTest::load(const std::string& name) const {
  Result<io::TensorMap> tensors = io::read_safetensors(path(name));
  EXPECT_TRUE(tensors.ok()) << tensors.status().message();
  return tensors.ok() ? std::move(*tensors) : io::TensorMap();
}

::testing::AssertionResult same_bytes(const io::Tensor& a, const io::Tensor& b) {
  if (a.dtype != b.dtype || a.shape != b.shape) {
    return ::testing::AssertionFailure() << "dtype or shape differ";
  }
  if (a.buffer.size() != 0 && std::memcmp(a.buffer.data(), b.buffer.data(), a.buffer.size()) != 0) {
    return ::testing::AssertionFailure() << "bytes differ";
  }
  return ::testing::AssertionSuccess();
}

}  // namespace attentile::cli_test

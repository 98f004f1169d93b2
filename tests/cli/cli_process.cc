// SPDX-License-Identifier: Apache-2.0
// Starts the program with its output in temporary files, or stderr on a terminal.
#include "cli/cli_process.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

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

// A terminal for a child to write to.
class Terminal {
 public:
  explicit Terminal(bool wanted) {
    if (!wanted) return;
    master_ = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (master_ < 0 || grantpt(master_) != 0 || unlockpt(master_) != 0) {
      ADD_FAILURE() << "no terminal: " << std::strerror(errno);
      return;
    }
    name_ = ptsname(master_);
  }
  ~Terminal() {
    if (master_ >= 0) close(master_);
  }
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  const std::string& name() const { return name_; }

  // What the child writes until it ends. It is interrupted once that holds `sign`, and killed when
  // nothing comes for so long that nothing will.
  std::string read_all(pid_t child, const std::string& sign) const {
    constexpr int kPatienceMs = 300'000;
    std::string text;
    bool interrupted = false;
    for (;;) {
      pollfd waiting{.fd = master_, .events = POLLIN, .revents = 0};
      if (poll(&waiting, 1, kPatienceMs) <= 0) kill(child, SIGKILL);
      char bytes[4096];
      const ssize_t count = read(master_, bytes, sizeof bytes);
      if (count <= 0) return text;
      text.append(bytes, static_cast<size_t>(count));
      if (interrupted || text.find(sign) == std::string::npos) continue;
      interrupted = true;
      kill(child, SIGINT);
    }
  }

 private:
  int master_ = -1;
  std::string name_;
};

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

Outcome run_cli(const std::vector<std::string>& words, const Surroundings& surroundings) {
  const std::filesystem::path folder = fresh_directory();
  const std::string out = (folder / "out").string();
  const std::string err = (folder / "err").string();
  std::vector<std::string> command = {cli_path()};
  if (!surroundings.limit.empty()) {
    const std::string script = "ulimit " + surroundings.limit + " && exec \"$0\" \"$@\"";
    command.insert(command.begin(), {"/bin/sh", "-c", script});
  }
  command.insert(command.end(), words.begin(), words.end());
  std::vector<char*> argv;
  for (std::string& word : command) argv.push_back(word.data());
  argv.push_back(nullptr);
  const bool terminal = !surroundings.interrupt_at.empty();
  const Terminal stderr_terminal(terminal);

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  constexpr int kFlags = O_WRONLY | O_CREAT | O_TRUNC;
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 1, out.c_str(), kFlags, 0600);
  posix_spawn_file_actions_addopen(&actions, 2,
                                   terminal ? stderr_terminal.name().c_str() : err.c_str(),
                                   terminal ? O_WRONLY | O_NOCTTY : kFlags, 0600);
  // A shell's background jobs ignore SIGINT, and so would the child.
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t defaults;
  sigemptyset(&defaults);
  sigaddset(&defaults, SIGINT);
  posix_spawnattr_setsigdefault(&attributes, &defaults);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);
  pid_t child = -1;
  Outcome outcome;
  const int error = posix_spawn(&child, argv[0], &actions, &attributes, argv.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    ADD_FAILURE() << argv[0] << ": " << std::strerror(error);
  } else {
    int state = 0;
    if (terminal) outcome.err = stderr_terminal.read_all(child, surroundings.interrupt_at);
    waitpid(child, &state, 0);
    outcome.status = WIFEXITED(state) ? WEXITSTATUS(state) : 128 + WTERMSIG(state);
    outcome.out = read_file(out);
    if (!terminal) outcome.err = read_file(err);
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

Outcome CliTest::cli(const std::string& line, const Surroundings& surroundings) const {
  std::vector<std::string> words = words_of(line);
  for (std::string& word : words) {
    for (size_t at; (at = word.find("{dir}")) != std::string::npos;) {
      word.replace(at, 5, directory_.string());
    }
  }
  return run_cli(words, surroundings);
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

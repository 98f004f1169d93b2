// SPDX-License-Identifier: Apache-2.0
// What every bad request must do: fail with status 2 and its sentence, and touch nothing.
#include "cli/bad_request.h"

#include <filesystem>
#include <map>

#include "cli/bad_request_files.h"

namespace attentile::cli_test {
namespace {

namespace fs = std::filesystem;

// Every file's name and contents.
std::map<std::string, std::string> snapshot(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(folder)) {
    const std::string name = entry.path().string();
    files[name] = entry.is_regular_file() ? read_file(name) : "";
  }
  return files;
}

std::string replace_all(std::string text, const std::string& from, const std::string& to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
  return text;
}

}  // namespace

void BadRequestTest::SetUp() {
  CliTest::SetUp();
  make_bad_request_files(directory_.string());
}

TEST_P(BadRequestTest, IsRefusedWithItsSentence) {
  const std::string good = "attend {dir}/in.safetensors --out {dir}/o.safetensors";
  std::string line = GetParam().line;
  if (line.starts_with('@')) line = good + line.substr(1);
  const auto before = snapshot(directory_);
  const Outcome outcome = cli(line);
  EXPECT_EQ(outcome.status, 2);
  EXPECT_EQ(outcome.out, "");
  EXPECT_EQ(replace_all(outcome.err, directory_.string(), "{dir}"),
            std::string(GetParam().sentence) + "\n");
  EXPECT_EQ(snapshot(directory_), before);
}

}  // namespace attentile::cli_test

// SPDX-License-Identifier: Apache-2.0
// Fuzz target: any bytes as a command line, one argument a line, run in this process. What follows
// a line "---" is the contents of the bench file. Sizes and thread counts are cut to one digit and
// paths to names in a scratch folder, where a tensor file, an array and a bench file wait. Beyond
// not crashing: the exit status is one of the documented ones, a refusal is exactly one non-empty
// line on stderr and nothing on stdout, success says nothing on stderr, and a refused call leaves
// the folder as it was.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "cli/run.h"
#include "io/npy.h"
#include "io/safetensors.h"

namespace {

namespace fs = std::filesystem;
using attentile::contiguous_view;
using attentile::DType;
using Files = std::map<std::string, std::string>;

void require(bool condition) {
  if (!condition) std::abort();
}

Files files_here() {
  Files files;
  for (const fs::directory_entry& entry : fs::directory_iterator(".")) {
    std::ifstream file(entry.path(), std::ios::binary);
    files[entry.path().filename().string()] =
        std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return files;
}

constexpr std::string_view kBenchRecord =
    R"({"records": [{"name": "attentile", "pass": "forward", "dtype": "f32", "batch": 1,
"seqlen_q": 8, "seqlen_k": 8, "num_heads_q": 1, "num_heads_kv": 1, "head_dim": 8, "head_dim_v": 8,
"causal": false, "layout": "bshd", "device": "cpu", "varlen": false, "threads": 1, "median_s": 1.0,
"gflops": 1.0, "peak_gflops": 2.0, "fraction_of_peak": 0.5}]})";

// The commands run in the scratch folder, the fuzzer itself where it was started.
int g_folder = -1;
int g_home = -1;

// Makes the scratch folder, moves there and fills it.
Files make_folder() {
  std::string pattern = (fs::temp_directory_path() / "attentile-fuzz-XXXXXX").string();
  require(mkdtemp(pattern.data()) != nullptr);
  g_home = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  g_folder = open(pattern.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  require(g_home >= 0 && g_folder >= 0 && fchdir(g_folder) == 0);
  static std::string folder = pattern;
  std::atexit([] { fs::remove_all(folder); });
  const std::vector<float> values(64, 0.5f);
  const auto tensor = contiguous_view(values.data(), DType::kFloat32, {1, 4, 2, 8});
  require(attentile::io::write_safetensors(
              "in", {{"q", tensor}, {"k", tensor}, {"v", tensor}, {"dout", tensor}})
              .ok());
  require(attentile::io::write_npy("q", tensor).ok());
  std::ofstream("bench") << kBenchRecord;
  return files_here();
}

void restore(const Files& original) {
  for (const auto& [name, contents] : files_here()) {
    const auto found = original.find(name);
    if (found == original.end() || found->second != contents) fs::remove(name);
  }
  for (const auto& [name, contents] : original) {
    if (!fs::exists(name)) std::ofstream(name, std::ios::binary) << contents;
  }
}

// Every run of digits cut to its first.
std::string one_digit(const std::string& text) {
  std::string cut;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto digit = [&](size_t at) { return text[at] >= '0' && text[at] <= '9'; };
    if (i == 0 || !digit(i) || !digit(i - 1)) cut += text[i];
  }
  return cut;
}

std::vector<std::string> words_of(std::string_view text) {
  static const std::set<std::string> kSizes = {"--random",  "--shape", "--seqlens",
                                               "--threads", "--count", "--min-time"};
  std::vector<std::string> words;
  bool size_follows = false;
  for (size_t begin = 0; begin < text.size() && words.size() < 24;) {
    const size_t end = std::min({text.find('\n', begin), text.find('\0', begin), text.size()});
    std::string word(text.substr(begin, end - begin));
    begin = end + 1;
    for (char& c : word) c = c == '/' ? '_' : c;
    const std::string option = word.substr(0, word.find('='));
    if (size_follows || (option != word && kSizes.count(option) != 0)) word = one_digit(word);
    size_follows = kSizes.count(word) != 0;
    words.push_back(std::move(word));
  }
  return words;
}

// Commands that measure are only parsed as far as that costs nothing.
bool too_slow(const std::vector<std::string>& words) {
  if (words.empty() || (words[0] != "bench" && words[0] != "verify" && words[0] != "info")) {
    return false;
  }
  for (const std::string& word : words) {
    if (word.starts_with("--min-time") || word.starts_with("--preset") || word == "--measure") {
      return true;
    }
  }
  return false;
}

struct Text {
  char* data = nullptr;
  size_t size = 0;
  FILE* stream = open_memstream(&data, &size);
  std::string close() {
    std::fclose(stream);
    std::string text(data, size);
    std::free(data);
    return text;
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Files original = make_folder();
  constexpr std::string_view kCut = "\n---\n";
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t cut = std::min(input.find(kCut), size);
  std::vector<std::string> words = words_of(input.substr(0, cut));
  require(fchdir(g_home) == 0);
  if (too_slow(words)) return 0;
  if (!words.empty() && words[0] == "bench") words.insert(words.end(), {"--min-time", "0"});
  if (!words.empty() && words[0] == "verify") words.push_back("--list");
  require(fchdir(g_folder) == 0);
  if (cut < size) std::ofstream("bench", std::ios::binary) << input.substr(cut + kCut.size());
  const Files before = files_here();

  std::vector<const char*> argv = {"attentile"};
  for (const std::string& word : words) argv.push_back(word.c_str());
  Text out;
  Text err;
  const int status = attentile::cli::run(static_cast<int>(argv.size()), argv.data(),
                                         {.out = out.stream, .err = err.stream});
  const std::string printed = out.close();
  const std::string said = err.close();
  require(status >= 0 && status <= 3);
  if (status >= 2) {
    require(said.size() > 1 && said.find('\n') == said.size() - 1);
  } else {
    require(said.empty());
  }
  if (status == 2) require(printed.empty() && files_here() == before);
  restore(original);
  require(fchdir(g_home) == 0);
  return 0;
}

// SPDX-License-Identifier: Apache-2.0
// Finds the command, runs it, and turns whatever it throws into an exit status and one line.
#include "cli/run.h"

#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "attentile/version.h"
#include "cli/commands.h"
#include "cli/numbers.h"
#include "io/text.h"

namespace attentile::cli {
namespace {

struct Command {
  std::string_view name;
  std::string_view summary;
  Exit (*function)(const Words&, const Streams&);
};

constexpr Command kCommands[] = {
    {"attend", "attention on tensors from files, or synthetic ones", attend},
    {"info", "this machine: CPU, instruction sets, caches, kernels, measured peaks", info},
    {"plan", "what a call would do: kernel, tiles, workspace, flops, bytes moved", plan},
    {"verify", "the conformance table against the float64 oracle on this machine", verify},
    {"bench", "time against standard attention, in percent of the measured peak", bench},
    {"compare", "two bench files against each other", compare},
    {"report", "a self-contained HTML page from a bench file", report},
    {"explain", "the algorithm tile by tile, from a real trace", explain},
};

void print_usage(std::FILE* stream) {
  fmt::print(stream,
             "Exact attention, forward and backward, in O(seqlen) memory.\n\n"
             "Usage: attentile COMMAND [OPTIONS]\n\nCommands:\n");
  for (const Command& command : kCommands) {
    fmt::print(stream, "  {:<9} {}\n", command.name, command.summary);
  }
  fmt::print(stream,
             "\n'attentile COMMAND --help' lists its options; 'attentile --version' tells the "
             "version.\nExit status: 0 done, 1 a check failed, 2 the request was wrong, "
             "3 the environment failed, 130 interrupted.\n");
}

Exit dispatch(const Words& words, const Streams& streams) {
  std::vector<std::string_view> names;
  for (const Command& command : kCommands) names.push_back(command.name);
  if (words.empty()) {
    wrong_request("COMMAND: not given, expected one that 'attentile --help' lists");
  }
  const std::string& word = words.front();
  if (word == "--help" || word == "-h" || word == "help") {
    print_usage(streams.out);
    return Exit::kDone;
  }
  if (word == "--version") {
    fmt::print(streams.out, "attentile {}\n", ATTENTILE_VERSION);
    return Exit::kDone;
  }
  const size_t index = parse_choice("COMMAND", word, names);
  return kCommands[index].function(Words(words.begin() + 1, words.end()), streams);
}

int fail(const Streams& streams, Exit exit, std::string_view sentence) {
  std::fputs((io::printable(sentence, 4000) + "\n").c_str(), streams.err);
  return static_cast<int>(exit);
}

}  // namespace

int run(int argc, const char* const* argv, const Streams& streams) {
  try {
    Words words;
    for (int i = 1; i < argc; ++i) words.emplace_back(argv[i]);
    const Exit exit = dispatch(words, streams);
    if (std::fflush(streams.out) != 0 || std::ferror(streams.out) != 0) {
      environment_failed("stdout: could not be written");
    }
    return static_cast<int>(exit);
  } catch (const Error& error) {
    return fail(streams, error.exit(), error.what());
  } catch (const std::bad_alloc&) {
    return fail(streams, Exit::kEnvironmentFailed, "memory: ran out");
  } catch (const std::exception& error) {
    return fail(streams, Exit::kEnvironmentFailed, error.what());
  }
}

}  // namespace attentile::cli

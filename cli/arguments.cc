// SPDX-License-Identifier: Apache-2.0
// Arguments on top of CLI11. Options are registered without variables and unlimited in number; what
// may come once, what takes no value and what nobody declared is judged here.
#include "cli/arguments.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstddef>

#include "cli/error.h"
#include "cli/numbers.h"

namespace attentile::cli {
namespace {

enum class Kind { kFlag, kFlagOrValue, kValue, kRepeated, kPositional };

// Edits (insert, delete, replace) that turn one word into the other.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row[b.size()];
}

}  // namespace

struct Arguments::Implementation {
  struct Declared {
    Kind kind;
    size_t max_count;
    CLI::Option* option;
    std::vector<std::string> results = {};
    std::string attached = {};  // the last value after '='

    bool is_flag() const { return kind == Kind::kFlag || kind == Kind::kFlagOrValue; }
  };

  CLI::App app;
  std::string command;
  std::map<std::string, Declared, std::less<>> declared;

  void add(const std::string& name, Kind kind, size_t max_count, CLI::Option* option) {
    option->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
    declared.emplace(name, Declared{kind, max_count, option});
  }

  // The declared option nearest to `word`, or "".
  std::string nearest(std::string_view word) const {
    std::string best;
    size_t best_distance = std::min<size_t>(3, word.size() / 3 + 1);
    for (const auto& [name, entry] : declared) {
      const size_t distance = edit_distance(name, word);
      if (entry.kind != Kind::kPositional && distance < best_distance) {
        best = name;
        best_distance = distance;
      }
    }
    return best;
  }

  [[noreturn]] void refuse(const std::string& word) const {
    if (!word.starts_with('-') || word == "-") {
      wrong_request("{}: unexpected argument {}, expected options only", command, in_quotes(word));
    }
    const std::string name = word.substr(0, word.find('='));
    const std::string hint = nearest(std::string_view(name).substr(0, 40));
    if (hint.empty()) {
      wrong_request("{}: unknown option {}, expected one that 'attentile {} --help' lists", command,
                    in_quotes(name), command);
    }
    wrong_request("{}: unknown option {}, expected perhaps {}", command, in_quotes(name), hint);
  }

  // What stands after '=', looked at before CLI11 runs: it takes the next word as the value of
  // "--name=", and a flag's "=true" for none.
  void read_attached_values(const std::vector<std::string>& words) {
    for (size_t i = 0; i < words.size() && words[i] != "--"; ++i) {
      const size_t equals = words[i].find('=');
      const auto found = declared.find(std::string_view(words[i]).substr(0, equals));
      if (found == declared.end() || found->second.kind == Kind::kPositional) continue;
      if (equals == std::string::npos) {
        if (!found->second.is_flag()) ++i;  // the value
      } else if (equals + 1 == words[i].size()) {
        wrong_request("{}: nothing follows '=', expected a value", found->first);
      } else {
        found->second.attached = words[i].substr(equals + 1);
      }
    }
  }

  void collect() {
    for (auto& [name, entry] : declared) {
      entry.results = entry.option->results();
      if (entry.results.size() > entry.max_count) {
        wrong_request("{}: given {} times, expected once", name, entry.results.size());
      }
      for (std::string& text : entry.results) {
        if (entry.is_flag()) text = entry.attached;
        if (entry.is_flag() && text.empty()) continue;
        const auto other = declared.find(text);
        if (entry.kind == Kind::kFlag) {
          wrong_request("{}: given the value {}, expected none", name, in_quotes(text));
        } else if (text.empty()) {
          wrong_request("{}: an empty value, expected one that is not", name);
        } else if (entry.kind != Kind::kPositional && other != declared.end() &&
                   other->second.kind != Kind::kPositional) {
          wrong_request("{}: followed by the option {}, expected a value", name, text);
        }
      }
    }
  }
};

Arguments::Arguments(std::string command, std::string summary)
    : implementation_(std::make_unique<Implementation>()) {
  implementation_->command = std::move(command);
  implementation_->app.description(std::move(summary));
  implementation_->app.name("attentile " + implementation_->command);
  implementation_->app.allow_extras();
  implementation_->app.get_formatter()->column_width(34);
}

Arguments::~Arguments() = default;

void Arguments::flag(const std::string& name, const std::string& help) {
  implementation_->add(name, Kind::kFlag, 1,
                       implementation_->app.add_flag(name)->description(help));
}

void Arguments::flag_or_value(const std::string& name, const std::string& metavar,
                              const std::string& help) {
  CLI::Option* option = implementation_->app.add_flag(name);
  implementation_->add(name, Kind::kFlagOrValue, 1, option->description(help));
  option->type_name("[=" + metavar + "]");
}

void Arguments::value(const std::string& name, const std::string& metavar,
                      const std::string& help) {
  CLI::Option* option = implementation_->app.add_option(name);
  implementation_->add(name, Kind::kValue, 1, option->description(help)->type_name(metavar));
}

void Arguments::repeated(const std::string& name, const std::string& metavar,
                         const std::string& help) {
  CLI::Option* option = implementation_->app.add_option(name);
  implementation_->add(name, Kind::kRepeated, SIZE_MAX,
                       option->description(help)->type_name(metavar));
}

void Arguments::positional(const std::string& name, const std::string& help) {
  CLI::Option* option = implementation_->app.add_option(name);
  implementation_->add(name, Kind::kPositional, 1, option->description(help)->type_name(""));
}

bool Arguments::parse(const std::vector<std::string>& words) {
  implementation_->read_attached_values(words);
  try {
    implementation_->app.parse(std::vector<std::string>(words.rbegin(), words.rend()));
  } catch (const CLI::CallForHelp&) {
    return false;
  } catch (const CLI::ArgumentMismatch& error) {
    const std::string text = error.what();
    wrong_request("{}: no value follows, expected one", text.substr(0, text.find(':')));
  } catch (const CLI::ParseError& error) {
    wrong_request("{}: {}", implementation_->command, in_quotes(error.what()));
  }
  bool separator = false;
  for (const std::string& word : implementation_->app.remaining()) {
    // CLI11 lists the first "--" too.
    if (word != "--" || separator) implementation_->refuse(word);
    separator = true;
  }
  implementation_->collect();
  return true;
}

std::string Arguments::help() const {
  return implementation_->app.help();
}

const std::string* Arguments::find(std::string_view name) const {
  const std::vector<std::string>& results = all(name);
  return results.empty() ? nullptr : &results.front();
}

const std::vector<std::string>& Arguments::all(std::string_view name) const {
  static const std::vector<std::string> kNone;
  const auto found = implementation_->declared.find(name);
  return found == implementation_->declared.end() ? kNone : found->second.results;
}

size_t parse_choice(std::string_view name, std::string_view text,
                    const std::vector<std::string_view>& words) {
  const auto found = std::find(words.begin(), words.end(), text);
  if (found == words.end()) {
    const auto last = words.end() - 1;
    wrong_request("{}: {}, expected {} or {}", name, in_quotes(text),
                  fmt::join(words.begin(), last, ", "), *last);
  }
  return static_cast<size_t>(found - words.begin());
}

}  // namespace attentile::cli

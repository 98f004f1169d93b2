// SPDX-License-Identifier: Apache-2.0
// The arguments of one command: declared, parsed, then asked for by name. CLI11 does the splitting
// and the help text; every value stays text here and is read by the strict parsers of numbers.h, so
// that each error is one sentence of ours.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace attentile::cli {

class Arguments {
 public:
  Arguments(std::string command, std::string summary);
  Arguments(const Arguments&) = delete;
  Arguments& operator=(const Arguments&) = delete;
  ~Arguments();

  // Declarations; option names with their dashes.
  void flag(const std::string& name, const std::string& help);
  void value(const std::string& name, const std::string& metavar, const std::string& help);
  void repeated(const std::string& name, const std::string& metavar, const std::string& help);
  // A flag that may take a value, only after '='.
  void flag_or_value(const std::string& name, const std::string& metavar, const std::string& help);
  void positional(const std::string& name, const std::string& help);

  // Throws Error for anything that was not declared, lacks its value or comes twice. False: the
  // user asked for help; help() is what to print.
  bool parse(const std::vector<std::string>& words);
  std::string help() const;

  bool has(std::string_view name) const { return !all(name).empty(); }
  // The value, or null. A flag without a value holds "".
  const std::string* find(std::string_view name) const;
  const std::vector<std::string>& all(std::string_view name) const;

 private:
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

// A word that an option takes and what it stands for.
template <class T>
struct Choice {
  std::string_view word;
  T value;
};

// Index of `text` in `words`; an Error that lists them when it is none.
size_t parse_choice(std::string_view name, std::string_view text,
                    const std::vector<std::string_view>& words);

// The value of `name` looked up in a table of words, or `otherwise` when it was not given.
template <class T>
T choose(const Arguments& arguments, std::string_view name, const std::vector<Choice<T>>& choices,
         T otherwise) {
  const std::string* text = arguments.find(name);
  if (text == nullptr) return otherwise;
  std::vector<std::string_view> words;
  for (const Choice<T>& choice : choices) words.push_back(choice.word);
  return choices[parse_choice(name, *text, words)].value;
}

}  // namespace attentile::cli

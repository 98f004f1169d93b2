// SPDX-License-Identifier: Apache-2.0
// Files that a command writes: checked before any work is done, so that a wrong name costs nothing
// and never harms an input, then written whole or not at all.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace attentile::cli {

// An Error unless a file can be created or replaced at `path` and it is none of the inputs, by
// whatever link. `option` begins the sentences.
void check_output(std::string_view option, const std::string& path,
                  const std::vector<std::string>& inputs = {});

// True when both names lead to one file, which need not exist yet: "a", "./a" and links to a.
bool same_output(const std::string& first, const std::string& second);

void write_text_file(std::string_view option, const std::string& path, std::string_view contents);

}  // namespace attentile::cli

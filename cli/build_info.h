// SPDX-License-Identifier: Apache-2.0
// What this build and this machine are, for the head of every file the program writes.
#pragma once

#include <string>

#include "cli/facts.h"

namespace attentile::cli {

std::string build_commit();    // "unknown" outside a checkout
std::string build_compiler();  // "Clang 19.1.7"
std::string machine_name();    // "AMD EPYC 9B45, 2 cores"
std::string utc_date();        // "2026-11-21T04:12:00Z"

// version, commit, machine, compiler, date, command.
Json file_head(const std::string& command);

}  // namespace attentile::cli

// SPDX-License-Identifier: Apache-2.0
// Build facts arrive as definitions from CMake; machine facts from the library's cpu_info.
#include "cli/build_info.h"

#include <fmt/format.h>

#include <ctime>

#include "attentile/version.h"
#include "cpu/cpu_info.h"
#include "cpu/executor.h"

#ifndef ATTENTILE_COMMIT
#define ATTENTILE_COMMIT ""
#endif
#ifndef ATTENTILE_COMPILER
#define ATTENTILE_COMPILER __VERSION__
#endif

namespace attentile::cli {

std::string build_commit() {
  const std::string commit = ATTENTILE_COMMIT;
  return commit.empty() ? "unknown" : commit;
}

std::string build_compiler() {
  return ATTENTILE_COMPILER;
}

std::string machine_name() {
  const int cores = cpu::usable_cores();
  return fmt::format("{}, {} core{}", cpu::cpu_info().model, cores, cores == 1 ? "" : "s");
}

std::string utc_date() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  const size_t length = std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return std::string(text, length);
}

Json file_head(const std::string& command) {
  return {{"version", ATTENTILE_VERSION}, {"commit", build_commit()}, {"machine", machine_name()},
          {"compiler", build_compiler()}, {"date", utc_date()},       {"command", command}};
}

}  // namespace attentile::cli

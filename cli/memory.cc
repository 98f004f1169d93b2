// SPDX-License-Identifier: Apache-2.0
// Available memory from the kernel's own figures: /proc/meminfo and the control group's limit.
#include "cli/memory.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <string>

#include "cli/error.h"
#include "cli/numbers.h"

namespace attentile::cli {
namespace {

constexpr double kUnknown = std::numeric_limits<double>::infinity();

// A file that holds one number, or "max".
double number_in(const char* path) {
  std::ifstream file(path);
  double value = 0;
  return file >> value ? value : kUnknown;
}

// The line "NAME   1234 kB" of a file of the kernel's.
double status_kilobytes(const char* path, std::string_view name) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(name)) return std::strtod(line.c_str() + name.size(), nullptr);
  }
  return kUnknown;
}

// memory.max counts the file cache too, which the kernel gives back when asked.
double cgroup_available() {
  const double limit = number_in("/sys/fs/cgroup/memory.max");
  const double used = number_in("/sys/fs/cgroup/memory.current");
  if (limit == kUnknown || used == kUnknown) return kUnknown;
  double inactive_file = 0;
  std::ifstream file("/sys/fs/cgroup/memory.stat");
  for (std::string line; std::getline(file, line);) {
    if (std::sscanf(line.c_str(), "inactive_file %lf", &inactive_file) == 1) break;
  }
  return std::max(0.0, limit - used + inactive_file);
}

}  // namespace

double available_memory() {
  return std::min(status_kilobytes("/proc/meminfo", "MemAvailable:") * 1024, cgroup_available());
}

void require_memory(std::string_view what, double bytes) {
  constexpr double kAlwaysTried = 64.0 * 1024 * 1024;
  if (bytes <= kAlwaysTried) return;
  const double available = available_memory();
  if (bytes > available) {
    environment_failed("{}: needs {} of memory, but {} are available", what, bytes_words(bytes),
                       bytes_words(available));
  }
}

double peak_resident_bytes() {
  return status_kilobytes("/proc/self/status", "VmHWM:") * 1024;
}

}  // namespace attentile::cli

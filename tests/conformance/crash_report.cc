// SPDX-License-Identifier: Apache-2.0
// The handler prints, puts the former handler back and returns: the fault happens again and the
// former handler (a sanitizer's, or none) deals with it.
#include "conformance/crash_report.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace attentile::conformance {
namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
struct sigaction g_former[std::size(kSignals)];
char g_cell[256];

void say(const char* text) {
  const ssize_t ignored = write(STDERR_FILENO, text, std::strlen(text));
  static_cast<void>(ignored);
}

void report(int signal_number) {
  if (g_cell[0] != '\0') {
    say("\nended by a signal in cell ");
    say(g_cell);
    if (std::strncmp(g_cell, "case=", 5) == 0) {
      say("\n  attentile verify --filter ");
      say(g_cell);
    }
    say("\n");
  }
  for (size_t i = 0; i < std::size(kSignals); ++i) {
    if (kSignals[i] == signal_number) sigaction(signal_number, &g_former[i], nullptr);
  }
  if (signal_number == SIGABRT) raise(SIGABRT);
}

}  // namespace

void install_crash_report() {
  static bool installed = false;
  if (installed) return;
  installed = true;
  struct sigaction action = {};
  action.sa_handler = report;
  for (size_t i = 0; i < std::size(kSignals); ++i) sigaction(kSignals[i], &action, &g_former[i]);
}

void set_current_cell(const std::string& name) {
  const size_t length = std::min(name.size(), sizeof g_cell - 1);
  std::memcpy(g_cell, name.data(), length);
  g_cell[length] = '\0';
}

}  // namespace attentile::conformance

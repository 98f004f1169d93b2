// SPDX-License-Identifier: Apache-2.0
// Progress and Ctrl-C: a bar on stderr when that is a terminal and the work is longer than a
// second, and cancellation at the next poll after SIGINT. Both hang on ExecutionContext::poll.
#pragma once

#include <chrono>
#include <cstdio>
#include <string>

#include "attentile/attention.h"

namespace attentile::cli {

// While one lives, SIGINT sets a flag instead of ending the process.
class InterruptGuard {
 public:
  InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;
  ~InterruptGuard();

  static bool interrupted();
  // An Error with status 130 when it is.
  static void check();

 private:
  bool installed_ = false;
};

class ProgressBar {
 public:
  ProgressBar(std::FILE* stream, std::string label);
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  ~ProgressBar();  // wipes

  // Draws, at most every 100 ms. Non-zero: stop.
  int update(double fraction);
  // Takes the bar off the terminal until the next update, so that something can be printed.
  void wipe();

  // Sets the context's poll to this bar.
  void watch(ExecutionContext& context);

 private:
  void draw(double fraction, double elapsed_s);

  std::FILE* stream_;
  std::string label_;
  bool terminal_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point start_;
  double last_drawn_s_ = 0;
};

}  // namespace attentile::cli

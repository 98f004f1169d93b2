// SPDX-License-Identifier: Apache-2.0
// The progress bar and the SIGINT handler.
#include "cli/progress.h"

#include <unistd.h>

#include <algorithm>
#include <csignal>

#include "cli/error.h"

namespace attentile::cli {
namespace {

volatile std::sig_atomic_t g_interrupted = 0;
struct sigaction g_previous = {};

void on_interrupt(int) {
  g_interrupted = 1;
}

}  // namespace

InterruptGuard::InterruptGuard() {
  g_interrupted = 0;
  struct sigaction action = {};
  action.sa_handler = on_interrupt;
  sigemptyset(&action.sa_mask);
  // A shell starts background jobs with SIGINT ignored; that stays.
  if (sigaction(SIGINT, nullptr, &g_previous) != 0 || g_previous.sa_handler == SIG_IGN) return;
  installed_ = sigaction(SIGINT, &action, nullptr) == 0;
}

InterruptGuard::~InterruptGuard() {
  if (installed_) sigaction(SIGINT, &g_previous, nullptr);
}

bool InterruptGuard::interrupted() {
  return g_interrupted != 0;
}

void InterruptGuard::check() {
  if (interrupted()) throw Error(Exit::kInterrupted, "interrupted: nothing was written");
}

ProgressBar::ProgressBar(std::FILE* stream, std::string label)
    : stream_(stream),
      label_(std::move(label)),
      terminal_(stream != nullptr && isatty(fileno(stream)) == 1),
      start_(std::chrono::steady_clock::now()) {}

ProgressBar::~ProgressBar() {
  wipe();
}

void ProgressBar::wipe() {
  if (!drawn_) return;
  fmt::print(stream_, "\r\x1b[K");
  std::fflush(stream_);
  drawn_ = false;
}

int ProgressBar::update(double fraction) {
  if (terminal_) {
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start_;
    if (elapsed.count() > 1.0 && elapsed.count() - last_drawn_s_ > 0.1) {
      draw(std::clamp(fraction, 0.0, 1.0), elapsed.count());
    }
  }
  return InterruptGuard::interrupted() ? 1 : 0;
}

void ProgressBar::draw(double fraction, double elapsed_s) {
  constexpr int kWidth = 40;
  const int filled = static_cast<int>(fraction * kWidth);
  const std::string bar = std::string(static_cast<size_t>(filled), '#') +
                          std::string(static_cast<size_t>(kWidth - filled), '.');
  std::string left;
  if (fraction > 0.01) left = fmt::format("  {:.0f} s left", elapsed_s * (1 - fraction) / fraction);
  fmt::print(stream_, "\r\x1b[K{} [{}] {:3.0f}%{}", label_, bar, 100 * fraction, left);
  std::fflush(stream_);
  drawn_ = true;
  last_drawn_s_ = elapsed_s;
}

void ProgressBar::watch(ExecutionContext& context) {
  context.poll = [](void* bar, double fraction) {
    return static_cast<ProgressBar*>(bar)->update(fraction);
  };
  context.poll_data = this;
}

}  // namespace attentile::cli

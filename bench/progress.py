# SPDX-License-Identifier: Apache-2.0
"""A bar on stderr with an estimate of the time left; a line every tenth where stderr is a file."""

from __future__ import annotations

import sys
import time


def duration_words(seconds: float) -> str:
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class Progress:
    """Counts work in any unit; the time left follows from the pace so far."""

    def __init__(self, total: float) -> None:
        self.total, self.done = total, 0.0
        self.start = time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.tenths = 0

    def seconds_left(self) -> float:
        elapsed = time.monotonic() - self.start
        return elapsed * (self.total - self.done) / self.done if self.done else 0.0

    def show(self, what: str) -> None:
        share = min(1.0, self.done / self.total) if self.total else 1.0
        left = f"{duration_words(self.seconds_left())} left" if self.done else ""
        if self.terminal:
            bar = ("#" * round(24 * share)).ljust(24, ".")
            line = f"[{bar}] {100 * share:3.0f} %  {left:>16}  {what}"
            sys.stderr.write("\r\x1b[2K" + line[:118])
        elif int(10 * share) > self.tenths:
            self.tenths = int(10 * share)
            sys.stderr.write(f"{100 * share:3.0f} %  {left}\n")
        sys.stderr.flush()

    def advance(self, work: float) -> None:
        self.done += work

    def wipe(self) -> None:
        if self.terminal:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()

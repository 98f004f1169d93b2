# SPDX-License-Identifier: Apache-2.0
"""Seconds and peak memory of a piece of work, each variant in a process of its own."""

import json
import resource
import statistics
import subprocess
import sys
import time


def _status(field):
    """A figure of /proc/self/status in bytes; elsewhere than on Linux, the peak of the process."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith(field))
    except FileNotFoundError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak << 10


class Meter:
    """with Meter() as meter: for ...: work(); meter.lap(). Then print(meter).

    peak_mib is the most memory resident at one time above what was resident at the start, so the
    interpreter, torch and what was made before do not count. seconds is the median lap.
    """

    def __enter__(self):
        try:
            with open("/proc/self/clear_refs", "w") as clear:
                clear.write("5")  # VmHWM counts anew from here
        except OSError:
            pass
        self.start = _status("VmRSS")
        self.laps, self.last = [], time.perf_counter()
        return self

    def lap(self):
        now = time.perf_counter()
        self.laps.append(now - self.last)
        self.last = now

    def __exit__(self, *_):
        self.peak = _status("VmHWM") - self.start

    def __str__(self):
        return f"{statistics.median(self.laps):.3f} s a step, peak {self.peak / 2**20:.0f} MiB"

    def result(self):
        return {"seconds": statistics.median(self.laps), "peak_mib": self.peak / 2**20,
                "cost": str(self)}


def in_own_process(script, **flags):
    """What `python SCRIPT --flag value ... --json` prints last, as an object."""
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    done = subprocess.run([sys.executable, script, *words, "--json"], text=True, check=True,
                          stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1])

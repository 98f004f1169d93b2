# SPDX-License-Identifier: Apache-2.0
"""What the machine is, and what else it is doing. Linux."""

from __future__ import annotations

import os
import re
import resource
import time
from pathlib import Path

QUIET_SHARE = 0.05
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_field(name: str) -> str:
    found = re.search(rf"^{re.escape(name)}\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    return found[1].strip() if found else ""


def machine_slug(model: str, cores: int) -> str:
    """"intel-xeon-2c" of "Intel(R) Xeon(R) Processor" and 2."""
    words = re.sub(r"\((R|TM|tm)\)|@.*|\b(CPU|Processor|[0-9]+-Core)\b", " ", model)
    return "-".join(re.findall(r"[a-z0-9]+", words.lower()) or ["cpu"]) + f"-{cores}c"


def usable_cores() -> int:
    return len(os.sched_getaffinity(0))


def memory_available() -> float:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    return float(found[1]) * 1024 if found else float("inf")


def last_cache_bytes() -> float:
    """The largest cache of the first core; 0 if the system does not say."""
    units = {"K": 1024, "M": 1 << 20}
    sizes = [path.read_text().strip()
             for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((float(s[:-1]) * units[s[-1]] for s in sizes if s[-1] in units), default=0.0)


def busy_seconds() -> float:
    """CPU seconds that anybody used so far, those stolen by the host included."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    user, nice, system, _, _, irq, softirq, steal = fields[:8]
    return (user + nice + system + irq + softirq + steal) / TICKS


def own_seconds(pids: list[int]) -> float:
    """CPU seconds of this process, its ended children and the given living ones."""
    total = sum(sum(resource.getrusage(who)[:2])
                for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    for pid in pids:
        try:
            after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += (int(after_name[11]) + int(after_name[12])) / TICKS
    return total


class LoadMeter:
    """The share of this machine's cores that others used since the meter was made."""

    def __init__(self, pids: list[int]) -> None:
        self.start = (time.monotonic(), busy_seconds(), own_seconds(pids))

    def share(self, pids: list[int]) -> float:
        elapsed = time.monotonic() - self.start[0]
        others = (busy_seconds() - self.start[1]) - (own_seconds(pids) - self.start[2])
        return min(1.0, max(0.0, others / (elapsed * (os.cpu_count() or 1)))) if elapsed else 0.0


def wait_for_quiet(limit_s: float = 60.0) -> tuple[float, float]:
    """Waits until others use less than 5 % for a second. Returns seconds waited, last share."""
    start = time.monotonic()
    while True:
        meter = LoadMeter([])
        time.sleep(1.0)
        share = meter.share([])
        waited = time.monotonic() - start
        if share < QUIET_SHARE or waited + 1 > limit_s:
            return waited, share

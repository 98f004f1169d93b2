# SPDX-License-Identifier: Apache-2.0
"""./dev bench: attentile against its targets and its peers, everybody in one run.

Prints every table with the measured figure beside its target, writes
bench/results/<machine>/<date>-<commit>.json, and exits 1 if a must is missed that waivers.json does
not list, or if a peer was held back.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cells
import files
import tables
from build import ROOT, build_libraries
from cases import TABLES, Request, all_cases
from cases_peers import memory_subjects
from contenders import CONTENDERS
from machine import (LoadMeter, cpu_field, last_cache_bytes, machine_slug, usable_cores,
                     wait_for_quiet)
from measure import Measurer
from plan import Attempt, Comparison
from pool import Pool
from problem import Subject
from program import Program
from progress import Progress, duration_words

QUICK_S = 440.0  # of the eight minutes, waiting included; what remains is for the last comparison
FIRST_SHARE = 0.8  # of them for the first attempt at everything
FULL_COMPARISON_S = 4.0  # seconds per unit of weight
MIN_COMPARISON_S = 0.15


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__.split("\n\n")[0])
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="8 minutes, every row (default)")
    length.add_argument("--full", action="store_true", help="hours: the whole grid")
    parser.add_argument("--tables", default=",".join(TABLES), metavar="NAMES",
                        help=f"some of {', '.join(TABLES)}")
    parser.add_argument("--peers", default=",".join(n for n in CONTENDERS if n != "attentile"),
                        metavar="NAMES", help=f"some of {', '.join(CONTENDERS)}")
    parser.add_argument("--threads", type=int, default=usable_cores(),
                        help="of every contender in ratios; default all cores")
    parser.add_argument("--out", type=Path, help="the file to write")
    arguments = parser.parse_args()
    for option, known in (("tables", TABLES), ("peers", CONTENDERS)):
        names = [name for name in getattr(arguments, option).split(",") if name]
        wrong = [name for name in names if name not in known]
        if wrong:
            parser.error(f"--{option}: {wrong[0]!r}, expected some of {', '.join(known)}")
        setattr(arguments, option, names)
    if not 1 <= arguments.threads <= usable_cores():
        parser.error(f"--threads: {arguments.threads}, expected 1 to {usable_cores()}")
    return arguments


class Run:
    """The stages of a run, in order; each adds to what the next one reads."""

    def __init__(self, arguments: argparse.Namespace, pool: Pool, started: float) -> None:
        self.arguments, self.pool, self.started = arguments, pool, started
        self.program = Program(ROOT / "build/release/bin/attentile")
        self.measurer = Measurer(pool)
        self.vendor = cpu_field("vendor_id")
        self.intel = self.vendor == "GenuineIntel"
        self.facts = pool.facts(["attentile", *self.taking_part()])
        self.peers = [n for n in self.taking_part() if "missing" not in self.facts[n]]
        self.comparisons = all_cases(
            Request(arguments.full, arguments.threads, tuple(self.peers), last_cache_bytes(),
                    self.intel), arguments.tables)
        self.memory: dict[Subject, Any] = {}
        self.meter = LoadMeter(self.pids())

    def taking_part(self) -> list[str]:
        """Contenders to ask for. On Intel, torch as installed runs what the preload unlocks."""
        return [name for name in self.arguments.peers if name != "attentile"
                and not (name == "torch-unlocked" and self.intel)]

    def pids(self) -> list[int]:
        return [p.process.pid for p in self.pool.processes.values()]

    def attempt(self, comparison: Comparison, seconds: float) -> Attempt:
        threads = {(s.problem.dtype, s.threads) for s in comparison.subjects}
        peaks = {key: self.program.peak(*key) for key in threads}
        meter = LoadMeter(self.pids())
        if comparison.method == "program":
            attempt = self.program.measure(comparison, seconds)
        else:
            attempt = self.measurer.measure(comparison, seconds)
        attempt.peaks, attempt.foreign_load = peaks, meter.share(self.pids())
        return attempt

    def first_attempts(self) -> None:
        progress = Progress(sum(c.expected() for c in self.comparisons))
        for comparison in self.comparisons:
            progress.show(f"{comparison.table}: {comparison.subjects[0].problem.words()}")
            left = progress.total - progress.done
            # Half of the time goes to preparing and to runs that are longer than their share.
            time_left = FIRST_SHARE * QUICK_S - (time.monotonic() - self.started)
            pace = FULL_COMPARISON_S
            if not self.arguments.full:
                pace = min(pace, 0.5 * time_left / left)
            seconds = max(MIN_COMPARISON_S if pace > 0 else 0.0, pace * comparison.weight)
            comparison.attempts.append(self.attempt(comparison, seconds))
            progress.advance(comparison.expected())
        progress.wipe()

    def measure_memory(self) -> None:
        subjects = list(dict.fromkeys(memory_subjects(self.comparisons, self.arguments.full)))
        progress = Progress(sum(s.problem.flops() for s in subjects))
        for subject in subjects:
            progress.show(f"memory: {subject.name}, {subject.problem.words()}")
            self.memory[subject] = self.measurer.memory(subject)
            progress.advance(subject.problem.flops())
        progress.wipe()

    def retries(self, targets: cells.Targets) -> int:
        """Missed musts again, up to three attempts in all. Returns how many lacked the time."""
        unfinished = 0
        for _ in range(cells.ATTEMPTS - 1):
            unfinished = 0
            again = [c for c in self.comparisons if cells.needs_retry(c, targets)]
            progress = Progress(len(again))
            for comparison in again:
                progress.show(f"again: {comparison.table}: "
                              f"{comparison.subjects[0].problem.words()}")
                if not self.arguments.full and time.monotonic() - self.started > QUICK_S:
                    unfinished += 1
                    continue
                comparison.attempts.append(self.attempt(comparison, MIN_COMPARISON_S * 4))
                progress.advance(1)
            progress.wipe()
        return unfinished

    def head(self, quiet: tuple[float, float]) -> dict[str, Any]:
        info = self.program.info()
        now = datetime.datetime.now(datetime.timezone.utc)
        head = {
            "version": info["version"], "commit": commit(),
            "machine": f"{info['cpu']}, {usable_cores()} cores", "compiler": info["compiler"],
            "date": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "command": " ".join(["./dev bench", *sys.argv[1:]]),
            "threads": self.arguments.threads, "peers": self.facts,
            "foreign_load": round(self.meter.share(self.pids()), 3),
            "waited_for_quiet_s": round(quiet[0], 1), "load_at_start": round(quiet[1], 3),
            "unmeasured": files.unmeasured_of(self.comparisons),
            "memory": {words: entries for words, entries in self.memory_words().items()}}
        if "torch-unlocked" in self.arguments.peers and "torch-unlocked" not in self.facts:
            head["peers"]["torch-unlocked"] = {
                "same_as": "torch: on Intel's processors the preload changes nothing, so torch is "
                           "held against the targets of torch-unlocked (in f16, its own)"}
        return head

    def memory_words(self) -> dict[str, dict[str, Any]]:
        words: dict[str, dict[str, Any]] = {}
        for subject, entry in self.memory.items():
            words.setdefault(subject.problem.words().removeprefix("backward "), {})[
                subject.name] = entry
        return words


def commit() -> str:
    done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"],
                          capture_output=True, text=True)
    changed = subprocess.run(["git", "-C", str(ROOT), "status", "--porcelain", "-uno"],
                             capture_output=True, text=True).stdout.strip()
    return (done.stdout.strip() or "unknown") + ("-changed" if changed else "")


def print_peers(facts: dict[str, dict[str, Any]]) -> None:
    for name, entry in facts.items():
        label = CONTENDERS[name].label
        words = entry.get("missing") or entry.get("same_as") or ", ".join(
            f"{key} {value}" for key, value in entry.items())
        print(f"  {label:<36}{'MISSING: ' if 'missing' in entry else ''}{words}")


def report(run: Run, head: dict[str, Any], unfinished: int) -> bool:
    """Prints the tables and writes the file. True if nothing is missed."""
    waivers = cells.load_waivers()
    targets = cells.load_targets()
    verdicts = cells.judge(run.comparisons, targets, waivers)
    records = files.records_of(run.comparisons)
    files.add_memory(records, run.memory)
    machine = {"vendor": run.vendor, "family": int(cpu_field("cpu family") or 0)}
    checks = cells.validity(records, machine)
    head |= {"validity": checks, "valid": not any(c["held_back"] for c in checks)}

    tables.print_tables(verdicts, run.comparisons)
    if run.memory:
        print("\n".join(tables.memory_lines(run.memory_words())))
    print("\n".join(tables.validity_lines(checks)))
    print("\n".join(tables.summary_lines(verdicts, waivers)))
    if unfinished:
        print(f"{unfinished} comparisons were not measured {cells.ATTEMPTS} times: the time was "
              "up. --full, or --tables with some of them, measures them again.")
    path = run.arguments.out or (
        ROOT / "bench/results" / machine_slug(cpu_field("model name"), usable_cores())
        / f"{head['date'][:10]}-{head['commit']}.json")
    files.write_file(path, head, records, verdicts)
    print(f"\nothers used {100 * head['foreign_load']:.0f} % of the machine during the run")
    print(f"written: {path}\nfor a page of it: attentile report {path}")
    return head["valid"] and not cells.missed_musts(verdicts)


def main() -> int:
    arguments = read_arguments()
    started = time.monotonic()
    folder = ROOT / "build/bench"
    libraries = build_libraries(folder)
    quiet = wait_for_quiet()
    with (folder / "workers.log").open("w") as log:
        pool = Pool(arguments.threads, libraries, log)
        try:
            run = Run(arguments, pool, started)
            print(f"{len(run.comparisons)} comparisons on {arguments.threads} threads; others use "
                  f"{100 * quiet[1]:.0f} % of the machine after {quiet[0]:.0f} s of waiting")
            run.first_attempts()
            run.measure_memory()
            unfinished = run.retries(cells.load_targets())
            head = run.head(quiet)
        finally:
            pool.close()
    print_peers(head["peers"])
    met = report(run, head, unfinished)
    print(f"{duration_words(time.monotonic() - started)}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Everything that a machine with a GPU can tell: `./dev gpu [--rehearse] [--seconds N] [SLICE...]`.

Slices, in this order; each leaves its answer in build/gpu/slices/NAME.json, and those that are
there are not done again unless --again:

    machine    the GPU, its driver, nvcc, torch
    build      the library, its CUDA backend for this GPU, the check programs
    mma        10^5 products of tensor cores against the emulator's model, bit for bit
    table      the conformance table on the device against the float64 oracle
    peers      forward and backward against torch's backends, in turns; ceilings of the GPU
    decode     bytes per second of K and V with few queries, against torch
    sanitize   compute-sanitizer's memcheck, racecheck, initcheck, synccheck on a short list
    repeat     10,000 launches of the same calls, or 20 seconds of each, bit for bit
    wide       tensors of more than 2^31 elements
    counters   Nsight Compute's view of the main kernels

A slice that would not fit into what is left of --seconds waits for the next call. The last lines
are one table; all answers together go to --json. --rehearse runs every slice on the emulator, at
sizes that it can do, so that no typo is left for a GPU to find. Exit status: 0, 1 if a check
failed, 3 if the machine lacks something, 75 if slices are left for another call.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
UNFINISHED = 75
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
Answer = dict[str, Any]


@dataclass
class Run:
    """Where things are, and whether this is a rehearsal."""

    rehearse: bool
    build: Path
    work: Path
    log: Path = field(init=False)
    deadline: float = 0.0  # of the running slice, by time.monotonic()

    def __post_init__(self) -> None:
        self.log = self.work / "log.txt"

    def environment(self) -> dict[str, str]:
        library = "libattentile_cuda_emulated.so" if self.rehearse else "libattentile_cuda.so"
        return {**os.environ, "ATTENTILE_CUDA_LIBRARY": str(self.build / library),
                "ATTENTILE_LIBRARY": str(self.build / "gpu/libattentile.so"),
                "PYTHONUNBUFFERED": "1"}

    def call(self, *command: Any) -> subprocess.CompletedProcess[str]:
        """Runs a command; what it prints goes to the log too. One that is late is ended with all
        that it started, exit status 124, and what it printed so far counts."""
        words = [str(word) for word in command]
        process = subprocess.Popen(words, cwd=ROOT, env=self.environment(), text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   start_new_session=True)
        try:
            out, errors = process.communicate(timeout=max(1.0, self.deadline - time.monotonic()))
            status = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, errors = process.communicate()
            errors += "\nran too long"
            status = 124
        with self.log.open("a") as log:
            log.write(f"$ {' '.join(words)}\n{out}{errors}[exit status {status}]\n")
        return subprocess.CompletedProcess(words, status, out, errors)

    def lines(self, *command: Any) -> tuple[list[Answer], str]:
        """The JSON objects that a command prints, one a line, and why it failed, or ""."""
        done = self.call(*command)
        found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode == 0:
            return found, ""
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        return found, f"exit status {done.returncode}: {''.join(last)[:200]}"


def answer(ok: bool, words: str, **facts: Any) -> Answer:
    return {"ok": ok, "words": words, **facts}


# --- slices --------------------------------------------------------------------------------------
def machine(run: Run) -> Answer:
    facts: Answer = {"cpus": os.cpu_count()}
    if not run.rehearse:
        seen = run.call("nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap",
                        "--format=csv,noheader")
        if seen.returncode != 0 or not seen.stdout.strip():
            return answer(False, "nvidia-smi shows no GPU", **facts)
        names = ("gpu", "driver", "memory", "compute_capability")
        facts |= dict(zip(names, seen.stdout.splitlines()[0].split(", "), strict=True))
    nvcc = run.call("nvcc", "--version") if shutil.which("nvcc") else None
    facts["nvcc"] = nvcc.stdout.split("release ")[-1].split(",")[0] if nvcc else "none"
    torch = run.call(sys.executable, "-c", "import torch; print(torch.__version__)")
    facts["torch"] = torch.stdout.strip() or "none"
    return answer(True, f"{facts.get('gpu', 'the emulator')}, nvcc {facts['nvcc']}, torch "
                        f"{facts['torch']}", **facts)


def build(run: Run) -> Answer:
    arguments = ["-S", ROOT, "-B", run.build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
                 "-DATTENTILE_BUILD_GPU_CHECKS=ON"]
    if not run.rehearse:  # the rehearsal takes the tree of `./dev build` as it is
        capability = stored(run, "machine").get("compute_capability", "")
        arguments += ["-DATTENTILE_BUILD_CLI=OFF", "-DATTENTILE_BUILD_TESTS=OFF",
                      "-DATTENTILE_BUILD_EXAMPLES=OFF", "-DATTENTILE_CUDA=ON",
                      f"-DCMAKE_CUDA_ARCHITECTURES={capability.replace('.', '')}-real"]
    targets = ["gpu_check", "gpu_check_library", "mma_check",
               "attentile_cuda_emulated" if run.rehearse else "attentile_cuda"]
    start = time.monotonic()
    for command in (["cmake", *arguments],
                    ["cmake", "--build", run.build, "--parallel", "--target", *targets]):
        done = run.call(*command)
        if done.returncode != 0:
            text = [line for line in (done.stdout + done.stderr).splitlines() if "rror" in line]
            return answer(False, f"{' '.join(map(str, command[:2]))}: {''.join(text[:1])[:200]}")
    seconds = time.monotonic() - start
    library = Path(run.environment()["ATTENTILE_CUDA_LIBRARY"])
    return answer(True, f"{seconds:.0f} s, {library.stat().st_size / 1e6:.1f} MB",
                  seconds=seconds, bytes=library.stat().st_size)


def mma(run: Run) -> Answer:
    tiles = 8_192 if run.rehearse else 100_000
    found, why = run.lines(run.build / "gpu/mma_check", tiles)
    ours = [line for line in found if line["emulator"]]
    words = ", ".join(f"{line['dtype']} {line['differ']} of {line['elements']} differ"
                      for line in ours)
    for line in ours:  # a model that fits better is what the check is for
        others = [o for o in found if o["dtype"] == line["dtype"] and not o["emulator"]]
        best = min(others, key=lambda o: o["differ"], default=line)
        if line["differ"] > 0:
            words += (f"; {line['dtype']}: nearest {best['fraction_bits']} bits, groups of "
                      f"{best['group']}: {best['differ']} of {best['elements']}")
    return answer(not why, words or why, lines=found)


def table(run: Run) -> Answer:
    cells, seconds = (20, 10) if run.rehearse else (1_000_000, 45)
    found, why = run.lines(run.build / "gpu/gpu_check", "table", cells, seconds)
    if not found:
        return answer(False, why)
    words = ", ".join(f"{line['dtype']} {line['passed']} passed {line['failed']} failed "
                      f"{line['refused']} refused" for line in found)
    good = all(line["failed"] == 0 and line["passed"] for line in found)
    return answer(not why and good, words, lines=found)


def sanitize(run: Run) -> Answer:
    program = [run.build / "gpu/gpu_check", "short"]
    if run.rehearse:  # the emulator is its own sanitizer
        _, why = run.lines(*program)
        return answer(not why, why or "no finding of the emulator")
    if shutil.which("compute-sanitizer") is None:
        return answer(True, "there is no compute-sanitizer")
    words: dict[str, str] = {}
    for tool in SANITIZERS:
        done = run.call("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *program)
        verdict = [line for line in done.stdout.splitlines() if "ERROR SUMMARY" in line]
        words[tool] = "clean" if done.returncode == 0 else "".join(verdict)[-60:] or "failed"
    return answer(set(words.values()) == {"clean"},
                  ", ".join(f"{tool} {word}" for tool, word in words.items()), tools=words)


def race(run: Run, which: str) -> Answer:
    sizes = ["--rehearse"] if run.rehearse else ["--seconds", SLICES[which].seconds]
    found, why = run.lines(sys.executable, ROOT / "gpu/race.py", which, *sizes)
    rows = [line for line in found if line.get("kind") == "row"]
    wins = [row for row in rows if row.get("ratio", 0) >= 1]
    words = f"{len(rows)} shapes, {len(wins)} at least as fast as the best peer"
    return answer(not why, why or words, lines=found)


def peers(run: Run) -> Answer:
    return race(run, "peers")


def decode(run: Run) -> Answer:
    return race(run, "decode")


def repeat(run: Run) -> Answer:
    launches, seconds = (2, 60) if run.rehearse else (10_000, 20)
    found, why = run.lines(run.build / "gpu/gpu_check", "repeat", launches, seconds)
    words = ", ".join(f"{line['name']} {line['launches']} x, {line['differ']} differ"
                      for line in found)
    return answer(not why and bool(found), why or words, lines=found)


def wide(run: Run) -> Answer:
    if run.rehearse:  # these tensors take gigabytes; the same code runs on small ones
        found, why = run.lines(run.build / "gpu/gpu_check", "wide", 1000)
    else:
        found, why = run.lines(run.build / "gpu/gpu_check", "wide", (1 << 31) + 4096)
    words = ", ".join(f"{line['name']} {line['elements']:.3g} elements" for line in found)
    return answer(not why and bool(found), why or words, lines=found)


def counters(run: Run) -> Answer:
    if run.rehearse:
        return answer(True, "not in a rehearsal")
    if shutil.which("ncu") is None:
        return answer(True, "there is no ncu")
    done = run.call("ncu", "--clock-control", "none", "--set", "full", "--csv", "--page", "details",
                    "--launch-count", "8", run.build / "gpu/gpu_check", "profile")
    (run.work / "counters.csv").write_text(done.stdout)
    rows = [line for line in done.stdout.splitlines() if line.count('","') > 6]
    kernels = {line.split('","')[4] for line in rows[1:]}
    return answer(done.returncode == 0, f"{len(kernels)} kernels in counters.csv")


@dataclass
class Slice:
    """A step, and seconds to keep free for it."""

    act: Callable[[Run], Answer]
    seconds: float


SLICES = {act.__name__: Slice(act, seconds) for act, seconds in (
    (machine, 30), (build, 270), (mma, 20), (table, 150), (peers, 120), (decode, 40),
    (sanitize, 90), (repeat, 90), (wide, 60), (counters, 90))}


# --- around them ---------------------------------------------------------------------------------
def path_of(run: Run, name: str) -> Path:
    return run.work / "slices" / f"{name}.json"


def stored(run: Run, name: str) -> Answer:
    path = path_of(run, name)
    found: Answer = json.loads(path.read_text()) if path.exists() else {}
    return found


def act(run: Run, name: str) -> Answer:
    begin = time.monotonic()
    try:
        result = SLICES[name].act(run)
    except (OSError, ValueError, KeyError) as error:
        result = answer(False, f"{type(error).__name__}: {error}"[:200])
    result["seconds_taken"] = time.monotonic() - begin
    path_of(run, name).write_text(json.dumps(result))
    return result


def print_races(run: Run) -> None:
    for name in ("peers", "decode"):
        rows = [line for line in stored(run, name).get("lines", []) if line.get("kind") == "row"]
        if not rows:
            continue
        unit = rows[0]["unit"]
        print(f"\n{name}, {unit}: attentile, then the best of torch's backends"
              f"{' (a rehearsal: of the emulator, no figures)' if run.rehearse else ''}")
        for row in rows[:22]:
            ours, best = row["attentile"], row.get("best")
            peer = f"{best:9.1f}  {row['ratio']:5.2f}x  {row['best_name']}" if best else "        -"
            atomic = f"  (with atomic dq {row['atomic_dq']:.1f})" if "atomic_dq" in row else ""
            print(f"  {row['words']:<44}{ours:9.1f}{peer}{atomic}")


def write_json(run: Run, path: Path) -> None:
    try:
        commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, text=True,
                                capture_output=True, check=False).stdout.strip()
    except OSError:
        commit = ""
    head = {"version": "0.1.0", "commit": commit or "unknown",
            "machine": stored(run, "machine").get("gpu", "emulator"),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "command": "./dev gpu" + (" --rehearse" if run.rehearse else "")}
    slices = {name: stored(run, name) for name in SLICES if stored(run, name)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**head, "slices": slices}, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slices", nargs="*", choices=[*SLICES, []], metavar="SLICE")
    parser.add_argument("--rehearse", action="store_true", help="on the emulator")
    parser.add_argument("--again", action="store_true", help="also slices that have an answer")
    parser.add_argument("--seconds", type=float, default=570, help="of this call")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all answers together")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="for answers and the log")
    given = parser.parse_args()
    folder = ROOT / ("build/gpu-rehearsal" if given.rehearse else "build/gpu")
    tree = ROOT / "build/release" if given.rehearse else folder / "tree"
    run = Run(given.rehearse, tree, given.work or folder)
    (run.work / "slices").mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    left: list[str] = []
    for name in given.slices or SLICES:
        if stored(run, name).get("ok") and not given.again:
            continue
        now = time.monotonic()
        if begin + given.seconds - now < SLICES[name].seconds and not given.rehearse:
            left.append(name)
            continue
        patience = 600 if given.rehearse else 2 * SLICES[name].seconds
        run.deadline = min(now + patience, begin + given.seconds)
        print(f"{name} ...", flush=True)
        result = act(run, name)
        if given.json is not None:
            write_json(run, given.json)
        if name in ("machine", "build") and not result["ok"]:
            print(f"{name}: {result['words']}")
            return 3
    print_races(run)
    print()
    for name in SLICES:
        result = stored(run, name)
        verdict = "-" if not result else "ok" if result["ok"] else "FAILED"
        print(f"{name:<10}{verdict:<8}{result.get('seconds_taken', 0):6.0f} s  "
              f"{result.get('words', 'not done yet')[:100]}")
    if any(not stored(run, name).get("ok", True) for name in SLICES):
        return 1
    return UNFINISHED if left else 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""The slices of `./dev gpu`, each a function of a Run that gives an answer."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calls import FAILED, LATE, LEFT_OUT, OK, ROOT, UNFINISHED, Answer, Run, Said, answer

HERE = Path(__file__).resolve().parent
TABLES = ("bf16", "f16", "f32", "bf16+atomic_dq")
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
WIDE = (1 << 31) + 4096  # elements
REPEATED = 5  # cases of `gpu_check repeat`
# What the tools say on machines that do not let them look.
REFUSALS = ("Device not supported", "LibraryNotLoaded", "ERR_NVGPUCTRPERM")


def refused(text: str) -> str:
    return next((words for words in REFUSALS if words in text), "")


def cmake_build(run: Run, tree: Path, arguments: list[Any], targets: list[str]) -> str:
    """Why it failed, or ""."""
    jobs = os.environ.get("ATTENTILE_JOBS")
    parallel = ["--parallel", *([jobs] if jobs else [])]
    for command in (["cmake", "-S", ROOT, "-B", tree, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
                     *arguments], ["cmake", "--build", tree, *parallel, "--target", *targets]):
        done = run.call(*command)
        if done.returncode != 0:
            text = (done.stderr + done.stdout).splitlines()
            at = next((n for n, line in enumerate(text) if "rror" in line), max(0, len(text) - 1))
            return f"cmake {command[1]}: {' '.join(' '.join(text[at:at + 3]).split())}"[:300]
    return ""


# --- what the others need ------------------------------------------------------------------------
def machine(run: Run) -> Answer:
    facts: Answer = {"cpus": os.cpu_count()}
    if not run.rehearse:
        if run.find("nvidia-smi") is None:
            return answer(FAILED, "there is no nvidia-smi", **facts)
        seen = run.call("nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap",
                        "--format=csv,noheader")
        if seen.returncode != 0 or not seen.stdout.strip():
            return answer(FAILED, "nvidia-smi shows no GPU", **facts)
        names = ("gpu", "driver", "memory", "compute_capability")
        facts |= dict(zip(names, seen.stdout.splitlines()[0].split(", "), strict=True))
    nvcc = run.call("nvcc", "--version") if run.find("nvcc") else None
    facts["nvcc"] = nvcc.stdout.split("release ")[-1].split(",")[0] if nvcc else "none"
    torch = run.call(sys.executable, "-c", "import torch; print(torch.__version__)")
    facts["torch"] = torch.stdout.strip() or "none"
    return answer(OK, f"{facts.get('gpu', 'the emulator')}, nvcc {facts['nvcc']}, torch "
                      f"{facts['torch']}", **facts)


def build(run: Run) -> Answer:
    arguments = ["-DATTENTILE_BUILD_GPU_CHECKS=ON"]
    if not run.rehearse:  # the rehearsal takes the tree of `./dev build` as it is
        capability = run.stored("machine").get("compute_capability", "")
        arguments += ["-DATTENTILE_BUILD_CLI=OFF", "-DATTENTILE_BUILD_TESTS=OFF",
                      "-DATTENTILE_BUILD_EXAMPLES=OFF", "-DATTENTILE_CUDA=ON",
                      f"-DCMAKE_CUDA_ARCHITECTURES={capability.replace('.', '')}-real"]
    targets = ["gpu_check", "gpu_check_library", "mma_check",
               "attentile_cuda_emulated" if run.rehearse else "attentile_cuda"]
    start = time.monotonic()
    why = cmake_build(run, run.build, arguments, targets)
    if why:
        return answer(FAILED, why)
    seconds = time.monotonic() - start
    size = run.library.stat().st_size
    return answer(OK, f"{seconds:.0f} s, {size / 1e6:.1f} MB", seconds=seconds, bytes=size)


# --- the kernels, by programs that need the standard library alone -------------------------------
def mma(run: Run) -> Answer:
    tiles = 8_192 if run.rehearse else 100_000
    said = run.lines([run.build / "gpu/mma_check"], tiles)
    ours = [line for line in said.lines if line["emulator"]]
    words = ", ".join(f"{line['dtype']} {line['differ']} of {line['elements']} differ"
                      for line in ours)
    for line in ours:  # a model that fits better is what the check is for
        others = [o for o in said.lines if o["dtype"] == line["dtype"] and not o["emulator"]]
        best = min(others, key=lambda o: o["differ"], default=line)
        if line["differ"] > 0:
            words += (f"; {line['dtype']}: nearest {best['fraction_bits']} bits, groups of "
                      f"{best['group']}: {best['differ']} of {best['elements']}")
    return said.judged(words)


def table(run: Run) -> Answer:
    """A process for each dtype: an illegal access would fail all that follows it in its own."""
    said = Said()
    for n, name in enumerate(TABLES):
        cells, seconds = (20, 6.0) if run.rehearse else \
            (1_000_000, min(45.0, run.left() / (len(TABLES) - n)))
        said.add(run.lines([run.check], "table", name, cells, seconds), name)
    words = "passed/failed/refused: " + ", ".join(
        f"{line['dtype']} {line['passed']}/{line['failed']}/{line['refused']}{line['stopped']}"
        for line in said.lines)
    good = len(said.lines) == len(TABLES) and all(
        line["failed"] == 0 and line["passed"] for line in said.lines)
    return said.judged(words, good)


def sanitize(run: Run) -> Answer:
    said = run.lines([run.check], "short")
    words = {"short": f"{len(said.lines)} calls against the oracle"}
    if run.rehearse:  # the emulator is its own sanitizer
        return said.judged(words["short"])
    if run.find("compute-sanitizer") is None:
        found = said.judged(f"{words['short']}; there is no compute-sanitizer")
        return {**found, "verdict": LEFT_OUT} if found["verdict"] == OK else found
    for tool in SANITIZERS:
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", run.check, "short"]
        done = run.call(*command)
        if why := refused(done.stdout + done.stderr):
            return answer(LEFT_OUT, f"{words['short']}; {tool}: {why}", lines=said.lines)
        words[tool] = "clean" if done.returncode == 0 else f"exit status {done.returncode}"
        if done.returncode not in (0, LATE):
            findings = [line.removeprefix("=========").strip() for line in
                        (done.stdout + done.stderr).splitlines() if line.startswith("=========")]
            said.failures.append({"failure": tool, "again": run.words_of(command),
                                  "what": " | ".join(findings[1:12])[:600]})
    return said.judged(", ".join(f"{name} {word}" for name, word in words.items()),
                       all(words[tool] == "clean" for tool in SANITIZERS))


def repeat(run: Run) -> Answer:
    if run.rehearse:
        said = Said()
        for name in ("dropout 64", "decode 128"):
            said.add(run.lines([run.check], "repeat", 2, 60, name))
    else:
        said = run.lines([run.check], "repeat", 10_000, min(20.0, run.left() / REPEATED))
    words = ", ".join(f"{line['name']} {line['launches']} x, {line['differ']} differ"
                      for line in said.lines)
    return said.judged(words)


def wide(run: Run) -> Answer:
    if run.rehearse:  # these tensors take gigabytes; the same code runs on small ones
        said = run.lines([run.check], "sizes", WIDE)
        sizes = said.lines[:]
        said.add(run.lines([run.check], "wide", 1000))
    else:
        said = run.lines([run.check], "wide", WIDE)
        sizes = [line for line in said.lines if "bytes" in line]
    words = ", ".join(f"{line['name']} {line['bytes'] / 1e9:.1f} GB" for line in sizes)
    return said.judged(words, all(line["elements"] > 1 << 31 for line in sizes))


def counters(run: Run) -> Answer:
    if run.rehearse:
        return answer(LEFT_OUT, "not in a rehearsal")
    if run.find("ncu") is None:
        return answer(LEFT_OUT, "there is no ncu")
    done = run.call("ncu", "--clock-control", "none", "--set", "full", "--csv", "--page", "details",
                    "--launch-count", "8", run.check, "profile")
    if why := refused(done.stdout + done.stderr):
        return answer(LEFT_OUT, f"ncu: {why}")
    (run.work / "counters.csv").write_text(done.stdout)
    rows = [line for line in done.stdout.splitlines() if line.count('","') > 6]
    kernels = {line.split('","')[4] for line in rows[1:]}
    last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
    return answer(OK, f"{len(kernels)} kernels in counters.csv") if done.returncode == 0 else \
        answer(FAILED, f"exit status {done.returncode}: {''.join(last)[:200]}")


# --- torch's side --------------------------------------------------------------------------------
def script(name: str) -> list[Any]:
    return [sys.executable, HERE / name]


def race(run: Run, which: str) -> Answer:
    """Goes on where an earlier call ran out of time."""
    before = run.stored(which) if run.stored(which).get("goes_on") else {}
    said = Said(before.get("lines", []), before.get("failures", []))
    sizes = ["--rehearse"] if run.rehearse else ["--seconds", run.left()]
    new = run.lines(script("race.py"), which, "--skip", before.get("done", 0), *sizes)
    if run.cut:  # what it said counts
        new.why = ""
    said.add(new)
    of = next((line["of"] for line in new.lines if line.get("kind") == "shapes"), 0)
    rows = [line for line in said.lines if line.get("kind") == "row"]
    done = len(rows) + sum(line.get("kind") == "refused" for line in said.lines)
    wins = sum((row.get("ratio") or 0) >= 1 for row in rows)
    found = said.judged(f"{done} of {of} shapes, {wins} at least as fast as the best peer",
                        of > 0, done=done, goes_on=done < of and not said.why)
    if found["goes_on"] and found["verdict"] == OK:
        found["verdict"] = UNFINISHED
    return found


def peers(run: Run) -> Answer:
    return race(run, "peers")


def decode(run: Run) -> Answer:
    return race(run, "decode")


def streams(run: Run) -> Answer:
    sizes = ["--rehearse"] if run.rehearse else []
    said = run.lines(script("streams.py"), *sizes)
    count = len(said.lines)
    said.add(run.lines(script("streams.py"), "--first", *sizes), "--first")
    facts = [f"{line['fact']}: {line['words']}" for line in said.lines if "fact" in line]
    return said.judged("; ".join([f"{count} calls on a side stream and captured", *facts]))


def build_core(run: Run) -> str:
    """The Python package with its extension module, in work/package. Why not, or ""."""
    where = run.call(sys.executable, "-m", "nanobind", "--cmake_dir")
    if where.returncode != 0:
        return "there is no nanobind"
    tree = run.work / "python-tree"
    why = cmake_build(run, tree, [
        "-DATTENTILE_BUILD_PYTHON=ON", "-DATTENTILE_BUILD_CLI=OFF", "-DATTENTILE_BUILD_TESTS=OFF",
        "-DATTENTILE_BUILD_EXAMPLES=OFF", "-DATTENTILE_INSTALL=OFF",
        "-DATTENTILE_JAXLIB_INCLUDE=OFF", f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dnanobind_DIR={where.stdout.strip()}"], ["_core"])
    if why:
        return why
    package = run.work / "package/attentile"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "python/attentile", package,
                    ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for built in (tree / "python/binding").glob("_core*.so"):
        shutil.copy2(built, package)
    return ""


def python(run: Run) -> Answer:
    if not run.rehearse and (why := build_core(run)):  # a rehearsal takes what is installed
        return answer(LEFT_OUT, why)
    said = run.lines(script("python_check.py"), *(["--rehearse"] if run.rehearse else []))
    if said.status == 3:
        return answer(LEFT_OUT, said.why)
    return said.judged(", ".join(line["name"] for line in said.lines))


@dataclass
class Slice:
    """A step, and seconds to keep free for it."""

    act: Callable[[Run], Answer]
    seconds: float


SLICES = {act.__name__: Slice(act, seconds) for act, seconds in (
    (machine, 30), (build, 270), (mma, 45), (table, 200), (peers, 150), (decode, 60),
    (streams, 60), (sanitize, 120), (repeat, 120), (wide, 60), (python, 150), (counters, 90))}

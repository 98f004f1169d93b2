#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Mutation check: does the unmodified test suite notice each small mistake of tests/mutants/?

    python3 tools/mutate.py [--only PART_OF_NAME]... [--sample N] [--resume] [--jobs N]
                            [--compiler CXX] [--trusted] [--always] [--record]
    python3 tools/mutate.py --make NAME FILE OLD NEW WHAT     writes tests/mutants/NAME.patch

A mutant is a one-hunk patch to a product file, preceded by a header of `Key: value` lines:

    Mutant: what is wrong, in one line
    Tests: the folders of tests/ to try first (optional; the others follow, fastest first)
    Survives: why no test can notice it (only for mutants that are equivalent)
    Always: yes, of those few that `./dev test` judges every time (--always)

Mutants of the CUDA kernels are judged by the tests on the emulated GPU alone (tests/cuda), which
run every kernel, single tests beside the tables. Who killed a mutant before is tried first.
--sample N takes N mutants, spread over the list.

The tree is copied to build/mutants/tree and built there once; its suite must pass (--trusted: has
just done so). Then each mutant in turn is applied, the test programs are rebuilt and run, fastest
first, until one fails. Prints who killed each, writes build/mutants/result.json, with --record
tests/mutants/verdicts.json too, and exits 1 if a mutant survived without a reason or was killed
although its header says it survives. --resume keeps what both files say of patches that have not
changed since, whatever else has. Compiling dominates: ccache makes the way back to the unmodified
source free.
"""

import argparse
import difflib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "mutants"
TREE = WORK / "tree"
BUILD = WORK / "build"
VERDICTS = ROOT / "tests" / "mutants" / "verdicts.json"
TRUSTED_SECONDS = 300  # that a suite takes at most, where it is not measured
TIMEOUT_FACTOR = 10  # a mutant that takes so many times the usual time is killed, too


def run(*command, timeout=None, env=None):
    """(exit status, output); a time-out is status 124."""
    try:
        done = subprocess.run([str(c) for c in command], cwd=TREE, timeout=timeout, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace",
                              env={**os.environ, **(env or {})})
        return done.returncode, done.stdout
    except subprocess.TimeoutExpired as expired:
        return 124, (expired.stdout or b"").decode(errors="replace")


def copy_tree():
    """Brings TREE to the state of ROOT, touching only what differs."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT,
                            check=True, capture_output=True, text=True).stdout
    names = {name for name in listed.split("\0") if name and (ROOT / name).is_file()}
    for path in TREE.rglob("*"):
        if path.is_file() and str(path.relative_to(TREE)) not in names:
            path.unlink()
    for name in names:
        source, target = ROOT / name, TREE / name
        if not target.exists() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)


class Mutant:
    def __init__(self, path):
        self.path = path
        self.name = path.stem
        text = path.read_text()
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        header = text[:text.index("--- ")]
        fields = dict(re.findall(r"^(\w+): (.*)$", header, flags=re.MULTILINE))
        self.what = fields["Mutant"]
        self.first = fields.get("Tests", "").split()
        self.survives = fields.get("Survives", "")
        self.always = fields.get("Always") == "yes"
        self.file = re.search(r"^\+\+\+ b/(\S+)", text, flags=re.MULTILINE).group(1)
        self.emulated = self.file.startswith(
            ("src/cuda/device/", "src/cuda/sm80/", "src/cuda/numerics.h"))
        if len(re.findall(r"^@@ ", text, flags=re.MULTILINE)) != 1:
            raise SystemExit(f"mutate: {path}: more than one hunk, expected one")

    def apply(self, *flags):
        status, out = run("patch", "-p1", "--batch", "--forward", *flags, "-i", self.path)
        if status != 0:
            raise SystemExit(f"mutate: {self.path}: does not apply: {out}")


def build(target, jobs):
    return run("cmake", "--build", BUILD, "--parallel", jobs, "--target", target)


def suites():
    """Folder of tests/ -> test program."""
    targets = run("cmake", "--build", BUILD, "--target", "help")[1]
    names = re.findall(r"^attentile_(\w+)_tests:", targets, flags=re.MULTILINE)
    if not names:
        raise SystemExit(f"mutate: {BUILD} has no test programs")
    return {name: BUILD / "tests" / f"attentile_{name}_tests" for name in names}


def run_suite(program, timeout, parts=("*",)):
    """The name of the first failed test, or "" when all passed; parts run beside each other."""
    deadline = None if timeout is None else time.monotonic() + timeout
    running = []
    for part in parts:
        output = tempfile.TemporaryFile("w+")
        running.append((subprocess.Popen(
            [program, "--gtest_brief=1", "--gtest_fail_fast=1", f"--gtest_filter={part}"],
            cwd=TREE, stdout=output, stderr=subprocess.STDOUT), output))
    try:
        while running:
            for process, output in running:
                status = process.poll()
                if status is None:
                    continue
                if status != 0:
                    output.seek(0)
                    failed = re.search(r"^\[  FAILED  \] ([\w./]+)", output.read(),
                                       flags=re.MULTILINE)
                    return failed.group(1) if failed else f"ended with status {status}"
                running.remove((process, output))
                break
            if deadline is not None and time.monotonic() > deadline:
                return "time-out"
            time.sleep(0.05)
        return ""
    finally:
        for process, _ in running:
            process.kill()
            process.wait()


def run_all(program, timeout, folder, emulated):
    """run_suite of all tests; of the emulated GPU what takes seconds first."""
    if not emulated or folder != "cuda":
        return run_suite(program, timeout)
    kernels = "AtomicDq.*:Backward.*:FewQueries.*:Forward.*:Schedules.*"
    return run_suite(program, timeout, (f"-{kernels}:*Table.*",)) or \
        run_suite(program, timeout, (kernels, "*Table.*"))


def baseline(jobs, mutants, trusted):
    """Seconds of the suites that judge, on the unmodified tree, fastest first."""
    seconds = {}
    emulated = all(mutant.emulated for mutant in mutants)
    for folder, program in suites().items():
        if emulated and folder != "cuda":
            continue
        status, out = build(program.name, jobs)
        if status != 0:
            raise SystemExit(f"mutate: the unmodified tree does not build:\n{out[-4000:]}")
        start = time.monotonic()
        failed = "" if trusted else run_all(program, None, folder, emulated)
        if failed:
            raise SystemExit(f"mutate: the unmodified tree fails {folder}: {failed}")
        seconds[folder] = TRUSTED_SECONDS if trusted else time.monotonic() - start
        print(f"  {folder:16} {seconds[folder]:7.1f} s")
    return dict(sorted(seconds.items(), key=lambda item: item[1]))


def judge(mutant, seconds, jobs, killer):
    """(verdict, detail): killed by whom, survived, or not built. killer, `folder: test`, did it
    before and goes first."""
    killer_folder, _, killer_test = killer.partition(": ")
    programs = suites()
    order = [f for f in mutant.first if f in seconds] + \
        [f for f in seconds if f not in mutant.first]
    if mutant.emulated:
        order = ["cuda"]
    for folder in order:
        status, out = build(programs[folder].name, jobs)
        if status != 0:
            error = re.search(r"error: .*", out)
            return "not built", error.group() if error else out[-300:]
        factor = 2 if mutant.emulated else TIMEOUT_FACTOR
        timeout = 60 + factor * seconds[folder]
        failed = run_suite(programs[folder], timeout, (killer_test,)) \
            if folder == killer_folder else ""
        failed = failed or run_all(programs[folder], timeout, folder, mutant.emulated)
        if failed:
            return "killed", f"{folder}: {failed}"
    return "survived", mutant.survives or "no reason given"


def make(name, file, old, new, what):
    """Writes the patch that replaces old, found once in file, by new."""
    before = (ROOT / file).read_text()
    if before.count(old) != 1:
        raise SystemExit(f"mutate: OLD: found {before.count(old)} times in {file}, expected once")
    after = before.replace(old, new)
    hunk = "".join(difflib.unified_diff(before.splitlines(True), after.splitlines(True),
                                        f"a/{file}", f"b/{file}"))
    path = ROOT / "tests" / "mutants" / f"{name}.patch"
    path.write_text(f"Mutant: {what}\n\n{hunk}")
    print(path.relative_to(ROOT))


def recorded():
    """Verdicts by digest: of the last run, and before it those of VERDICTS."""
    judged = {}
    for path in (VERDICTS, WORK / "result.json"):
        if path.exists():
            judged.update({r["digest"]: r for r in json.loads(path.read_text())})
    return judged


def record(results):
    """Adds results to VERDICTS, one line each by name; those of patches that are gone leave it."""
    present = {path.stem for path in (ROOT / "tests" / "mutants").glob("*.patch")}
    known = json.loads(VERDICTS.read_text()) if VERDICTS.exists() else []
    judged = {r["name"]: r for r in known + results if r["name"] in present}
    lines = ",\n".join(json.dumps(judged[name]) for name in sorted(judged))
    VERDICTS.write_text(f"[\n{lines}\n]\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", default=[], help="part of a mutant's name")
    parser.add_argument("--sample", type=int, metavar="N", help="so many, spread over the list")
    parser.add_argument("--make", nargs=5, metavar=("NAME", "FILE", "OLD", "NEW", "WHAT"))
    parser.add_argument("--resume", action="store_true", help="judge only what is not judged yet")
    parser.add_argument("--record", action="store_true", help=f"in {VERDICTS.relative_to(ROOT)}")
    parser.add_argument("--always", action="store_true", help="those marked so")
    parser.add_argument("--trusted", action="store_true",
                        help="the unmodified tree's suite has just passed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--compiler", default=shutil.which("clang++-19") or "c++")
    arguments = parser.parse_args()
    if arguments.make:
        make(*arguments.make)
        return 0

    mutants = [Mutant(path) for path in sorted((ROOT / "tests" / "mutants").glob("*.patch"))]
    if arguments.only:
        mutants = [m for m in mutants if any(part in m.name for part in arguments.only)]
    if arguments.always:
        mutants = [m for m in mutants if m.always]
    if arguments.sample and mutants:
        chosen = range(arguments.sample)
        mutants = [mutants[i * len(mutants) // arguments.sample] for i in chosen]
    judged = recorded()
    killers = {r["name"]: r["detail"] for r in judged.values() if r["verdict"] == "killed"}
    if not arguments.resume:
        judged = {}
    TREE.mkdir(parents=True, exist_ok=True)
    copy_tree()
    status, out = run("cmake", "-S", TREE, "-B", BUILD, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
                      f"-DCMAKE_CXX_COMPILER={arguments.compiler}",
                      "-DATTENTILE_BUILD_EXAMPLES=OFF", "-DATTENTILE_WERROR=OFF")
    if status != 0:
        raise SystemExit(f"mutate: cmake failed:\n{out[-4000:]}")
    print("unmodified tree:")
    seconds = baseline(arguments.jobs, mutants, arguments.trusted)

    results, bad = [], 0
    for mutant in mutants:
        if mutant.digest in judged:
            result = judged[mutant.digest]
            bad += result["verdict"] != result["expected"]
            results.append({**result, "name": mutant.name})
            continue
        start = time.monotonic()
        mutant.apply()
        try:
            verdict, detail = judge(mutant, seconds, arguments.jobs,
                                    killers.get(mutant.name, ""))
        finally:
            mutant.apply("-R")
        expected = "survived" if mutant.survives else "killed"
        bad += verdict != expected
        results.append({"name": mutant.name, "digest": mutant.digest, "file": mutant.file,
                        "mutant": mutant.what,
                        "verdict": verdict, "detail": detail, "expected": expected,
                        "seconds": round(time.monotonic() - start, 1)})
        print(f"{mutant.name:36} {verdict:9} {detail}", flush=True)
        (WORK / "result.json").write_text(json.dumps(results, indent=1) + "\n")
        if arguments.record:
            record(results)
    if arguments.record:
        record(results)
    killed = sum(result["verdict"] == "killed" for result in results)
    print(f"{len(results)} mutants, {killed} killed, {len(results) - killed} not, {bad} unexpected")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

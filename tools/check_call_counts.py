#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Whole calls must not execute more instructions than the baseline says.

    check_call_counts.py BUILD_DIR [--update]

Runs `attentile attend` on one thread under callgrind, which knows neither AVX-512 nor a clock, and
counts what the code of src/cpu executes itself, without the C library. Exits 1 with one line per
call of tests/speed/call_counts.json that takes over 1 % more than there, and the functions that it
went to. --update writes the baseline anew.
"""

import argparse
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import baseline
from hot_loops import short_name

BASELINE = Path(__file__).resolve().parent.parent / "tests/speed/call_counts.json"
COLUMNS = ["call", "function", "thousand instructions"]
TOLERANCE = 1.01
SHARE = 0.05  # of a call: functions below it are not in the baseline
ALL = "all functions"

ISAS = ("scalar", "avx2")
# name: (pass, arguments of `attentile attend`)
CALLS = {
    "forward": ("forward", "--random 1,256,256,2,1,64 --causal"),
    "backward": ("backward", "--random 1,256,256,2,1,64 --causal --backward"),
    "bfloat16": ("forward", "--random 1,256,256,2,1,64 --dtype bf16"),
    "decoding": ("forward", "--random 1,1,1024,4,2,64"),
}


def self_costs(profile):
    """Instructions by function of what runs the kernels, callees left out, from the text of a
    callgrind profile without compression."""
    costs, function, is_call = Counter(), "", False
    for line in profile.splitlines():
        key, _, value = line.partition("=")
        if key == "fn":
            function = value
        elif key == "calls":
            is_call = True  # the next line is the cost of the callee
        elif key[:1].isdigit():
            if not is_call and "attentile::cpu::" in function:
                costs[short_name(function)] += int(key.split()[1])
            is_call = False
    return costs


def count(program, isa, which_pass, arguments):
    """self_costs of one call; None where this machine lacks the instruction set."""
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "profile"
        done = subprocess.run(
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={profile}",
             "--compress-strings=no", "--compress-pos=no",
             f"--toggle-collect=attentile::attention_{which_pass}(*ExecutionContext const&)",
             str(program), "attend", *arguments.split(), "--isa", isa, "--threads", "1"],
            capture_output=True, text=True)
        if "does not run on this machine" in done.stderr:
            return None
        if done.returncode != 0:
            raise SystemExit(f"{done.args}: exit status {done.returncode}\n{done.stderr}")
        costs = self_costs(profile.read_text())
    if not costs:
        raise SystemExit(f"{done.args}: no instruction of a kernel was counted")
    return costs


def count_all(program):
    """{call: {function: instructions}}, in thousands: the largest functions and the total of all.
    Clocks that are read in between change the last digits only."""
    counted = {}
    for isa in ISAS:
        for name, (which_pass, arguments) in CALLS.items():
            costs = count(program, isa, which_pass, arguments)
            if costs is None:
                print(f"{baseline.NOTICE}skipped: {isa} does not run on this machine")
                break
            total = costs.total()
            counted[f"{isa} {name}"] = {ALL: round(total / 1000)} | {
                function: round(cost / 1000) for function, cost in costs.most_common()
                if cost > SHARE * total}
    return counted


def compare(before, after):
    """(findings, notes): lines of text."""
    findings, notes = [], []
    for call in sorted(after.keys() | before.keys()):
        old, new = before.get(call, {}), after.get(call, {})
        if not old or not new:
            notes.append(f"{call}: {'not in the baseline' if new else 'not counted'}")
            continue
        change = f"{old[ALL]} -> {new[ALL]} thousand ({new[ALL] / old[ALL] - 1:+.1%})"
        if new[ALL] > old[ALL] * TOLERANCE:
            findings.append(f"{call}: {change}")
            findings += [f"    {function}: {old.get(function, 'less')} -> {cost} thousand"
                         for function, cost in new.items() if function != ALL
                         and cost > old.get(function, 0) * TOLERANCE]
        elif new[ALL] * TOLERANCE < old[ALL]:
            notes.append(f"better: {call}: {change}")
    return findings, notes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build_dir", type=Path)
    parser.add_argument("--update", action="store_true")
    arguments = parser.parse_args()

    if platform.machine() not in ("x86_64", "AMD64"):
        print(f"{baseline.NOTICE}skipped: the baseline is of x86-64")
        return 0
    recorded, rows = baseline.read(BASELINE)
    if not arguments.update and baseline.of_other_compiler(arguments.build_dir, recorded):
        return 0
    after = count_all(arguments.build_dir / "bin/attentile")
    if arguments.update:
        baseline.write(BASELINE, baseline.compiler_of(arguments.build_dir), COLUMNS,
                       [[call, function, cost] for call, costs in after.items()
                        for function, cost in costs.items()])
        print(f"{len(after)} calls written to {BASELINE.name}")
        return 0
    before = {}
    for call, function, cost in rows:
        before.setdefault(call, {})[function] = cost
    findings, notes = compare(before, after)
    for line in notes + findings:
        print(line)
    if notes:
        print(f"{baseline.NOTICE}{len(notes)} calls are new, better or not counted: `./dev guard "
              "--update` records them")
    print(f"{len(after)} calls counted, {len(findings)} lines of findings; `./dev guard --update` "
          "accepts them")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())

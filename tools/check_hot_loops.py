#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The hot loops of the float32 kernels must stay as lean as the baseline says.

    check_hot_loops.py BUILD_DIR [--update] [--objdump objdump]

Disassembles the objects of AVX2, AVX-512 and AMX, finds what hot_loops.py takes for hot, and
compares each loop with tests/speed/hot_loops.json. Exits 1 with one line per loop that, per unit of
its work, executes more instructions or loads (by more than 2 %) or accesses the stack more often
than before, and per loop that is gone. New loops and better ones are only told. --update writes
the baseline anew.
"""

import argparse
import platform
import subprocess
import sys
from pathlib import Path

import baseline
from hot_loops import Loop, find_loops

BASELINE = Path(__file__).resolve().parent.parent / "tests/speed/hot_loops.json"
COLUMNS = ["isa", "function", *Loop._fields]
ISAS = ("avx2", "avx512", "amx")
TOLERANCE = 1.02
# What a loop is for, and so what its cost is divided by.
WORK = {"tiles": ("multiplies", "tile product"), "product": ("multiplies", "multiply-add"),
        "exponential": ("stores", "store"), "widening": ("stores", "store")}


def is_watched(isa, function, loop):
    """Products in vectors of the amx object are those of avx512; rows are widened in load_row."""
    if "float" not in function or loop.kind not in WORK or work(loop, loop.kind) == 0:
        return False
    if loop.kind == "product":
        return isa != "amx"
    return loop.kind != "widening" or function.startswith("load_row<")


def work(loop, kind):
    return getattr(loop, WORK[kind][0])


def loops_of(build_dir, objdump):
    """Distinct rows (isa, function, Loop) of a build."""
    rows = set()
    for isa in ISAS:
        for path in build_dir.glob(f"CMakeFiles/attentile_isa_{isa}.dir/**/*.o"):
            command = [objdump, "-dr", "--no-show-raw-insn", "--demangle", str(path)]
            text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows |= {(isa, function, loop) for function, loop in find_loops(text)
                     if is_watched(isa, function, loop)}
    return sorted(rows)


def pair(before, after):
    """([(row before, row after)], rows gone, rows new): equal loops first, then the likeliest of
    the same kind: in the same function, in any with the same number of multiplies, in any."""
    gone, new = list(before), list(after)
    pairs = []

    def pair_where(agree):
        for row in list(gone):
            candidates = [other for other in new if agree(row, other)]
            if candidates:
                found = min(candidates, key=lambda other: (
                    abs(other[2].multiplies - row[2].multiplies),
                    abs(other[2].instructions - row[2].instructions)))
                pairs.append((row, found))
                gone.remove(row)
                new.remove(found)

    pair_where(lambda row, other: row == other)
    pair_where(lambda row, other: row[:2] == other[:2] and row[2].kind == other[2].kind)
    pair_where(lambda row, other: row[0] == other[0] and row[2][:2] == other[2][:2])
    pair_where(lambda row, other: row[0] == other[0] and row[2].kind == other[2].kind)
    return pairs, gone, new


def costs(loop, kind):
    """Instructions, loads and stack accesses per unit of work."""
    units = work(loop, kind) or 1e-9
    return [loop.instructions / units, loop.loads / units, loop.stack / units]


def complaints(before, after):
    """What got worse from one loop to the other."""
    names = ("instructions", "loads", "stack accesses")
    found = []
    for name, old, new in zip(names, costs(before, before.kind), costs(after, before.kind),
                              strict=True):
        if new > old * (1 if name == "stack accesses" else TOLERANCE):
            found.append(f"{name} per {WORK[before.kind][1]} {old:.2f} -> {new:.2f}")
    return found


def is_worse_copy(new, before):
    """Whether the function had loops that do the same amount of work, and all of them for less:
    loops that are equal are one row of the baseline, and one of them may have changed."""
    known = [old for old in before if old[:2] == new[:2] and old[2][:2] == new[2][:2]]
    return bool(known) and all(complaints(old[2], new[2]) for old in known)


def describe(loop):
    return ", ".join(f"{value} {name}" for name, value in zip(Loop._fields[1:], loop[1:],
                                                              strict=True) if value)


def compare(before, after):
    """(findings, notes): lines of text."""
    pairs, gone, new = pair(before, after)
    findings, notes = [], []
    for (isa, function_before, old), (_, function, loop) in pairs:
        where = f"{isa}: {function}: {old.kind} loop"
        turn = f"; one turn had {describe(old)}; now {describe(loop)}"
        worse = complaints(old, loop)
        if function != function_before and loop.multiplies != old.multiplies:
            worse = [f"stands for one of {function_before}", *worse]
        if worse:
            findings.append(f"{where}: {', '.join(worse)}{turn}")
        elif complaints(loop, old):
            notes.append(f"better: {where}{turn}")
    for isa, function, loop in gone:
        findings.append(f"{isa}: {function}: {loop.kind} loop is gone: {describe(loop)}")
    for row in new:
        line = f"new: {row[0]}: {row[1]}: {row[2].kind} loop: {describe(row[2])}"
        (findings if is_worse_copy(row, before) else notes).append(line)
    return findings, notes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build_dir", type=Path)
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--objdump", default="objdump")
    arguments = parser.parse_args()

    if platform.machine() not in ("x86_64", "AMD64"):
        print(f"{baseline.NOTICE}skipped: the baseline is of x86-64")
        return 0
    recorded, rows = baseline.read(BASELINE)
    if not arguments.update and baseline.of_other_compiler(arguments.build_dir, recorded):
        return 0
    after = loops_of(arguments.build_dir, arguments.objdump)
    if arguments.update:
        baseline.write(BASELINE, baseline.compiler_of(arguments.build_dir), COLUMNS,
                       [[isa, function, *loop] for isa, function, loop in after])
        print(f"{len(after)} loops written to {BASELINE.name}")
        return 0
    before = [(isa, function, Loop(*values)) for isa, function, *values in rows]
    findings, notes = compare(before, after)
    for line in notes + findings:
        print(line)
    if notes:
        print(f"{baseline.NOTICE}{len(notes)} hot loops are new or better: `./dev guard --update` "
              "records them")
    print(f"{len(after)} hot loops, {len(findings)} findings; `./dev guard --update` accepts them")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())

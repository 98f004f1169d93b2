#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Everything that a machine with a GPU can tell: `./dev gpu [--rehearse] [--seconds N] [SLICE...]`.

Slices, in this order; each leaves its answer in build/gpu/slices/NAME.json, and those that are
there are not done again unless --again, or unless a source has changed since:

    machine    the GPU, its driver, nvcc, torch
    build      the library, its CUDA backend for this GPU, the check programs; before any other
    mma        10^5 products of tensor cores against the emulator's model, bit for bit
    table      the conformance table on the device against the float64 oracle
    peers      forward and backward against torch's backends, in turns; ceilings of the GPU
    decode     bytes per second of K and V with few queries, against torch
    streams    calls on a side stream and captured into a CUDA graph, bit for bit
    sanitize   one call of each feature against the oracle and under compute-sanitizer
    repeat     10,000 launches of the same calls, or 20 seconds of each, bit for bit
    wide       tensors of more than 2^31 elements
    python     attentile.torch on CUDA tensors
    counters   Nsight Compute's view of the main kernels

A slice that would not fit into what is left of --seconds waits for the next call. The last lines
are one table and what failed; all answers together go to --json. --rehearse runs every slice on
the emulator, at sizes that it can do, so that no typo is left for a GPU to find. Exit status: 0, 1
if a check failed, 3 if the machine lacks something, 75 if slices are left for another call.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

from calls import FAILED, LEFT_OUT, OK, ROOT, UNFINISHED, Answer, Run, answer, fingerprint
from report import print_all, write_json
from slices import SLICES

AGAIN_LATER = 75
REHEARSAL_PATIENCE = 600.0


def act(run: Run, name: str) -> Answer:
    """Does a slice and stores its answer, and all so far, in case that nothing follows.
    What the end of the call cut short is unfinished, unless it had found something."""
    print(f"{name} ...", flush=True)
    begin = time.monotonic()
    run.begin(REHEARSAL_PATIENCE if run.rehearse else 2 * SLICES[name].seconds)
    try:
        result = SLICES[name].act(run)
    except Exception as error:  # a mistake in one slice is no matter of the others
        result = answer(FAILED, f"{type(error).__name__}: {error}"[:300])
    if run.cut and result["verdict"] != OK and not result.get("failures"):
        result |= {"verdict": UNFINISHED}
    result["seconds_taken"] = time.monotonic() - begin
    run.store(name, result)
    if run.json is not None:
        write_json(run, SLICES, run.json)
    return result


def prepare(run: Run, machine_known: bool) -> str:
    """The machine, unless it is known, and the build, which does nothing where nothing changed:
    OK, or the verdict of what cannot be done without."""
    for name in ("build",) if machine_known else ("machine", "build"):
        verdict: str = act(run, name)["verdict"]
        if verdict != OK:
            return verdict
    return OK


def go(run: Run, names: list[str], again: bool) -> int:
    def wanted(name: str) -> bool:
        return again or run.stored(name).get("verdict") not in (OK, LEFT_OUT)

    if names == ["machine"]:
        return 0 if act(run, "machine")["verdict"] == OK else 3
    verdict = prepare(run, not wanted("machine"))
    if verdict != OK:
        return AGAIN_LATER if verdict == UNFINISHED else 3
    for name in names:
        if name in ("machine", "build") or not wanted(name):
            continue
        if again:
            run.forget(name)
        if run.end - time.monotonic() >= SLICES[name].seconds:
            act(run, name)
    verdicts = [run.stored(name).get("verdict") for name in SLICES]
    if FAILED in verdicts:
        return 1
    late = UNFINISHED in verdicts or any(not run.stored(name) for name in names)
    return AGAIN_LATER if late else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slices", nargs="*", choices=[*SLICES, []], metavar="SLICE")
    parser.add_argument("--rehearse", action="store_true", help="on the emulator")
    parser.add_argument("--again", action="store_true", help="also slices that have an answer")
    parser.add_argument("--seconds", type=float, metavar="N",
                        help="of this call: 570, in a rehearsal as many as it takes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all answers together")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="for answers and the log")
    parser.add_argument("--tree", type=Path, metavar="FOLDER", help="to build in")
    given = parser.parse_args()
    work = given.work or ROOT / ("build/gpu-rehearsal" if given.rehearse else "build/gpu")
    tree = given.tree or (ROOT / "build/release" if given.rehearse else work / "tree")
    run = Run(given.rehearse, tree.resolve(), work.resolve(), fingerprint())
    seconds = given.seconds or (math.inf if given.rehearse else 570.0)
    run.end = time.monotonic() + seconds
    run.json = given.json
    status = go(run, given.slices or list(SLICES), given.again)
    if run.json is not None:
        write_json(run, SLICES, run.json)
    print_all(run, SLICES)
    return status


if __name__ == "__main__":
    sys.exit(main())

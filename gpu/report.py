# SPDX-License-Identifier: Apache-2.0
"""What `./dev gpu` prints at its end, and the file of all answers."""

from __future__ import annotations

import datetime
import json
import statistics
import subprocess
from collections.abc import Iterable
from pathlib import Path

from calls import ROOT, Answer, Run

MOST_FAILURES = 8  # that are printed; the answers hold more


def rows_of(run: Run, name: str) -> list[Answer]:
    return [line for line in run.stored(name).get("lines", []) if line.get("kind") == "row"]


def cell(row: Answer | None) -> str:
    """The rate, the ratio to the best peer, and which that is: 22 columns."""
    if row is None:
        return f"{'-':>8}{'':14}"
    peer = f"{row['ratio']:6.2f}x {row['best_name'][:6]:<6}" if row.get("ratio") else " " * 14
    return f"{row['attentile'] or 0:8.1f}{peer}"


def race_lines(run: Run) -> Iterable[str]:
    """A line for each shape, its variants beside each other."""
    for name in ("peers", "decode"):
        rows = rows_of(run, name)
        if not rows:
            continue
        columns = list(dict.fromkeys(row["column"] for row in rows))
        timed = ", ".join(dict.fromkeys(row["timed"] for row in rows))
        yield ""
        yield (f"{name}, {rows[0]['unit']} ({timed}), ratio to the best of torch's backends"
               + (" (a rehearsal: of the emulator, no figures)" if run.rehearse else ""))
        yield f"  {'':<20}" + "".join(f"{column:<22}" for column in columns)
        for line in dict.fromkeys(row["line"] for row in rows):
            found = {row["column"]: row for row in rows if row["line"] == line}
            yield f"  {line:<20}" + "".join(cell(found.get(column)) for column in columns).rstrip()
        atomic = [row["atomic_dq"] / row["attentile"] for row in rows
                  if row.get("atomic_dq") and row.get("attentile")]
        if atomic:
            yield (f"  backward with atomic_dq: {min(atomic):.2f} to {max(atomic):.2f} times as "
                   f"fast, median {statistics.median(atomic):.2f}")


def slice_lines(run: Run, names: Iterable[str]) -> Iterable[str]:
    for name in names:
        found = run.stored(name)
        yield (f"{name:<10}{found.get('verdict', '-'):<11}{found.get('seconds_taken', 0):6.0f} s  "
               f"{found.get('words', 'not done yet')[:110]}")


def failure_lines(run: Run, names: Iterable[str]) -> Iterable[str]:
    """What failed, and how to do it again."""
    found = [(name, failure) for name in names for failure in run.stored(name).get("failures", [])]
    for name, failure in found[:MOST_FAILURES]:
        yield f"{name}: {failure['failure']}: {failure.get('what', '')[:300]}"
        if "again" in failure:
            yield f"    {failure['again']}"
    if len(found) > MOST_FAILURES:
        yield f"{len(found) - MOST_FAILURES} failures more: --json has them"


def print_all(run: Run, names: Iterable[str]) -> None:
    names = list(names)
    for line in (*race_lines(run), "", *slice_lines(run, names), *failure_lines(run, names)):
        print(line.rstrip())


def write_json(run: Run, names: Iterable[str], path: Path) -> None:
    try:
        commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, text=True,
                                capture_output=True, check=False).stdout.strip()
    except OSError:
        commit = ""
    head = {"version": "0.1.0", "commit": commit or "unknown", "sources": run.sources,
            "machine": run.stored("machine").get("gpu", "emulator"),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "command": "./dev gpu" + (" --rehearse" if run.rehearse else "")}
    slices = {name: run.stored(name) for name in names if run.stored(name)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**head, "slices": slices}, indent=1) + "\n")

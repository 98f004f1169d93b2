# SPDX-License-Identifier: Apache-2.0
"""Text of a run's tables: each figure beside its target, then what was missed."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Iterable

from cells import Verdict, Waiver, missed_musts
from measure import bytes_words
from plan import Comparison
from problem import geometric_mean

TITLES = {
    "peak": "Fraction of the peak measured in the same process (attentile bench)",
    "neighbours": "Neighbours: useful flops per second over those of a shape with a target",
    "scaling": "Two threads over one",
    "features": "Features: useful flops per second over those of the plain pass",
    "overhead": "Overhead",
    "peers": "Against peers: their time over ours",
    "grid": "The grid: their time over ours, seqlen down, head_dim across; ! marks a loss",
    "decode": "Decoding",
    "training": "Training shapes: forward + backward of attention alone",
    "lengths": "Length: forward + backward, 8 heads, head_dim 64, float32, full",
}


def figure_words(kind: str, value: float | None) -> str:
    if value is None:
        return "-"
    if kind in ("seconds", "training_seconds"):
        return seconds_words(value)
    return f"{value:.3f}" if kind in ("fraction", "bandwidth", "rate") else f"{value:.2f}x"


def seconds_words(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def cell_line(verdict: Verdict) -> str:
    kind = verdict.cell.kind
    goal = "".join(f"{figure_words(kind, value) if value is not None else '':>9}"
                   for value in (verdict.must, verdict.aim))
    note = f"  ({verdict.note})" if verdict.note and verdict.measured is not None else ""
    return (f"  {verdict.cell.detail:<50}{figure_words(kind, verdict.measured):>10}{goal}"
            f"  {verdict.word}{note}".rstrip())


def table_lines(table: str, verdicts: list[Verdict]) -> Iterable[str]:
    yield f"\n{TITLES[table]}"
    yield f"  {'':<50}{'measured':>10}{'must':>9}{'aim':>9}"
    rows = list(dict.fromkeys(v.cell.row for v in verdicts))
    for row in rows:
        yield row
        yield from (cell_line(v) for v in verdicts if v.cell.row == row)


def grid_lines(verdicts: list[Verdict]) -> Iterable[str]:
    """One matrix per peer, pass, dtype and mask."""
    yield f"\n{TITLES['grid']}"
    blocks: dict[tuple[str, str], dict[tuple[int, int], Verdict]] = {}
    reasons: Counter[tuple[str, str]] = Counter()
    for verdict in verdicts:
        problem = verdict.cell.ours.problem
        mask = "causal" if problem.causal else "full"
        block = f"{problem.pass_name} {problem.dtype} {mask}"
        if verdict.measured is None:
            reasons[verdict.cell.row, verdict.word] += 1
            continue
        place = (problem.seqlen_q, problem.head_dim)
        blocks.setdefault((verdict.cell.row, block), {})[place] = verdict
    for (peer, block), places in blocks.items():
        mean = geometric_mean([v.measured for v in places.values() if v.measured])
        yield f"{peer}, {block}: geometric mean {mean:.2f}x"
        columns = sorted({d for _, d in places})
        yield "  " + " " * 7 + "".join(f"{f'd{d}':>9}" for d in columns)
        for seqlen in sorted({n for n, _ in places}):
            row = [places.get((seqlen, d)) for d in columns]
            yield f"  {seqlen:>7}" + "".join(f"{grid_words(v):>9}" for v in row)
    for (peer, reason), count in sorted(reasons.items()):
        yield f"{peer}: {count} cases {reason}"


def grid_words(verdict: Verdict | None) -> str:
    if verdict is None or verdict.measured is None:
        return "-"
    return f"{verdict.measured:.2f}x" + ("!" if verdict.missed else " ")


def memory_lines(memory: dict[str, dict[str, Any]]) -> Iterable[str]:
    """memory: words of the problem -> contender -> {"peak_bytes"} or a sentence."""
    yield "\nPeak memory of forward + backward, inputs and results included, a process each"
    for words, entries in memory.items():
        yield words
        ours = entries.get("attentile")
        for name, entry in entries.items():
            if isinstance(entry, str):
                yield f"  {name:<50}{entry}"
                continue
            ratio = ""
            if isinstance(ours, dict):
                ratio = f"{entry['peak_bytes'] / ours['peak_bytes']:9.1f}x of attentile's"
            yield f"  {name:<50}{bytes_words(entry['peak_bytes']):>10}{ratio}"


def validity_lines(checks: list[dict[str, Any]]) -> Iterable[str]:
    yield "\nPeers at their strength: fraction of the peak, and the reference for this machine"
    if not checks:
        yield "  no reference figures for this machine: the fractions are recorded, not judged"
    for check in checks:
        words = (f"{check['name']} {check['pass']} {check['dtype']} d{check['head_dim']} "
                 f"seqlen {check['seqlen']}")
        reached = "-" if check["reached"] is None else f"{check['reached']:.3f}"
        held = "  HELD BACK: the run is invalid" if check["held_back"] else ""
        yield f"  {words:<50}{reached:>10}{check['fraction']:>9.3f}{held}"


def summary_lines(verdicts: list[Verdict], waivers: list[Waiver]) -> Iterable[str]:
    judged = [v for v in verdicts if v.must is not None and v.measured is not None]
    missed = missed_musts(verdicts)
    waived = [v for v in verdicts if v.missed and v.waiver]
    counts = Counter(v.word for v in judged)
    yield (f"\n{len(judged)} figures with a target: {counts['aim']} reach the aim, "
           f"{counts['met']} the must, {len(waived)} waived, {len(missed)} missed")
    for waiver in waivers:
        yield (f"  waiver: {waiver['table']}, {waiver['row']}, {waiver['cell']}: "
               f"{waiver['measured']}; {waiver['reason']} ({waiver['doc']})")
    if missed:
        yield "Missed musts:"
    for verdict in missed:
        cell, count = verdict.cell, len(verdict.attempts)
        yield (f"  {cell.table}: {cell.row}, {cell.detail}: "
               f"{figure_words(cell.kind, verdict.measured)}, must "
               f"{figure_words(cell.kind, verdict.must)} (best of {count})")


def print_tables(verdicts: list[Verdict], comparisons: list[Comparison]) -> None:
    tables = list(dict.fromkeys(c.table for c in comparisons))
    if "grid" in tables:
        tables.insert(tables.index("grid"), "peers")
    for table in tables:
        chosen = [v for v in verdicts if v.cell.table == table]
        if table == "peers":
            # Rows with targets first; where nobody offers anything, the grid says so once.
            aimed = {v.cell.row for v in chosen if v.must is not None}
            chosen = sorted((v for v in chosen if v.measured is not None),
                            key=lambda v: (v.cell.row not in aimed, natural(v.cell.row)))
        print("\n".join(grid_lines(chosen) if table == "grid" else table_lines(table, chosen)))


def natural(text: str) -> list[int | str]:
    """Sorts 16 before 128."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]

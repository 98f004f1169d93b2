# SPDX-License-Identifier: Apache-2.0
"""The file of a run: bench records, and beside them what the records cannot say."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from cells import Verdict
from plan import Attempt, Comparison, Timing
from problem import Subject


def record_of(comparison: Comparison, attempt: Attempt, subject: Subject) -> dict[str, Any]:
    """A bench record; fields that only this program knows come last."""
    timing: Timing = attempt.timings[subject]
    problem = subject.problem
    gflops = problem.flops() / timing.median_s * 1e-9
    peak = attempt.peaks.get((problem.dtype, subject.threads), 0.0)
    record = {
        "name": subject.name, **problem.record(), "threads": subject.threads,
        "median_s": timing.median_s, "min_s": timing.min_s, "runs": timing.runs,
        "gflops": gflops, "peak_gflops": peak,
        "fraction_of_peak": gflops / peak if peak else 0.0, "bytes_per_s": None,
        "algorithm": None, "isa": None, **timing.extra, "table": comparison.table}
    if comparison.table == "decode":
        record["bytes_per_s"] = problem.cache_bytes() / timing.median_s
    if timing.rounds_s:
        record["rounds_s"] = list(timing.rounds_s)
    if subject in attempt.streams:
        record["stream_bytes_per_s"] = attempt.streams[subject]
    record |= {"attempts": len(comparison.attempts),
               "foreign_load": round(attempt.foreign_load, 3)}
    return record


def best_attempt(comparison: Comparison) -> Attempt | None:
    """That in which the first subject, attentile, was fastest."""
    first = comparison.subjects[0]
    measured = [a for a in comparison.attempts if first in a.timings]
    return min(measured, key=lambda a: a.timings[first].median_s, default=None)


def records_of(comparisons: list[Comparison]) -> list[dict[str, Any]]:
    """One record per table, contender and problem: the first where a table repeats one."""
    seen = set()
    records = []
    for comparison in comparisons:
        attempt = best_attempt(comparison)
        for subject in attempt.timings if attempt else ():
            key = (comparison.table, subject)
            if attempt and key not in seen:
                seen.add(key)
                records.append(record_of(comparison, attempt, subject))
    return records


def add_memory(records: list[dict[str, Any]], memory: dict[Subject, Any]) -> None:
    """peak_bytes of forward + backward goes to the backward record."""
    for subject, entry in memory.items():
        fields = subject.problem.record()
        for record in records:
            if (isinstance(entry, dict) and record["name"] == subject.name
                    and record["table"] in ("training", "lengths")
                    and all(record.get(key) == value for key, value in fields.items())):
                record |= entry


def unmeasured_of(comparisons: list[Comparison]) -> list[dict[str, str]]:
    return [{"table": c.table, "name": subject.name, "case": subject.problem.words(),
             "reason": reason} for c in comparisons for subject, reason in c.refused.items()]


def compact(value: Any) -> Any:
    """Numbers to six digits: no clock here knows more."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: compact(entry) for key, entry in value.items()}
    return [compact(entry) for entry in value] if isinstance(value, list) else value


def write_file(path: Path, head: dict[str, Any], records: list[dict[str, Any]],
               verdicts: list[Verdict]) -> None:
    """One record a line, so that versions of a file can be told apart line by line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [f" {json.dumps(key)}: {json.dumps(compact(value))}" for key, value in head.items()]
    for name, entries in (("cells", [v.to_json() for v in verdicts]), ("records", records)):
        lines = ",\n".join("  " + json.dumps(compact(entry)) for entry in entries)
        parts.append(f" {json.dumps(name)}: [\n{lines}\n ]")
    unfinished = path.with_suffix(".part")
    unfinished.write_text("{\n" + ",\n".join(parts) + "\n}\n")
    os.replace(unfinished, path)

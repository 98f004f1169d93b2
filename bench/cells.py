# SPDX-License-Identifier: Apache-2.0
"""Figures and verdicts: what a cell's attempts say, and whether its target is met."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable

from plan import Attempt, Cell, Comparison
from problem import Subject

HERE = Path(__file__).resolve().parent
ATTEMPTS = 3  # a must is missed if the best of so many is below it
MAX_WAIVERS = 5
WAIVED_FRACTION, WAIVED_RATIO = 0.03, 0.05  # a waiver covers no larger shortfall
FRACTIONS = ("fraction", "bandwidth")
Targets = dict[str, dict[str, dict[str, list[float]]]]
Waiver = dict[str, Any]
WAIVER_FIELDS = {"table", "row", "cell", "measured", "reason", "doc"}


def load_targets(path: Path = HERE / "targets.json") -> Targets:
    data: dict[str, Any] = json.loads(path.read_text())
    del data["about"]
    return data


def load_waivers(path: Path = HERE / "waivers.json") -> list[Waiver]:
    waivers: list[Waiver] = json.loads(path.read_text())
    if len(waivers) > MAX_WAIVERS:
        raise ValueError(f"{path.name}: {len(waivers)} waivers, expected at most {MAX_WAIVERS}")
    for number, waiver in enumerate(waivers):
        missing = WAIVER_FIELDS - waiver.keys()
        if missing:
            raise ValueError(f"{path.name}: waiver {number} lacks {', '.join(sorted(missing))}")
    return waivers


# --- the figure of one attempt -------------------------------------------------------------------
def speedup(cell: Cell, attempt: Attempt) -> float:
    """How many times as long the other takes."""
    assert cell.other is not None
    return attempt.timings[cell.other].median_s / attempt.timings[cell.ours].median_s


def rate(cell: Cell, attempt: Attempt) -> float:
    """Our useful flops per second over the other's: they solve different problems."""
    assert cell.other is not None
    return speedup(cell, attempt) * cell.ours.problem.flops() / cell.other.problem.flops()


def fraction(cell: Cell, attempt: Attempt) -> float:
    """Of the float32 multiply-add peak; for bf16 of twice that, which is what VDPBF16PS does at
    full rate. A matrix unit may exceed it."""
    share = float(attempt.timings[cell.ours].extra["fraction_of_peak"])
    return share / 2 if cell.ours.problem.dtype == "bf16" else share


def bandwidth(cell: Cell, attempt: Attempt) -> float:
    """Bytes of K and V per second over those of a streaming read."""
    timing = attempt.timings[cell.ours]
    return cell.ours.problem.cache_bytes() / timing.median_s / attempt.streams[cell.ours]


def arithmetic(cell: Cell, attempt: Attempt) -> float:
    """Useful flops per second over the peak."""
    problem = cell.ours.problem
    peak = attempt.peaks[problem.dtype, cell.ours.threads]
    return problem.flops() / attempt.timings[cell.ours].median_s * 1e-9 / peak


def seconds(cell: Cell, attempt: Attempt) -> float:
    return attempt.timings[cell.ours].median_s


def training_seconds_of(subject: Subject, attempt: Attempt) -> float:
    return sum(attempt.timings[replace(subject, problem=replace(subject.problem, backward=b))]
               .median_s for b in (False, True))


def training_seconds(cell: Cell, attempt: Attempt) -> float:
    return training_seconds_of(cell.ours, attempt)


def training_speedup(cell: Cell, attempt: Attempt) -> float:
    assert cell.other is not None
    return training_seconds_of(cell.other, attempt) / training_seconds_of(cell.ours, attempt)


KINDS: dict[str, Callable[[Cell, Attempt], float]] = {
    "speedup": speedup, "rate": rate, "fraction": fraction, "bandwidth": bandwidth,
    "seconds": seconds, "training_seconds": training_seconds,
    "training_speedup": training_speedup}
LOWER_IS_BETTER = ("seconds", "training_seconds")


# --- the verdict ---------------------------------------------------------------------------------
@dataclass
class Verdict:
    cell: Cell
    measured: float | None  # the best of the attempts
    attempts: list[float] = field(default_factory=list)
    must: float | None = None
    aim: float | None = None
    note: str = ""  # why there is no figure, or what else counts
    waiver: Waiver | None = None
    other_way: bool = False  # met by the other figure that the target allows

    @property
    def missed(self) -> bool:
        if self.must is None or self.measured is None or self.other_way:
            return False
        return worse(self.cell.kind, self.measured, self.must)

    @property
    def word(self) -> str:
        if self.measured is None:
            return self.note or "not measured"
        if self.missed:
            return "waived" if self.waiver else "MISSED"
        if self.must is None:
            return ""
        reached = self.aim is not None and not worse(self.cell.kind, self.measured, self.aim)
        return "aim" if reached else "met"

    def to_json(self) -> dict[str, Any]:
        return {"table": self.cell.table, "row": self.cell.row, "cell": self.cell.detail,
                "unit": "s" if self.cell.kind in LOWER_IS_BETTER else self.cell.kind,
                "measured": self.measured, "attempts": self.attempts, "must": self.must,
                "aim": self.aim, "verdict": self.word}


def worse(kind: str, value: float, limit: float) -> bool:
    return value > limit if kind in LOWER_IS_BETTER else value < limit


def best(kind: str, values: list[float]) -> float:
    return min(values) if kind in LOWER_IS_BETTER else max(values)


def target_of(cell: Cell, targets: Targets) -> list[float]:
    """[must], [must, aim], or [] for what is reported only."""
    return targets.get(cell.table, {}).get(cell.target_row or cell.row, {}).get(cell.target, [])


def subjects_of(cell: Cell) -> list[Subject]:
    return [cell.ours] if cell.other is None else [cell.ours, cell.other]


def refusal_of(cell: Cell, comparison: Comparison) -> str:
    """Why the cell has no figure; its subjects' reasons, whichever pass they belong to."""
    for subject in subjects_of(cell):
        for backward in (subject.problem.backward, not subject.problem.backward):
            twin = replace(subject, problem=replace(subject.problem, backward=backward))
            if twin in comparison.refused:
                return comparison.refused[twin]
    return ""


def judge_cell(cell: Cell, comparison: Comparison, targets: Targets) -> Verdict:
    figures = []
    for attempt in comparison.attempts:
        try:
            figures.append(KINDS[cell.kind](cell, attempt))
        except KeyError:
            continue  # one of the two was not measured
    goal = target_of(cell, targets)
    verdict = Verdict(cell, best(cell.kind, figures) if figures else None, figures,
                      goal[0] if goal else None, goal[1] if len(goal) > 1 else None,
                      "" if figures else refusal_of(cell, comparison))
    if cell.kind == "bandwidth" and figures:
        share = max(arithmetic(cell, attempt) for attempt in comparison.attempts
                    if attempt.timings)
        limit = targets["decode"]["arithmetic peak that counts as well"]["fraction"][0]
        verdict.other_way = share >= limit
        verdict.note = f"{share:.2f} of the arithmetic peak"
    return verdict


def judge(comparisons: list[Comparison], targets: Targets, waivers: list[Waiver]) -> list[Verdict]:
    verdicts = [judge_cell(cell, comparison, targets)
                for comparison in comparisons for cell in comparison.cells]
    known = {(w["table"], w["row"], w["cell"]): w for w in waivers}
    for verdict in verdicts:
        cell = verdict.cell
        waiver = known.get((cell.table, cell.row, cell.detail))
        verdict.waiver = waiver if waiver and within_waiver(verdict) else None
    return verdicts


def within_waiver(verdict: Verdict) -> bool:
    """Whether the figure falls short by so little that a waiver may cover it."""
    if verdict.must is None or verdict.measured is None:
        return False
    kind, must = verdict.cell.kind, verdict.must
    if kind in FRACTIONS:
        return verdict.measured >= must - WAIVED_FRACTION
    if kind in LOWER_IS_BETTER:
        return verdict.measured <= must * (1 + WAIVED_RATIO)
    return verdict.measured >= must * (1 - WAIVED_RATIO)


def needs_retry(comparison: Comparison, targets: Targets) -> bool:
    """A must is missed so far, and there are attempts left."""
    return len(comparison.attempts) < ATTEMPTS and any(
        judge_cell(cell, comparison, targets).missed for cell in comparison.cells)


def missed_musts(verdicts: list[Verdict]) -> list[Verdict]:
    """Those that no waiver covers."""
    return [v for v in verdicts if v.missed and v.waiver is None]


# --- is the run valid ----------------------------------------------------------------------------
def validity(records: list[dict[str, Any]], machine: dict[str, Any],
             path: Path = HERE / "references.json") -> list[dict[str, Any]]:
    """Each peer with a reference figure for this machine: its fraction of the peak, that figure,
    and whether it was held back."""
    data = json.loads(path.read_text())
    figures = [figure for entry in data["machines"]
               if (entry["vendor"], entry["family"]) == (machine["vendor"], machine["family"])
               for figure in entry["figures"]]
    checks = []
    for figure in figures:
        found = [r["fraction_of_peak"] for r in records if all(
            r[key] == figure[key] for key in ("name", "pass", "dtype", "head_dim", "causal"))
            and r["seqlen_q"] == r["seqlen_k"] == figure["seqlen"]]
        reached = max(found, default=math.nan)
        checks.append({**figure, "reached": reached if found else None,
                       "held_back": reached < data["share"] * figure["fraction"]})
    return checks

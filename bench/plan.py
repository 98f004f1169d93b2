# SPDX-License-Identifier: Apache-2.0
"""The vocabulary of a run: what is measured together (Comparison), which figure comes out of it
(Cell), and what was measured (Timing, Attempt)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from problem import Problem, Subject


@dataclass(frozen=True)
class Timing:
    median_s: float
    min_s: float
    runs: int
    rounds_s: tuple[float, ...] = ()  # the median of each round
    extra: dict[str, Any] = field(default_factory=dict, hash=False)  # more fields of the record


@dataclass
class Attempt:
    """One measurement of a comparison: everybody in turn, in one stretch of time."""

    timings: dict[Subject, Timing] = field(default_factory=dict)
    streams: dict[Subject, float] = field(default_factory=dict)  # bytes per second
    peaks: dict[tuple[str, int], float] = field(default_factory=dict)  # GFLOP/s by dtype, threads
    foreign_load: float = 0.0


@dataclass(frozen=True)
class Cell:
    """One figure of a table. kind says how it follows from an attempt (cells.py)."""

    table: str
    row: str
    detail: str  # what tells this cell from the others of its row
    kind: str
    ours: Subject
    other: Subject | None = None
    target: str = ""  # column of the row in targets.json; "": reported only
    target_row: str = ""  # where it is not `row`


FLOPS_PER_WEIGHT = 2e11  # some five calls of everybody on a small machine


@dataclass
class Comparison:
    table: str
    subjects: list[Subject]
    cells: list[Cell]
    weight: float = 1.0
    method: str = "workers"  # or "program": `attentile bench` in a process of its own
    isa: str = ""  # forced, method "program" only
    stream: bool = False
    attempts: list[Attempt] = field(default_factory=list)
    refused: dict[Subject, str] = field(default_factory=dict)  # why a subject was not measured

    def expected(self) -> float:
        """What it takes, in units of weight: its share of the time, and long calls beyond it."""
        flops = sum(subject.problem.flops() for subject in self.subjects)
        return self.weight + flops / FLOPS_PER_WEIGHT


def square(seqlen: int, heads: int, head_dim: int, **options: Any) -> Problem:
    return Problem(seqlen, seqlen, heads, heads, head_dim, **options)


def threads_words(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"

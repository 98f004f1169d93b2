# SPDX-License-Identifier: Apache-2.0
"""Interleaved measurement: whoever takes part is prepared, then rounds in which each in turn has
the machine for a moment, in another order every round. The median of the rounds' medians counts."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from contenders import CONTENDERS
from machine import memory_available
from plan import Attempt, Comparison, Timing
from pool import Pool, Process, WorkerError
from problem import Problem, Subject

ROUNDS = 5
SLOW_S = 4.0  # a call of this length is measured in one round only
MEMORY_SHARE = 0.8  # of what is available may be filled
TOLERANCE = {"f32": 2e-4, "f16": 2e-2, "bf16": 6e-2}


def bytes_words(count: float) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def needed_bytes(subject: Subject) -> float:
    """Bytes that the subject will hold: its tensors twice (converted copies) and its matrices."""
    problem = subject.problem
    matrices = CONTENDERS[subject.name].matrices * (2 if problem.backward else 1)
    return 3 * problem.tensor_bytes() + matrices * problem.matrix_bytes()


def agrees(sample: list[float], expected: list[float], problem: Problem) -> bool:
    """Whether two contenders computed the same: a few numbers of out or dq."""
    limit = TOLERANCE[problem.dtype] * max(1.0, *map(abs, expected))
    return all(abs(a - b) <= limit for a, b in zip(sample, expected, strict=True))


@dataclass
class Turn:
    """A prepared subject."""

    subject: Subject
    id: int
    call_s: float
    medians: list[float] = field(default_factory=list)
    fastest: float = float("inf")
    runs: int = 0

    def take(self, worker: Process, seconds: float) -> None:
        """Has the machine for so long."""
        self.add(worker.ask(op="run", id=self.id, seconds=seconds)["seconds"])

    def add(self, seconds: list[float]) -> None:
        self.medians.append(statistics.median(seconds))
        self.fastest = min(self.fastest, *seconds)
        self.runs += len(seconds)

    def timing(self) -> Timing:
        rounds = tuple(float(f"{s:.4g}") for s in self.medians)
        return Timing(statistics.median(self.medians), self.fastest, self.runs, rounds)


class StreamTurn(Turn):
    """A streaming read of the subject's K and V, in a call's place."""

    def take(self, worker: Process, seconds: float) -> None:
        answer = worker.ask(op="stream", id=self.id, threads=self.subject.threads, seconds=seconds)
        self.add([answer["seconds"]])


def with_streams(turns: list[Turn]) -> tuple[list[Turn], list[StreamTurn]]:
    """A read beside each call of ours, apart from it: caches hold of K and V what the others have
    left there, for the one as for the other."""
    ours = [turn for turn in turns if turn.subject.name == "attentile"]
    streams = [StreamTurn(turn.subject, turn.id, turn.call_s) for turn in reversed(ours)]
    peers = [i for i, turn in enumerate(turns) if turn.subject.name != "attentile"]
    at = peers[0] + 1 if peers else len(turns)
    return turns[:at] + streams + turns[at:], streams


class Measurer:
    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def prepare(self, comparison: Comparison) -> list[Turn]:
        """Those who can take part; the others' reasons go to comparison.refused."""
        turns: list[Turn] = []
        samples: dict[Problem, list[float]] = {}
        available = MEMORY_SHARE * memory_available()
        for subject in comparison.subjects:
            refusal = CONTENDERS[subject.name].refusal(subject.problem)
            needed = needed_bytes(subject)
            if not refusal and needed > available:
                refusal = f"does not fit: needs {bytes_words(needed)}"
            if refusal:
                comparison.refused[subject] = refusal
                continue
            try:
                answer = self.pool.of(subject.name).ask(
                    op="prepare", name=subject.name, problem=subject.problem.to_json(),
                    threads=subject.threads)
            except WorkerError as error:
                comparison.refused[subject] = f"not offered: {error}"
                continue
            available -= needed
            expected = samples.setdefault(subject.problem, answer["sample"])
            if not agrees(answer["sample"], expected, subject.problem):
                comparison.refused[subject] = "not compared: its result differs"
                continue
            turns.append(Turn(subject, answer["id"], answer["seconds"]))
        return turns

    def rounds(self, turns: list[Turn], seconds: float) -> None:
        """Five rounds if they fit, else three; one if there is no time."""
        slice_s = seconds / (ROUNDS * max(1, len(turns)))
        rounds = ROUNDS if sum(t.call_s for t in turns) * ROUNDS < 2 * seconds else 3
        for number in range(rounds if seconds > 0 else 1):
            shift = number % max(1, len(turns))
            for turn in turns[shift:] + turns[:shift]:
                if number > 0 and turn.call_s > SLOW_S:
                    continue
                worker = self.pool.of(turn.subject.name)
                turn.take(worker, slice_s)

    def measure(self, comparison: Comparison, seconds: float) -> Attempt:
        attempt = Attempt()
        turns = self.prepare(comparison)
        everybody, streams = with_streams(turns) if comparison.stream else (turns, [])
        try:
            self.rounds(everybody, seconds)
        except WorkerError as error:
            for turn in turns:
                comparison.refused.setdefault(turn.subject, f"failed: {error}")
            self.pool.release()
            return attempt
        attempt.timings = {turn.subject: turn.timing() for turn in turns}
        attempt.streams = {turn.subject: turn.subject.problem.cache_bytes() / turn.timing().median_s
                           for turn in streams}
        self.pool.release()
        return attempt

    def memory(self, subject: Subject) -> dict[str, float] | str:
        """Bytes that forward + backward add to a fresh process, or why they are not known."""
        refusal = CONTENDERS[subject.name].refusal(subject.problem)
        needed = needed_bytes(subject)
        if refusal:
            return refusal
        if needed > MEMORY_SHARE * memory_available():
            return f"does not fit: needs {bytes_words(needed)}"
        process = self.pool.start(subject.name)
        try:
            answer = process.ask(op="memory", name=subject.name, problem=subject.problem.to_json(),
                                 threads=subject.threads)
            return {"peak_bytes": answer["peak"] - answer["base"]}
        except WorkerError as error:
            return f"failed: {error}"
        finally:
            if process.alive:
                process.close()

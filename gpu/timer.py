# SPDX-License-Identifier: Apache-2.0
"""Seconds of calls, in turns: by events on a GPU, by the clock in a rehearsal."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

GRAPH_CALLS = 40  # in one graph, at least: the start of its replay is then no matter
MOST_REPEATS = 200
Call = Callable[[], Any]


@dataclass
class Contender:
    """What is timed: a list of functions, which together are so many calls; one on each set of
    buffers. `around` is entered once around a loop of them, and its cost is not timed."""

    calls: list[Call]
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    count: int = 0

    def __post_init__(self) -> None:
        self.count = self.count or len(self.calls)

    def run(self) -> None:
        for call in self.calls:
            call()


def captured(contender: Contender) -> Contender:
    """The same calls as one CUDA graph. RuntimeError where they cannot be captured."""
    passes = -(-GRAPH_CALLS // contender.count)
    graph = torch.cuda.CUDAGraph()
    with contender.around(), torch.cuda.graph(graph):
        for _ in range(passes):
            contender.run()
    return Contender([graph.replay], count=passes * contender.count)


class Timer:
    def __init__(self, rehearse: bool, graphs: bool = False) -> None:
        self.rehearse = rehearse
        self.graphs = graphs and not rehearse
        self.rounds = 1 if rehearse else 7
        self.window = 0.0 if rehearse else 0.02  # seconds that one contender runs in a round

    def once(self, contender: Contender, repeats: int) -> float:
        """Seconds of one call."""
        with contender.around():
            if self.rehearse:
                begin = time.perf_counter()
                for _ in range(repeats):
                    contender.run()
                return (time.perf_counter() - begin) / (repeats * contender.count)
            begin_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin_event.record()
            for _ in range(repeats):
                contender.run()
            end_event.record()
            end_event.synchronize()
        return float(begin_event.elapsed_time(end_event)) * 1e-3 / (repeats * contender.count)

    def medians(self, contenders: dict[str, Contender]) -> tuple[dict[str, float], str]:
        """Seconds of each, and how all of them were timed."""
        contenders, how = self._as_graphs(contenders)
        repeats: dict[str, int] = {}
        for name, contender in contenders.items():
            self.once(contender, 1)
            a_pass = self.once(contender, 2) * contender.count
            repeats[name] = max(1, min(MOST_REPEATS, round(self.window / max(a_pass, 1e-7))))
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(self.rounds):
            for name, contender in contenders.items():
                times[name].append(self.once(contender, repeats[name]))
        return {name: statistics.median(found) for name, found in times.items()}, how

    def _as_graphs(self, given: dict[str, Contender]) -> tuple[dict[str, Contender], str]:
        """All of them as graphs, or all as they are: a replay and a loop do not compare."""
        if not self.graphs:
            return given, "eager calls"
        found = {}
        for name, contender in given.items():
            try:
                found[name] = captured(contender)
            except RuntimeError as error:
                torch.cuda.synchronize()
                why = str(error).splitlines()[0][:100]
                return given, f"eager calls, as {name} was not captured: {why}"
        return found, "replays of graphs"

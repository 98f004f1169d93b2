# SPDX-License-Identifier: Apache-2.0
"""The loop of a worker: reads one JSON request a line, answers one JSON line each.

    {"op": "prepare", "name", "problem", "threads"}  builds the call, runs it twice if it is short
        -> {"id", "seconds", "sample"}: the last run's time, a few numbers of the result
    {"op": "run", "id", "seconds"}                   -> {"seconds": [...]}: each timed call
    {"op": "release"}                                forgets every call
    {"op": "stream", "id", "threads", "seconds"}     -> {"seconds"}: a read, where the worker can
    {"op": "memory", ...as prepare}                  -> {"base", "peak"}: resident bytes
    {"op": "facts"}                                  -> versions and settings

A worker is silent between requests: it answers only once its threads sleep, so that whoever comes
next has the machine alone.
"""

from __future__ import annotations

import gc
import json
import os
import re
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Callable, Protocol

from problem import Problem

LONG_S = 0.05  # a call of this length needs no warm-up before it is timed
VERY_LONG_S = 2.0
SETTLE_S = 0.3


class Call(Protocol):
    def run(self) -> Any: ...
    def sample(self) -> list[float]: ...


class Worker:
    """What a worker program adds: make_call, and facts to record."""

    def make_call(self, name: str, problem: Problem, threads: int) -> Call:
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        return {}

    def timed(self, call: Call, seconds: float) -> list[float]:
        """Runs again and again for so long, at least once; the time of each."""
        times: list[float] = []
        begin = time.perf_counter()
        while not times or (time.perf_counter() - begin < seconds and len(times) < 100_000):
            start = time.perf_counter()
            call.run()
            times.append(time.perf_counter() - start)
        return times

    def stream(self, call: Call, threads: int, seconds: float) -> float:
        raise NotImplementedError(f"{type(call).__name__}: no stream, {threads=}, {seconds=}")


def settle() -> None:
    """Waits until this process's threads have stopped spinning."""
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        before = time.process_time()
        time.sleep(0.002)
        if time.process_time() - before < 0.0002:
            return


def resident(field: str) -> int:
    """Bytes of VmRSS or VmHWM."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    return int(found[1]) * 1024 if found else 0


class Server:
    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.calls: list[Call] = []
        self.last: list[float] = []

    def prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        problem = Problem.from_json(request["problem"])
        call = self.worker.make_call(request["name"], problem, request["threads"])
        seconds = self.worker.timed(call, 0)[0]
        if seconds < VERY_LONG_S:  # else the first run is as good as any
            seconds = self.worker.timed(call, 0)[0]
        self.calls.append(call)
        self.last.append(seconds)
        settle()
        return {"id": len(self.calls) - 1, "seconds": seconds, "sample": call.sample()}

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        call = self.calls[request["id"]]
        if self.last[request["id"]] < LONG_S:
            self.worker.timed(call, min(self.last[request["id"]], request["seconds"] / 4))
        times = self.worker.timed(call, request["seconds"])
        settle()
        return {"seconds": times}

    def stream(self, request: dict[str, Any]) -> dict[str, Any]:
        call = self.calls[request["id"]]
        return {"seconds": self.worker.stream(call, request["threads"], request["seconds"])}

    def release(self, request: dict[str, Any]) -> dict[str, Any]:
        self.calls.clear()
        self.last.clear()
        gc.collect()
        return {"op": request["op"]}

    def memory(self, request: dict[str, Any]) -> dict[str, Any]:
        """What the tensors, the results and the calls of both passes add to this process."""
        base = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        problem = request["problem"]
        call = self.worker.make_call(
            request["name"], Problem.from_json({**problem, "backward": True}), request["threads"])
        call.run()
        return {"base": base, "peak": resident("VmHWM")}

    def facts(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"pid": os.getpid(), "op": request["op"], **self.worker.facts()}


def serve(worker: Worker) -> None:
    # Answers leave through a private descriptor; whatever a library prints goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server = Server(worker)
    operations: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        name: getattr(server, name)
        for name in ("prepare", "run", "stream", "release", "memory", "facts")}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = operations[request["op"]](request)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

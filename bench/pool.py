# SPDX-License-Identifier: Apache-2.0
"""Worker processes, one per contender: started when first asked, each asked one thing at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

from contenders import CONTENDERS, WORKERS, Contender, environment


class WorkerError(Exception):
    """A sentence that a worker answered in place of a result."""


class Process:
    """One worker program and its pipe."""

    def __init__(self, contender: Contender, threads: int, libraries: Path, log: IO[str]) -> None:
        self.name = contender.process_name
        env = environment(contender, threads, libraries / "libintel.so")
        env["BENCH_LIBRARIES"] = str(libraries)
        env["PYTHONPATH"] = str(WORKERS.parent)  # beside the worker's own folder
        # A library that counts the cores, as XLA does, finds as many as the others use.
        cores = sorted(os.sched_getaffinity(0))[:threads]
        self.process = subprocess.Popen(
            [sys.executable, str(WORKERS / f"{contender.worker}.py")], env=env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            preexec_fn=lambda: os.sched_setaffinity(0, cores))

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"{self.name}: ended with status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class Pool:
    """The long-lived workers of a run, and short-lived ones beside them."""

    def __init__(self, threads: int, libraries: Path, log: IO[str]) -> None:
        self.threads, self.libraries, self.log = threads, libraries, log
        self.processes: dict[str, Process] = {}

    def start(self, name: str) -> Process:
        return Process(CONTENDERS[name], self.threads, self.libraries, self.log)

    def of(self, name: str) -> Process:
        key = CONTENDERS[name].process_name
        if key not in self.processes or not self.processes[key].alive:
            self.processes[key] = self.start(name)
        return self.processes[key]

    def release(self) -> None:
        for process in self.processes.values():
            if process.alive:
                process.ask(op="release")

    def facts(self, names: list[str]) -> dict[str, dict[str, Any]]:
        """Version and settings of each, and a sentence for those that do not start."""
        result: dict[str, dict[str, Any]] = {}
        for name in names:
            try:
                result[name] = self.of(name).ask(op="facts")
                del result[name]["op"], result[name]["pid"]
            except WorkerError as error:
                result[name] = {"missing": str(error)}
        return result

    def close(self) -> None:
        for process in self.processes.values():
            process.close()

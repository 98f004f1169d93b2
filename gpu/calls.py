# SPDX-License-Identifier: Apache-2.0
"""What a slice runs and remembers: programs with a deadline, their JSON lines, stored answers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OK, FAILED, LEFT_OUT, UNFINISHED = "ok", "FAILED", "left out", "unfinished"
LATE = 124  # exit status of what was ended for being late
MOST_FAILURES = 20
ENDING = 5.0  # seconds that a program may take to end after its time is over
CUDA_BIN = Path("/usr/local/cuda/bin")  # where nvcc is if it is not on PATH
# What answers depend on: all that is compiled or run.
SOURCES = ("CMakeLists.txt", "bench/workers/c_api.py", "cmake", "gpu", "include", "io", "python",
           "src", "tests/conformance", "tests/support")
Answer = dict[str, Any]


def answer(verdict: str, words: str, **facts: Any) -> Answer:
    return {"verdict": verdict, "words": words, **facts}


def fingerprint(root: Path = ROOT) -> str:
    """Of the sources: an answer is that of the sources it was found with."""
    found = hashlib.sha256()
    for name in SOURCES:
        top = root / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and path.suffix not in (".pyc", ".so"):
                found.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode())
                found.update(path.read_bytes())
    return found.hexdigest()[:16]


@dataclass
class Said:
    """What programs printed: JSON objects, failed checks apart; and why one ended badly, or ""."""

    lines: list[Answer] = field(default_factory=list)
    failures: list[Answer] = field(default_factory=list)
    why: str = ""
    status: int = 0

    def add(self, other: Said, name: str = "") -> Said:
        self.lines += other.lines
        self.failures = (self.failures + other.failures)[:MOST_FAILURES]
        why = f"{name}: {other.why}" if other.why and name else other.why
        self.why = "; ".join(filter(None, (self.why, why)))
        self.status = self.status or other.status
        return self

    def judged(self, words: str, good: bool = True, **facts: Any) -> Answer:
        """The answer of a slice whose programs said this and nothing else."""
        ok = good and bool(self.lines) and not self.failures and not self.why
        return answer(OK if ok else FAILED, "; ".join(filter(None, (words, self.why))),
                      lines=self.lines, failures=self.failures, **facts)


@dataclass
class Run:
    """Where things are, and whether this is a rehearsal."""

    rehearse: bool
    build: Path
    work: Path
    sources: str = ""
    json: Path | None = None  # all answers together
    end: float = math.inf  # of this call of the script, by time.monotonic()
    deadline: float = math.inf  # of the running slice
    cut: bool = False  # something in the running slice was ended because the call ends
    log: Path = field(init=False)
    path: str = field(init=False)  # PATH

    def __post_init__(self) -> None:
        (self.work / "slices").mkdir(parents=True, exist_ok=True)
        self.log = self.work / "log.txt"
        self.path = os.environ.get("PATH", "")
        if shutil.which("nvcc") is None:
            self.path += f"{os.pathsep}{CUDA_BIN}"

    # --- time ---
    def begin(self, patience: float) -> None:
        self.deadline = min(time.monotonic() + patience, self.end)
        self.cut = False

    def left(self) -> float:
        """Seconds that a program which is started now may take."""
        return max(1.0, self.deadline - time.monotonic() - ENDING)

    # --- answers ---
    def _path_of(self, name: str) -> Path:
        return self.work / "slices" / f"{name}.json"

    def stored(self, name: str) -> Answer:
        """The answer of a slice, {} where there is none of these sources."""
        try:
            found: Answer = json.loads(self._path_of(name).read_text())
        except (OSError, ValueError):
            return {}
        return found if found.get("sources") == self.sources else {}

    def store(self, name: str, found: Answer) -> None:
        self._path_of(name).write_text(json.dumps({**found, "sources": self.sources}))

    def forget(self, name: str) -> None:
        self._path_of(name).unlink(missing_ok=True)

    # --- programs ---
    @property
    def library(self) -> Path:
        if not self.rehearse:
            return self.build / "libattentile_cuda.so"
        name = "libattentile_cuda_emulated.so"  # in the folder that first asked for it
        beside = self.build / "gpu" / name
        return beside if beside.exists() else self.build / name

    @property
    def check(self) -> Path:
        return self.build / "gpu/gpu_check"

    def find(self, program: str) -> str | None:
        return shutil.which(program, path=self.path)

    def names(self) -> dict[str, str]:
        """What the programs find the libraries by."""
        return {"ATTENTILE_CUDA_LIBRARY": str(self.library),
                "ATTENTILE_LIBRARY": str(self.build / "gpu/libattentile.so")}

    def environment(self) -> dict[str, str]:
        packages = [str(self.work / "package"), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {**os.environ, **self.names(), "PATH": self.path, "PYTHONUNBUFFERED": "1",
                "PYTHONPATH": os.pathsep.join(packages)}

    def call(self, *command: Any) -> subprocess.CompletedProcess[str]:
        """Runs a command; what it prints goes to the log too. One that is late is ended with all
        that it started, exit status 124, and what it printed so far counts."""
        words = [str(word) for word in command]
        process = subprocess.Popen(words, cwd=ROOT, env=self.environment(), text=True,
                                   errors="replace", stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, start_new_session=True)
        patience = max(1.0, self.deadline - time.monotonic())
        try:
            out, errors = process.communicate(timeout=None if patience == math.inf else patience)
            status = process.returncode
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            out, errors = process.communicate()
            errors += "\nran too long"
            status = LATE
            self.cut = self.cut or self.deadline >= self.end
        with self.log.open("a") as log:
            log.write(f"$ {' '.join(words)}\n{out}{errors}[exit status {status}]\n")
        return subprocess.CompletedProcess(words, status, out, errors)

    def lines(self, program: list[Any], *arguments: Any) -> Said:
        """The JSON objects that a program prints, one a line. Infinity and NaN count as null; a
        line that cannot be read is a failure."""
        done = self.call(*program, *arguments)
        said = Said(status=done.returncode)
        for text in done.stdout.splitlines():
            if not text.startswith("{"):
                continue
            try:
                line: Answer = json.loads(text, parse_constant=lambda _: None)
            except ValueError:
                line = {"failure": "a line that is no JSON", "what": text[:300]}
            if "failure" not in line:
                said.lines.append(line)
            elif len(said.failures) < MOST_FAILURES:
                if "again" in line:
                    line["again"] = f"{self.words_of(program)} {line['again']}".strip()
                said.failures.append(line)
        if done.returncode != 0 and not (done.returncode == 1 and said.failures):
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            said.why = f"exit status {done.returncode}: {''.join(last)[:200]}"
        return said

    def words_of(self, program: list[Any]) -> str:
        """For a shell in the root of the project."""
        def short(path: Any) -> str:
            return shlex.quote(str(path).removeprefix(f"{ROOT}/"))

        return " ".join([*(f"{name}={short(value)}" for name, value in self.names().items()),
                         *map(short, program)])

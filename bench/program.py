# SPDX-License-Identifier: Apache-2.0
"""`attentile bench` as a child: fractions of the peak, and the peak itself."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from plan import Attempt, Comparison, Timing
from problem import Problem, Subject

PEAK_AGE_S = 60.0  # the clock moves; a peak is measured again after so long
TIMING_FIELDS = ("name", "median_s", "min_s", "runs")
KEPT_FIELDS = ("peak_gflops", "fraction_of_peak", "algorithm", "isa")


class Program:
    def __init__(self, binary: Path) -> None:
        self.binary = binary
        self.peaks: dict[tuple[str, int], tuple[float, float]] = {}  # when, GFLOP/s

    def info(self) -> dict[str, Any]:
        done = subprocess.run([str(self.binary), "info", "--json"], capture_output=True, text=True,
                              check=True)
        facts: dict[str, Any] = json.loads(done.stdout)
        return facts

    def bench(self, problem: Problem, threads: int, min_time_s: float,
              isa: str = "") -> list[dict[str, Any]]:
        """The records: attentile, and standard where it fits."""
        sizes = (problem.batch, problem.seqlen_q, problem.seqlen_k, problem.num_heads_q,
                 problem.num_heads_kv, problem.head_dim)
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "bench.json"
            words = ["--shape", ",".join(map(str, sizes)), "--dtype", problem.dtype, "--pass",
                     problem.pass_name, "--layout", problem.layout, "--threads", str(threads),
                     "--min-time", f"{min_time_s:.3f}", "--json", str(target)]
            words += ["--causal"] if problem.causal else []
            words += ["--isa", isa] if isa else []
            done = subprocess.run([str(self.binary), "bench", *words], capture_output=True,
                                  text=True)
            if done.returncode != 0:
                raise RuntimeError(done.stderr.strip())
            records: list[dict[str, Any]] = json.loads(target.read_text())["records"]
            return records

    def measure(self, comparison: Comparison, min_time_s: float) -> Attempt:
        attempt = Attempt()
        subject = comparison.subjects[0]
        try:
            records = self.bench(subject.problem, subject.threads, min_time_s, comparison.isa)
        except RuntimeError as error:
            comparison.refused[subject] = str(error)
            return attempt
        for record in records:
            name = subject.name if record["name"] == "attentile" else record["name"]
            timing = Timing(record["median_s"], record["min_s"], record["runs"], (),
                            {key: record[key] for key in KEPT_FIELDS})
            attempt.timings[Subject(name, subject.problem, subject.threads)] = timing
        return attempt

    def peak(self, dtype: str, threads: int) -> float:
        """GFLOP/s of the dtype's arithmetic, not older than a minute."""
        known = self.peaks.get((dtype, threads))
        if known is None or time.monotonic() - known[0] > PEAK_AGE_S:
            tiny = Problem(64, 64, 1, 1, 64, dtype=dtype)
            known = (time.monotonic(), self.bench(tiny, threads, 0.02)[0]["peak_gflops"])
            self.peaks[dtype, threads] = known
        return known[1]

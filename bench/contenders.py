# SPDX-License-Identifier: Apache-2.0
"""Who takes part: the worker program of each contender, its environment, and what it offers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from problem import BYTES, Problem

WORKERS = Path(__file__).resolve().parent / "workers"
ALL = frozenset(BYTES)


@dataclass(frozen=True)
class Contender:
    name: str
    worker: str  # workers/<worker>.py; contenders of one process share it
    label: str
    dtypes: frozenset[str] = ALL
    backward: bool = True
    decode: bool = True
    prefill: bool = True
    process: str = ""  # "" : one process per worker
    matrices: float = 0  # whole matrices of float32 scores that it keeps per pass
    ours: bool = False

    @property
    def process_name(self) -> str:
        return self.process or self.worker

    def refusal(self, problem: Problem) -> str:
        """Why this contender has nothing to measure for the problem; "" if it has."""
        decode = problem.seqlen_q < problem.seqlen_k
        if problem.dtype not in self.dtypes:
            return f"not offered: {problem.dtype}"
        if problem.backward and not self.backward:
            return "not offered: backward"
        if decode and not self.decode:
            return "not offered: a cache"
        if not decode and not self.prefill:
            return "not offered here: it is the operator for a cache"
        if not self.ours and (problem.feature or problem.seqlens):
            return "not measured: features and packed sequences are ours alone"
        return ""


CONTENDERS = {c.name: c for c in (
    Contender("attentile", "attentile_worker", "attentile", ours=True),
    Contender("standard", "attentile_worker", "attentile, algorithm standard", matrices=1,
              ours=True),
    Contender("flash1", "attentile_worker", "attentile, algorithm flash1", ours=True),
    Contender("torch", "torch_worker", "torch SDPA as installed", process="torch"),
    Contender("torch-unlocked", "torch_worker", "torch SDPA, MKL unlocked",
              process="torch-unlocked"),
    Contender("onnxruntime-mha", "onnxruntime_worker", "onnxruntime MultiHeadAttention",
              dtypes=frozenset({"f32"}), backward=False, decode=False),
    Contender("onnxruntime-attention", "onnxruntime_worker", "onnxruntime ai.onnx Attention",
              dtypes=frozenset({"f32", "f16"}), backward=False, decode=False, matrices=1),
    Contender("onnxruntime-gqa", "onnxruntime_worker", "onnxruntime GroupQueryAttention",
              dtypes=frozenset({"f32", "f16"}), backward=False, prefill=False),
    Contender("openblas", "openblas_worker", "standard attention over OpenBLAS",
              dtypes=frozenset({"f32"}), decode=False, matrices=2),
    Contender("jax", "jax_worker", "jax.nn.dot_product_attention",
              dtypes=frozenset({"f32", "bf16"}), matrices=4),
)}

ONNXRUNTIME = ("onnxruntime-mha", "onnxruntime-attention", "onnxruntime-gqa")


def environment(contender: Contender, threads: int, unlock: Path) -> dict[str, str]:
    """The environment of its process: nothing of the caller's that slows or steers a peer."""
    traps = ("OPENBLAS_", "OMP_", "MKL_", "KMP_", "GOMP_", "BLIS_", "NVPL_", "XLA_", "ATTENTILE_",
             "LD_PRELOAD")
    result = {k: v for k, v in os.environ.items() if not k.startswith(traps)}
    if contender.name == "torch-unlocked":
        result["LD_PRELOAD"] = str(unlock)
    if contender.worker == "openblas_worker":
        # Its worker has a thread per core already, each with heads of its own.
        result["OPENBLAS_NUM_THREADS"] = "1"
    if contender.worker == "torch_worker":
        result["OMP_NUM_THREADS"] = str(threads)
    if contender.worker == "jax_worker":
        result["JAX_PLATFORMS"] = "cpu"
    return result

# SPDX-License-Identifier: Apache-2.0
"""Attentile through its C interface; the algorithm is that of the contender's name."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import c_api
import numpy as np
from inputs import (Array, aligned, from_bfloat16_bits, make_inputs, normals, sample_of,
                    to_bfloat16_bits)
from problem import SOFTCAP, Problem
from serve import Worker, serve

DROPOUT_P = 0.1
VISIBLE = 0.9  # of the boolean mask
MAX_CALLS = 100_000
STREAM_RATE = 2e10  # bytes per second that a thread may read, to guess how long a read takes


def convert(values: Array, dtype: str) -> Array:
    if dtype == "bf16":
        return to_bfloat16_bits(values)
    if dtype == "f16":
        result = aligned(values.shape, np.float16)
        result[...] = values
        return result
    return values


class AttentileCall:
    """Every tensor of a problem, the structs that point at them, and the two calls."""

    def __init__(self, library: c_api.Library, name: str, problem: Problem, threads: int) -> None:
        self.library = library
        self.problem = problem
        self.arrays: dict[str, Array] = {}
        self.tensors: dict[str, c_api.Tensor] = {}
        self.heads_first = problem.layout == "bhsd" and not problem.seqlens
        for key, values in make_inputs(problem, self.heads_first).items():
            self.add(key, convert(values, problem.dtype), problem.dtype)
        self.add_results()
        self.add_feature()
        left, right = problem.window
        self.options = c_api.Options(
            causal=problem.causal, window_left=left if problem.feature == "window" else -1,
            window_right=right if problem.feature == "window" else -1,
            softcap=SOFTCAP if problem.feature == "softcap" else 0.0,
            dropout_p=DROPOUT_P if problem.feature == "dropout" else 0.0, dropout_seed=1,
            algorithm=c_api.ALGORITHMS[name])
        self.context = c_api.Context(num_threads=threads)
        self.inputs = self.struct(c_api.Inputs)
        self.outputs = self.struct(c_api.Outputs)
        self.gradients = self.struct(c_api.Gradients) if problem.backward else None
        self.forward = self.timed_call("forward", None)
        self.measured = self.forward
        if problem.backward:
            self.measured = self.timed_call("backward", self.gradients)
            self.time(self.forward, 0)  # out and lse

    def add(self, name: str, array: Array, dtype: str) -> None:
        """As [batch, seqlen, heads, dim] whatever the memory's order; packed without batch."""
        self.arrays[name] = array
        seen = array.transpose(0, 2, 1, 3) if self.heads_first and array.ndim == 4 else array
        if self.problem.seqlens and array.ndim == 4:
            seen = array[0]
        self.tensors[name] = c_api.view(seen, dtype)

    def add_plain(self, name: str, array: Array, dtype: str) -> None:
        self.arrays[name] = array
        self.tensors[name] = c_api.view(array, dtype)

    def add_results(self) -> None:
        p = self.problem
        q, k = self.arrays["q"], self.arrays["k"]
        self.add("out", aligned(q.shape, q.dtype), p.dtype)
        tokens_q = p.tokens()[0]
        lse = (p.num_heads_q, tokens_q) if p.seqlens else (p.batch, p.num_heads_q, p.seqlen_q)
        self.add_plain("lse", aligned(lse, np.float32), "f32")
        if p.backward:
            for name, like in (("dq", q), ("dk", k), ("dv", k)):
                self.add(name, aligned(like.shape, like.dtype), p.dtype)
        if p.seqlens:
            for name in ("cu_seqlens_q", "cu_seqlens_k"):
                ends = np.concatenate([[0], np.cumsum(p.seqlens)]).astype(np.int32)
                self.add_plain(name, ends, "i32")

    def add_feature(self) -> None:
        p = self.problem
        heads, matrix = p.num_heads_q, (1, p.num_heads_q, p.seqlen_q, p.seqlen_k)
        if p.feature == "mask":
            chance = normals(matrix, 7)
            self.add_plain("mask", (chance < 1.2816).astype(np.uint8), "u8")  # 0.9 visible
        elif p.feature == "bias":
            self.add_plain("bias", normals(matrix, 8), "f32")
        elif p.feature == "bias_shared":
            self.add_plain("bias", normals((1, 1, p.seqlen_q, p.seqlen_k), 8), "f32")
        elif p.feature == "alibi":
            slopes = 2.0 ** (-8.0 * np.arange(1, heads + 1) / heads)
            self.add_plain("alibi_slopes", slopes.astype(np.float32), "f32")
        elif p.feature == "sink":
            self.add_plain("sink", np.zeros(heads, np.float32), "f32")

    def struct(self, kind: Any) -> Any:
        fields = [name for name, _ in kind._fields_[1:]]
        return kind(**{name: ctypes.pointer(self.tensors[name])
                       for name in fields if name in self.tensors})

    def timed_call(self, which: str, gradients: Any) -> c_api.TimedCall:
        function = getattr(self.library.attentile, f"attentile_attention_{which}")
        call = c_api.TimedCall(function=ctypes.cast(function, ctypes.c_void_p).value)
        structs = (self.inputs, self.outputs, gradients, self.options, self.context)
        for i, struct in enumerate(structs):
            call.arguments[i] = None if struct is None else ctypes.addressof(struct)
        return call

    def time(self, call: c_api.TimedCall, seconds: float) -> list[float]:
        capacity = MAX_CALLS if seconds > 0 else 1
        times = (ctypes.c_double * capacity)()
        count = self.library.time_calls(ctypes.addressof(call), seconds, capacity,
                                        ctypes.addressof(times))
        if count < 0:
            raise RuntimeError(self.library.attentile.attentile_last_error().decode())
        return list(times[:count])

    def run(self) -> None:
        self.time(self.measured, 0)

    def sample(self) -> list[float]:
        result = self.arrays["dq" if self.problem.backward else "out"]
        if self.heads_first:
            result = result.transpose(0, 2, 1, 3)
        return sample_of(from_bfloat16_bits(result) if result.dtype == np.uint16 else result)

    def plan(self) -> c_api.PlanInfo:
        info = c_api.PlanInfo()
        self.library.check(self.library.attentile.attentile_plan(
            *(None if s is None else ctypes.byref(s) for s in (
                self.inputs, self.outputs, self.gradients, self.options, self.context, info))))
        return info


class AttentileWorker(Worker):
    def __init__(self) -> None:
        self.library = c_api.Library(Path(os.environ["BENCH_LIBRARIES"]))

    def make_call(self, name: str, problem: Problem, threads: int) -> AttentileCall:
        return AttentileCall(self.library, name, problem, threads)

    def timed(self, call: Any, seconds: float) -> list[float]:
        times: list[float] = call.time(call.measured, seconds)
        return times

    def stream(self, call: Any, threads: int, seconds: float) -> float:
        """Seconds of a read of the call's K, then V, by so many threads: the mean of as many as
        fill the time."""
        arrays = [call.arrays[name] for name in ("k", "v")]
        addresses = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
        total_bytes = sum(array.nbytes for array in arrays)
        assert total_bytes == len(arrays) * arrays[0].nbytes
        passes = max(1, round(seconds * STREAM_RATE * threads / total_bytes))
        mean: float = self.library.stream(addresses, len(arrays), arrays[0].nbytes, threads, passes)
        if mean <= 0:
            raise RuntimeError("stream: no threads for it")
        return mean

    def facts(self) -> dict[str, Any]:
        return {"version": self.library.attentile.attentile_version().decode()}


if __name__ == "__main__":
    serve(AttentileWorker())

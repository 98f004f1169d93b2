# SPDX-License-Identifier: Apache-2.0
"""Standard attention as a careful user would write it over a BLAS: the whole matrix of scores per
head, products by OpenBLAS (NumPy's), softmax in vector loops of C, one thread per core with heads
of its own (rows of a head where there are fewer heads than threads). The weights are kept for the
backward pass, which therefore needs four products."""

from __future__ import annotations

import ctypes
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import numpy as np
import threadpoolctl
from inputs import Array, aligned, make_inputs, sample_of
from problem import Problem
from serve import Worker, serve

TASK_BYTES = 4 << 20  # of scores: many short heads make one task


class Softmax:
    def __init__(self, folder: Path) -> None:
        library = ctypes.CDLL(str(folder / "libsoftmax.so"))
        self.rows, self.gradient = library.bench_softmax_rows, library.bench_softmax_gradient
        word = [ctypes.c_void_p, ctypes.c_void_p]
        self.rows.argtypes = [*word, ctypes.c_int64, ctypes.c_int64, ctypes.c_float]
        self.gradient.argtypes = [ctypes.c_void_p, *word, ctypes.c_float]
        self.rows.restype = self.gradient.restype = None


class OpenBlasCall:
    """Arrays are [heads of K, group, seqlen, dim], heads of all batches in one row."""

    def __init__(self, softmax: Softmax, problem: Problem, threads: int) -> None:
        self.softmax, self.problem = softmax, problem
        self.scale = 1 / math.sqrt(problem.head_dim)
        heads = problem.batch * problem.num_heads_kv
        group = problem.num_heads_q // problem.num_heads_kv
        arrays = make_inputs(problem, heads_first=True)

        def by_heads(name: str, size: int) -> Array:
            return arrays[name].reshape(heads, size, -1, problem.head_dim)

        self.q, self.k, self.v = by_heads("q", group), by_heads("k", 1), by_heads("v", 1)
        self.out = aligned(self.q.shape, np.float32)
        self.pool = ThreadPoolExecutor(threads)
        self.tasks = self.make_tasks(heads, group, threads)
        self.weights: Array | None = None
        if problem.backward:
            self.dout = by_heads("dout", group)
            sizes = (heads, group, problem.seqlen_q, problem.seqlen_k)
            self.weights, self.dscores = (aligned(sizes, np.float32) for _ in range(2))
            self.dq, self.dk, self.dv = (aligned(a.shape, np.float32)
                                         for a in (self.q, self.k, self.v))
            self.each(self.forward)

    def make_tasks(self, heads: int, group: int, threads: int) -> list[tuple[slice, slice]]:
        """Which heads and which rows of q; rows are split in the forward pass only."""
        head_bytes = 4 * group * self.problem.seqlen_q * self.problem.seqlen_k
        chunk = max(1, min(TASK_BYTES // head_bytes, -(-heads // threads)))
        rows = self.problem.seqlen_q
        if heads < threads and not self.problem.backward:
            rows = -(-rows // -(-threads // heads))
        return [(slice(h, h + chunk), slice(r, r + rows)) for h in range(0, heads, chunk)
                for r in range(0, self.problem.seqlen_q, rows)]

    def each(self, work: Callable[[slice, slice], None]) -> None:
        for done in [self.pool.submit(work, *task) for task in self.tasks]:
            done.result()

    def forward(self, heads: slice, rows: slice) -> None:
        q = self.q[heads, :, rows]
        place = None if self.weights is None else self.weights[heads, :, rows]
        scores = np.matmul(q, self.k[heads].swapaxes(2, 3), out=place)
        p = self.problem
        visible, step = p.seqlen_k, 0
        if p.causal:
            visible, step = p.seqlen_k - p.seqlen_q + 1 + rows.start, 1
        for matrix in scores.reshape(-1, *scores.shape[2:]):
            shape = (ctypes.c_int64 * 2)(*matrix.shape)
            self.softmax.rows(matrix.ctypes.data, shape, visible, step, self.scale)
        np.matmul(scores, self.v[heads], out=self.out[heads, :, rows])

    def backward(self, heads: slice, rows: slice) -> None:
        assert self.weights is not None
        weights, dout = self.weights[heads], self.dout[heads]
        self.dv[heads] = np.matmul(weights.swapaxes(2, 3), dout).sum(1, keepdims=True)
        dscores = np.matmul(dout, self.v[heads].swapaxes(2, 3), out=self.dscores[heads])
        shape = (ctypes.c_int64 * 2)(dscores[..., 0].size, dscores.shape[3])
        self.softmax.gradient(weights.ctypes.data, dscores.ctypes.data, shape, self.scale)
        np.matmul(dscores, self.k[heads], out=self.dq[heads])
        self.dk[heads] = np.matmul(dscores.swapaxes(2, 3), self.q[heads]).sum(1, keepdims=True)

    def run(self) -> None:
        self.each(self.backward if self.problem.backward else self.forward)

    def sample(self) -> list[float]:
        p = self.problem
        result = self.dq if p.backward else self.out
        shape = (p.batch, p.num_heads_q, p.seqlen_q, p.head_dim)
        return sample_of(result.reshape(shape).transpose(0, 2, 1, 3))


class OpenBlasWorker(Worker):
    def __init__(self) -> None:
        self.softmax = Softmax(Path(os.environ["BENCH_LIBRARIES"]))

    def make_call(self, name: str, problem: Problem, threads: int) -> OpenBlasCall:
        return OpenBlasCall(self.softmax, problem, threads)

    def facts(self) -> dict[str, Any]:
        blas = [{key: pool[key] for key in ("internal_api", "version", "architecture")}
                for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
        return {"version": np.__version__, "blas": blas}


if __name__ == "__main__":
    serve(OpenBlasWorker())

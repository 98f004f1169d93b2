# SPDX-License-Identifier: Apache-2.0
"""The same numbers for everybody: q, k, v and dout from one seed, in the layout each one likes."""

from __future__ import annotations

from typing import Any

import numpy as np
from problem import Problem

Array = np.ndarray[Any, Any]
PERIOD = 1 << 20  # values repeat after this many; no kernel looks at them


def aligned(shape: tuple[int, ...], dtype: Any) -> Array:
    """Zeros at an address that is a multiple of 64."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start:start + size].view(dtype).reshape(shape)


def normals(shape: tuple[int, ...], seed: int) -> Array:
    """Normally distributed float32."""
    generator = np.random.default_rng(seed)
    result = aligned(shape, np.float32)
    flat = result.reshape(-1)
    values = generator.standard_normal(min(PERIOD, flat.size), np.float32)
    for begin in range(0, flat.size, PERIOD):
        piece = flat[begin:begin + PERIOD]
        piece[:] = values[:piece.size]
    return result


def to_bfloat16_bits(values: Array) -> Array:
    """Float32 rounded to nearest even, as uint16."""
    bits = values.view(np.uint32)
    result = aligned(values.shape, np.uint16)
    result[...] = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return result


def from_bfloat16_bits(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def make_inputs(problem: Problem, heads_first: bool) -> dict[str, Array]:
    """Float32 q, k, v, dout: [batch, heads, seqlen, dim] if heads_first, else [batch, seqlen,
    heads, dim]; the values belong to (batch, seqlen, head, dim) either way. Packed: batch 1."""
    batch = problem.batch
    seqlen_q, seqlen_k = problem.seqlen_q, problem.seqlen_k
    if problem.seqlens:
        batch, seqlen_q, seqlen_k = 1, sum(problem.seqlens), sum(problem.seqlens)
    q_shape = (batch, seqlen_q, problem.num_heads_q, problem.head_dim)
    k_shape = (batch, seqlen_k, problem.num_heads_kv, problem.head_dim)
    shapes = {"q": q_shape, "k": k_shape, "v": k_shape, "dout": q_shape}
    if not problem.backward:
        del shapes["dout"]
    result = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        values = normals(shape, seed)
        if heads_first:
            turned = aligned((shape[0], shape[2], shape[1], shape[3]), np.float32)
            turned[...] = values.transpose(0, 2, 1, 3)
            values = turned
        result[name] = values
    return result


def sample_of(result: Array) -> list[float]:
    """A few numbers of a [batch, seqlen, heads, dim] result: by them parent and peers agree."""
    batch, seqlen, heads, _ = result.shape
    picked = [result[b, s, h, :4] for b, s, h in
              ((0, 0, 0), (batch - 1, seqlen // 2, heads // 2), (batch - 1, seqlen - 1, heads - 1))]
    return [float(x) for x in np.concatenate(picked).astype(np.float64)]

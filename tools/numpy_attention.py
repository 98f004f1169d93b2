# SPDX-License-Identifier: Apache-2.0
"""Attention in NumPy, float64, written from the contract alone: the oracle's second opinion.

It works on whole score matrices, takes delta from dout and out, and has its own Philox; nothing is
shared with the C++ definition. Slow and meant for small problems.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass
class Case:
    """One problem: its options, and its tensors by their names in files."""

    batch: int
    heads_q: int
    heads_kv: int
    head_dim: int
    head_dim_v: int
    seqlen_q: int  # longest
    seqlen_k: int
    backward: bool = True
    causal: bool = False
    window: tuple[int, int] = (-1, -1)
    top_left: bool = False
    position_offset: int | None = None
    softcap: float = 0.0
    scale: float | None = None
    dropout: float = 0.0
    seed: int = 0
    offset: int = 0
    block_size: tuple[int, int] | None = None
    tensors: dict[str, Array] = field(default_factory=dict)
    features: list[str] = field(default_factory=list)


def philox(counter: list[Array], key: tuple[int, int]) -> list[Array]:
    """Philox4x32-10 on arrays of counters, four words each (Salmon et al. 2011)."""
    words = [c.astype(np.uint64) for c in counter]
    mask = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    key0, key1 = key
    for _ in range(10):
        left = words[0] * np.uint64(0xD2511F53)
        right = words[2] * np.uint64(0xCD9E8D57)
        words = [
            (right >> half) ^ words[1] ^ np.uint64(key0),
            right & mask,
            (left >> half) ^ words[3] ^ np.uint64(key1),
            left & mask,
        ]
        key0 = (key0 + 0x9E3779B9) & 0xFFFFFFFF
        key1 = (key1 + 0xBB67AE85) & 0xFFFFFFFF
    return words


def keep_matrix(case: Case, b: int, h: int, rows: int, columns: int) -> Array:
    """Dropout decisions of one head: [rows, columns] of bool."""
    i = np.arange(rows)[:, None] + np.zeros((1, columns), dtype=np.int64)
    j = np.arange(columns)[None, :] + np.zeros((rows, 1), dtype=np.int64)
    stream = np.full_like(i, b * case.heads_q + h)
    low_offset = np.full_like(i, case.offset & 0xFFFFFFFF)
    key = (case.seed & 0xFFFFFFFF, (case.seed >> 32) ^ (case.offset >> 32))
    words = np.stack(philox([4 * (j // 32) + (j % 8) // 2, i, stream, low_offset], key))
    lane = 2 * ((j % 32) // 8) + j % 2
    word = np.take_along_axis(words, (lane // 2)[None], axis=0)[0]
    value = (word >> (16 * (lane % 2)).astype(np.uint64)) & np.uint64(0xFFFF)
    kept: Array = value >= math.floor(65536 * case.dropout + 0.5)
    return kept


@dataclass
class Sequence:
    """One batch entry: which rows of the file's tensors belong to it."""

    q: Any  # index of its rows in q
    keys: Array  # used keys, in float64: [n, heads_kv, head_dim]
    values: Array
    kv: Any = None  # index of its used rows in k (backward)


def sequence(c: Case, b: int) -> Sequence:
    t = c.tensors
    k, v = t["k"].astype(np.float64), t["v"].astype(np.float64)
    if "varlen" in c.features:
        cq, ck = t["cu_seqlens_q"], t["cu_seqlens_k"]
        kv = slice(int(ck[b]), int(ck[b + 1]))
        return Sequence(slice(int(cq[b]), int(cq[b + 1])), k[kv], v[kv], kv)
    used = int(t["seqused_k"][b]) if "seqused_k" in t else c.seqlen_k
    if "paged" in c.features:
        pages = t["block_table"][b]
        gathered_k = k[pages].reshape(-1, *k.shape[2:])[:used]
        return Sequence(b, gathered_k, v[pages].reshape(-1, *v.shape[2:])[:used])
    row = int(t["cache_batch_idx"][b]) if "cache_batch_idx" in t else b
    first = int(t["leftpad_k"][b]) if "leftpad_k" in t else 0
    return Sequence(b, k[row, first:used], v[row, first:used], (row, slice(first, used)))


def visible_pairs(c: Case, b: int, h: int, rows: int, columns: int) -> tuple[Array, Array]:
    """Which (query, key) pairs are visible, and each pair's distance |i + offset - j|."""
    offset = 0 if c.top_left else columns - rows
    if c.position_offset is not None:
        offset = c.position_offset
    position = np.array([i + offset for i in range(rows)], dtype=object)[:, None]
    j = np.arange(columns).astype(object)[None, :]
    seen = np.ones((rows, columns), dtype=bool)
    if c.causal:
        seen &= np.asarray(j <= position, dtype=bool)
    left, right = c.window
    if left >= 0:
        seen &= np.asarray(j >= position - left, dtype=bool)
    if right >= 0:
        seen &= np.asarray(j <= position + right, dtype=bool)
    full = (c.batch, c.heads_q, c.seqlen_q, c.seqlen_k)
    if "mask" in c.tensors:
        seen &= np.broadcast_to(c.tensors["mask"] != 0, full)[b, h, :rows, :columns]
    if c.block_size:
        pattern = c.tensors["block_mask"]
        tiles = pattern[h if pattern.shape[0] > 1 else 0]
        m, n = c.block_size
        seen &= np.repeat(np.repeat(tiles, m, axis=0), n, axis=1)[:rows, :columns] != 0
    return seen, np.abs(position - j).astype(np.float64)


def attention(c: Case) -> dict[str, Array]:
    """Every output of the case, in float64."""
    t = {name: array.astype(np.float64) for name, array in c.tensors.items()}
    packed = "varlen" in c.features
    lse_shape = (c.heads_q, len(t["q"])) if packed else (c.batch, c.heads_q, c.seqlen_q)
    results = {"out": np.zeros((*t["q"].shape[:-1], c.head_dim_v)), "lse": np.zeros(lse_shape)}
    if c.backward:
        results |= {"d" + name: np.zeros(t[name].shape) for name in "qkv"}
        for name in ("bias", "sink"):
            if name in t:
                results["d" + name] = np.zeros(t[name].shape)
    if c.dropout > 0 and not packed:
        results["keep"] = np.zeros((c.batch, c.heads_q, c.seqlen_q, c.seqlen_k))
    full = (c.batch, c.heads_q, c.seqlen_q, c.seqlen_k)
    dbias = np.zeros(full)
    for b in range(c.batch):
        s = sequence(c, b)
        for h in range(c.heads_q):
            one_head(c, t, s, (b, h), results, dbias)
    if "dbias" in results:
        shape = (1,) * (4 - t["bias"].ndim) + t["bias"].shape
        axes = tuple(a for a in range(4) if shape[a] == 1)
        results["dbias"] = dbias.sum(axis=axes, keepdims=True).reshape(t["bias"].shape)
    return results


def one_head(
    c: Case,
    t: dict[str, Array],
    s: Sequence,
    at: tuple[int, int],
    results: dict[str, Array],
    dbias: Array,
) -> None:
    b, h = at
    kv_head = h // (c.heads_q // c.heads_kv)
    q, k, v = t["q"][s.q][:, h], s.keys[:, kv_head], s.values[:, kv_head]
    rows, columns = len(q), len(k)
    full = (c.batch, c.heads_q, c.seqlen_q, c.seqlen_k)
    seen, distance = visible_pairs(c, b, h, rows, columns)
    scale = 1 / math.sqrt(c.head_dim) if c.scale is None else c.scale
    with np.errstate(all="ignore"):
        raw = scale * (q @ k.T)
        scores = c.softcap * np.tanh(raw / c.softcap) if c.softcap > 0 else raw.copy()
        if "bias" in t:
            scores = scores + np.broadcast_to(t["bias"], full)[b, h, :rows, :columns]
        if "alibi_slopes" in t:
            scores = scores - np.broadcast_to(t["alibi_slopes"], full[:2])[b, h] * distance
        scores = np.where(seen, scores, -np.inf)
        sink = t["sink"][h] if "sink" in t else -np.inf
        top = np.maximum(scores.max(axis=1, initial=-np.inf), sink)
        top = np.where(top == -np.inf, 0, top)
        total = np.exp(scores - top[:, None]).sum(axis=1) + np.exp(sink - top)
        lse = np.log(total) + top
        weights = np.exp(scores - np.where(lse == -np.inf, 0, lse)[:, None])
        dead = (scores == -np.inf).all(axis=1)
        lse = np.where(dead, sink, lse)
        factor = np.ones((rows, columns))
        if c.dropout > 0:
            keep = keep_matrix(c, b, h, rows, columns)
            factor = keep * (1 / (1 - c.dropout) if c.dropout < 1 else 0.0)
        # Hidden pairs never enter: not even as 0 * NaN.
        terms = np.where(seen[:, :, None], (weights * factor)[:, :, None] * v[None], 0)
        out = np.where(dead[:, None], 0, terms.sum(axis=1))
    results["out"][s.q][:, h] = out
    if "varlen" in c.features:
        results["lse"][h, s.q] = lse
    else:
        results["lse"][b, h] = lse
    if "keep" in results:
        results["keep"][b, h] = keep_matrix(c, b, h, c.seqlen_q, c.seqlen_k)
    if not c.backward:
        return
    dout = t["dout"][s.q][:, h]
    dlse = np.zeros(rows)
    if "dlse" in t:
        dlse = t["dlse"][h, s.q] if "varlen" in c.features else t["dlse"][b, h]
    weights = np.where(dead[:, None], 0, weights)
    delta = (dout * out).sum(axis=1)
    dscores = weights * (factor * (dout @ v.T) - (delta - dlse)[:, None])
    dbias[b, h, :rows, :columns] = dscores
    if "dsink" in results:
        results["dsink"][h] += (np.exp(sink - lse) * (dlse - delta)).sum()
    if c.softcap > 0:
        dscores = dscores * (1 - np.tanh(raw / c.softcap) ** 2)
    results["dq"][s.q][:, h] = scale * dscores @ k
    results["dk"][s.kv][:, kv_head] += scale * dscores.T @ q
    results["dv"][s.kv][:, kv_head] += (weights * factor).T @ dout

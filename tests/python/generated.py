# SPDX-License-Identifier: Apache-2.0
"""Random calls: drawn as small numbers that shrink, their arrays made from a seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import torch
from hypothesis import strategies as st

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16,
          "float64": np.float64}
LENGTHS = st.sampled_from([5, 1, 2, 3, 8, 17, 33, 64, 70, 0])
FORMS = st.sampled_from(["contiguous", "sliced", "flipped", "other layout"])


@dataclass(repr=False)
class Call:
    """q, k, v and the keywords of one call."""

    dtype: str
    tokens: tuple[np.ndarray, np.ndarray, np.ndarray]
    keywords: dict[str, Any]
    scores: tuple[int, int, int, int]  # batch, num_heads_q, longest seqlen_q and seqlen_k

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def __repr__(self) -> str:
        def told(x: Any) -> str:
            short = not isinstance(x, np.ndarray) or x.dtype == np.int32
            return repr(x) if short else f"{x.dtype}{list(x.shape)} strides {list(x.strides)}"

        given = zip("qkv", self.tokens, strict=True)
        return "; ".join(f"{name}: {told(x)}" for name, x in (*given, *self.keywords.items()))


def arranged(x: Any, form: str) -> Any:
    """The same values with other strides."""
    if form == "sliced":
        wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1] + 3), x.dtype)
        wide[..., 3::2] = x
        return wide[..., 3::2]
    if form == "flipped":
        return np.ascontiguousarray(x[:, ::-1, :, ::-1])[:, ::-1, :, ::-1] if x.ndim == 4 else \
            np.ascontiguousarray(x[::-1])[::-1]
    if form == "other layout":
        return np.ascontiguousarray(x.swapaxes(-3, -2)).swapaxes(-3, -2)
    return x


def _scores(draw: Any, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """N(0, 1) of a shape that broadcasts to `shape`; sometimes a stride of 0."""
    kept = [n if draw(st.booleans()) else 1 for n in shape]
    x = rng.standard_normal(kept[draw(st.integers(0, 2)):])
    if draw(st.integers(0, 3)) == 0 and x.ndim == 4:
        x = np.broadcast_to(x, (*x.shape[:1], shape[1], *x.shape[2:]))
    return x


def _band(draw: Any) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    if draw(st.booleans()):
        chosen["causal"] = True
    if draw(st.integers(0, 2)) == 0:
        chosen["window_left"] = draw(st.integers(-1, 9))
    if draw(st.integers(0, 2)) == 0:
        chosen["window_right"] = draw(st.integers(-1, 9))
    if draw(st.booleans()):
        chosen["alignment"] = draw(st.sampled_from(["bottom_right", "top_left"]))
    if draw(st.integers(0, 5)) == 0:
        chosen["position_offset"] = draw(st.integers(-6, 6))
    return chosen


def _scalars(draw: Any) -> dict[str, Any]:
    chosen = _band(draw)
    if draw(st.integers(0, 3)) == 0:
        chosen["softmax_scale"] = draw(st.sampled_from([0.3, 1.0, 0.0, -0.5]))
    if draw(st.integers(0, 3)) == 0:
        chosen["softcap"] = draw(st.sampled_from([30.0, 1.5]))
    if draw(st.integers(0, 3)) == 0:
        chosen["dropout_p"] = draw(st.sampled_from([0.1, 0.5, 0.9, 1.0]))
        chosen["dropout_seed"] = draw(st.integers(0, 2**64 - 1))
        chosen["dropout_offset"] = draw(st.integers(0, 2**64 - 1))
    if draw(st.integers(0, 2)) == 0:
        chosen["algorithm"] = draw(st.sampled_from(["flash2", "flash1", "standard", "reference"]))
    return chosen


def _terms(draw: Any, rng: np.random.Generator, dtype: str,
           scores: tuple[int, ...]) -> dict[str, Any]:
    batch, heads = scores[:2]
    terms: dict[str, Any] = {}
    if draw(st.integers(0, 2)) == 0:
        kind = DTYPES[dtype] if draw(st.booleans()) else np.float32
        terms["bias"] = _scores(draw, rng, scores).astype(kind)
    if draw(st.integers(0, 2)) == 0:
        mask = _scores(draw, rng, scores) > draw(st.sampled_from([-1.0, 0.0, 1.2]))
        terms["mask"] = mask if draw(st.booleans()) else mask.astype(np.uint8)
    if draw(st.integers(0, 3)) == 0:
        terms["sink"] = rng.standard_normal(heads).astype(np.float32)
    if draw(st.integers(0, 3)) == 0:
        shape = (batch, heads) if draw(st.booleans()) else (heads,)
        terms["alibi_slopes"] = np.abs(rng.standard_normal(shape)).astype(np.float32)
    return terms


def _sizes(draw: Any) -> tuple[int, int, int, int]:
    heads_kv = draw(st.integers(1, 3))
    dim = draw(st.sampled_from([8, 1, 3, 16, 24, 64, 80, 128]))
    same = draw(st.booleans())
    return (heads_kv * draw(st.integers(1, 3)), heads_kv, dim,
            dim if same else draw(st.sampled_from([8, 5, 16, 72])))


@st.composite
def dense_calls(draw: Any) -> Call:
    """Sequences of one length, in both layouts, any strides."""
    heads, heads_kv, dim, dim_v = _sizes(draw)
    batch, rows, keys = draw(st.integers(1, 3)), draw(LENGTHS), draw(LENGTHS)
    dtype = draw(st.sampled_from(list(DTYPES)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    keywords = _scalars(draw)
    swapped = draw(st.booleans())

    def tokens(n: int, h: int, d: int) -> np.ndarray:
        shape = (batch, h, n, d) if swapped else (batch, n, h, d)
        x = rng.standard_normal(shape).astype(DTYPES[dtype])
        return arranged(x, draw(FORMS))

    q, k, v = tokens(rows, heads, dim), tokens(keys, heads_kv, dim), tokens(keys, heads_kv, dim_v)
    if draw(st.integers(0, 5)) == 0:  # one key and value for the whole batch
        k, v = np.broadcast_to(k[:1], k.shape), np.broadcast_to(v[:1], v.shape)
    scores = (batch, heads, rows, keys)
    keywords |= _terms(draw, rng, dtype, scores)
    if swapped:
        keywords["layout"] = "bhsd"
    if draw(st.integers(0, 3)) == 0:
        keywords["seqused_k"] = rng.integers(0, keys + 1, batch).astype(np.int32)
    if draw(st.integers(0, 7)) == 0:
        sizes = draw(st.sampled_from([4, 16])), draw(st.sampled_from([3, 32]))
        tiles = (-(-rows // sizes[0]), -(-keys // sizes[1]))
        keywords["block_mask"] = rng.random((draw(st.sampled_from([1, heads])), *tiles)) < 0.6
        keywords["block_size_q"], keywords["block_size_k"] = sizes
    return Call(dtype, (q, k, v), keywords, scores)


@st.composite
def packed_calls(draw: Any) -> Call:
    """Sequences of different lengths, one after another."""
    heads, heads_kv, dim, dim_v = _sizes(draw)
    dtype = draw(st.sampled_from(list(DTYPES)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    lengths = draw(st.lists(st.tuples(LENGTHS, LENGTHS), min_size=1, max_size=4))
    rows, keys = ([pair[side] for pair in lengths] for side in (0, 1))
    keywords = _scalars(draw)
    scores = (len(lengths), heads, max(rows), max(keys))
    keywords |= _terms(draw, rng, dtype, scores)
    for name, counts in (("cu_seqlens_q", rows), ("cu_seqlens_k", keys)):
        keywords[name] = np.cumsum([0, *counts]).astype(np.int32)
    if draw(st.integers(0, 3)) == 0:
        used = [rng.integers(0, n + 1) for n in keys]
        keywords["seqused_k"] = np.array(used, np.int32)

    def tokens(n: int, h: int, d: int) -> np.ndarray:
        return arranged(rng.standard_normal((n, h, d)).astype(DTYPES[dtype]), draw(FORMS))

    return Call(dtype, (tokens(sum(rows), heads, dim), tokens(sum(keys), heads_kv, dim),
                        tokens(sum(keys), heads_kv, dim_v)), keywords, scores)


@st.composite
def cached_calls(draw: Any) -> Call:
    """Keys in pages, or in rows of a cache, with lengths and left padding; forward only."""
    heads, heads_kv, dim, dim_v = _sizes(draw)
    dtype = draw(st.sampled_from(list(DTYPES)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    batch, rows = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 5, 17]))
    keywords = _scalars(draw)
    paged = draw(st.booleans())
    size = draw(st.sampled_from([1, 3, 16, 32] if paged else [1, 9, 40, 64]))
    count = draw(st.integers(1, 4)) if paged else 1
    held = batch * count + draw(st.integers(0, 2))
    if paged:
        table = rng.permutation(held)[:batch * count].reshape(batch, count)
        keywords["block_table"] = table.astype(np.int32)
    else:
        keywords["cache_batch_idx"] = rng.permutation(held)[:batch].astype(np.int32)
    used = rng.integers(0, count * size + 1, batch).astype(np.int32)
    keywords["seqused_k"] = used
    if draw(st.booleans()):
        keywords["leftpad_k"] = (used * rng.random(batch)).astype(np.int32)
    scores = (batch, heads, rows, int(used.max()) if paged else size)
    keywords |= _terms(draw, rng, dtype, scores)

    def tokens(*shape: int) -> np.ndarray:
        return arranged(rng.standard_normal(shape).astype(DTYPES[dtype]), draw(FORMS))

    return Call(dtype, (tokens(batch, rows, heads, dim), tokens(held, size, heads_kv, dim),
                        tokens(held, size, heads_kv, dim_v)), keywords, scores)


def to_torch(array: Any) -> Any:
    """A tensor of the same values; of the same memory where torch knows its strides."""
    if not isinstance(array, np.ndarray):
        return array
    if any(s < 0 for s in array.strides):
        array = array.copy()
    if not array.flags.writeable:  # a stride of 0; it is only read
        whole = tuple(slice(0, 1) if s == 0 else slice(None) for s in array.strides)
        return to_torch(array[whole].copy()).expand(array.shape)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)

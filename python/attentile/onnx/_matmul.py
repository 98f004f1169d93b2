# SPDX-License-Identifier: Apache-2.0
"""qk_matmul_output, the one output of the operator that is queries by keys, in NumPy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from attentile.onnx._attention import Band


def _visible(band: Band, mask: Any, queries: int, keys: int) -> Any:
    """Which (query, key) are visible: bool, broadcastable to the scores."""
    i = np.arange(queries)[:, None] + band.past
    j = np.arange(keys)
    seen = np.ones((1, 1, queries, keys), bool)
    if band.nonpad is not None:
        used = band.nonpad.astype(np.int64)[:, None, None, None]
        i = i + (used - queries)
        seen = seen & (j < used)
    if band.causal:
        seen = seen & (j <= i)
    if band.left >= 0:
        seen = seen & (j + band.left >= i)
    if band.right >= 0:
        seen = seen & (j - band.right <= i)
    if mask is not None:
        if mask.shape[-1] < keys:
            seen = seen & (j < mask.shape[-1])
        if mask.dtype == np.bool_:
            seen = seen & _padded(mask, keys)
    return seen


def _padded(mask: Any, keys: int) -> Any:
    """mask with its last dimension lengthened; the new keys are hidden elsewhere."""
    missing = keys - mask.shape[-1]
    return np.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, missing)]) if missing else mask


def output(
    q: Any, k: Any, *, mode: int, scale: float | None, softcap: float, mask: Any, band: Band,
    lse: Any, dtype: Any,
) -> Any:
    """The fourth output, [batch, q_num_heads, L, S] in q's type.

    q, k: [batch, heads, seqlen, head size]; mask: attn_mask; lse: [batch, q_num_heads, L] of the
    library's call, for mode 3; dtype: the call's type.
    """
    batch, heads, queries, size = q.shape
    _, heads_kv, keys, _ = k.shape
    wide = np.float64 if dtype == np.float64 else np.float32
    factor = scale if scale is not None else 1.0 / math.sqrt(size) if size else 1.0
    groups = q.astype(wide).reshape(batch, heads_kv, heads // max(heads_kv, 1), queries, size)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        scores = np.matmul(groups * wide(factor), k.astype(wide)[:, :, None].swapaxes(-1, -2))
        scores = scores.reshape(batch, heads, queries, keys)
        if mode >= 1 and softcap > 0:
            scores = wide(softcap) * np.tanh(scores / wide(softcap))
        if mode >= 2:
            if mask is not None and mask.dtype != np.bool_:
                scores = scores + _padded(mask.astype(wide), keys)
            scores = np.where(_visible(band, mask, queries, keys), scores, wide(-np.inf))
        if mode == 3:
            rows = lse.astype(wide)[..., None]
            scores = np.where(rows == -np.inf, wide(0), np.exp(scores - rows))
        return scores.astype(q.dtype)

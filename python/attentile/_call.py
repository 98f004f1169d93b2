# SPDX-License-Identifier: Apache-2.0
"""The one file that knows the binding: names and order of tensors, options made once per set."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from attentile import _core

# Optional tensors of a call, in the order that attentile._core takes them after q, k, v, out, lse
# and keep.
TENSORS = ("bias", "mask", "sink", "alibi_slopes", "cu_seqlens_q", "cu_seqlens_k", "seqused_k",
           "block_table", "cache_batch_idx", "leftpad_k", "block_mask")
POSITION = {name: 6 + index for index, name in enumerate(TENSORS)}


class TensorKeywords(TypedDict, total=False):
    """Optional tensors of a call; shapes as in `attentile.attention`."""

    bias: Any
    mask: Any
    sink: Any
    alibi_slopes: Any
    cu_seqlens_q: Any
    cu_seqlens_k: Any
    seqused_k: Any
    block_table: Any
    cache_batch_idx: Any
    leftpad_k: Any
    block_mask: Any


class ScalarKeywords(TypedDict, total=False):
    """Scalars of a call; their meaning is told in `attentile.attention`."""

    softmax_scale: float | None
    causal: bool
    alignment: Literal["bottom_right", "top_left"]
    position_offset: int | None
    window_left: int
    window_right: int
    softcap: float
    dropout_p: float
    dropout_seed: int
    dropout_offset: int
    query_base: int
    key_base: int
    head_base: int
    batch_base: int
    dropout_num_heads_q: int
    block_size_q: int
    block_size_k: int
    algorithm: Literal["auto", "reference", "standard", "flash1", "flash2"]
    isa: Literal["auto", "scalar", "avx2", "avx512", "avx512_bf16", "amx", "neon", "neon_bf16"]
    fast_memory_bytes: int
    max_seqlen_q: int
    max_seqlen_k: int
    atomic_dq: bool
    layout: Literal["bshd", "bhsd"]


class Keywords(TensorKeywords, ScalarKeywords, total=False):
    """Every keyword of a call that is not of one framework alone."""


_made: dict[tuple[Any, ...], _core.Options] = {}


def make_options(scalars: dict[str, Any]) -> _core.Options:
    """The Options of these scalars; the same object for the same ones, except of dropout."""
    key = (tuple(scalars.items()), tuple(map(type, scalars.values())))
    try:
        found = _made.get(key)
    except TypeError:  # an unhashable value: let the binding name it
        return _core.Options(**scalars)
    if found is None:
        found = _core.Options(**scalars)
        plain = all(type(value) in PLAIN_SCALARS for value in scalars.values())
        if plain and "dropout_seed" not in scalars:
            if len(_made) >= 1024:
                _made.clear()
            _made[key] = found
    return found


# Types whose equality means equality for the binding.
PLAIN_SCALARS = frozenset((int, float, bool, str, type(None)))


def split(keywords: Any) -> tuple[list[Any], dict[str, Any]]:
    """The optional tensors in the binding's order (empty if there are none), and the scalars."""
    tensors: list[Any] = []
    for name in keywords:
        if name in POSITION:
            break
    else:
        return tensors, keywords
    scalars = {}
    tensors = [None] * len(TENSORS)
    for name, value in keywords.items():
        position = POSITION.get(name)
        if position is None:
            scalars[name] = value
        else:
            tensors[position - 6] = value
    return tensors, scalars


def lse_shape(q_shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """[batch, num_heads_q, seqlen_q]; packed [num_heads_q, total_q]."""
    if len(q_shape) == 4:
        batch, rows, heads, _ = q_shape
        return (batch, rows, heads) if layout == "bhsd" else (batch, heads, rows)
    return (q_shape[1], q_shape[0]) if len(q_shape) == 3 else q_shape[:3]


def keys_of(k_shape: tuple[int, ...], keywords: Any) -> int:
    """seqlen_k of a call: the columns of its keep decisions."""
    rows = 2 if keywords.get("layout") == "bhsd" else 1
    table = keywords.get("block_table")
    if table is not None:
        lengths = keywords.get("seqused_k")
        if getattr(table, "is_cuda", False):  # what it holds is not looked at
            return int(keywords.get("max_seqlen_k") or 0) or int(table.shape[1]) * k_shape[rows]
        return int(lengths.max()) if getattr(lengths, "shape", (0,))[0] else 0
    return k_shape[rows] if len(k_shape) > rows else 0

# SPDX-License-Identifier: Apache-2.0
"""The operator Attention on NumPy arrays: its inputs and attributes brought to one call."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

import attentile
from attentile.onnx import _matmul

_FLOATS = ("float16", "bfloat16", "float32", "float64")
# Values of softmax_precision, which are numbers of onnx.TensorProto.DataType.
_PRECISIONS = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}


class Outputs(NamedTuple):
    """What the operator returns; qk_matmul_output is None unless it was asked for, present_key and
    present_value are None beside nonpad_kv_seqlen."""

    Y: Any
    present_key: Any = None
    present_value: Any = None
    qk_matmul_output: Any = None


@dataclass
class Band:
    """Which keys a query may see: positions, bounds and used keys, as the operator has them."""

    causal: bool
    left: int
    right: int
    past: int
    nonpad: Any  # [batch] int32, or None

    def keywords(self) -> dict[str, Any]:
        """The same as keywords of `attentile.attention`."""
        words: dict[str, Any] = {"causal": self.causal, "window_left": self.left,
                                 "window_right": self.right}
        if self.nonpad is None:
            return {**words, "position_offset": self.past}
        # The used length of a batch entry is its seqlen_k, so bottom_right is offset nonpad - L.
        return {**words, "seqused_k": self.nonpad, "alignment": "bottom_right"}


@dataclass
class _Heads:
    """Q, K and V as [batch, heads, seqlen, head size], views of what was given."""

    q: Any
    k: Any
    v: Any
    rank: int

    @property
    def scores_shape(self) -> tuple[int, int, int, int]:
        """[batch, q_num_heads, q_sequence_length, total_sequence_length]"""
        return (*self.q.shape[:3], self.k.shape[2])


def _array(name: str, given: Any) -> Any:
    if not isinstance(given, np.ndarray):
        raise TypeError(f"{name}: was a {type(given).__name__}, expected a NumPy array")
    return given


def _float_array(name: str, given: Any) -> Any:
    if _array(name, given).dtype.name not in _FLOATS:
        raise TypeError(f"{name}: was of {given.dtype}, expected one of {', '.join(_FLOATS)}")
    return given


def _integer(name: str, given: Any, least: int) -> int:
    try:
        value = operator.index(given)
    except TypeError:
        raise TypeError(f"{name}: was {given!r}, expected an integer") from None
    if not least <= value < 1 << 63:
        raise ValueError(f"{name}: was {value}, expected an integer of at least {least}")
    return value


def _number(name: str, given: Any) -> float:
    try:
        value = float(given)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: was {given!r}, expected a number") from None
    if not math.isfinite(value):
        raise ValueError(f"{name}: was {value}, expected a finite number")
    return value


def _split_heads(name: str, x: Any, attribute: str, heads: Any) -> Any:
    """[batch, heads, seqlen, head size] of an input of rank 3 or 4."""
    if x.ndim == 4:
        if heads is not None and _integer(attribute, heads, 1) != x.shape[1]:
            raise ValueError(f"{attribute}: was {heads}, expected {x.shape[1]}, the heads of the "
                             f"4-D {name}, or nothing")
        return x
    if heads is None:
        raise ValueError(f"{attribute}: was not given, expected the number of heads of the 3-D "
                         f"{name}")
    count = _integer(attribute, heads, 1)
    if x.shape[2] % count:
        raise ValueError(f"{attribute}: was {count}, expected a divisor of the hidden size "
                         f"{x.shape[2]} of {name}")
    return x.reshape(*x.shape[:2], count, x.shape[2] // count).swapaxes(1, 2)


def _heads_of(Q: Any, K: Any, V: Any, q_num_heads: Any, kv_num_heads: Any) -> _Heads:
    for name, x in (("Q", Q), ("K", K), ("V", V)):
        if _float_array(name, x).ndim not in (3, 4):
            raise ValueError(f"{name}: was of shape {x.shape}, expected 3 or 4 dimensions")
        if x.ndim != Q.ndim:
            raise ValueError(f"{name}: was of shape {x.shape}, expected {Q.ndim} dimensions as of "
                             "Q")
    if K.dtype != Q.dtype:
        raise TypeError(f"K: was of {K.dtype}, expected {Q.dtype} as of Q")
    q = _split_heads("Q", Q, "q_num_heads", q_num_heads)
    k = _split_heads("K", K, "kv_num_heads", kv_num_heads)
    v = _split_heads("V", V, "kv_num_heads", kv_num_heads)
    if k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise ValueError(f"K: was of batch {k.shape[0]} and head size {k.shape[3]}, expected batch "
                         f"{q.shape[0]} and head size {q.shape[3]} as of Q")
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(f"V: was of (batch, heads, sequence) {v.shape[:3]}, expected "
                         f"{k.shape[:3]} as of K")
    if q.shape[1] % k.shape[1] if k.shape[1] else q.shape[1]:
        raise ValueError(f"K: was of {k.shape[1]} heads, expected a divisor of Q's {q.shape[1]}")
    return _Heads(q, k, v, Q.ndim)


def _append(name: str, past: Any, new: Any) -> Any:
    """past and new along the sequence."""
    _float_array(name, past)
    wanted = (*new.shape[:2], "any", new.shape[3])
    if past.ndim != 4 or (past.shape[:2], past.shape[3]) != (new.shape[:2], new.shape[3]):
        raise ValueError(f"{name}: was of shape {past.shape}, expected {wanted}")
    if past.dtype != new.dtype:
        raise TypeError(f"{name}: was of {past.dtype}, expected {new.dtype}")
    return np.concatenate((past, new), axis=2)


def _with_past(heads: _Heads, past_key: Any, past_value: Any) -> _Heads:
    """The same heads, with the past before K and V."""
    if past_key is None and past_value is None:
        return heads
    if past_key is None or past_value is None:
        raise ValueError("past_key, past_value: one of them was given, expected both or neither")
    k, v = _append("past_key", past_key, heads.k), _append("past_value", past_value, heads.v)
    if k.shape[2] != v.shape[2]:
        raise ValueError(f"past_value: was {past_value.shape[2]} long, expected "
                         f"{past_key.shape[2]} as past_key")
    return _Heads(heads.q, k, v, heads.rank)


def _nonpad(given: Any, heads: _Heads) -> Any:
    """nonpad_kv_seqlen as [batch] int32, checked."""
    batch, _, _, keys = heads.scores_shape
    name = "nonpad_kv_seqlen"
    if _array(name, given).dtype.name not in ("int64", "int32"):
        raise TypeError(f"{name}: was of {given.dtype}, expected int64")
    if given.shape != (batch,):
        raise ValueError(f"{name}: was of shape {given.shape}, expected {(batch,)}")
    if batch and not 0 <= int(given.min()) <= int(given.max()) <= keys:
        raise ValueError(f"{name}: was {given.tolist()}, expected lengths from 0 to {keys}")
    return given.astype(np.int32)


def _check_mask(mask: Any, heads: _Heads, nonpad: Any) -> None:
    shape = heads.scores_shape
    kind = _array("attn_mask", mask).dtype
    if kind != np.bool_ and kind != heads.q.dtype and kind != np.float32:
        raise TypeError(f"attn_mask: was of {kind}, expected bool or {heads.q.dtype} as of Q")
    wanted = f"one that broadcasts to {shape}, or shorter in the last dimension"
    if not 1 <= mask.ndim <= 4 or mask.shape[-1] > shape[3]:
        raise ValueError(f"attn_mask: was of shape {mask.shape}, expected {wanted}")
    before = mask.shape[:-1]
    if any(n not in (1, full) for n, full in zip(before, shape[4 - mask.ndim:3], strict=True)):
        raise ValueError(f"attn_mask: was of shape {mask.shape}, expected {wanted}")
    if nonpad is not None and nonpad.size and mask.shape[-1] < nonpad.max():
        raise ValueError(f"attn_mask: was {mask.shape[-1]} long in the last dimension, expected at "
                         f"least {nonpad.max()}, the largest of nonpad_kv_seqlen: give the hidden "
                         "keys in it")


def _working_dtype(heads: _Heads, softmax_precision: Any) -> Any:
    """The type to compute in: at least as exact as every type that takes part."""
    names = {heads.q.dtype.name, heads.v.dtype.name}
    if softmax_precision is not None:
        precision = _integer("softmax_precision", softmax_precision, 0)
        if precision not in _PRECISIONS:
            raise ValueError(f"softmax_precision: was {precision}, expected one of "
                             f"{sorted(_PRECISIONS)}")
        # The library's softmax is float32 for 16-bit types, so only float64 asks for more.
        if _PRECISIONS[precision] == "float64":
            names.add("float64")
    if "float64" in names:
        return np.dtype(np.float64)
    return heads.q.dtype if len(names) == 1 else np.dtype(np.float32)


def _call(heads: _Heads, mask: Any, dtype: Any, want_lse: bool, **keywords: Any) -> tuple[Any, Any]:
    """(Y in the working dtype and Q's rank, lse or None)."""
    k, v = heads.k, heads.v
    if mask is not None:
        # Keys beyond a short mask are hidden: the call ends before them.
        k, v = k[:, :, :mask.shape[-1]], v[:, :, :mask.shape[-1]]
        if mask.dtype == np.bool_:
            keywords["mask"] = mask
        else:
            keywords["bias"] = mask if mask.dtype == np.float32 else mask.astype(dtype, copy=False)
    tensors = [x.astype(dtype, copy=False) for x in (heads.q, k, v)]
    layout: Literal["bshd", "bhsd"] = "bhsd"
    if heads.rank == 3:  # Y is then [batch, seqlen, heads, head size] in memory
        tensors, layout = [x.swapaxes(1, 2) for x in tensors], "bshd"
    result = attentile.attention(*tensors, layout=layout, return_lse=want_lse, **keywords)
    y, lse = result if want_lse else (result, None)
    return (y.reshape(*y.shape[:2], -1) if heads.rank == 3 else y), lse


# signature of ONNX Attention, opset 25
def attention(
    Q: Any, K: Any, V: Any, attn_mask: Any = None, past_key: Any = None, past_value: Any = None,
    nonpad_kv_seqlen: Any = None, *, is_causal: int = 0, scale: float | None = None,
    softcap: float = 0.0, q_num_heads: int | None = None, kv_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0, softmax_precision: int | None = None,
    left_window_size: int = -1, right_window_size: int = -1, want_qk_matmul_output: bool = False,
) -> Outputs:
    """The ONNX operator Attention (opset 25; 23 and 24 are subsets), on NumPy arrays.

    Args:
        Q: (batch, q_num_heads, L, D), or (batch, L, q_num_heads * D); float16, bfloat16 (of
            ml_dtypes), float32 or float64.
        K, V: (batch, kv_num_heads, S, D) and (.., D_v), or of rank 3 as Q; q_num_heads is a
            multiple of kv_num_heads. V may be of another type than Q and K.
        attn_mask: bool (True: visible) or Q's type (added to the scores), rank 1 to 4, broadcast to
            (batch, q_num_heads, L, S); keys beyond a shorter last dimension are hidden, also where
            it is 1.
        past_key, past_value: (batch, kv_num_heads, P, D), put before K and V; both or neither.
        nonpad_kv_seqlen: (batch,) int64, keys used of each entry.
        is_causal: 1: query i sees keys j <= i + offset; offset is P with a past, nonpad_kv_seqlen -
            L with that, else 0.
        left_window_size, right_window_size: keys from i + offset - left to i + offset + right; -1:
            all.
        scale: default 1 / sqrt(D). softcap: 0: none; applied before the mask.
        q_num_heads, kv_num_heads: for inputs of rank 3.
        softmax_precision: 1, 10, 11 or 16; a lower bound: the softmax is float32 for types of 16
            and 32 bits, float64 for float64; 11 computes the whole call in float64.
        qk_matmul_output_mode: 0: scores; 1: after softcap; 2: after the mask; 3: after softmax.
        want_qk_matmul_output: not of the operator: compute its fourth output, which takes L * S
            elements, in NumPy.

    Returns: Outputs. Y is shaped as Q with D_v. present_key and present_value are of rank 4; they
    are views of K and V where there is no past. A query that sees no key has zeros in Y.

    Raises ValueError, TypeError; each sentence names the input or attribute.
    Source: the ONNX operator specification, Attention-25.
    """
    heads = _heads_of(Q, K, V, q_num_heads, kv_num_heads)
    if nonpad_kv_seqlen is not None and not past_key is past_value is None:
        raise ValueError("nonpad_kv_seqlen: was given together with past_key or past_value, "
                         "expected one kind of cache")
    new_keys = heads.k.shape[2]
    heads = _with_past(heads, past_key, past_value)
    past = heads.k.shape[2] - new_keys
    nonpad = None if nonpad_kv_seqlen is None else _nonpad(nonpad_kv_seqlen, heads)
    if attn_mask is not None:
        _check_mask(attn_mask, heads, nonpad)
    mode = _integer("qk_matmul_output_mode", qk_matmul_output_mode, 0)
    if mode > 3:
        raise ValueError(f"qk_matmul_output_mode: was {mode}, expected one of 0, 1, 2, 3")
    if is_causal not in (0, 1):
        raise ValueError(f"is_causal: was {is_causal!r}, expected 0 or 1")
    cap = _number("softcap", softcap)
    if cap < 0:
        raise ValueError(f"softcap: was {cap}, expected 0 or a positive number")
    if scale is not None:
        scale = _number("scale", scale)
    band = Band(bool(is_causal), _integer("left_window_size", left_window_size, -1),
                _integer("right_window_size", right_window_size, -1), past, nonpad)
    dtype = _working_dtype(heads, softmax_precision)
    y, lse = _call(heads, attn_mask, dtype, want_qk_matmul_output and mode == 3,
                   softmax_scale=scale, softcap=cap, **band.keywords())
    scores = None
    if want_qk_matmul_output:
        scores = _matmul.output(heads.q, heads.k, mode=mode, scale=scale, softcap=cap,
                                mask=attn_mask, band=band, lse=lse, dtype=dtype)
    y = y.astype(Q.dtype, copy=False)
    if nonpad is not None:
        return Outputs(y, qk_matmul_output=scores)
    return Outputs(y, heads.k, heads.v, scores)

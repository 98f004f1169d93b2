# SPDX-License-Identifier: Apache-2.0
"""Attentile for JAX on CPU: custom calls of XLA behind the signature of JAX's own attention.

    from attentile.jax import attention
    out = jax.jit(attention, static_argnames="is_causal")(query, key, value, is_causal=True)

Works under jit, grad (query, key, value, bias and the residual), vmap, scan, checkpoint.
"""

from __future__ import annotations

import functools
import importlib.metadata
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from jax.custom_batching import custom_vmap
from jax.custom_derivatives import SymbolicZero

from attentile import _core

if TYPE_CHECKING:
    from collections.abc import Callable

    from jax import Array
    from jax.typing import ArrayLike

__all__ = ["attention"]


def _register() -> None:
    handlers = getattr(_core, "jax_handlers", None)
    if handlers is None:
        raise ImportError(
            "attentile.jax: this build of attentile has no handlers for XLA, expected one made "
            "where jaxlib was installed; run: pip install --no-binary attentile attentile, "
            "without ATTENTILE_NO_JAX in the environment")
    for name, capsule in handlers().items():
        try:
            jax.ffi.register_ffi_target(name, capsule, platform="cpu")
        except Exception as error:
            raise ImportError(
                f"attentile.jax: jaxlib {importlib.metadata.version('jaxlib')} refused the "
                f"handlers of this build ({error}); build attentile with the headers of that "
                "jaxlib") from error


_register()

_DTYPES = ("float32", "float16", "bfloat16", "float64")
# Bits of the attribute "given", as binding/jax.cc reads them.
_BIAS, _MASK, _QUERY_LENGTHS, _KEY_LENGTHS, _DLSE = 1, 2, 4, 8, 16


class _Options(NamedTuple):
    """Scalars of a call; constants of the compiled program."""

    scale: float
    causal: bool
    window_left: int
    window_right: int

    def attributes(self, *optional: Any) -> dict[str, Any]:
        given = sum(bit for bit, x in zip((_BIAS, _MASK, _QUERY_LENGTHS, _KEY_LENGTHS, _DLSE),
                                          optional, strict=False) if x is not None)
        return {"scale": np.float64(self.scale), "causal": self.causal,
                "window_left": np.int64(self.window_left),
                "window_right": np.int64(self.window_right), "given": np.int64(given)}


def _result(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def _fold(x: Any, batched: bool, size: int, batch: int) -> Any:
    """[size, batch, ...] as [size * batch, ...]; what has no such dimension is repeated."""
    if x is None:
        return None
    if not batched:
        x = jnp.broadcast_to(x, (size, *x.shape))
    if x.shape[1] != batch:
        x = jnp.broadcast_to(x, (size, batch, *x.shape[2:]))
    return x.reshape(size * batch, *x.shape[2:])


def _fold_shared(x: Any, batched: bool | None, size: int, batch: int) -> Any:
    """As _fold, but one entry for every batch stays one: the handler reads it with stride 0."""
    if x is None or (not batched and x.shape[0] == 1):
        return x
    return _fold(x, bool(batched), size, batch)


@functools.lru_cache(maxsize=1024)
def _forward(options: _Options) -> Callable[..., tuple[Array, Array]]:
    """The forward call: (out, lse [batch, seqlen_q, num_heads_q])."""

    @custom_vmap
    def call(q: Any, k: Any, v: Any, *optional: Any) -> Any:
        out = _result((*q.shape[:-1], v.shape[-1]), q.dtype)
        lse = _result(q.shape[:-1], np.float64 if q.dtype == np.float64 else np.float32)
        operands = (x for x in (q, k, v, *optional) if x is not None)
        return tuple(jax.ffi.ffi_call("attentile_forward", (out, lse))(
            *operands, **options.attributes(*optional)))

    @call.def_vmap
    def _over_batch(size: int, batched: Any, q: Any, k: Any, v: Any, *optional: Any) -> Any:
        batch = q.shape[1] if batched[0] else q.shape[0]
        bias, mask, *lengths = optional
        # Packed rows have no room for a shared key: there it is repeated.
        fold = _fold if lengths[0] is not None else _fold_shared
        out, lse = call(
            _fold(q, batched[0], size, batch), fold(k, batched[1], size, batch),
            fold(v, batched[2], size, batch), _fold_shared(bias, batched[3], size, batch),
            _fold_shared(mask, batched[4], size, batch),
            *(_fold(x, b, size, batch) for x, b in zip(lengths, batched[5:], strict=True)))
        shape = (size, batch)
        return (out.reshape(*shape, *out.shape[1:]), lse.reshape(*shape, *lse.shape[1:])), \
            (True, True)

    return call


@functools.lru_cache(maxsize=1024)
def _backward(options: _Options, wants_dbias: bool) -> Callable[..., tuple[Array, ...]]:
    """The backward call: (dq, dk, dv) and, where wanted, dbias."""

    @custom_vmap
    def call(dout: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, *optional: Any) -> Any:
        results = [_result(x.shape, x.dtype) for x in (q, k, v)]
        if wants_dbias:
            results.append(_result(optional[0].shape, optional[0].dtype))
        operands = (x for x in (dout, q, k, v, out, lse, *optional) if x is not None)
        return tuple(jax.ffi.ffi_call("attentile_backward", results)(
            *operands, **options.attributes(*optional)))

    @call.def_vmap
    def _over_batch(size: int, batched: Any, *operands: Any) -> Any:
        q, bias = operands[1], operands[6]
        batch = q.shape[1] if batched[1] else q.shape[0]
        folded = [_fold(x, b, size, batch) for x, b in zip(operands, batched, strict=True)]
        folded[7] = _fold_shared(operands[7], batched[7], size, batch)
        if not wants_dbias:
            folded[6] = _fold_shared(bias, batched[6], size, batch)
        results = [g.reshape(size, batch, *g.shape[1:]) for g in call(*folded)]
        if wants_dbias and bias.shape[1 if batched[6] else 0] != batch:
            results[3] = results[3].sum(axis=1, keepdims=True)
        return tuple(results), (True,) * len(results)

    return call


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(options: _Options, q: Any, k: Any, v: Any, *optional: Any) -> Any:
    return _forward(options)(q, k, v, *optional)


def _attention_fwd(options: _Options, *inputs: Any) -> Any:
    values = tuple(None if x is None else x.value for x in inputs)
    bias = inputs[3]
    wants_dbias = () if bias is not None and bias.perturbed else None  # structure, not a value
    out, lse = _forward(options)(*values)
    return (out, lse), (values, out, lse, wants_dbias)


def _attention_bwd(options: _Options, saved: Any, cotangents: Any) -> Any:
    (q, k, v, *optional), out, lse, wants_dbias = saved
    dout, dlse = cotangents
    dout = jnp.zeros(out.shape, out.dtype) if isinstance(dout, SymbolicZero) else dout
    dlse = None if isinstance(dlse, SymbolicZero) else dlse
    call = _backward(options, wants_dbias is not None)
    gradients = call(dout, q, k, v, out, lse, *optional, dlse)
    return (*gradients, *(None,) * (3 + len(optional) - len(gradients)))


_attention.defvjp(_attention_fwd, _attention_bwd, symbolic_zeros=True)
_compiled = jax.jit(_attention, static_argnums=0)


def _operand(name: str, value: Any, batched: bool) -> Any:
    """value as [batch, seqlen, heads, dim]."""
    array = jnp.asarray(value)
    if array.ndim != (4 if batched else 3):
        raise ValueError(f"{name}: was of shape {array.shape}, expected rank 4 (batch, seqlen, "
                         "heads, head_dim) or, for query, key and value alike, rank 3")
    return array if batched else array[None]


def _check_shapes(q: Any, k: Any, v: Any) -> None:
    for name, x in (("query", q), ("key", k), ("value", v)):
        if x.dtype.name not in _DTYPES:
            raise TypeError(f"{name}: was of dtype {x.dtype}, expected one of {', '.join(_DTYPES)}")
        if x.dtype != q.dtype:
            raise TypeError(f"{name}: was of dtype {x.dtype}, expected query's {q.dtype}")
    batch, _, heads_q, dim = q.shape
    if k.shape[0] != batch or k.shape[3] != dim:
        raise ValueError(f"key: was of shape {k.shape}, expected ({batch}, seqlen_k, "
                         f"num_heads_kv, {dim}) for a query of shape {q.shape}")
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(f"value: was of shape {v.shape}, expected {k.shape[:3]} and a head_dim")
    if (heads_q % k.shape[2] if k.shape[2] else heads_q):
        raise ValueError(f"key: had {k.shape[2]} heads, expected a divisor of query's {heads_q}")


def _broadcastable(name: str, value: Any, scores: tuple[int, ...]) -> Any:
    """bias or mask with four dimensions, each of size 1 or that of the scores."""
    if value is None:
        return None
    array = jnp.asarray(value)
    if array.ndim > 4 or any(size not in (1, full) for size, full in
                             zip(array.shape[::-1], scores[::-1], strict=False)):
        raise ValueError(f"{name}: was of shape {array.shape}, expected one that broadcasts to "
                         f"(batch, num_heads_q, seqlen_q, seqlen_k) = {scores}")
    return array.reshape((1,) * (4 - array.ndim) + array.shape)


def _bias(value: Any, scores: tuple[int, ...], dtype: Any) -> Any:
    array = _broadcastable("bias", value, scores)
    if array is None or array.dtype in (dtype, np.float32):
        return array
    if array.dtype.name not in _DTYPES:
        raise TypeError(f"bias: was of dtype {array.dtype}, expected one of {', '.join(_DTYPES)}")
    return array.astype(np.float64 if dtype == np.float64 else np.float32)


def _mask(value: Any, scores: tuple[int, ...]) -> Any:
    array = _broadcastable("mask", value, scores)
    if array is not None and array.dtype != np.bool_:
        raise TypeError(f"mask: was of dtype {array.dtype}, expected bool (True: visible); an "
                        "additive mask is a bias")
    return array


def _lengths(name: str, value: Any, batch: int) -> Any:
    if value is None:
        return None
    array = jnp.asarray(value)
    if array.dtype != np.int32:
        raise TypeError(f"{name}: was of dtype {array.dtype}, expected int32")
    if array.shape != (batch,):
        raise ValueError(f"{name}: was of shape {array.shape}, expected ({batch},)")
    return array


def _window(value: Any) -> tuple[int, int]:
    """(left, right), -1 for all."""
    if value is None:
        return -1, -1
    pair = (value, value) if isinstance(value, (int, np.integer)) else value
    good = isinstance(pair, (tuple, list)) and len(pair) == 2 and not isinstance(value, bool) \
        and all(isinstance(x, (int, np.integer)) and 0 <= x < 1 << 63 for x in pair)
    if not good:
        raise ValueError(f"local_window_size: was {value!r}, expected None, an integer >= 0, or "
                         "(left, right) of such integers")
    return int(pair[0]), int(pair[1])


def _scale(value: Any, head_dim: int) -> float:
    if value is None:
        return 1.0 / math.sqrt(head_dim) if head_dim else 1.0
    if isinstance(value, jax.core.Tracer):
        raise TypeError("scale: was traced, expected a number that is known when the call is "
                        "traced; multiply query by it instead")
    try:
        scale = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"scale: was {value!r}, expected a number") from None
    if not math.isfinite(scale):
        raise ValueError(f"scale: was {scale}, expected a finite number")
    return scale


# signature of jax.nn.dot_product_attention
def attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, bias: ArrayLike | None = None,
    mask: ArrayLike | None = None, *, scale: float | None = None, is_causal: bool = False,
    query_seq_lengths: ArrayLike | None = None, key_value_seq_lengths: ArrayLike | None = None,
    local_window_size: int | tuple[int, int] | None = None, implementation: str | None = None,
    return_residual: bool = False,
) -> Any:
    """Exact attention in O(seqlen) memory, called as `jax.nn.dot_product_attention`; CPU only.

    Args:
        query: [batch, seqlen_q, num_heads_q, head_dim], or without batch (key and value too).
            float32, float16, bfloat16, or float64 with jax_enable_x64.
        key: [batch, seqlen_k, num_heads_kv, head_dim] in query's dtype; num_heads_q is a multiple
            of num_heads_kv, and no head is ever repeated in memory.
        value: [batch, seqlen_k, num_heads_kv, head_dim_v]; head_dim_v may differ from head_dim.
        bias: floating, broadcastable to [batch, num_heads_q, seqlen_q, seqlen_k]; added to the
            scaled scores. Its gradient is computed only where it is asked for.
        mask: bool, broadcastable likewise; True: visible.
        scale: a number known when traced; default 1 / sqrt(head_dim).
        is_causal: key j is visible to query i if j <= i, whatever the lengths (top-left).
        query_seq_lengths, key_value_seq_lengths: [batch] int32, rows and keys used of each entry.
        local_window_size: (left, right): keys i - left to i + right, inclusive; an integer: both.
        implementation: None or "attentile".
        return_residual: also return lse, natural logarithm.

    Returns: out [batch, seqlen_q, num_heads_q, head_dim_v] in query's dtype; with return_residual
    (out, lse [batch, seqlen_q, num_heads_q]); without batch where query has none.

    Differs from JAX: a row that sees no key is 0 with lse -inf (JAX: the mean of value; NaN under a
    bias of -inf), as are rows past query_seq_lengths; NaN in hidden keys and values has no effect;
    lse is float32 (float64 for float64) and carries a gradient (JAX: query's dtype, none); a length
    below 0 or past the end is an error when the call runs (JAX clamps).

    Raises: ValueError, TypeError when traced, jax.errors.JaxRuntimeError when run; each sentence
    names the argument, what it was and what was expected. Forward-mode and second derivatives are
    refused.

    Source: signature of jax.nn.dot_product_attention (JAX 0.10); Dao 2023, algorithms 1, 2.
    """
    if implementation not in (None, "attentile"):
        raise ValueError(f"implementation: was {implementation!r}, expected None or 'attentile'; "
                         "jax.nn.dot_product_attention has the others")
    for name, flag in (("is_causal", is_causal), ("return_residual", return_residual)):
        if not isinstance(flag, (bool, np.bool_)):
            raise TypeError(f"{name}: was {flag!r}, expected True or False, known when traced")
    batched = jnp.ndim(query) != 3
    q, k, v = (_operand(name, x, batched)
               for name, x in (("query", query), ("key", key), ("value", value)))
    _check_shapes(q, k, v)
    batch, rows, heads, dim = q.shape
    scores = (batch, heads, rows, k.shape[1])
    added, visible = _bias(bias, scores, q.dtype), _mask(mask, scores)
    lengths = (_lengths("query_seq_lengths", query_seq_lengths, batch),
               _lengths("key_value_seq_lengths", key_value_seq_lengths, batch))
    packs = added is None and visible is None and batch * max(rows, k.shape[1]) < 1 << 31
    if lengths[0] is not None and not packs:
        used = (jnp.arange(rows) < lengths[0][:, None])[:, None, :, None]
        visible = used if visible is None else visible & used
    options = _Options(_scale(scale, dim), bool(is_causal), *_window(local_window_size))
    out, lse = _compiled(options, q, k, v, added, visible, *lengths)
    if not batched:
        out, lse = out[0], lse[0]
    return (out, lse) if return_residual else out

# SPDX-License-Identifier: Apache-2.0
"""memory_efficient_attention: shapes of xFormers brought to one call of the library."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch

from attentile import UnsupportedError
from attentile.compat.xformers.ops.fmha._blocks import _Divided
from attentile.compat.xformers.ops.fmha._dense import (
    AttentionBias,
    LowerTriangularMaskWithTensorBias,
)
from attentile.torch import attention, attention_backward

if TYPE_CHECKING:
    from torch import Tensor

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_FORWARD_ONLY = frozenset(("block_table", "cache_batch_idx"))


@dataclass
class _Problem:
    """A call of the library: q, k, v as it takes them, its keywords, and the way back."""

    q: Tensor
    k: Tensor
    v: Tensor
    keywords: dict[str, Any]
    shape: tuple[int, ...]  # of the query
    packed: bool

    def enter(self, x: Tensor) -> Tensor:
        """A tensor shaped as the query (with any last dimension), as the library takes it."""
        return _packed_heads(x)[0] if self.packed else _packed_heads(x)

    def leave(self, x: Tensor, like: tuple[int, ...]) -> Tensor:
        """The library's tensor in the given shape, except for its last dimension."""
        return x.reshape(*like[:-1], x.shape[-1])

    def enter_lse(self, lse: Tensor) -> Tensor:
        wanted = self._lse_shape()
        if tuple(lse.shape) != wanted:
            raise ValueError(f"lse: was of shape {tuple(lse.shape)}, expected {wanted}")
        heads = lse.reshape(lse.shape[0], -1, lse.shape[-1])
        return heads[0] if self.packed else heads

    def leave_lse(self, lse: Tensor) -> Tensor:
        return lse.reshape(self._lse_shape())

    def check_gradient(self, attn_bias: Any) -> None:
        """UnsupportedError where autograd records a call that has no backward pass."""
        if _FORWARD_ONLY.isdisjoint(self.keywords) or not torch.is_grad_enabled():
            return
        if any(x.requires_grad for x in (self.q, self.k, self.v)):
            raise UnsupportedError(f"attn_bias: was a {type(attn_bias).__name__} whose keys are in "
                                   "pages or shared, and a tensor requires a gradient; expected "
                                   "one of them, or memory_efficient_attention_forward")

    def _lse_shape(self) -> tuple[int, ...]:
        """[batch, heads, queries], with groups [batch, groups, heads, queries]."""
        heads = self.shape[2:-1] or (1,)
        return (self.shape[0], *heads, self.shape[1])


def _packed_heads(x: Tensor) -> Tensor:
    """[batch, tokens, head size] or [batch, tokens, (groups,) heads, head size] with one dimension
    of heads."""
    if x.dim() == 3:
        return x.unsqueeze(2)
    return x.flatten(2, 3) if x.dim() == 5 else x


def _share_heads(k: Tensor, v: Tensor) -> bool:
    """Whether heads of a group are one in memory, by expand: then the library reads it once.

    A tensor that takes part in a graph needs the gradient of each of its elements.
    """
    expanded = all(x.dim() > 3 and x.shape[-2] > 1 and x.stride(-2) == 0 for x in (k, v))
    return expanded and not (torch.is_grad_enabled() and any(x.requires_grad for x in (k, v)))


def _one_head(x: Tensor) -> Tensor:
    """[batch, tokens, groups or 1, head size] of tensors whose heads are shared."""
    return x.select(3, 0) if x.dim() == 5 else x[:, :, :1]


def _check_tensors(query: Any, key: Any, value: Any) -> None:
    for name, x in (("query", query), ("key", key), ("value", value)):
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name}: was a {type(x).__name__}, expected a Tensor")
        if x.device.type != "cpu":
            raise ValueError(f"{name}: was on {x.device}, expected a tensor on the CPU")
        if x.dtype not in _DTYPES:
            raise TypeError(f"{name}: was of {x.dtype}, expected one of "
                            f"{', '.join(str(t).rpartition('.')[2] for t in _DTYPES)}")
        if x.dtype != query.dtype:
            raise TypeError(f"{name}: was of {x.dtype}, expected {query.dtype} as query")
        if x.dim() not in (3, 4, 5) or x.dim() != query.dim():
            raise ValueError(f"{name}: was of shape {tuple(x.shape)}, expected [batch, tokens, head"
                             " size], [batch, tokens, heads, head size] or [batch, tokens, groups, "
                             "heads, head size], the same for query, key and value")
    batch, heads, size = query.shape[0], tuple(query.shape[2:-1]), query.shape[-1]
    wanted = (batch, "any", *heads, size)
    if (key.shape[0], *key.shape[2:]) != (batch, *heads, size):
        raise ValueError(f"key: was of shape {tuple(key.shape)}, expected {wanted}; heads are not "
                         "broadcast, expand them")
    if value.shape[:-1] != key.shape[:-1]:
        raise ValueError(f"value: was of shape {tuple(value.shape)}, expected "
                         f"{(*key.shape[:-1], 'any')}")


def _check_scalars(p: Any, scale: Any, op: Any, output_dtype: Any) -> None:
    if op is not None and op != (None, None):
        raise UnsupportedError(f"op: was {op!r}, expected None: operators of xFormers are not here")
    if not isinstance(p, Real) or not 0 <= float(p) <= 1:
        raise ValueError(f"p: was {p!r}, expected a probability from 0 to 1")
    if scale is not None and (not isinstance(scale, Real) or not math.isfinite(scale)):
        raise ValueError(f"scale: was {scale!r}, expected a finite number")
    if output_dtype is not None and output_dtype not in _DTYPES:
        raise ValueError(f"output_dtype: was {output_dtype}, expected a floating-point type of at "
                         "least 16 bits")


def _tensor_bias(bias: Tensor, query: Tensor, key: Tensor, dtype: torch.dtype) -> Tensor:
    """A bias as [batch, heads, queries, keys], or a view that broadcasts to it."""
    wanted = (query.shape[0], *query.shape[2:-1], query.shape[1], key.shape[1])
    if not isinstance(bias, torch.Tensor):
        raise TypeError(f"attn_bias: held a {type(bias).__name__}, expected a Tensor")
    if bias.dtype not in (query.dtype, torch.float32):
        raise TypeError(f"attn_bias: was of {bias.dtype}, expected {query.dtype} as query; it is "
                        "added to the scores")
    shape = tuple(bias.shape)
    if shape != wanted and not (len(wanted) == 3 and shape == (1, *wanted[1:])):
        raise ValueError(f"attn_bias: was of shape {shape}, expected {wanted}")
    if bias.dtype not in (dtype, torch.float32):
        bias = bias.to(dtype)
    if bias.dim() == 3:
        return bias.unsqueeze(1)
    return bias.flatten(1, 2) if bias.dim() == 5 else bias


# signature of memory_efficient_attention
def _problem(query: Tensor, key: Tensor, value: Tensor, attn_bias: Any, p: float,
             scale: float | None, *, op: Any, dtype: torch.dtype | None,
             share: bool = True) -> _Problem:
    """The library's call, computed in the wider of the query's type and dtype.

    share: read heads that expand made equal once; then dk and dv are of shared heads.
    """
    _check_scalars(p, scale, op, dtype)
    _check_tensors(query, key, value)
    wide = query.dtype if dtype is None else torch.promote_types(query.dtype, dtype)
    one = share and _share_heads(key, value)
    k, v = (_one_head(x) if one else _packed_heads(x) for x in (key, value))
    q = _packed_heads(query)
    keywords: dict[str, Any] = {"softmax_scale": scale}
    if p:
        keywords["dropout_p"] = p
    packed = isinstance(attn_bias, _Divided)
    if isinstance(attn_bias, torch.Tensor):
        keywords["bias"] = _tensor_bias(attn_bias, query, key, wide)
    elif isinstance(attn_bias, _Divided):
        if query.shape[0] != 1:
            raise ValueError(f"query: was of batch {query.shape[0]}, expected 1 beside a "
                             f"{type(attn_bias).__name__}")
        attn_bias.check_totals(query.shape[1], key.shape[1])
        k, v, more = attn_bias.arrange(k[0], v[0])
        q = q[0]
        keywords.update(more)
    elif isinstance(attn_bias, AttentionBias):
        keywords.update(attn_bias.band.keywords())
        if isinstance(attn_bias, LowerTriangularMaskWithTensorBias):
            keywords["bias"] = _tensor_bias(attn_bias._bias, query, key, wide)
    elif attn_bias is not None:
        raise TypeError(f"attn_bias: was a {type(attn_bias).__name__}, expected a Tensor, None or "
                        "an AttentionBias of attentile.compat.xformers.ops.fmha.attn_bias")
    return _Problem(q.to(wide), k.to(wide), v.to(wide), keywords, tuple(query.shape), packed)


# signature of xformers.ops.memory_efficient_attention
def memory_efficient_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_bias: Tensor | AttentionBias | None = None,
    p: float = 0.0, scale: float | None = None, *, op: Any = None,
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    """softmax(query key^T * scale + attn_bias) value, with gradients, in O(tokens) memory.

    Args:
        query: [batch, Mq, heads, K], [batch, Mq, K] (one head), or [batch, Mq, groups, heads, K].
        key, value: [batch, Mkv, heads, K or Kv], of the query's rank; heads that are equal come by
            expand, as with xFormers, and are then read once.
        attn_bias: a tensor [batch, heads, Mq, Mkv] (groups as in query) of the query's type or
            float32, added to the scores and differentiable; or a mask of `fmha.attn_bias`.
        p: probability of dropout, drawn from torch's generator. scale: default 1 / sqrt(K).
        op: None; operators of xFormers are not here.
        output_dtype: default the query's. A wider type than that is the type computed in.

    Returns [batch, Mq, heads, Kv], shaped as the query. A row that sees no key is 0.
    Raises ValueError, TypeError, UnsupportedError (a mask whose keys are in pages, or share memory,
    and a gradient). Signature: xformers 0.0.35.
    """
    problem = _problem(query, key, value, attn_bias, p, scale, op=op, dtype=output_dtype)
    problem.check_gradient(attn_bias)
    out = attention(problem.q, problem.k, problem.v, **problem.keywords)
    return problem.leave(out, problem.shape).to(output_dtype or query.dtype)


# signature of xformers.ops.memory_efficient_attention_forward
def memory_efficient_attention_forward(
    query: Tensor, key: Tensor, value: Tensor, attn_bias: Tensor | AttentionBias | None = None,
    p: float = 0.0, scale: float | None = None, *, op: Any = None,
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    """`memory_efficient_attention` without a record for gradients."""
    with torch.no_grad():
        return memory_efficient_attention(query, key, value, attn_bias, p, scale, op=op,
                                          output_dtype=output_dtype)


def _refuse_dropout(p: float) -> None:
    if p:
        raise UnsupportedError(f"p: was {p}, expected 0: these functions do not keep the state of "
                               "dropout; memory_efficient_attention does")


# signature of xformers.ops.memory_efficient_attention_forward_requires_grad
def memory_efficient_attention_forward_requires_grad(
    query: Tensor, key: Tensor, value: Tensor, attn_bias: Tensor | AttentionBias | None = None,
    p: float = 0.0, scale: float | None = None, *, op: Any = None,
    output_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """(out, lse), what `memory_efficient_attention_backward` takes.

    lse is float32 (float64 for float64), [batch, heads, Mq]; with groups [batch, groups, heads,
    Mq]; for packed sequences [1, heads, all Mq]. Natural logarithm, -inf where a row sees no key.
    p is 0. Otherwise as `memory_efficient_attention`, without a record for gradients.
    """
    _refuse_dropout(p)
    with torch.no_grad():
        problem = _problem(query, key, value, attn_bias, p, scale, op=op, dtype=output_dtype)
        out, lse = attention(problem.q, problem.k, problem.v, return_lse=True, **problem.keywords)
        return (problem.leave(out, problem.shape).to(output_dtype or query.dtype),
                problem.leave_lse(lse))


# signature of xformers.ops.memory_efficient_attention_backward
def memory_efficient_attention_backward(
    grad: Tensor, output: Tensor, lse: Tensor, query: Tensor, key: Tensor, value: Tensor,
    attn_bias: Tensor | AttentionBias | None = None, p: float = 0.0, scale: float | None = None, *,
    op: Any = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv), from grad of out, and out and lse of
    `memory_efficient_attention_forward_requires_grad`.

    Gradients have the shapes and types of query, key and value; of expanded heads each has its own.
    The other arguments are those of the forward call; p is 0.
    """
    _refuse_dropout(p)
    with torch.no_grad():
        _check_tensors(query, key, value)
        wanted = (*query.shape[:-1], value.shape[-1])
        for name, x in (("grad", grad), ("output", output), ("lse", lse)):
            if not isinstance(x, torch.Tensor):
                raise TypeError(f"{name}: was a {type(x).__name__}, expected a Tensor")
            if x is not lse and tuple(x.shape) != wanted:
                raise ValueError(f"{name}: was of shape {tuple(x.shape)}, expected {wanted}")
        problem = _problem(query, key, value, attn_bias, p, scale, op=op, dtype=output.dtype,
                           share=False)
        wide = problem.q.dtype
        found = attention_backward(
            problem.enter(grad).to(wide), problem.q, problem.k, problem.v,
            problem.enter(output).to(wide), problem.enter_lse(lse), **problem.keywords)
        return tuple(problem.leave(g, tuple(x.shape)).to(x.dtype)  # type: ignore[return-value]
                     for g, x in zip(found[:3], (query, key, value), strict=True))


# signature of xformers.ops.fmha.memory_efficient_attention_partial
def memory_efficient_attention_partial(
    query: Tensor, key: Tensor, value: Tensor, attn_bias: Tensor | AttentionBias | None = None,
    p: float = 0.0, scale: float | None = None, *, op: Any = None,
    output_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """(out, lse) over some of the keys: parts over disjoint keys go to `merge_attentions`.

    As `memory_efficient_attention_forward_requires_grad`, except that output_dtype defaults to
    float32 (float64 for float64), so that parts are merged unrounded. Without gradients: inputs
    that require one are refused (UnsupportedError) unless torch.no_grad() says that none is wanted.
    """
    for name, x in (("query", query), ("key", key), ("value", value)):
        if torch.is_grad_enabled() and getattr(x, "requires_grad", False):
            raise UnsupportedError(f"{name}: requires a gradient, expected none: parts are not "
                                   "differentiable")
    if output_dtype is None and getattr(query, "dtype", None) in _DTYPES:
        output_dtype = torch.promote_types(query.dtype, torch.float32)
    return memory_efficient_attention_forward_requires_grad(
        query, key, value, attn_bias, p, scale, op=op, output_dtype=output_dtype)

# SPDX-License-Identifier: Apache-2.0
"""vmap over the operators: the mapped dimension joins the batch; what cannot join is looped over.

It can where each example is a batch of its own: q, k, v, bias, mask, seqused_k, alibi_slopes. A
packed or paged call, dropout with a state of each example and the gradient of sink are looped over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from attentile._call import POSITION, TENSORS
from attentile.torch import _ops

if TYPE_CHECKING:
    from torch import Tensor

_INDEX = {name: position - 6 for name, position in POSITION.items()}
_STATE = len(TENSORS)
_LOOPED = ("cu_seqlens_q", "cu_seqlens_k", "block_table", "cache_batch_idx", "leftpad_k",
           "block_mask")


def _example(x: Any, dim: int | None, index: int) -> Any:
    return x if dim is None or x is None else x.select(dim, index)


def _loop(op: Any, size: int, in_dims: tuple[Any, ...], args: tuple[Any, ...],
          keywords: dict[str, Any]) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    results = [op(*(_example(x, d, i) for x, d in zip(args, in_dims, strict=False)), **keywords)
               for i in range(size)]
    stacked = tuple(torch.stack(column) for column in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def _joined(x: Tensor, dim: int | None, size: int) -> Tensor:
    """[size * batch, ...] from [batch, ...] or, mapped, from both."""
    wide = x.unsqueeze(0).expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return wide.flatten(0, 1)


def _joined_scores(x: Tensor | None, dim: int | None, size: int, batch: int) -> Tensor | None:
    """bias or mask, [size * batch, h, i, j] from what broadcasts to [batch, h, i, j]."""
    if x is None:
        return None
    wide = x.unsqueeze(0).expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    while wide.dim() < 5:
        wide = wide.unsqueeze(1)
    return wide.expand(size, batch, *wide.shape[2:]).flatten(0, 1)


def _joined_optional(optional: list[Any], dims: list[Any], size: int, batch: int) -> list[Any]:
    for name in ("bias", "mask"):
        i = _INDEX[name]
        optional[i] = _joined_scores(optional[i], dims[i], size, batch)
    used, slopes = _INDEX["seqused_k"], _INDEX["alibi_slopes"]
    if optional[used] is not None:
        optional[used] = _joined(optional[used], dims[used], size)
    if optional[slopes] is not None:
        x, dim = optional[slopes], dims[slopes]
        per_example = x if dim is None else x.movedim(dim, 0)
        if dim is not None or x.dim() == 2:
            rows = per_example.reshape(size if dim is not None else 1, -1, x.shape[-1])
            optional[slopes] = rows.expand(size, batch, -1).reshape(size * batch, -1)
    return optional


def _padded(values: tuple[Any, ...]) -> list[Any]:
    return [*values, *(None,) * (_STATE + 1 - len(values))]


def _must_loop(first: Tensor, first_dim: int | None, optional: list[Any], dims: list[Any],
               needs: tuple[str, ...]) -> bool:
    rank = first.dim() - (first_dim is not None)
    mapped_alone = dims[_STATE] is not None or dims[_INDEX["sink"]] is not None
    return rank != 4 or mapped_alone or any(
        optional[_INDEX[name]] is not None for name in (*_LOOPED, *needs))


def _randomness(info: Any, optional: list[Any], keywords: dict[str, Any]) -> bool:
    """Whether examples share one dropout state; raises where vmap forbids dropout."""
    if not keywords.get("dropout_p", 0.0):
        return False
    if info.randomness == "error":
        raise RuntimeError("vmap: dropout_p was given with randomness='error', expected "
                           "randomness='different' or 'same'")
    return bool(info.randomness == "same")


def _forward(info: Any, in_dims: tuple[Any, ...], q: Tensor, k: Tensor, v: Tensor,
             *rest: Any, **keywords: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    size = info.batch_size
    optional, dims = _padded(rest), _padded(tuple(in_dims[3:]))
    if _randomness(info, optional, keywords) or _must_loop(q, in_dims[0], optional, dims, ()):
        return _loop(_ops.forward, size, in_dims, (q, k, v, *rest), keywords)
    tokens = [_joined(x, d, size) for x, d in zip((q, k, v), in_dims[:3], strict=True)]
    optional = _joined_optional(optional, dims, size, tokens[0].shape[0] // max(size, 1))
    out, lse = _ops.forward(*tokens, *optional, **keywords)
    return (out.unflatten(0, (size, -1)), lse.unflatten(0, (size, -1))), (0, 0)


def _backward(info: Any, in_dims: tuple[Any, ...], *args: Any,
              **keywords: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    size = info.batch_size
    given, rest = args[:7], args[7:]
    optional, dims = _padded(rest), _padded(tuple(in_dims[7:]))
    if _randomness(info, optional, keywords) or _must_loop(given[2], in_dims[2], optional, dims,
                                                           ("sink",)):
        return _loop(_ops.backward, size, in_dims, args, keywords)
    joined = [None if x is None else _joined(x, d, size)
              for x, d in zip(given, in_dims[:7], strict=True)]
    bias, bias_dim = optional[_INDEX["bias"]], dims[_INDEX["bias"]]
    batch = joined[2].shape[0] // max(size, 1)  # type: ignore[union-attr]
    optional = _joined_optional(optional, dims, size, batch)
    dq, dk, dv, dbias, dsink = _ops.backward(*joined, *optional, **keywords)
    if keywords["needs_dbias"]:
        shape = list(bias.shape)
        if bias_dim is not None:
            del shape[bias_dim]
        per_example = dbias.unflatten(0, (size, batch))
        if len(shape) < 4 or shape[0] == 1:
            per_example = per_example.sum(1, keepdim=True)
        dbias = per_example.reshape(size, *shape)
    else:
        dbias = dbias.expand(size, 0)
    tokens = tuple(x.unflatten(0, (size, -1)) for x in (dq, dk, dv))
    return (*tokens, dbias, dsink.expand(size, 0)), (0,) * 5


torch.library.register_vmap("attentile::forward", _forward, lib=_ops._LIBRARY)
torch.library.register_vmap("attentile::backward", _backward, lib=_ops._LIBRARY)

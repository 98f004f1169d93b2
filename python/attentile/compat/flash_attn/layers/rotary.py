# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding (Su et al. 2021) under the names of flash_attn.layers.rotary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from attentile.compat.flash_attn._arguments import check_tensor, indices, integer

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["apply_rotary_emb", "apply_rotary_emb_func"]


def _pairs(x: Tensor, rotary_dim: int, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Views of the first and second elements of the pairs that are rotated."""
    if interleaved:
        return x[..., 0:rotary_dim:2], x[..., 1:rotary_dim:2]
    return x[..., :rotary_dim // 2], x[..., rotary_dim // 2:rotary_dim]


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, out: Tensor) -> Tensor:
    """x with its pairs turned, into out, which may be x; in float32 or wider."""
    rotary_dim = 2 * cos.shape[-1]
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    cos, sin = cos.to(wide)[..., None, :], sin.to(wide)[..., None, :]
    first, second = (part.to(wide) for part in _pairs(x, rotary_dim, interleaved))
    turned = first * cos - second * sin, second * cos + first * sin
    for target, value in zip(_pairs(out, rotary_dim, interleaved), turned, strict=True):
        target.copy_(value)
    if out is not x:
        out[..., rotary_dim:] = x[..., rotary_dim:]
    return out


class _Rotary(torch.autograd.Function):
    """The rotation; its derivative is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool,
                inplace: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        if inplace:
            ctx.mark_dirty(x)
        return _rotated(x, cos, sin, interleaved, x if inplace else torch.empty_like(x))

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Any, ...]:
        cos, sin = ctx.saved_tensors
        dx = _rotated(dout, cos, -sin, ctx.interleaved, torch.empty_like(dout))
        return dx, None, None, None, None


def _positions(x: Tensor, seqlen_offsets: Any, cu_seqlens: Tensor | None) -> Tensor | slice:
    """Rows of cos and sin for each token: a slice where all sequences stand alike."""
    if cu_seqlens is None:
        check_tensor("x", x, ("batch", "seqlen", "num_heads", "head_dim"))
        batch, seqlen = x.shape[:2]
        if not isinstance(seqlen_offsets, torch.Tensor):
            offset = integer("seqlen_offsets", seqlen_offsets)
            return slice(offset, offset + seqlen)
        offsets = indices("seqlen_offsets", seqlen_offsets, (batch,)).long()
        return offsets[:, None] + torch.arange(seqlen)
    check_tensor("x", x, ("total", "num_heads", "head_dim"))
    bounds = indices("cu_seqlens", cu_seqlens, ("batch + 1",)).long()
    if int(bounds[0]) != 0 or int(bounds[-1]) != x.shape[0] or bool((bounds.diff() < 0).any()):
        raise ValueError(f"cu_seqlens: was {bounds.tolist()}, expected to rise from 0 to "
                         f"{x.shape[0]}, the rows of x")
    if isinstance(seqlen_offsets, torch.Tensor):
        origins = bounds[:-1] - indices("seqlen_offsets", seqlen_offsets, (bounds.numel() - 1,))
    else:
        origins = bounds[:-1] - integer("seqlen_offsets", seqlen_offsets)
    start = torch.repeat_interleave(origins, bounds.diff())
    return torch.arange(x.shape[0]) - start


def _rows(table: Tensor, positions: Tensor | slice) -> Tensor:
    """Rows of cos or sin; refuses positions that it has no row for."""
    seqlen = table.shape[0]
    if isinstance(positions, slice):
        low, high = positions.start, positions.stop - 1
    elif torch.compiler.is_compiling() or positions.numel() == 0:
        return table[positions]  # indexing checks too
    else:
        low, high = int(positions.min()), int(positions.max())
    if low < 0 or high >= seqlen:
        raise ValueError(f"cos, sin: have {seqlen} rows, expected one for each of positions {low} "
                         f"to {high} that seqlen_offsets leads to")
    return table[positions]


# signature of flash_attn.layers.rotary.apply_rotary_emb
def apply_rotary_emb(
    x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False, inplace: bool = False,
    seqlen_offsets: int | Tensor = 0, cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
) -> Tensor:
    """x with its first rotary_dim elements rotated by position, differentiable in x.

    Args:
        x: [batch, seqlen, num_heads, head_dim]; with cu_seqlens [total, num_heads, head_dim].
        cos, sin: [seqlen_rotary, rotary_dim / 2], rotary_dim <= head_dim; they get no gradient.
        interleaved: pairs are (0, 1), (2, 3), ... (GPT-J); else (0, rotary_dim / 2), ... (NeoX).
        inplace: write into x and return it.
        seqlen_offsets: the position of each sequence's first token, int or int32 [batch].
        cu_seqlens: int32 [batch + 1], where each sequence begins.
        max_seqlen: accepted with cu_seqlens, not needed.

    Returns: x's shape and dtype, computed in float32 (float64 for float64). Raises ValueError,
    TypeError. Source: flash_attn 2.8.
    """
    check_tensor("cos", cos, ("seqlen_rotary", "rotary_dim / 2"))
    check_tensor("sin", sin, tuple(cos.shape))
    positions = _positions(x, seqlen_offsets, cu_seqlens)
    if 2 * cos.shape[1] > x.shape[-1]:
        raise ValueError(f"cos: rotary_dim was {2 * cos.shape[1]}, expected at most {x.shape[-1]}, "
                         "the head_dim of x")
    rows = _rows(cos, positions), _rows(sin, positions)
    result: Tensor = _Rotary.apply(x, *rows, interleaved, inplace)  # type: ignore[no-untyped-call]
    return result


apply_rotary_emb_func = apply_rotary_emb

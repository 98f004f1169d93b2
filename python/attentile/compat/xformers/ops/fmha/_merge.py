# SPDX-License-Identifier: Apache-2.0
"""merge_attentions: attention over a union of keys, from attention over its parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

import attentile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def _parts(name: str, given: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """A stack of tensors, or a sequence of them, as a list."""
    parts = list(given.unbind(0)) if isinstance(given, torch.Tensor) else list(given)
    for part in parts:
        if not isinstance(part, torch.Tensor):
            raise TypeError(f"{name}: held a {type(part).__name__}, expected tensors")
        if part.requires_grad and torch.is_grad_enabled():
            raise attentile.UnsupportedError(f"{name}: requires a gradient, expected tensors "
                                             "without: merging has none")
    return parts


def merge_attentions(
    attn_split: Tensor | Sequence[Tensor], lse_split: Tensor | Sequence[Tensor],
    write_lse: bool = True, output_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor | None]:
    """(out, lse) over the union of disjoint keys, from (out, lse) of each part.

    Args:
        attn_split: parts [batch, M, heads, K] or [batch, M, groups, heads, K], in a sequence or
            stacked along a new first dimension.
        lse_split: for each [batch, heads, M] or [batch, groups, heads, M], natural logarithm, as
            `memory_efficient_attention_partial` returns it.
        write_lse: False: None comes in the place of lse.
        output_dtype: of out; default that of the parts.

    Raises ValueError, TypeError; UnsupportedError where a gradient is needed. Signature: xformers
    0.0.35.
    """
    outs, lses = _parts("attn_split", attn_split), _parts("lse_split", lse_split)
    if len(outs) != len(lses) or not outs:
        raise ValueError(f"lse_split: was {len(lses)} parts beside {len(outs)} of attn_split, "
                         "expected as many, and at least one")
    shape = tuple(outs[0].shape)
    if len(shape) not in (4, 5):
        raise ValueError(f"attn_split: had parts of shape {shape}, expected [batch, M, heads, K] "
                         "or [batch, M, groups, heads, K]")
    lse_shape = (shape[0], *shape[2:-1], shape[1])
    for name, parts, wanted in (("attn_split", outs, shape), ("lse_split", lses, lse_shape)):
        for i, part in enumerate(parts):
            if tuple(part.shape) != wanted:
                raise ValueError(f"{name}: part {i} was of shape {tuple(part.shape)}, expected "
                                 f"{wanted}")
    wide = torch.promote_types(outs[0].dtype, output_dtype or outs[0].dtype)
    lse_type = torch.float64 if wide == torch.float64 else torch.float32
    with torch.no_grad():
        pairs = [(o.to(wide).reshape(*shape[:2], -1, shape[-1]),
                  s.to(lse_type).reshape(shape[0], -1, shape[1]))
                 for o, s in zip(outs, lses, strict=True)]
        out, lse = attentile.merge(pairs)
    merged = out.reshape(shape).to(output_dtype or outs[0].dtype)
    return merged, lse.reshape(lse_shape).to(lses[0].dtype) if write_lse else None

# SPDX-License-Identifier: Apache-2.0
"""Masks of every sequence alike: causal and local ones, with the band that they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from attentile.compat.xformers.ops.fmha._seqinfo import check_cpu, lengths_of

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self


class _Band(NamedTuple):
    """Keys that a query sees within its sequence; -1: no bound."""

    causal: bool = False
    bottom_right: bool = True
    left: int = -1
    right: int = -1

    def keywords(self) -> dict[str, Any]:
        """The same as keywords of `attentile.attention`."""
        return {"causal": self.causal, "window_left": self.left, "window_right": self.right,
                "alignment": "bottom_right" if self.bottom_right else "top_left"}

    def visible(self, queries: int, keys: int) -> Tensor:
        """bool [queries, keys]"""
        offset = keys - queries if self.bottom_right else 0
        distance = torch.arange(keys)[None] - torch.arange(queries)[:, None] - offset
        seen = torch.ones(queries, keys, dtype=torch.bool)
        if self.causal:
            seen &= distance <= 0
        if self.left >= 0:
            seen &= distance >= -self.left
        if self.right >= 0:
            seen &= distance <= self.right
        return seen


class AttentionBias:
    """What may be given as attn_bias, besides a tensor."""

    @property
    def band(self) -> _Band:
        """What a query sees of its own sequence."""
        return _Band()

    def to(self, device: Any) -> Self:
        """Itself, for the CPU."""
        check_cpu(device)
        return self

    def visible(self, queries: int, keys: int) -> Tensor:
        """bool [queries, keys]: which pairs are not hidden."""
        return self.band.visible(queries, keys)

    def materialize(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32,
                    device: Any = "cpu") -> Tensor:
        """0 where a query sees a key, -inf elsewhere: a tensor of this shape, [..., queries, keys].

        For debugging and tests: the attention functions never call it.
        """
        check_cpu(device)
        if len(shape) < 2:
            raise ValueError(f"shape: was {tuple(shape)}, expected at least (queries, keys)")
        hidden = ~self.visible(*shape[-2:])
        mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)
        return mask.expand(*shape[:-2], *mask.shape)


class LowerTriangularMask(AttentionBias):
    """Query i sees keys j <= i, also where there are more keys than queries, or fewer."""

    def __init__(self, device: Any = None) -> None:
        check_cpu(device)

    @property
    def band(self) -> _Band:
        return _Band(causal=True, bottom_right=False)

    def add_bias(self, bias: Tensor) -> LowerTriangularMaskWithTensorBias:
        """The same with a tensor added to the scores."""
        return LowerTriangularMaskWithTensorBias(bias)


class LowerTriangularMaskWithTensorBias(LowerTriangularMask):
    """LowerTriangularMask and a tensor [batch, heads, queries, keys] added; it may need a
    gradient."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self._bias = bias

    def materialize(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32,
                    device: Any = "cpu") -> Tensor:
        return super().materialize(shape, dtype, device) + self._bias


class LowerTriangularFromBottomRightMask(AttentionBias):
    """The last query sees the last key, each earlier query one key less."""

    @property
    def band(self) -> _Band:
        return _Band(causal=True)

    def make_local_attention(
            self, window_size: int) -> LowerTriangularFromBottomRightLocalAttentionMask:
        """The same within the last window_size keys of each query."""
        return LowerTriangularFromBottomRightLocalAttentionMask(window_size)


@dataclass
class LowerTriangularFromBottomRightLocalAttentionMask(LowerTriangularFromBottomRightMask):
    """A query sees its own key and the window_size - 1 before it, counted from the last ones."""

    _window_size: int

    def __post_init__(self) -> None:
        lengths_of("window_size", [self._window_size], 1)

    @property
    def band(self) -> _Band:
        return _Band(causal=True, left=self._window_size - 1)


@dataclass
class LocalAttentionFromBottomRightMask(AttentionBias):
    """A query sees window_left keys before its own and window_right after, counted from the last
    ones."""

    window_left: int
    window_right: int

    def __post_init__(self) -> None:
        lengths_of("window_left", [self.window_left])
        lengths_of("window_right", [self.window_right])

    @property
    def band(self) -> _Band:
        return _Band(left=self.window_left, right=self.window_right)

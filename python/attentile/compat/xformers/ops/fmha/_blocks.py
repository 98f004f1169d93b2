# SPDX-License-Identifier: Apache-2.0
"""Block-diagonal masks: sequences packed back to back, and keys with room to grow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from attentile.compat.xformers.ops.fmha._dense import (
    AttentionBias,
    LocalAttentionFromBottomRightMask,
    _Band,
)
from attentile.compat.xformers.ops.fmha._seqinfo import (
    _PaddedSeqLenInfo,
    _SeqLenInfo,
    lengths_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from typing_extensions import Self

    from attentile.compat.xformers.ops.fmha._paged import PagedBlockDiagonalPaddedKeysMask


@dataclass(eq=False)
class _Divided(AttentionBias):
    """Queries and keys divided into sequences; a query sees keys of its own sequence only."""

    q_seqinfo: _SeqLenInfo
    k_seqinfo: Any

    def __post_init__(self) -> None:
        queries, keys = (len(info.seqstart_py) - 1 for info in (self.q_seqinfo, self.k_seqinfo))
        if queries != keys:
            raise ValueError(f"k_seqinfo: was of {keys} sequences, expected {queries} as of "
                             "q_seqinfo")

    def check_totals(self, queries: int, keys: int) -> None:
        """ValueError unless there are as many queries and keys as were divided."""
        for name, n, wanted in (("query", queries, self.q_seqinfo.total),
                                ("key", keys, self.k_seqinfo.total)):
            if n != wanted:
                raise ValueError(f"{name}: had {n} tokens, expected {wanted} as attn_bias divides")

    def arrange(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """(k, v, keywords) of the library's call; k, v are [tokens, heads, head size]."""
        return k, v, {"cu_seqlens_q": self.q_seqinfo.seqstart,
                      "cu_seqlens_k": self.k_seqinfo.seqstart, **self.band.keywords()}

    def visible(self, queries: int, keys: int) -> Tensor:
        self.check_totals(queries, keys)
        seen = torch.zeros(queries, keys, dtype=torch.bool)
        for (a, b), (c, d) in zip(self.q_seqinfo.intervals(), self.k_seqinfo.intervals(),
                                  strict=True):
            seen[a:b, c:d] = self.band.visible(b - a, d - c)
        return seen


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """[batch, tokens, ...] each, as one [1, all tokens, ...]."""
    return torch.cat([x.reshape(1, x.shape[0] * x.shape[1], *x.shape[2:]) for x in tensors], dim=1)


@dataclass(eq=False)
class BlockDiagonalMask(_Divided):
    """Sequences packed back to back: q, k and v are [1, tokens, heads, head size]."""

    _batch_sizes: Sequence[int] | None = None

    @classmethod
    def from_seqlens(cls, q_seqlen: Sequence[int], kv_seqlen: Sequence[int] | None = None, *,
                     device: Any = None) -> Self:
        """From the lengths of the sequences; those of keys default to those of queries."""
        q_seqinfo = _SeqLenInfo.from_seqlens(q_seqlen, device=device)
        if kv_seqlen is None:
            return cls(q_seqinfo, q_seqinfo)
        return cls(q_seqinfo, _SeqLenInfo.from_seqlens(kv_seqlen, device=device))

    @classmethod
    def from_tensor_list(cls, tensors: Sequence[Tensor]) -> tuple[Self, Tensor]:
        """(mask, one tensor [1, tokens, ...]) of tensors [batch_i, tokens_i, ...]."""
        mask = cls.from_seqlens([n for x in tensors for n in [x.shape[1]] * x.shape[0]])
        mask._batch_sizes = [x.shape[0] for x in tensors]
        return mask, _joined(tensors)

    @classmethod
    def from_tensor_lists_qkv(
        cls, tensors_q: Sequence[Tensor], tensors_k: Sequence[Tensor],
        tensors_v: Sequence[Tensor] | None = None,
    ) -> tuple[Self, Tensor, Tensor, Tensor | None]:
        """(mask, q, k, v) of lists of tensors [batch_i, tokens_i, ...]."""
        for name, tensors in (("tensors_k", tensors_k), ("tensors_v", tensors_v)):
            if tensors is None:
                continue
            like = tensors_q if name == "tensors_k" else tensors_k
            dims = 1 if name == "tensors_k" else 2
            wanted = [tuple(x.shape[:dims]) for x in like]
            found = [tuple(x.shape[:dims]) for x in tensors]
            if found != wanted:
                raise ValueError(f"{name}: was of shapes that begin {found}, expected {wanted}")
        lengths = [[n for x in tensors for n in [x.shape[1]] * x.shape[0]]
                   for tensors in (tensors_q, tensors_k)]
        mask = cls.from_seqlens(*lengths)
        mask._batch_sizes = [x.shape[0] for x in tensors_q]
        return (mask, _joined(tensors_q), _joined(tensors_k),
                None if tensors_v is None else _joined(tensors_v))

    def split_queries(self, tensor: Tensor) -> list[Tensor]:
        """[1, tokens, ...] as the list of its sequences."""
        return self.q_seqinfo.split(tensor, self._batch_sizes)

    def split_kv(self, tensor: Tensor) -> list[Tensor]:
        """The same for keys and values."""
        return list(self.k_seqinfo.split(tensor, self._batch_sizes))

    def split(self, tensor: Tensor) -> list[Tensor]:
        """The inverse of from_tensor_list, of one division for queries and keys."""
        if self.q_seqinfo.seqstart_py != self.k_seqinfo.seqstart_py:
            raise ValueError("split: queries and keys were divided differently, expected "
                             "split_queries or split_kv to be called")
        return self.split_queries(tensor)

    def _made(self, kind: type[Any], **fields: Any) -> Any:
        return kind(self.q_seqinfo, self.k_seqinfo, self._batch_sizes, **fields)

    def make_causal(self) -> BlockDiagonalCausalMask:
        """Each block LowerTriangularMask."""
        return self._made(BlockDiagonalCausalMask)  # type: ignore[no-any-return]

    def make_causal_from_bottomright(self) -> BlockDiagonalCausalFromBottomRightMask:
        """Each block LowerTriangularFromBottomRightMask."""
        kind = BlockDiagonalCausalFromBottomRightMask
        return self._made(kind)  # type: ignore[no-any-return]

    def make_local_attention(self, window_size: int) -> BlockDiagonalCausalLocalAttentionMask:
        """Each block causal within window_size keys."""
        kind = BlockDiagonalCausalLocalAttentionMask
        return self._made(kind, _window_size=window_size)  # type: ignore[no-any-return]

    def make_local_attention_from_bottomright(
            self, window_size: int) -> BlockDiagonalCausalLocalAttentionFromBottomRightMask:
        """The same, counted from the last query and key of each block."""
        kind = BlockDiagonalCausalLocalAttentionFromBottomRightMask
        return self._made(kind, _window_size=window_size)  # type: ignore[no-any-return]

    def _blocks(self) -> list[tuple[int, int]]:
        """(queries, keys) of each block."""
        return [(b - a, d - c) for (a, b), (c, d) in zip(
            self.q_seqinfo.intervals(), self.k_seqinfo.intervals(), strict=True)]


@dataclass(eq=False)
class BlockDiagonalCausalMask(BlockDiagonalMask):
    """Each block is a LowerTriangularMask."""

    @property
    def band(self) -> _Band:
        return _Band(causal=True, bottom_right=False)


@dataclass(eq=False)
class BlockDiagonalCausalFromBottomRightMask(BlockDiagonalMask):
    """Each block is a LowerTriangularFromBottomRightMask, with no more queries than keys."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for i, (queries, keys) in enumerate(self._blocks()):
            if keys < queries:
                raise ValueError(f"kv_seqlen: block {i} had {keys} keys for {queries} queries, "
                                 "expected at least as many keys as queries")

    @property
    def band(self) -> _Band:
        return _Band(causal=True)


@dataclass(eq=False)
class BlockDiagonalCausalLocalAttentionMask(BlockDiagonalCausalMask):
    """Each block causal, and within window_size keys: query i sees i - window_size < j <= i."""

    _window_size: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        lengths_of("window_size", [self._window_size], 1)
        for i, (queries, keys) in enumerate(self._blocks()):
            if queries - self._window_size >= keys:
                raise ValueError(f"window_size: was {self._window_size}, expected more than "
                                 f"{queries - keys}: queries of block {i} would see no key")

    @property
    def band(self) -> _Band:
        return _Band(causal=True, bottom_right=False, left=self._window_size - 1)


@dataclass(eq=False)
class BlockDiagonalCausalLocalAttentionFromBottomRightMask(BlockDiagonalCausalFromBottomRightMask):
    """Each block a LowerTriangularFromBottomRightLocalAttentionMask."""

    _window_size: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        lengths_of("window_size", [self._window_size], 1)

    @property
    def band(self) -> _Band:
        return _Band(causal=True, left=self._window_size - 1)


@dataclass(eq=False)
class BlockDiagonalPaddedKeysMask(_Divided):
    """Keys of sequence i lie from i * kv_padding on, kv_seqlen[i] of them in use."""

    k_seqinfo: _PaddedSeqLenInfo

    @classmethod
    def from_seqlens(cls, q_seqlen: Sequence[int], kv_padding: int, kv_seqlen: Sequence[int],
                     causal_diagonal: Any = None, *, device: Any = None) -> Self:
        """From lengths of queries, room for keys, keys in use; causal_diagonal is not used."""
        return cls(_SeqLenInfo.from_seqlens(q_seqlen, device=device),
                   _PaddedSeqLenInfo.from_seqlens_padded(kv_seqlen, kv_padding, device=device))

    def arrange(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        k, v, keywords = super().arrange(k, v)
        return k, v, {**keywords, "seqused_k": self.k_seqinfo.seqlen}

    def make_local_attention(self, window_left: int,
                             window_right: int) -> BlockDiagonalLocalAttentionPaddedKeysMask:
        """The same within windows, counted from the last query and key in use."""
        return BlockDiagonalLocalAttentionPaddedKeysMask(self.q_seqinfo, self.k_seqinfo,
                                                         window_left, window_right)

    def make_paged(self, block_tables: Tensor, page_size: int,
                   paged_type: type[Any]) -> PagedBlockDiagonalPaddedKeysMask:
        """The same for keys in pages; paged_type: the class of the result."""
        made = paged_type.from_seqlens([b - a for a, b in self.q_seqinfo.intervals()],
                                       self.k_seqinfo.seqlen_py, block_tables, page_size)
        return made  # type: ignore[no-any-return]


@dataclass(eq=False)
class BlockDiagonalCausalWithOffsetPaddedKeysMask(BlockDiagonalPaddedKeysMask):
    """The last query of a sequence sees its last key in use, each earlier query one less."""

    causal_diagonal: Any = None

    @property
    def band(self) -> _Band:
        return _Band(causal=True)


@dataclass(eq=False)
class BlockDiagonalLocalAttentionPaddedKeysMask(BlockDiagonalPaddedKeysMask):
    """LocalAttentionFromBottomRightMask on the keys in use of each sequence."""

    window_left: int
    window_right: int

    def __post_init__(self) -> None:
        super().__post_init__()
        LocalAttentionFromBottomRightMask(self.window_left, self.window_right)

    @property
    def band(self) -> _Band:
        return _Band(left=self.window_left, right=self.window_right)

    # signature of xformers
    @classmethod
    def from_seqlens_local(cls, q_seqlen: Sequence[int], kv_padding: int, kv_seqlen: Sequence[int],
                           window_left: int, window_right: int) -> Self:
        """As from_seqlens, with the windows."""
        return cls(_SeqLenInfo.from_seqlens(q_seqlen),
                   _PaddedSeqLenInfo.from_seqlens_padded(kv_seqlen, kv_padding),
                   window_left, window_right)


@dataclass(eq=False)
class BlockDiagonalCausalLocalAttentionPaddedKeysMask(BlockDiagonalPaddedKeysMask):
    """LowerTriangularFromBottomRightLocalAttentionMask on the keys in use of each sequence."""

    _window_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        lengths_of("window_size", [self._window_size], 1)

    @property
    def band(self) -> _Band:
        return _Band(causal=True, left=self._window_size - 1)

    @classmethod
    def from_seqlens_local(cls, q_seqlen: Sequence[int], kv_padding: int, kv_seqlen: Sequence[int],
                           window_size: int) -> Self:
        """As from_seqlens, with the window."""
        return cls(_SeqLenInfo.from_seqlens(q_seqlen),
                   _PaddedSeqLenInfo.from_seqlens_padded(kv_seqlen, kv_padding), window_size)

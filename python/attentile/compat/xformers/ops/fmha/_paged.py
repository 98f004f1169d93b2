# SPDX-License-Identifier: Apache-2.0
"""Block-diagonal masks whose keys lie anywhere: with gaps, or in pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from attentile.compat.xformers.ops.fmha._blocks import _Divided
from attentile.compat.xformers.ops.fmha._dense import _Band
from attentile.compat.xformers.ops.fmha._seqinfo import (
    _GappySeqInfo,
    _PaddedSeqLenInfo,
    _SeqLenInfo,
    lengths_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from typing_extensions import Self


@dataclass(eq=False)
class BlockDiagonalGappyKeysMask(_Divided):
    """Keys of sequence i lie from kv_seqstarts[i] on, kv_seqlen[i] of them."""

    k_seqinfo: _GappySeqInfo

    @classmethod
    def from_seqlens(cls, q_seqlen: Sequence[int], kv_seqstarts: Sequence[int],
                     kv_seqlen: Sequence[int], *, device: Any = None) -> Self:
        """kv_seqstarts is one longer than kv_seqlen: its last is the number of keys."""
        return cls(_SeqLenInfo.from_seqlens(q_seqlen, device=device),
                   _GappySeqInfo.from_seqlens_gappy(kv_seqstarts, kv_seqlen, False, device=device))

    def arrange(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        starts, lengths = self.k_seqinfo.seqstart_py, self.k_seqinfo.seqlen_py
        words = {"cu_seqlens_q": self.q_seqinfo.seqstart, **self.band.keywords()}
        if all(a + n <= b for a, n, b in zip(starts, lengths, starts[1:], strict=False)):
            # Keys before the first sequence are those of one that has no query and uses no key.
            nothing = torch.zeros(1, dtype=torch.int32)
            return k, v, {
                **words, "cu_seqlens_q": torch.cat((nothing, self.q_seqinfo.seqstart)),
                "cu_seqlens_k": torch.cat((nothing, self.k_seqinfo.seqstart)),
                "seqused_k": torch.cat((nothing, self.k_seqinfo.seqlen))}
        # Out of order, or sharing keys: one row of a cache, read from each start; forward only.
        row = torch.zeros(len(lengths), dtype=torch.int32)
        begin = self.k_seqinfo.seqstart[:-1]
        return k[None], v[None], {**words, "cache_batch_idx": row, "leftpad_k": begin,
                                  "seqused_k": begin + self.k_seqinfo.seqlen}

    def make_paged(self, block_tables: Tensor, page_size: int, notional_padding: int,
                   paged_type: type[Any]) -> PagedBlockDiagonalGappyKeysMask:
        """The same for keys in pages, of sequences that have notional_padding keys of room here."""
        starts = [a - i * notional_padding
                  for i, a in enumerate(self.k_seqinfo.seqstart_py[:-1])]
        room = block_tables.shape[1] * page_size
        if any(not 0 <= a < room for a in starts):
            raise ValueError(f"notional_padding: was {notional_padding}, which puts the starts of "
                             f"keys at {starts}, expected 0 to {room - 1}")
        made = paged_type.from_seqlens([b - a for a, b in self.q_seqinfo.intervals()], starts,
                                       self.k_seqinfo.seqlen_py, block_tables, page_size)
        return made  # type: ignore[no-any-return]


@dataclass(eq=False)
class BlockDiagonalCausalWithOffsetGappyKeysMask(BlockDiagonalGappyKeysMask):
    """The last query of a sequence sees its last key, each earlier query one less."""

    @property
    def band(self) -> _Band:
        return _Band(causal=True)


@dataclass(eq=False)
class _Paged(_Divided):
    """Keys in pages: k, v are [1, pages * page_size, heads, head size], read in place.

    block_tables is [sequences, pages of each] int32.
    """

    block_tables: Tensor
    page_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        size = lengths_of("page_size", [self.page_size], 1)[0]
        tables = self.block_tables
        sequences = len(self.q_seqinfo.seqstart_py) - 1
        if tables.dim() != 2 or tables.shape[0] != sequences:
            raise ValueError(f"block_tables: was of shape {tuple(tables.shape)}, expected "
                             f"({sequences}, pages)")
        if tables.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"block_tables: was of {tables.dtype}, expected int32 or int64")
        room = tables.shape[1] * size
        if any(n > room for n in self.k_seqinfo.seqlen_py):
            raise ValueError(f"kv_seqlen: sequences end at {list(self.k_seqinfo.seqlen_py)}, "
                             f"expected at most {room}, the room of block_tables")

    def check_totals(self, queries: int, keys: int) -> None:
        if queries != self.q_seqinfo.total:
            raise ValueError(f"query: had {queries} tokens, expected {self.q_seqinfo.total} as "
                             "attn_bias divides")
        if keys % self.page_size:
            raise ValueError(f"key: had {keys} tokens, expected a multiple of page_size, "
                             f"{self.page_size}")

    def arrange(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        k, v = (x.unflatten(0, (x.shape[0] // self.page_size, self.page_size)) for x in (k, v))
        return k, v, {"cu_seqlens_q": self.q_seqinfo.seqstart, **self.band.keywords(),
                      "block_table": self.block_tables.to(torch.int32),
                      "seqused_k": self.k_seqinfo.seqlen}

    def _spans(self) -> list[tuple[int, int]]:
        """(first, last + 1) of each sequence's keys, among its own pages."""
        return [(0, n) for n in self.k_seqinfo.seqlen_py]

    def visible(self, queries: int, keys: int) -> Tensor:
        """Over the keys of all pages, as they lie in memory."""
        self.check_totals(queries, keys)
        seen = torch.zeros(queries, keys, dtype=torch.bool)
        slots = torch.arange(self.page_size)
        for (a, b), (c, d), pages in zip(self.q_seqinfo.intervals(), self._spans(),
                                         self.block_tables, strict=True):
            places = (pages.long()[:, None] * self.page_size + slots).flatten()[c:d]
            seen[a:b, places] = self.band.visible(b - a, d - c)
        return seen


@dataclass(eq=False)
class PagedBlockDiagonalPaddedKeysMask(_Paged):
    """BlockDiagonalPaddedKeysMask with its keys in pages; forward only."""

    @classmethod
    def from_seqlens(cls, q_seqlen: Sequence[int], kv_seqlen: Sequence[int], block_tables: Tensor,
                     page_size: int, *, device: Any = None) -> Self:
        """From lengths of queries and of keys in use, and where the pages are."""
        room = block_tables.shape[-1] * page_size
        return cls(_SeqLenInfo.from_seqlens(q_seqlen, device=device),
                   _PaddedSeqLenInfo.from_seqlens_padded(kv_seqlen, room, device=device),
                   block_tables, page_size)


@dataclass(eq=False)
class PagedBlockDiagonalCausalWithOffsetPaddedKeysMask(PagedBlockDiagonalPaddedKeysMask):
    """BlockDiagonalCausalWithOffsetPaddedKeysMask with its keys in pages; forward only."""

    @property
    def band(self) -> _Band:
        return _Band(causal=True)


@dataclass(eq=False)
class PagedBlockDiagonalGappyKeysMask(_Paged):
    """Keys in pages that do not begin with the first of them; forward only."""

    # signature of xformers
    @classmethod
    def from_seqlens(cls, q_seqlen: Sequence[int], kv_seqstarts: Sequence[int],
                     kv_seqlen: Sequence[int], block_tables: Tensor, page_size: int, *,
                     device: Any = None) -> Self:
        """kv_seqstarts[i] counts among the pages of sequence i, and is as long as kv_seqlen."""
        return cls(_SeqLenInfo.from_seqlens(q_seqlen, device=device),
                   _GappySeqInfo.from_seqlens_gappy(kv_seqstarts, kv_seqlen, True, device=device),
                   block_tables, page_size)

    def arrange(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        k, v, keywords = super().arrange(k, v)
        return k, v, {**keywords, "leftpad_k": self.k_seqinfo.seqstart[:-1]}

    def _spans(self) -> list[tuple[int, int]]:
        return list(zip(self.k_seqinfo.seqstart_py, self.k_seqinfo.seqlen_py, strict=False))


@dataclass(eq=False)
class PagedBlockDiagonalCausalWithOffsetGappyKeysMask(PagedBlockDiagonalGappyKeysMask):
    """BlockDiagonalCausalWithOffsetGappyKeysMask with its keys in pages; forward only."""

    @property
    def band(self) -> _Band:
        return _Band(causal=True)
